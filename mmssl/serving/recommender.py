"""Recommendations of a trained model by external ids.

Legend: U users, I items, D embedding dim, B requested users.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.data.dataset import InteractionDataset
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.models.item_weights import ItemWeights
from mmssl.plain import plain_tensors
from mmssl.serving.ids import Ids
from mmssl.serving.recommend import (
    Ranker,
    Recommendation,
    UserRecommendations,
    in_words,
    listed,
)
from mmssl.serving.tables import (
    MANIFEST,
    Seen,
    ServingTables,
    read_export,
    tables_of_run,
)


class RecommendedItem(NamedTuple):
    """One item of a list."""

    item: str
    """External id of the item."""
    score: float
    """Score of the model for the user, or the similarity to an item."""
    title: str
    """Title of the item; empty if the data set has no titles."""


class Recommender:
    """Recommendations by external ids; a recommender can be shared between threads.

    Args:
        tables: Scores, ids and interactions of the model.
        device: Torch device on which lists are ranked.

    Example:
        >>> recommender = Recommender.load("runs/mine")  # or a directory of `mmssl export`
        >>> recommender.recommend(["42"], k=10)[0][0].item
    """

    def __init__(self, tables: ServingTables, *, device: torch.device | str = "cpu") -> None:
        self.tables = tables
        self.device = torch.device(device)
        self.users = Ids("user", tables.num_users, tables.user_ids)
        self.items = Ids("item", tables.num_items, tables.item_ids)
        self._ranker = Ranker(tables.scorer.to(self.device), tables.graph.to(self.device))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        data: str | Path | InteractionDataset | None = None,
        device: torch.device | str = "cpu",
        seen: Seen | None = None,
        cold: bool = False,
    ) -> Recommender:
        """Load a run directory or an export.

        Args:
            path: Directory that ``mmssl train`` or ``mmssl export`` wrote; the latter needs no data
                set.
            data: Directory of the run's data set if it was moved, or the data set itself.
            device: Torch device on which lists are ranked.
            seen: Items to exclude from a user's list: those of the "train" split (the default for
                runs) or of "all" splits. For an export, this was fixed when it was made.
            cold: Whether to replace the vectors of items without train interactions with vectors
                predicted from their features; without this, such items are rarely recommended.
                Only for models with item vectors.

        Raises:
            InputError: A file is missing or damaged, or the data set is not the one of the run.
        """
        directory = Path(path)
        if (directory / MANIFEST).is_file():
            tables = read_export(directory)
            if data is not None:
                raise InputError(f"{directory}: expected no data set for an export, got one")
            if seen is not None and seen != tables.seen:
                raise InputError(
                    f"{directory}: expected seen = {tables.seen!r}, as exported, got {seen!r}"
                )
        else:
            tables = tables_of_run(directory, data, seen=seen or "train")
        if cold:
            vectors = tables.vectors
            if tables.cold_vectors is None:
                raise InputError(
                    f"{directory}: cold: expected data with item features, got data without"
                )
            item = vectors.item.index_copy(0, tables.cold_items, tables.cold_vectors)
            tables = dataclasses.replace(tables, scorer=Embeddings(vectors.user, item))
        return cls(tables, device=device)

    def recommend(
        self, users: Iterable[str | int], k: int = 20, *, filter_seen: bool = True
    ) -> list[list[RecommendedItem]]:
        """Return the k best items of each user.

        Args:
            users: B external user ids.
            k: Maximum length of the lists; users with fewer remaining items get shorter lists.
            filter_seen: Whether to exclude items that the user has already interacted with.

        Returns:
            One list per user, best first, with ties in the order of the data set's items.

        Raises:
            InputError: An id is unknown (the message suggests similar ones) or ``k`` is invalid.
        """
        _check_k(k)
        found = self._ranker.best(self.users.indices(users), k, filter_seen=filter_seen)
        return listed(*found, self._outside)

    def in_words(
        self, users: Iterable[str | int], k: int = 20, *, filter_seen: bool = True
    ) -> list[UserRecommendations]:
        """Return the lists of `recommend` for display, with titles and each user's history."""
        indices = self.users.indices(users)
        _check_k(k)
        found = self._ranker.best(indices, k, filter_seen=filter_seen)
        ranked = listed(*found, Recommendation)
        return in_words(self.tables, self.tables.graph, indices, ranked)

    def similar_items(self, item: str | int, k: int = 20) -> list[RecommendedItem]:
        """Return the k most similar items.

        They are those of the highest cosine of their vectors or, in a model with item weights, of
        the highest weights from the item.

        Raises:
            InputError: The id is unknown or ``k`` is invalid.
        """
        index = self.items.index(item)
        _check_k(k)
        scorer, most = self._ranker.scorer, min(k + 1, self.tables.num_items)
        if isinstance(scorer, ItemWeights):
            first = torch.zeros(1, dtype=torch.int64, device=self.device)
            found = scorer.for_histories([[index]]).best(first, most)
        else:
            table = self._unit_items
            found = ops.masked_topk(table[index : index + 1], table, most)
        (row,) = listed(*found, Recommendation)
        return [self._outside(*one) for one in row if one.item != index][:k]

    def score(self, user: str | int, items: Iterable[str | int]) -> list[float]:
        """Return the scores of given items for a user.

        Raises:
            InputError: An id is unknown.
        """
        index = torch.tensor(self.items.indices(items), dtype=torch.int64, device=self.device)
        result: list[float] = self._ranker.scorer.score(self.users.index(user), index).tolist()
        return result

    def for_users(self, histories: Mapping[str, Iterable[str | int]]) -> Recommender:
        """Return a new recommender for other users, of whom only some items are known.

        Only for models with item weights, which know a user by nothing else.

        Args:
            histories: User id -> external ids of the user's items.

        Raises:
            InputError: The model has user vectors, or an item id is unknown.

        Example:
            >>> recommender.for_users({"new": ["17", "3"]}).recommend(["new"], k=10)
        """
        scorer = self._ranker.scorer
        if not isinstance(scorer, ItemWeights):
            raise InputError(
                f"model {self.tables.model}: expected item weights, which serve a user by the "
                "user's items alone, got user vectors"
            )
        others = scorer.for_histories([self.items.indices(items) for items in histories.values()])
        tables = dataclasses.replace(
            self.tables, scorer=others, graph=others.history, user_ids=tuple(histories)
        )
        return Recommender(tables, device=self.device)

    def with_items(
        self,
        ids: Sequence[str],
        features: Mapping[str, np.ndarray | Tensor],
        titles: Sequence[str] | None = None,
    ) -> Recommender:
        """Return a new recommender with additional items, whose vectors come from their features.

        Only for models with item vectors.

        Args:
            ids: n new item ids.
            features: Modality -> (n, d_m), computed in the same way as the data set's features.
            titles: n titles, optional.

        Raises:
            InputError: The run's data has no features, a modality is missing or has another width,
                an id is not unique, or the lengths differ.
        """
        tables, own_vectors = self.tables, self.tables.vectors
        if tables.feature_map is None or tables.cold_vectors is None:
            raise InputError("with_items: expected a run with item features, got one without")
        vectors = tables.feature_map({k: torch.as_tensor(v) for k, v in features.items()})
        if len(ids) != vectors.shape[0] or len(titles or ids) != len(ids):
            raise InputError(
                f"with_items: expected {vectors.shape[0]} ids and titles, one per row of features, "
                f"got {len(ids)} and {len(titles or ids)}"
            )
        known = tables.item_ids or tuple(map(str, range(tables.num_items)))
        both = (*known, *map(str, ids))
        if len(set(both)) < len(both):
            twice = next(one for one in ids if both.count(str(one)) > 1)
            raise InputError(f"with_items: expected new, unique ids, got {twice!r} twice")
        all_titles = None
        if tables.item_titles is not None or titles is not None:
            own = tables.item_titles or ("",) * tables.num_items
            all_titles = (*own, *(titles or ("",) * len(ids)))
        graph = tables.graph
        return Recommender(
            dataclasses.replace(
                tables,
                scorer=Embeddings(own_vectors.user, torch.cat([own_vectors.item, vectors])),
                graph=InteractionGraph.from_edges(
                    graph.ui.row_of_edge(), graph.index.col, tables.num_users, len(both)
                ),
                train_degree=F.pad(tables.train_degree, (0, len(ids))),
                item_ids=both,
                item_titles=all_titles,
                features={},
                stored=(tables.feature_map, torch.cat([tables.cold_vectors, vectors])),
            ),
            device=self.device,
        )

    @cached_property
    @plain_tensors()
    def _unit_items(self) -> Tensor:
        return F.normalize(self.tables.vectors.item.to(self.device))

    def _outside(self, item: int, score: float) -> RecommendedItem:
        titles = self.tables.item_titles
        return RecommendedItem(self.items.id(item), score, "" if titles is None else titles[item])


def _check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"k: expected an integer of at least 1, got {k!r}")
