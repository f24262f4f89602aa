"""Top-k recommendations from embeddings, and the way from outside ids to indices and titles.

Legend: U users, I items, D embedding dim, B users asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

# Looking for ids that resemble a mistyped one compares strings one by one; this many take a moment.
_MAX_COMPARED_IDS = 20_000


class Recommendation(NamedTuple):
    """One item of a ranked list."""

    item: int
    score: float


class UserRecommendations(NamedTuple):
    """A user's list in words, for people to read."""

    user: str  # the id as the data set's owner knows it
    history: tuple[str, ...]  # labels of train items, at most as many as were asked for
    items: tuple[tuple[str, float], ...]  # (label, score), best first


def recommend(
    user_emb: Tensor,
    item_emb: Tensor,
    graph: InteractionGraph,
    users: Sequence[int],
    k: int,
) -> list[list[Recommendation]]:
    """The k best items of each user, without those of the train graph.

    Args:
        user_emb: (U, D), on the graph's device.
        item_emb: (I, D).
        graph: The train graph, whose edges are left out.
        users: B user indices.
        k: Length of the lists; a user with fewer items left gets a shorter one.

    Returns:
        One list per user of `users`, best first, equal scores by smaller item index.

    Raises:
        InputError: k below 1, a user out of range, or tables of another size than the graph.
    """
    if k < 1:
        raise InputError(f"k: expected at least 1, got {k}")
    for name, table, rows in (
        ("user_emb", user_emb, graph.num_users),
        ("item_emb", item_emb, graph.num_items),
    ):
        if table.dim() != 2 or table.shape[0] != rows:
            raise InputError(f"{name}: expected shape ({rows}, D), got {tuple(table.shape)}")
    for user in users:
        if not 0 <= user < graph.num_users:
            raise InputError(f"users: expected indices in [0, {graph.num_users}), got {user}")
    with torch.no_grad():
        scores, items = ops.masked_topk(
            user_emb,
            item_emb,
            min(k, graph.num_items),
            users=torch.tensor(users, dtype=torch.int64, device=graph.device),
            exclude=graph.ui,
        )
    return [
        [Recommendation(i, s) for i, s in zip(row_items, row_scores, strict=True) if i >= 0]
        for row_items, row_scores in zip(items.tolist(), scores.float().tolist(), strict=True)
    ]


def recommend_with_titles(
    dataset: InteractionDataset,
    graph: InteractionGraph,
    user_emb: Tensor,
    item_emb: Tensor,
    users: Sequence[int],
    k: int,
    *,
    history: int = 10,
) -> list[UserRecommendations]:
    """`recommend`, with ids and titles in place of indices.

    Args:
        dataset: Gives ids and titles.
        graph: The train graph.
        user_emb: (U, D).
        item_emb: (I, D).
        users: B user indices.
        k: Length of the lists.
        history: At most so many train items are named per user.

    Raises:
        InputError: As `recommend`.
    """
    ranked = recommend(user_emb, item_emb, graph, users, k)
    rowptr, col = graph.index.rowptr, graph.index.col
    result = []
    for user, row in zip(users, ranked, strict=True):
        first, last = int(rowptr[user]), int(rowptr[user + 1])
        seen = col[first : min(last, first + history)].tolist()
        result.append(
            UserRecommendations(
                user_label(dataset, user),
                tuple(item_label(dataset, item) for item in seen),
                tuple((item_label(dataset, item), score) for item, score in row),
            )
        )
    return result


def resolve_user(dataset: InteractionDataset, user_id: str) -> int:
    """The index of a user known by the data set's own id.

    A data set without user ids numbers its users 0 .. U-1, and that number is the id.

    Raises:
        InputError: An unknown id; the message says what ids there are.
    """
    ids = dataset.user_ids
    if ids is None:
        if _is_number(user_id) and int(user_id) < dataset.num_users:
            return int(user_id)
        raise InputError(
            f"user: expected a number in 0 .. {dataset.num_users - 1}, got {user_id!r}"
        )
    try:
        return ids.index(user_id)
    except ValueError:
        pass
    raise InputError(
        f"user: expected one of the data set's {len(ids)} user ids, such as "
        f"{', '.join(map(repr, _similar_ids(ids, user_id)))}, got {user_id!r}"
    )


def user_label(dataset: InteractionDataset, user: int) -> str:
    """The user's own id, or the index where the data set has none."""
    return str(user) if dataset.user_ids is None else dataset.user_ids[user]


def item_label(dataset: InteractionDataset, item: int) -> str:
    """What to show of an item: its title, else its own id, else "item 17"."""
    if dataset.item_titles is not None and dataset.item_titles[item]:
        return dataset.item_titles[item]
    return f"item {item if dataset.item_ids is None else dataset.item_ids[item]}"


def _similar_ids(ids: Sequence[str], wanted: str, count: int = 3) -> list[str]:
    """The ids most like an unknown one: by value if all are numbers, else by spelling."""
    if _is_number(wanted) and all(map(_is_number, ids)):
        return sorted(ids, key=lambda known: abs(int(known) - int(wanted)))[:count]
    close = difflib.get_close_matches(wanted, islice(ids, _MAX_COMPARED_IDS), count)
    return close or list(ids[:count])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19  # 18 digits fit an int64
