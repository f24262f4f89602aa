"""Splits of interactions into train, validation and test.

Every protocol assigns one label to each interaction: 0 train, 1 validation, 2 test. Random numbers
are taken from the raw output of PCG64, which NumPy guarantees to keep stable. A split depends on
the set of interactions and the seed but not on their order, and is identical on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import (
    IdArray,
    IntArray,
    blocks,
    counts,
    row_numbers,
    whole_users,
    without_gaps,
)
from mmssl.data.dataset import Interactions
from mmssl.errors import InputError

Labels = npt.NDArray[np.int8]
TRAIN, VAL, TEST = 0, 1, 2
PROTOCOLS = (
    "random",
    "random-global",
    "leave-one-out",
    "leave-one-out-random",
    "temporal",
    "cold-item",
)


class Pairs(NamedTuple):
    """Unique edges sorted by (user, item), of which a hundred million should not take 1.6 GB."""

    user: IdArray
    """(E,) int32 or int64."""
    item: IdArray
    """(E,) likewise."""


Edges = Pairs | Interactions


def assign(
    protocol: str,
    edges: Edges,
    time: npt.NDArray[Any] | None,
    ratio: Sequence[float],
    seed: int,
) -> Labels:
    """Label interactions according to a protocol.

    Args:
        protocol: ``random`` splits the interactions of each user by ``ratio``; ``random-global``
            splits all interactions together; ``leave-one-out`` takes the last interaction of each
            user for test and the previous one for validation; ``leave-one-out-random`` takes two
            random ones; ``temporal`` splits at two points in time that are the same for all users;
            ``cold-item`` splits the items by ``ratio``, each with all its interactions.
        edges: (E,) users and items, unique and sorted by (user, item).
        time: (E,) times, required by ``leave-one-out`` and ``temporal``; None if unknown.
        ratio: Proportions of train, validation and test, summing to 1.
        seed: Random seed.

    Returns:
        (E,) labels: 0 train, 1 validation, 2 test.

    Raises:
        InputError: ``protocol`` or ``ratio`` is invalid, or a protocol that goes by time is used
            without times.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    check_ratio(ratio)
    if protocol == "random":
        return _random(edges, ratio, seed)
    if protocol == "random-global":
        return _random_global(edges, ratio, seed)
    if protocol == "leave-one-out-random":
        return _leave_one_out(edges, _Draw(seed))
    if protocol == "cold-item":
        return _cold_item(edges, ratio, seed)
    if time is None:
        without = "leave-one-out-random" if protocol == "leave-one-out" else "random-global"
        raise InputError(
            f"protocol {protocol}: expected data with times, got data without: import them with "
            "--time-col NAME, or with --ordered if the rows are in order of time; "
            f"--protocol {without} needs none"
        )
    if protocol == "leave-one-out":
        return _leave_one_out(edges, lambda part: np.negative(time[part]))
    return _temporal(time, ratio)


def check_ratio(ratio: Sequence[float]) -> None:
    """Raise InputError unless ``ratio`` is three positive numbers that sum to 1."""
    if len(ratio) != 3 or not all(0 < share < 1 for share in ratio):
        raise InputError(f"ratios must be three numbers in (0, 1), got {tuple(ratio)}")
    if abs(sum(ratio) - 1) > 1e-6:
        raise InputError(f"ratios must sum to 1, got {sum(ratio):g}")


