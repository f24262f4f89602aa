"""Splits of interactions into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import Interactions
from mmssl.errors import InputError


def random_holdout(
    user: npt.ArrayLike,
    item: npt.ArrayLike,
    ratios: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> tuple[Interactions, Interactions, Interactions]:
    """Splits the interactions of each user at random.

    Of a user's n interactions, round(n * ratio) go to validation and to test each, at least one
    and never so many that train has none; users with fewer than three keep all in train. The
    result depends on the set of interactions and the seed, not on their order.

    Args:
        user: (E,) integers.
        item: (E,) integers; no (user, item) twice.
        ratios: Shares of train, validation and test: positive, summing to 1.
        seed: Seed of the generator.

    Returns:
        Train, validation, test.

    Raises:
        InputError: Other ratios, or edges that are not unique pairs of integers.
    """
    if len(ratios) != 3 or not all(0 < share < 1 for share in ratios):
        raise InputError(f"ratios must be three shares in (0, 1), got {tuple(ratios)}")
    if abs(sum(ratios) - 1) > 1e-6:
        raise InputError(f"ratios must sum to 1, got {sum(ratios):g}")
    edges = Interactions.from_edges(user, item)
    same = (np.diff(edges.user) == 0) & (np.diff(edges.item) == 0)
    if same.any():
        first = int(np.argmax(same))
        raise InputError(
            f"interactions must be unique, got user {edges.user[first]}, "
            f"item {edges.item[first]} twice"
        )
    count = edges.num_edges
    # Shuffled within each user: edges are sorted by user, so the sort keeps the users' runs.
    order = np.lexsort((np.random.default_rng(seed).random(count), edges.user))
    _, starts, lengths = np.unique(edges.user, return_index=True, return_counts=True)
    enough = lengths >= 3
    num_val = np.clip(np.floor(lengths * ratios[1] + 0.5), 1, lengths - 2) * enough
    num_test = np.clip(np.floor(lengths * ratios[2] + 0.5), 1, lengths - 1 - num_val) * enough

    rank = np.arange(count) - np.repeat(starts, lengths)  # (E,) place among the user's edges
    end_of_val = np.repeat(num_val, lengths)
    end_of_test = np.repeat(num_val + num_test, lengths)
    in_val, in_test = rank < end_of_val, (rank >= end_of_val) & (rank < end_of_test)

    def chosen(mask: npt.NDArray[np.bool_]) -> Interactions:
        return Interactions.from_edges(edges.user[order[mask]], edges.item[order[mask]])

    return chosen(~(in_val | in_test)), chosen(in_val), chosen(in_test)
