"""One bipartite user-item graph: both directions, every normalization as scale vectors.

Legend: U users, I items, E edges, R and C rows and columns of a directed view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import mmssl.forks  # noqa: F401 - registers itself
from mmssl.errors import InputError
from mmssl.indexing import GraphIndex, build_index, check_range, index_of_lists

Normalization = Literal["row_sqrt", "sym", "row", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("row_sqrt", "sym", "row", "none")


@dataclass(frozen=True, eq=False)
class GraphView:
    """One direction of a graph: the sparse matrix that :func:`mmssl.ops.spmm` multiplies by.

    ``y[r] = row_scale[r] * sum_p value[edge[p]] * col_scale[col[p]] * x[col[p]]`` over the
    positions ``p`` of row ``r``. A scale or value of ``None`` is all ones, an ``edge`` of ``None``
    the identity. The ``t_`` arrays index the same edges by column, for the gradient.
    """

    rowptr: Tensor  # (R + 1,) int64
    col: Tensor  # (E,) int32
    t_rowptr: Tensor  # (C + 1,) int64
    t_col: Tensor  # (E,) int32
    row_scale: Tensor | None = None  # (R,)
    col_scale: Tensor | None = None  # (C,)
    value: Tensor | None = None  # (E,)
    edge: Tensor | None = None  # (E,) int64, position in this view -> index into value
    t_edge: Tensor | None = None  # (E,) int64, the same for the transposed index

    @property
    def num_rows(self) -> int:
        """R."""
        return self.rowptr.numel() - 1

    @property
    def num_cols(self) -> int:
        """C."""
        return self.t_rowptr.numel() - 1

    @property
    def nnz(self) -> int:
        """E."""
        return self.col.numel()

    @property
    def device(self) -> torch.device:
        """Device of the index arrays."""
        return self.rowptr.device

    def transpose(self) -> GraphView:
        """Return the transposed matrix: the same arrays, swapped."""
        return GraphView(
            rowptr=self.t_rowptr,
            col=self.t_col,
            t_rowptr=self.rowptr,
            t_col=self.col,
            row_scale=self.col_scale,
            col_scale=self.row_scale,
            value=self.value,
            edge=self.t_edge,
            t_edge=self.edge,
        )

    def row_of_edge(self) -> Tensor:
        """Return the row of every position, (E,) int64."""
        rows = torch.arange(self.num_rows, device=self.device)
        return rows.repeat_interleave(self.rowptr.diff(), output_size=self.nnz)

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the dense (R, C) matrix, for tests and small examples."""
        weight = torch.ones(self.nnz, dtype=dtype, device=self.device)
        row, col = self.row_of_edge(), self.col.long()
        if self.value is not None:
            value = self.value.to(dtype)
            weight = value if self.edge is None else value[self.edge]
        if self.col_scale is not None:
            weight = weight * self.col_scale.to(dtype)[col]
        if self.row_scale is not None:
            weight = weight * self.row_scale.to(dtype)[row]
        dense = torch.zeros(self.num_rows, self.num_cols, dtype=dtype, device=self.device)
        return dense.index_put((row, col), weight, accumulate=True)