def random_holdout(
    user: npt.ArrayLike,
    item: npt.ArrayLike,
    ratios: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> tuple[Interactions, Interactions, Interactions]:
    """Split the interactions of each user at random.

    Of a user's n interactions, round(n * ratio) are assigned to validation and to test, at least
    one to each, but always leaving one in train. Users with fewer than three interactions keep all
    of them in train.

    Args:
        user: (E,) integers.
        item: (E,) integers; pairs (user, item) are unique.
        ratios: Proportions of train, validation and test; positive, summing to 1.
        seed: Random seed.

    Returns:
        Train, validation and test interactions.

    Raises:
        InputError: ``ratios`` is invalid, or the edges are not unique pairs of integers.
    """
    check_ratio(ratios)
    edges = Interactions.from_edges(user, item)
    same = (np.diff(edges.user) == 0) & (np.diff(edges.item) == 0)
    if same.any():
        first = int(np.argmax(same))
        raise InputError(
            f"interactions must be unique, got user {edges.user[first]}, "
            f"item {edges.item[first]} twice"
        )
    return by_label(edges, assign("random", edges, None, ratios, seed))


def draw_validation(edges: Edges, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose train interactions for a validation split, for data that come without one.

    Of a user's n interactions, round(n * share) are drawn at random, at least one. Users with
    fewer than three keep all of them.

    Args:
        edges: (E,) train interactions, unique and sorted by (user, item).
        share: Proportion of each user's interactions, in (0, 1).
        seed: Random seed.

    Returns:
        (E,) True for the interactions of the validation split.
    """
    draw, chosen = _Draw(seed), np.empty(edges.user.size, dtype=np.bool_)
    for part in whole_users(edges.user):
        rank, length = _of_each_user(edges.user[part], draw(part))
        count = np.clip(np.floor(length * share + 0.5), 1, None) * (length >= 3)
        chosen[part] = rank < count
    return chosen


def by_label(edges: Edges, label: Labels) -> tuple[Interactions, Interactions, Interactions]:
    """Divide sorted edges into train, validation and test by their labels."""
    train, val, test = (
        Interactions(*(ids[label == split].astype(np.int64) for ids in edges))
        for split in (TRAIN, VAL, TEST)
    )
    return train, val, test


def k_core(user: IdArray, item: IdArray, user_k: int, item_k: int) -> IdArray:
    """Find the largest set of edges in which every user and item has a minimum degree.

    Args:
        user: (E,) ids from 0.
        item: (E,) ids from 0.
        user_k: Minimum number of edges per remaining user.
        item_k: Minimum number of edges per remaining item.

    Returns:
        Indices of the remaining edges, ascending and possibly empty.
    """
    place = row_numbers(user.size) - 1
    if not place.size:
        return place
    num_users, num_items = int(user.max()) + 1, int(item.max()) + 1
    while place.size:
        stays = (counts(user, num_users) >= user_k)[user]
        stays &= (counts(item, num_items) >= item_k)[item]
        if stays.all():
            break
        user, item, place = user[stays], item[stays], place[stays]
    return place


class _Draw:
    """Uniform numbers in [0, 1), a stable ``default_rng(seed).random``, drawn part by part."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def __call__(self, part: slice) -> npt.NDArray[np.float64]:
        """Draw the numbers of the edges ``part``, which follow those of the last call."""
        raw = np.asarray(self._bits.random_raw(part.stop - part.start), dtype=np.uint64)
        uniform: npt.NDArray[np.float64] = (raw >> np.uint64(11)) * 2.0**-53
        return uniform


def _draw(count: int, seed: int) -> npt.NDArray[np.float64]:
    """Draw (count,) uniform numbers in [0, 1)."""
    draw, uniform = _Draw(seed), np.empty(count)
    for part in blocks(count):
        uniform[part] = draw(part)
    return uniform


def _share(lengths: IntArray, ratio: Sequence[float]) -> tuple[IntArray, IntArray]:
    """Return the sizes of validation and test for groups of n: at least 1 each, 0 if n < 3."""
    enough = lengths >= 3
    num_val = np.clip(np.floor(lengths * ratio[1] + 0.5), 1, lengths - 2) * enough
    num_test = np.clip(np.floor(lengths * ratio[2] + 0.5), 1, lengths - 1 - num_val) * enough
    return num_val.astype(np.int64), num_test.astype(np.int64)


def _of_each_user(user: IdArray, order: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Rank each edge among the edges of its user by ``order``; ties stay sorted by item.

    Args:
        user: (n,) sorted.
        order: (n,) numbers to rank by.

    Returns:
        (n,) rank of each edge, and (n,) number of edges of its user.
    """
    ranked = np.lexsort((order, user))  # edges are sorted by user: each stays contiguous
    _, starts, lengths = np.unique(user, return_index=True, return_counts=True)
    rank = np.empty(user.size, dtype=np.int64)
    rank[ranked] = np.arange(user.size) - np.repeat(starts, lengths)
    return rank, np.repeat(lengths, lengths)


def _random(edges: Edges, ratio: Sequence[float], seed: int) -> Labels:
    draw, label = _Draw(seed), np.empty(edges.user.size, dtype=np.int8)
    for part in whole_users(edges.user):
        rank, length = _of_each_user(edges.user[part], draw(part))
        label[part] = _first_val_then_test(rank, *_share(length, ratio))
    return label


def _random_global(edges: Edges, ratio: Sequence[float], seed: int) -> Labels:
    size = edges.user.size
    num_val, num_test = (int(count) for count in _share(np.array(size), ratio))
    ranked = np.argsort(_draw(size, seed), kind="stable")
    label = np.full(size, TRAIN, dtype=np.int8)
    label[ranked[:num_val]] = VAL
    label[ranked[num_val : num_val + num_test]] = TEST
    return label


def _leave_one_out(edges: Edges, order: Callable[[slice], npt.NDArray[Any]]) -> Labels:
    label = np.full(edges.user.size, TRAIN, dtype=np.int8)
    for part in whole_users(edges.user):
        rank, length = _of_each_user(edges.user[part], order(part))
        of_part = label[part]
        of_part[(rank == 0) & (length >= 3)] = TEST
        of_part[(rank == 1) & (length >= 3)] = VAL
    return label


def _temporal(time: npt.NDArray[Any], ratio: Sequence[float]) -> Labels:
    """Split at two points in time; interactions at a point belong to the later split."""
    ordered = np.sort(time)
    places = np.floor(np.array([ratio[0], ratio[0] + ratio[1]]) * time.size + 0.5).astype(np.int64)
    val_from, test_from = ordered[np.minimum(places, time.size - 1)]
    label = np.full(time.size, TRAIN, dtype=np.int8)
    label[time >= val_from] = VAL
    label[time >= test_from] = TEST
    return label


def _cold_item(edges: Edges, ratio: Sequence[float], seed: int) -> Labels:
    items, which = without_gaps(edges.item, int(edges.item.max()) + 1)
    rank = _rank(_draw(items.size, seed))
    return _first_val_then_test(rank, *_share(np.array(items.size), ratio))[which]


def _rank(values: npt.NDArray[np.float64]) -> IntArray:
    rank = np.empty(values.size, dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(values.size)
    return rank


def _first_val_then_test(rank: IntArray, num_val: IntArray, num_test: IntArray) -> Labels:
    label = np.full(rank.size, TRAIN, dtype=np.int8)
    label[rank < num_val + num_test] = TEST
    label[rank < num_val] = VAL
    return label
