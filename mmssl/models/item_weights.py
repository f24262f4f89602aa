"""Scores of item-to-item models: the sum of an item's weights from the items of a user.

Legend: U users, I items, B requested users, n edges, P entries of a sparse matrix of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import GraphView, InteractionGraph
from mmssl.indexing import edges_of_rows, row_edges, sum_by
from mmssl.ops.masked_topk import rank_in_blocks

MAX_DENSE_ITEMS = 20_000
"""Largest catalog of a model with a dense I x I matrix, 1.6 GB in float32. Fitting it takes up to
six times as much, since the models are solved in float64."""

_DENSE = "weights.dense"
_SPARSE = ("weights.rowptr", "weights.col", "weights.value")


def check_dense(num_items: int, model: str) -> None:
    """Refuse a catalog whose I x I matrix would not fit.

    Raises:
        InputError: There are more than `MAX_DENSE_ITEMS` items.
    """
    if num_items > MAX_DENSE_ITEMS:
        gigabytes = 4 * num_items**2 / 1e9
        raise InputError(
            f"model {model}: expected at most {MAX_DENSE_ITEMS} items, since it holds a dense "
            f"matrix of items by items, got {num_items} ({gigabytes:.0f} GB in float32)"
        )


@dataclass(frozen=True, eq=False)
class ItemWeights:
    """Item-to-item weights: the scores are ``R W``, R being the binary matrix of histories.

    It is a :class:`mmssl.models.scorer.Scorer`. An item of score 0, about which the history of the
    user says nothing, is not listed: a list may be short, and a user without history has an empty
    one.

    Weights that are not negative and only kept for the nearest items are stored as a sparse matrix.
    """

    history: InteractionGraph
    """(U, I) items of every user; its normalization and values have no effect."""
    weight: Tensor | GraphView
    """(I, I): the weight from item j of a history to item i in row j and column i, dense float32 or
    a sparse view with values."""

    @property
    def num_users(self) -> int:
        """U."""
        return self.history.num_users

    @property
    def num_items(self) -> int:
        """I."""
        return self.history.num_items

    def best(
        self, users: Tensor, k: int, exclude: GraphView | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores and items (B, k) of the best items of some users (B,)."""

        def listed(block: Tensor) -> Tensor:
            scores = self.scores(block)
            return scores.masked_fill_(scores == 0, -torch.inf)

        return rank_in_blocks(listed, users, k, self.num_items, exclude=exclude)

    def scores(self, users: Tensor) -> Tensor:
        """Return the scores (B, I) float32 of all items for some users (B,) int64."""
        history, weight = self.history.index, self.weight
        if isinstance(weight, Tensor):
            edges = edges_of_rows(history.rowptr, history.col, self.num_items, users)
            view = GraphView(edges.rowptr, edges.col, edges.t_rowptr, edges.t_col)
            return ops.spmm(view, weight)
        user, item, _ = row_edges(history.rowptr, history.col, users)  # (n,) each
        # Every entry of the rows of the items of a user, as a position in the (B, I) scores.
        each = torch.arange(weight.nnz, device=users.device)
        position, entry, _ = row_edges(weight.rowptr, each, item)  # (P,) each
        key = user[position] * self.num_items + weight.col[entry]
        assert weight.value is not None
        total = sum_by(key, weight.value[entry].double(), users.numel() * self.num_items)
        return total.view(users.numel(), self.num_items).float()

    def score(self, user: int, items: Tensor) -> Tensor:
        """Return the scores (n,) of items (n,) for one user."""
        return self.scores(torch.tensor([user], device=items.device))[0, items]

    def for_histories(self, histories: Sequence[Sequence[int]]) -> ItemWeights:
        """Return the same weights for other users, who are numbered from 0.

        Args:
            histories: Items of each of B users.

        Raises:
            InputError: An item is out of range.
        """
        counts = torch.tensor([len(items) for items in histories], dtype=torch.int64)
        item = torch.tensor([i for items in histories for i in items], dtype=torch.int64)
        graph = InteractionGraph.from_edges(
            torch.arange(len(histories)).repeat_interleave(counts),
            item,
            len(histories),
            self.num_items,
            normalization="none",
        )
        return ItemWeights(graph.to(self.history.device), self.weight)

    def check(self, num_users: int, num_items: int) -> None:
        """Require histories of U users and weights of I items.

        Raises:
            InputError: They are of another number of users or items.
        """
        weight, size = self.weight, (num_items, num_items)
        if isinstance(weight, Tensor):
            shape = tuple(weight.shape)
        else:
            shape = weight.num_rows, weight.num_cols
        if shape != size:
            raise InputError(f"weights: expected shape {size}, got {shape}")
        got = (self.history.num_users, self.history.num_items)
        if got != (num_users, num_items):
            raise InputError(f"history: expected shape {(num_users, num_items)}, got {got}")

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by the names that they have in a run directory."""
        weight = self.weight
        if isinstance(weight, Tensor):
            return {_DENSE: weight}
        assert weight.value is not None
        return dict(zip(_SPARSE, (weight.rowptr, weight.col, weight.value), strict=True))

    def to(self, device: torch.device | str) -> ItemWeights:
        """Return the same scores on another device."""
        weight = self.weight
        if weight.device == torch.device(device):
            return self
        if not isinstance(weight, Tensor):
            assert weight.value is not None
            row, size = weight.row_of_edge().to(device), weight.num_rows
            weight = sparse_weights(row, weight.col.to(device), weight.value.to(device), size)
        else:
            weight = weight.to(device)
        return ItemWeights(self.history.to(device), weight)


def sparse_weights(row: Tensor, column: Tensor, value: Tensor, num_items: int) -> GraphView:
    """Return a sparse (I, I) matrix of weights.

    Args:
        row: (P,) items of histories.
        column: (P,) items that get their weight.
        value: (P,).
        num_items: I.
    """
    return InteractionGraph.from_edges(
        row, column, num_items, num_items, normalization="none", value=value.float()
    ).ui


def nearest_weights(
    similarity_of: Callable[[Tensor], Tensor], k: int, num_items: int, device: torch.device
) -> GraphView:
    """Keep the k largest positive weights from every item to others.

    Args:
        similarity_of: Returns the weights (b, I) float32 from items (b,) to all items; they are
            modified here.
        k: Entries per row.
        num_items: I.
        device: Where ``similarity_of`` computes.
    """
    each = torch.arange(num_items, device=device)
    itself = InteractionGraph.from_edges(each, each, num_items, num_items, normalization="none").ui
    value, column = rank_in_blocks(similarity_of, each, k, num_items, exclude=itself)
    kept = value > 0
    row = each[:, None].expand_as(column)
    return sparse_weights(row[kept], column[kept], value[kept], num_items)


def stored_weights(
    tensors: Mapping[str, Tensor], where: object, history: InteractionGraph
) -> ItemWeights | None:
    """Restore what :meth:`ItemWeights.tensors` returned; None if it is not in ``tensors``.

    Args:
        tensors: Content of a file.
        where: Name of the file; begins every error message.
        history: (U, I) items of every user.

    Raises:
        InputError: A tensor is missing or has the wrong type or shape, or an index is out of range.
    """
    size = history.num_items
    dense = tensors.get(_DENSE)
    if dense is not None:
        if dense.shape != (size, size) or dense.dtype != torch.float32:
            raise InputError(
                f"{where}: expected {_DENSE} of shape {(size, size)} and type torch.float32, got "
                f"{tuple(dense.shape)} {dense.dtype}"
            )
        return ItemWeights(history, dense)
    parts = [tensors[name] for name in _SPARSE if name in tensors]
    if not parts:
        return None
    kinds = [torch.int64, torch.int32, torch.float32]
    if [part.dtype for part in parts] != kinds or any(part.dim() != 1 for part in parts):
        raise InputError(f"{where}: expected vectors {', '.join(_SPARSE)}, got others")
    rowptr, column, value = parts
    counts = rowptr.diff()
    if (
        rowptr.numel() != size + 1
        or bool((counts < 0).any())
        or int(rowptr[0]) != 0
        or int(rowptr[-1]) != column.numel()
    ):
        raise InputError(f"{where}: expected {_SPARSE[0]} of {size} rows, got another index")
    row = torch.arange(size).repeat_interleave(counts)
    try:
        return ItemWeights(history, sparse_weights(row, column, value, size))
    except InputError as error:
        raise InputError(f"{where}: {_SPARSE[1]}, {_SPARSE[2]}: {error}") from None