@dataclass(frozen=True, eq=False)
class InteractionGraph:
    """A bipartite graph of users and items with its two normalized directions.

    Build it with :meth:`from_edges` or :meth:`from_scipy`. ``ui`` maps item vectors to users,
    ``iu`` user vectors to items, each scaled by *its own* row sums, so they are transposes of each
    other only under ``sym`` and ``none``:

    ========  =============================  =============================
    name      ui                             iu
    ========  =============================  =============================
    row_sqrt  D_u^-1/2 A                     D_i^-1/2 A^T
    sym       D_u^-1/2 A D_i^-1/2            its transpose
    row       D_u^-1 A                       D_i^-1 A^T
    none      A                              A^T
    ========  =============================  =============================
    """

    index: GraphIndex
    normalization: Normalization
    value: Tensor | None = None  # (E,) edge values by user; None: a binary graph

    @classmethod
    def from_edges(
        cls,
        user: Tensor | np.ndarray | Sequence[int],
        item: Tensor | np.ndarray | Sequence[int],
        num_users: int,
        num_items: int,
        *,
        normalization: Normalization = "row_sqrt",
        value: Tensor | None = None,
    ) -> InteractionGraph:
        """Build the graph from (E,) integer ids.

        Without ``value`` the graph is binary and a repeated edge counts once; with ``value`` (E,)
        repeated edges add up. The graph lives on the device of ``user``.

        Args:
            user: (E,) integers in [0, U).
            item: (E,) integers in [0, I).
            num_users: U.
            num_items: I.
            normalization: one of :data:`NORMALIZATIONS`.
            value: (E,) edge values, or None.

        Raises:
            InputError: an id is out of range, lengths differ, or the normalization is unknown.
        """
        if normalization not in NORMALIZATIONS:
            raise InputError(
                f"normalization: expected one of {', '.join(NORMALIZATIONS)}, "
                f"got {normalization!r:.60}"
            )
        user, item = torch.as_tensor(user).long(), torch.as_tensor(item).long()
        if user.dim() != 1 or user.shape != item.shape:
            raise InputError(
                f"user, item: expected shape (E,) of both, got {tuple(user.shape)} "
                f"and {tuple(item.shape)}"
            )
        if value is None:
            return cls(build_index(user, item, num_users, num_items), normalization)
        if value.shape != user.shape:
            raise InputError(f"value: expected shape {tuple(user.shape)}, got {tuple(value.shape)}")
        check_range("user", user, num_users)
        check_range("item", item, num_items)
        key, position = torch.unique(user * num_items + item, return_inverse=True)
        index = build_index(key // num_items, key % num_items, num_users, num_items)
        summed = value.new_zeros(key.numel()).index_add_(0, position, value)
        return cls(index, normalization, summed)

    @classmethod
    def from_scipy(
        cls, matrix: Any, *, normalization: Normalization = "row_sqrt"
    ) -> InteractionGraph:
        """Build the graph from a (U, I) scipy sparse matrix; binary if all its data are 1."""
        coo = matrix.tocoo()
        value = torch.from_numpy(np.asarray(coo.data, dtype=np.float32))
        binary = bool((value == 1).all())
        return cls.from_edges(
            coo.row.astype(np.int64),
            coo.col.astype(np.int64),
            *coo.shape,
            normalization=normalization,
            value=None if binary else value,
        )

    def with_lists(self, lists: Tensor) -> list[InteractionGraph]:
        """Build binary graphs of every user's list, one per modality.

        Costs two passes over the edges, where :meth:`from_edges` has to sort. A GPU waits once, for
        the numbers of edges.

        Args:
            lists: (M, U, k) int32 or int64 of distinct items, -1 where a list is shorter. A user
                with an empty list keeps the edges of this graph.
        """
        indices = index_of_lists(lists, self.index)
        return [InteractionGraph(index, self.normalization) for index in indices]

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

    @cached_property
    def ui(self) -> GraphView:
        """The (U, I) view: ``spmm(graph.ui, item_vectors)`` gives user vectors."""
        index = self.index
        user_scale, item_scale = self._scales
        return GraphView(
            rowptr=index.rowptr,
            col=index.col,
            t_rowptr=index.colptr,
            t_col=index.row,
            row_scale=user_scale,
            col_scale=item_scale if self.normalization == "sym" else None,
            value=self.value,
            t_edge=None if self.value is None else index.perm,
        )

    @cached_property
    def iu(self) -> GraphView:
        """The (I, U) view: ``spmm(graph.iu, user_vectors)`` gives item vectors."""
        index = self.index
        user_scale, item_scale = self._scales
        return GraphView(
            rowptr=index.colptr,
            col=index.row,
            t_rowptr=index.rowptr,
            t_col=index.col,
            row_scale=item_scale,
            col_scale=user_scale if self.normalization == "sym" else None,
            value=self.value,
            edge=None if self.value is None else index.perm,
        )

    @cached_property
    def _scales(self) -> tuple[Tensor | None, Tensor | None]:
        """Per user and per item: degree^-1/2 or degree^-1 (0 where the degree is 0)."""
        if self.normalization == "none":
            return None, None
        power = -1.0 if self.normalization == "row" else -0.5
        scales = []
        views = (
            (self.index.rowptr, self.value),
            (self.index.colptr, None if self.value is None else self.value[self.index.perm]),
        )
        for pointer, value in views:
            if value is None:
                degree = pointer.diff().float()
            else:
                running = torch.zeros(value.numel() + 1, dtype=torch.float64, device=value.device)
                torch.cumsum(value.double(), 0, out=running[1:])
                degree = (running[pointer[1:]] - running[pointer[:-1]]).float()
            scales.append(torch.where(degree > 0, degree.clamp_min(1e-30) ** power, 0.0))
        return scales[0], scales[1]

    @cached_property
    def negative_rank_key(self) -> Tensor:
        """(E,) int64, ascending: ``user * (I + 1) + (item - rank of item among the user's items)``.

        The item minus its rank is the number of *other* items below it, so a binary search for r
        finds the r-th item that the user has not interacted with, exactly and without rejection.
        """
        rowptr, col = self.index.rowptr, self.index.col.long()
        users = torch.arange(self.num_users, device=self.device)
        user = users.repeat_interleave(rowptr.diff(), output_size=self.nnz)
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
        rowptr = self.index.rowptr
        missing = self.num_items - (rowptr[user + 1] - rowptr[user])
        rank = (draw * missing).long().clamp_max(missing - 1)
        key = user * (self.num_items + 1) + rank
        return rank + torch.searchsorted(self.negative_rank_key, key, right=True) - rowptr[user]

    @cached_property
    def trainable_users(self) -> Tensor:
        """(n,) int64: users with at least one item and at least one missing item."""
        degree = self.index.rowptr.diff()
        return ((degree > 0) & (degree < self.num_items)).nonzero().squeeze(1)

    def to(self, device: torch.device | str) -> InteractionGraph:
        """Return the same graph on another device."""
        index = GraphIndex(*(t.to(device) for t in self.index if t is not None))
        value = None if self.value is None else self.value.to(device)
        return InteractionGraph(index, self.normalization, value)
