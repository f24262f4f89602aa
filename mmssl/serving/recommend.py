"""Top-k recommendations from embeddings, and the way from outside ids to indices and titles.

Legend: U users, I items, D embedding dim, B users asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.serving.ids import Ids

Made = TypeVar("Made")


class Named(Protocol):
    """What knows the ids and titles: a data set, or the tables of an export."""

    @property
    def num_users(self) -> int:
        """U."""

    @property
    def user_ids(self) -> Sequence[str] | None:
        """(U,) or None."""

    @property
    def item_ids(self) -> Sequence[str] | None:
        """(I,) or None."""

    @property
    def item_titles(self) -> Sequence[str] | None:
        """(I,) or None."""


class Recommendation(NamedTuple):
    """One item of a ranked list."""

    item: int
    score: float


class UserRecommendations(NamedTuple):
    """A user's list in words, for people to read."""

    user: str  # the id as the data set's owner knows it
    history: tuple[str, ...]  # labels of train items, at most as many as were asked for
    items: tuple[tuple[str, float], ...]  # (label, score), best first
    item_ids: tuple[str, ...] = ()  # the owner's ids of `items`


def recommend(
    user_emb: Tensor,
    item_emb: Tensor,
    graph: InteractionGraph,
    users: Sequence[int],
    k: int,
    *,
    filter_seen: bool = True,
) -> list[list[Recommendation]]:
    """The k best items of each user, by default without those of the train graph.

    Args:
        user_emb: (U, D), on the graph's device.
        item_emb: (I, D).
        graph: The train graph, whose edges are left out.
        users: B user indices.
        k: Length of the lists; a user with fewer items left gets a shorter one.
        filter_seen: False to rank the train items as well.

    Returns:
        One list per user of `users`, best first, equal scores by smaller item index.

    Raises:
        InputError: k below 1, a user out of range, or tables of another size than the graph.
    """
    found = best_items(user_emb, item_emb, graph, users, k, filter_seen=filter_seen)
    return listed(*found, Recommendation)


def best_items(
    user_emb: Tensor,
    item_emb: Tensor,
    graph: InteractionGraph,
    users: Sequence[int],
    k: int,
    *,
    filter_seen: bool = True,
) -> tuple[Tensor, Tensor]:
    """The (B, min(k, I)) scores and items behind `recommend`; -1 where there is no item left."""
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
        return ops.masked_topk(
            user_emb,
            item_emb,
            min(k, graph.num_items),
            users=torch.tensor(users, dtype=torch.int64, device=graph.device),
            exclude=graph.ui if filter_seen else None,
        )


def listed(scores: Tensor, items: Tensor, make: Callable[[int, float], Made]) -> list[list[Made]]:
    """(B, k) scores and items as lists of what ``make`` makes of an item and its score.

    The -1 behind the end of a short list are left out.
    """
    return [
        [make(i, s) for i, s in zip(row_items, row_scores, strict=True) if i >= 0]
        for row_items, row_scores in zip(items.tolist(), scores.float().tolist(), strict=True)
    ]


def recommend_with_titles(
    dataset: Named,
    graph: InteractionGraph,
    user_emb: Tensor,
    item_emb: Tensor,
    users: Sequence[int],
    k: int,
    *,
    history: int = 10,
    filter_seen: bool = True,
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
        filter_seen: False to rank the train items as well.

    Raises:
        InputError: As `recommend`.
    """
    ranked = recommend(user_emb, item_emb, graph, users, k, filter_seen=filter_seen)
    return in_words(dataset, graph, users, ranked, history=history)


def in_words(
    dataset: Named,
    graph: InteractionGraph,
    users: Sequence[int],
    ranked: Sequence[Sequence[Recommendation]],
    *,
    history: int = 10,
) -> list[UserRecommendations]:
    """Ranked lists with ids and titles; arguments as `recommend_with_titles`."""
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
                tuple(_item_id(dataset, item) for item, _ in row),
            )
        )
    return result


def resolve_user(dataset: Named, user_id: str) -> int:
    """The index of a user known by the data set's own id.

    A data set without user ids numbers its users 0 .. U-1, and that number is the id.

    Raises:
        InputError: An unknown id; the message says what ids there are.
    """
    return Ids("user", dataset.num_users, dataset.user_ids).index(user_id)


def user_label(dataset: Named, user: int) -> str:
    """The user's own id, or the index where the data set has none."""
    return str(user) if dataset.user_ids is None else dataset.user_ids[user]


def item_label(dataset: Named, item: int) -> str:
    """What to show of an item: its title, else its own id, else "item 17"."""
    if dataset.item_titles is not None and dataset.item_titles[item]:
        return dataset.item_titles[item]
    return f"item {_item_id(dataset, item)}"


def _item_id(dataset: Named, item: int) -> str:
    return str(item) if dataset.item_ids is None else dataset.item_ids[item]
