"""One bipartite user-item graph: both directions, every normalization as scale vectors.

Legend: U users, I items, E edges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import mmssl.forks  # noqa: F401 - registers itself
from mmssl.arrays import as_count, as_ids, as_numbers
from mmssl.convert import Entries, entries_of_edge_index, entries_of_scipy, entries_of_torch
from mmssl.errors import InputError
from mmssl.indexing import (
    GraphIndex,
    PaddedIndices,
    build_index,
    index_of_lists,
    index_of_values,
    item_order,
    rows_of,
)
from mmssl.normalization import NORMALIZATIONS as NORMALIZATIONS
from mmssl.normalization import Normalization as Normalization
from mmssl.normalization import counted, exponent
from mmssl.plain import is_plain, plain_tensors
from mmssl.view import GraphView as GraphView
from mmssl.view import moved, views_of


@dataclass(frozen=True, eq=False, repr=False)
class InteractionGraph:
    """A bipartite graph of users and items with its two normalized directions.

    Build it with :meth:`from_edges`, :meth:`from_edge_index`, :meth:`from_torch` or
    :meth:`from_scipy`. ``ui`` maps item vectors to users, ``iu`` user vectors to items, each scaled
    by *its own* row sums, so they are transposes of each other only under ``sym`` and ``none``:

    ========  =============================  =============================
    name      ui                             iu
    ========  =============================  =============================
    row_sqrt  D_u^-1/2 A                     D_i^-1/2 A^T
    sym       D_u^-1/2 A D_i^-1/2            its transpose
    row       D_u^-1 A                       D_i^-1 A^T
    none      A                              A^T
    ========  =============================  =============================

    The degrees D_u and D_i are the row sums of A and of A^T, formed in float64. A row without
    edges, or whose edge values are all 0, has degree 0 and stays 0. A row whose values sum to a
    negative number, or cancel to 0, has no normalization other than ``none``: it is refused.

    Both views and all scales are computed when the graph is constructed, as plain tensors even
    under ``torch.inference_mode``, so that using a graph never changes it: not in a validation
    pass, not while ``torch.export``, ``torch.compile`` or ``torch.func`` trace a model that
    holds it.
    """

    index: GraphIndex
    normalization: Normalization
    value: Tensor | None = None  # (E,) edge values by user; None: a binary graph
    scales: tuple[Tensor, Tensor] | None = None  # (U,), (I,) float32; None: computed
    ui: GraphView = field(init=False, repr=False)
    """The (U, I) view: ``spmm(graph.ui, item_vectors)`` gives user vectors."""
    iu: GraphView = field(init=False, repr=False)
    """The (I, U) view: ``spmm(graph.iu, user_vectors)`` gives item vectors."""
    _negative_rank_key: Tensor | None = field(init=False, repr=False, default=None)
    _trainable_users: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        """Compute the views."""
        with plain_tensors():
            ui, iu = views_of(self.index, self.normalization, self.value, self.scales)
        object.__setattr__(self, "ui", ui)
        object.__setattr__(self, "iu", iu)

    @classmethod
    def from_edges(
        cls,
        user: Any,
        item: Any,
        num_users: int,
        num_items: int,
        *,
        normalization: Normalization = "row_sqrt",
        value: Any = None,
    ) -> InteractionGraph:
        """Build the graph from (E,) integer ids.

        Without ``value`` the graph is binary and a repeated edge counts once; with ``value`` (E,)
        repeated edges add up, and an edge of value 0 remains an edge. Every argument may be a
        tensor, a NumPy array, a column of pandas or polars, or a list. The graph lives on the
        device of ``user``.

        If ``value`` requires a gradient, it flows through the degrees too: the views hold the
        normalized values as a function of ``value``. Since ``value`` changes with every step of an
        optimizer, call :meth:`with_value` in every step, which does not sort again.

        Args:
            user: (E,) integers in [0, U).
            item: (E,) integers in [0, I).
            num_users: U.
            num_items: I.
            normalization: one of :data:`NORMALIZATIONS`.
            value: (E,) finite edge values, or None. float64 stays float64, other dtypes become
                float32.

        Raises:
            InputError: an id is not an integer or out of range, lengths differ, a value is not
                finite, the values of a row sum to a negative number, or the normalization is
                unknown.
        """
        _check_normalization(normalization)
        num_users, num_items = as_count("num_users", num_users), as_count("num_items", num_items)
        with plain_tensors():
            user = as_ids("user", user)
            item = as_ids("item", item, user.device)
            if user.dim() != 1 or user.shape != item.shape:
                raise InputError(
                    f"user, item: expected shape (E,) of both, got {tuple(user.shape)} "
                    f"and {tuple(item.shape)}"
                )
            if value is None:
                return cls(build_index(user, item, num_users, num_items), normalization)
            value = as_numbers("value", value, user.device)
            if value.shape != user.shape:
                raise InputError(
                    f"value: expected shape {tuple(user.shape)}, got {tuple(value.shape)}"
                )
            index, value = index_of_values(user, item, value, num_users, num_items)
            return cls(index, normalization, value)

    @classmethod
    def from_scipy(
        cls, matrix: Any, *, normalization: Normalization = "row_sqrt"
    ) -> InteractionGraph:
        """Build the graph from a (U, I) scipy sparse matrix, which is left as it is.

        The graph has the entries of ``matrix.toarray()`` that are not 0: repeated entries add up
        and stored zeros are no edges. If all its entries are then 1, the graph is binary.

        Raises:
            InputError: ``matrix`` is not a two-dimensional scipy sparse matrix or array of real
                numbers, or as in :meth:`from_edges`.
        """
        with plain_tensors():
            return cls._of(entries_of_scipy(matrix), normalization)

    @classmethod
    def from_torch(
        cls, matrix: Any, *, normalization: Normalization = "row_sqrt"
    ) -> InteractionGraph:
        """Build the graph from a (U, I) sparse tensor, on its device.

        The graph shares no memory with the tensor; gradients flow back to its values. Repeated
        entries add up, as in ``matrix.coalesce()`` but in float64. Every stored entry is an edge,
        even one of value 0, so that values may be trained from 0. If all entries are 1 and none
        requires a gradient, the graph is binary; so is that of a bool matrix, where a stored False
        is no edge.

        Args:
            matrix: (U, I) sparse tensor in COO, CSR or CSC layout, or a
                ``torch_sparse.SparseTensor`` with users as rows (torch_geometric's ``adj_t`` is its
                transpose). float64 stays float64, other dtypes become float32.
            normalization: one of :data:`NORMALIZATIONS`; "none" keeps the matrix as it is.

        Raises:
            InputError: ``matrix`` is something else, or as in :meth:`from_edges`.
        """
        with plain_tensors():
            return cls._of(entries_of_torch(matrix), normalization)

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Any,
        num_users: int | None = None,
        num_items: int | None = None,
        *,
        normalization: Normalization = "row_sqrt",
        value: Any = None,
    ) -> InteractionGraph:
        """Build the graph from a bipartite ``edge_index`` of torch_geometric.

        It is what ``data["user", "rates", "item"].edge_index`` of a ``HeteroData`` holds: users in
        row 0, items in row 1, both counted from 0. The other form, with items counted from U and
        usually with every edge in both directions, is refused.

        Args:
            edge_index: (2, E) integers in [0, U) and [0, I), or a ``torch_geometric.EdgeIndex``.
            num_users: U; may be left out for an ``EdgeIndex`` with a ``sparse_size``.
            num_items: I, likewise.
            normalization: one of :data:`NORMALIZATIONS`.
            value: (E,) edge weights, or None, as in :meth:`from_edges`.

        Raises:
            InputError: ``edge_index`` has another form, or as in :meth:`from_edges`.
        """
        with plain_tensors():
            entries = entries_of_edge_index(edge_index, num_users, num_items)
        return cls._of(entries._replace(value=value), normalization)

    @classmethod
    def _of(cls, entries: Entries, normalization: Normalization) -> InteractionGraph:
        user, item, num_users, num_items, value = entries
        return cls.from_edges(
            user, item, num_users, num_items, normalization=normalization, value=value
        )

    def to_edge_index(self) -> tuple[Tensor, Tensor | None]:
        """Return the edges, (2, E) int64 by user, then by item, and their values (E,) or None.

        It is what :meth:`from_edge_index` takes. The values are those of the edges, without
        normalization, and this graph's own; :meth:`GraphView.edge_weight` has normalized ones.
        """
        return torch.stack([self.ui.row_of_edge(), self.index.col.long()]), self.value

    def with_normalization(self, normalization: Normalization) -> InteractionGraph:
        """Build the graph of the same edges and values with other scales, without sorting.

        Raises:
            InputError: the normalization is unknown, or impossible with the values.
        """
        _check_normalization(normalization)
        return InteractionGraph(self.index, normalization, self.value)

    def with_value(self, value: Any) -> InteractionGraph:
        """Build the graph of the same edges with other values, without sorting.

        In a call that ``torch.compile`` or ``torch.export`` traces, the values are not checked.

        Args:
            value: (E,) finite edge values as in :meth:`from_edges`, in the order of this graph's
                edges: by user, then by item, ``(graph.ui.row_of_edge(), graph.index.col)``.

        Raises:
            InputError: as in :meth:`from_edges`.
        """
        with plain_tensors():
            value = as_numbers("value", value, self.device)
            if value.shape != (self.nnz,):
                raise InputError(f"value: expected shape {(self.nnz,)}, got {tuple(value.shape)}")
            index = self.index
            if index.perm is None:
                index = index._replace(perm=item_order(index.col))
            return InteractionGraph(index, self.normalization, value)

    def with_lists(self, lists: Tensor) -> list[InteractionGraph]:
        """Build binary graphs of every user's list, one per modality.

        Costs two passes over the edges and no sort. A GPU waits once, for the numbers of edges.

        Args:
            lists: (M, U, k) int32 or int64 of distinct items, -1 where a list is shorter. A user
                with an empty list keeps the edges of this graph.
        """
        with plain_tensors():
            indices = index_of_lists(lists, self.index)
        return [InteractionGraph(index, self.normalization) for index in indices]

    def with_changing_lists(
        self, lists: Tensor
    ) -> tuple[list[InteractionGraph], Callable[[Tensor], None]]:
        """Build the graphs of :meth:`with_lists`, and what changes them without a wait on a GPU."""
        padded = PaddedIndices(lists, self.index, exponent(self.normalization))
        graphs = [InteractionGraph(i, self.normalization, None, s) for i, s in padded.indices()]
        return graphs, padded.rebuild

    def of_counts(self, user: Tensor, item: Tensor) -> InteractionGraph:
        """Build the graph of (E,) ids with numbers of repetitions as values, without a wait."""
        kind = self.normalization
        index, count, scales = counted(user, item, self.num_users, self.num_items, kind)
        return InteractionGraph(index, kind, count, scales)

    def __repr__(self) -> str:
        kind = "binary" if self.value is None else "with values"
        return (
            f"InteractionGraph({self.num_users} users, {self.num_items} items, {self.nnz} edges, "
            f"{kind}, {self.normalization}, {self.device})"
        )

    @property
    def num_users(self) -> int:
        """U."""
        return self.index.rowptr.numel() - 1

    @property
    def num_items(self) -> int:
        """I."""
        return self.index.colptr.numel() - 1

    @property
    def nnz(self) -> int:
        """E."""
        return self.index.col.numel()

    @property
    def device(self) -> torch.device:
        """Device of the index arrays."""
        return self.index.rowptr.device

    @property
    def negative_rank_key(self) -> Tensor:
        """(E,) int64, ascending: ``user * (I + 1) + (item - rank of item among the user's items)``.

        The item minus its rank is the number of *other* items below it, so a binary search for r
        finds the r-th item that the user has not interacted with, exactly and without rejection.
        Computed on first use and kept, unless a tracer or a function transform is active.
        """
        return self._kept("_negative_rank_key", self._compute_negative_rank_key)

    def _compute_negative_rank_key(self) -> Tensor:
        rowptr, col = self.index.rowptr, self.index.col.long()
        user = rows_of(rowptr, self.nnz)
        rank = torch.arange(self.nnz, device=self.device) - rowptr[user]
        return user * (self.num_items + 1) + col - rank

    def missing_item(self, user: Tensor, draw: Tensor) -> Tensor:
        """Pick an item that each user has no edge to, uniform for uniform draws, without rejection.

        Args:
            user: (B,) int64; each must lack at least one item.
            draw: (B,) float64 in [0, 1).

        Returns:
            (B,) int64.
        """
        first, end = (self.index.rowptr.index_select(0, user + n) for n in (0, 1))
        missing = self.num_items - (end - first)
        rank = (draw * missing).long().clamp_max(missing - 1)
        key = user * (self.num_items + 1) + rank
        return rank + torch.searchsorted(self.negative_rank_key, key, right=True) - first

    @property
    def trainable_users(self) -> Tensor:
        """(n,) int64: users with at least one item and at least one missing item.

        Computed on first use and kept, unless a tracer or a function transform is active.
        """
        return self._kept("_trainable_users", self._compute_trainable_users)

    def _compute_trainable_users(self) -> Tensor:
        degree = self.index.rowptr.diff()
        return ((degree > 0) & (degree < self.num_items)).nonzero().squeeze(1)

    def _kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return an attribute that only sampling needs, and keep it if it is a plain tensor."""
        kept: Tensor | None = getattr(self, name)
        if kept is None:
            with plain_tensors():
                kept = compute()
            if is_plain(kept):
                object.__setattr__(self, name, kept)
        return kept

    def to(self, device: torch.device | str) -> InteractionGraph:
        """Return the same graph on another device; itself if it is there."""
        if torch.device(device) == self.device:
            return self
        graph, arrays = copy.copy(self), dict[int, Tensor]()
        with plain_tensors():
            for name, part in vars(self).items():
                object.__setattr__(graph, name, moved(part, device, arrays))
        return graph


def _check_normalization(normalization: Any) -> None:
    if normalization not in NORMALIZATIONS:
        raise InputError(
            f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r:.60}"
        )
