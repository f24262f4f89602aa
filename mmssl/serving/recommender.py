"""A trained model, loaded once and asked many times.

Legend: U users, I items, D embedding dim, B users asked for.
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
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.serving.ids import Ids
from mmssl.serving.recommend import (
    Recommendation,
    UserRecommendations,
    best_items,
    in_words,
    listed,
    recommend,
)
from mmssl.serving.tables import (
    MANIFEST,
    Seen,
    ServingTables,
    read_export,
    tables_of_run,
)


class RecommendedItem(NamedTuple):
    """One item of a list, by the owner's id."""

    item: str
    score: float
    title: str
    """Empty where the data set has none."""


class Recommender:
    """Answers for users and items by their own ids; safe to share between threads.

    Example:
        >>> recommender = Recommender.load("runs/mine")  # or a directory of `mmssl export`
        >>> recommender.recommend(["42"], k=10)[0][0].item
    """

    def __init__(self, tables: ServingTables, *, device: torch.device | str = "cpu") -> None:
        self.tables = tables
        self.device = torch.device(device)
        self.users = Ids("user", tables.num_users, tables.user_ids)
        self.items = Ids("item", tables.num_items, tables.item_ids)
        self._graph = tables.graph.to(self.device)
        self._user = tables.user.to(self.device)
        self._item = tables.item.to(self.device)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        data: str | Path | None = None,
        device: torch.device | str = "cpu",
        seen: Seen | None = None,
        cold: bool = False,
    ) -> Recommender:
        """Loads a run directory or an exported one.

        Args:
            path: Of ``mmssl train`` or of ``mmssl export``; the latter needs no data set.
            data: The data set of a run, if it has moved.
            device: Where lists are ranked.
            seen: What lists leave out: "train" interactions or "all" of the data set. An export
                has what it was made with.
            cold: Give items without train interactions vectors made of their features; training
                leaves them with vectors that are never recommended.

        Raises:
            InputError: One line on what is missing, damaged or doesn't match.
        """
        directory = Path(path)
        if (directory / MANIFEST).is_file():
            tables = read_export(directory)
            if data is not None:
                raise InputError(f"{directory}: an export needs no data set, got {data}")
            if seen is not None and seen != tables.seen:
                raise InputError(
                    f"{directory}: expected seen = {tables.seen!r}, with which it was exported, "
                    f"got {seen!r}"
                )
        else:
            tables = tables_of_run(
                directory, None if data is None else Path(data), seen=seen or "train"
            )
        if cold:
            if tables.cold_vectors is None:
                raise InputError(f"{directory}: cold items need item features, the data has none")
            item = tables.item.index_copy(0, tables.cold_items, tables.cold_vectors)
            tables = dataclasses.replace(tables, item=item)
        return cls(tables, device=device)

    def recommend(
        self, users: Iterable[str | int], k: int = 20, *, filter_seen: bool = True
    ) -> list[list[RecommendedItem]]:
        """The k best items of each user.

        Args:
            users: B ids.
            k: Length of the lists; a user with fewer items left gets a shorter one.
            filter_seen: Leave out what the user has.

        Returns:
            One list per user, best first, equal scores in the order of the data set's items.

        Raises:
            InputError: An unknown id (similar ones are named) or a bad k.
        """
        _check_k(k)
        found = best_items(
            self._user, self._item, self._graph, self.users.indices(users), k,
            filter_seen=filter_seen,
        )  # fmt: skip
        return listed(*found, self._outside)

    def in_words(
        self, users: Iterable[str | int], k: int = 20, *, filter_seen: bool = True
    ) -> list[UserRecommendations]:
        """`recommend` for people to read: titles, and some of what each user has."""
        indices = self.users.indices(users)
        _check_k(k)
        ranked = recommend(self._user, self._item, self._graph, indices, k, filter_seen=filter_seen)
        return in_words(self.tables, self.tables.graph, indices, ranked)

    def similar_items(self, item: str | int, k: int = 20) -> list[RecommendedItem]:
        """The k items with the most similar vectors by cosine, which is the score.

        Raises:
            InputError: An unknown id or a bad k.
        """
        index = self.items.index(item)
        _check_k(k)
        table = self._unit_items
        scores, items = ops.masked_topk(
            table[index : index + 1], table, min(k + 1, self.tables.num_items)
        )
        (row,) = listed(scores, items, Recommendation)
        return [self._outside(*one) for one in row if one.item != index][:k]

    def score(self, user: str | int, items: Iterable[str | int]) -> list[float]:
        """The scores of some items for a user: dot products of their vectors.

        Raises:
            InputError: An unknown id.
        """
        index = torch.tensor(self.items.indices(items), dtype=torch.int64, device=self.device)
        own = self._user[self.users.index(user)]
        # Not a product by BLAS: its threads cost more than the few rows of a request.
        result: list[float] = (self._item[index] * own).sum(1).tolist()
        return result

    def with_items(
        self,
        ids: Sequence[str],
        features: Mapping[str, np.ndarray | Tensor],
        titles: Sequence[str] | None = None,
    ) -> Recommender:
        """A recommender that knows more items, from their features alone; this one stays as it is.

        Args:
            ids: n new ids.
            features: Modality -> (n, d_m), made as the data set's own features were.
            titles: n titles.

        Raises:
            InputError: The run's data has no features, a modality is missing or of another width,
                an id is known already or comes twice, or lengths differ.
        """
        tables = self.tables
        if tables.feature_map is None or tables.cold_vectors is None:
            raise InputError("with_items: new items need item features, the run's data has none")
        vectors = tables.feature_map({k: torch.as_tensor(v) for k, v in features.items()})
        if len(ids) != vectors.shape[0] or len(titles or ids) != len(ids):
            raise InputError(
                f"with_items: expected as many ids and titles as rows of features "
                f"({vectors.shape[0]}), got {len(ids)} and {len(titles or ids)}"
            )
        known = tables.item_ids or tuple(map(str, range(tables.num_items)))
        both = (*known, *map(str, ids))
        if len(set(both)) < len(both):
            twice = next(one for one in ids if both.count(str(one)) > 1)
            raise InputError(f"with_items: expected new, different ids, got {twice!r} again")
        all_titles = None
        if tables.item_titles is not None or titles is not None:
            own = tables.item_titles or ("",) * tables.num_items
            all_titles = (*own, *(titles or ("",) * len(ids)))
        graph = tables.graph
        return Recommender(
            dataclasses.replace(
                tables,
                item=torch.cat([tables.item, vectors]),
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
    def _unit_items(self) -> Tensor:
        return F.normalize(self._item)

    def _outside(self, item: int, score: float) -> RecommendedItem:
        titles = self.tables.item_titles
        return RecommendedItem(self.items.id(item), score, "" if titles is None else titles[item])


def _check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"k: expected an integer of at least 1, got {k!r}")
