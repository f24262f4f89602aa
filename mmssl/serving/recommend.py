"""Top-k recommendations of a model, with external ids and titles.

Legend: U users, I items, D embedding dim, B requested users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.models.scorer import Scorer
from mmssl.serving.ids import Ids

Made = TypeVar("Made")


class Named(Protocol):
    """Interface of objects with ids and titles: data sets and the tables of an export."""

    @property
    def num_users(self) -> int:
        """Number of users U."""

    @property
    def user_ids(self) -> Sequence[str] | None:
        """(U,) external user ids, or None."""

    @property
    def item_ids(self) -> Sequence[str] | None:
        """(I,) external item ids, or None."""

    @property
    def item_titles(self) -> Sequence[str] | None:
        """(I,) display titles, or None."""


class Recommendation(NamedTuple):
    """One item of a ranked list."""

    item: int
    """Index of the item."""
    score: float
    """Score of the model: the dot product of the user's and the item's vector, or the sum of the
    item's weights from the user's items."""


class UserRecommendations(NamedTuple):
    """Ranked list of a user with titles instead of indices, for display."""

    user: str
    """External id of the user."""
    history: tuple[str, ...]
    """Labels of some of the user's train items."""
    items: tuple[tuple[str, float], ...]
    """(label, score) of the recommended items, best first."""
    item_ids: tuple[str, ...] = ()
    """External ids of `items`."""


@dataclass(frozen=True, eq=False)
class Ranker:
    """What ranks items, with the items to exclude from each user's list.

    Raises:
        InputError: The scores are not those of the graph's users and items.
    """

    scorer: Scorer
    """Scores of every user and item, on the graph's device."""
    graph: InteractionGraph
    """(U, I) graph whose edges are excluded."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        self.scorer.check(self.graph.num_users, self.graph.num_items)

    def best(
        self, users: Sequence[int], k: int, *, filter_seen: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return scores and items, (B, min(k, I)); arguments and errors as in `recommend`.

        Short lists are padded with item -1.
        """
        graph = self.graph
        if k < 1:
            raise InputError(f"k: expected at least 1, got {k}")
        for user in users:
            if not 0 <= user < graph.num_users:
                raise InputError(f"users: expected indices in [0, {graph.num_users}), got {user}")
        with torch.no_grad():
            return self.scorer.best(
                torch.tensor(users, dtype=torch.int64, device=graph.device),
                min(k, graph.num_items),
                graph.ui if filter_seen else None,
            )


def recommend(
    user_emb: Tensor,
    item_emb: Tensor,
    graph: InteractionGraph,
    users: Sequence[int],
    k: int,
    *,
    filter_seen: bool = True,
) -> list[list[Recommendation]]:
    """Return the k best items of each user, by default excluding the items in the train graph.

    Args:
        user_emb: (U, D) user vectors, on the graph's device.
        item_emb: (I, D) item vectors.
        graph: Train graph, whose edges are excluded.
        users: B user indices.
        k: Maximum length of the lists; users with fewer remaining items get shorter lists.
        filter_seen: Whether to exclude the train items.

    Returns:
        One list per entry of `users`, best first, with ties broken by smaller item index.

    Raises:
        InputError: ``k`` is below 1, a user is out of range, or a table does not match the graph.
    """
    ranker = Ranker(Embeddings(user_emb, item_emb), graph)
    return listed(*ranker.best(users, k, filter_seen=filter_seen), Recommendation)


def listed(scores: Tensor, items: Tensor, make: Callable[[int, float], Made]) -> list[list[Made]]:
    """Convert (B, k) scores and items to lists of ``make(item, score)``, without padding."""
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
    """Return the lists of `recommend` with ids and titles instead of indices.

    Args:
        dataset: Data set with ids and titles.
        graph: Train graph, whose edges are excluded.
        user_emb: (U, D) user vectors, on the graph's device.
        item_emb: (I, D) item vectors.
        users: B user indices.
        k: Maximum length of the lists.
        history: Maximum number of train items to name per user.
        filter_seen: Whether to exclude the train items.

    Raises:
        InputError: ``k`` is below 1, a user is out of range, or a table does not match the graph.
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
    """Add ids and titles to ranked lists; arguments as in `recommend_with_titles`."""
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
    """Return the index of a user with the given external id.

    In a data set without user ids, the indices 0 .. U-1 are the ids.

    Raises:
        InputError: The id is unknown; the message suggests similar ones.
    """
    return Ids("user", dataset.num_users, dataset.user_ids).index(user_id)


def user_label(dataset: Named, user: int) -> str:
    """Return the external id of a user, or the index in a data set without user ids."""
    return str(user) if dataset.user_ids is None else dataset.user_ids[user]


def item_label(dataset: Named, item: int) -> str:
    """Return the title of an item or, without a title, "item" followed by its id or index."""
    if dataset.item_titles is not None and dataset.item_titles[item]:
        return dataset.item_titles[item]
    return f"item {_item_id(dataset, item)}"


def _item_id(dataset: Named, item: int) -> str:
    return str(item) if dataset.item_ids is None else dataset.item_ids[item]
