"""One direction of a graph, or any sparse matrix, as the ops multiply by it.

Legend: R rows and C columns of a view, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmssl.convert import Entries, entries_of_scipy, entries_of_torch
from mmssl.indexing import GraphIndex, build_index, index_of_values, rows_of
from mmssl.normalization import Normalization, check_finite, normalized
from mmssl.plain import plain_tensors


@dataclass(frozen=True, eq=False)
class GraphView:
    """A sparse matrix, such as one direction of a graph, that :func:`mmssl.ops.spmm` multiplies by.

    ``y[r] = row_scale[r] * sum_p value[edge[p]] * col_scale[col[p]] * x[col[p]]`` over the
    positions ``p`` of row ``r``. A scale or value of ``None`` is all ones, an ``edge`` of ``None``
    the identity. The ``t_`` arrays index the same edges by column, for the gradient. A row has each
    column once, in ascending order.
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

    @classmethod
    def from_torch(cls, matrix: Any) -> GraphView:
        """Build the view of a sparse tensor, whose values are kept as they are.

        ``ops.spmm(GraphView.from_torch(a), x)`` is ``torch.sparse.mm(a, x)``, with a gradient for
        the values of ``a`` as well. Build it once: both directions are sorted here. For values that
        change in every step, see :meth:`mmssl.graph.InteractionGraph.with_value`.

        Args:
            matrix: (R, C) sparse tensor in COO, CSR or CSC layout, or a
                ``torch_sparse.SparseTensor``. Repeated entries add up, in float64. float64 stays
                float64, other dtypes become float32. The view is on its device and shares no memory
                with it.

        Raises:
            InputError: ``matrix`` is something else, or its indices are out of range.
        """
        with plain_tensors():
            return cls.from_entries(entries_of_torch(matrix))

    @classmethod
    def from_scipy(cls, matrix: Any) -> GraphView:
        """Build the view of an (R, C) scipy sparse matrix, as :meth:`from_torch` does.

        Entries of value 0 are left out. Values are float32; float64 if one of them is outside the
        range of float32.

        Raises:
            InputError: ``matrix`` is not a two-dimensional scipy sparse matrix of real numbers.
        """
        with plain_tensors():
            return cls.from_entries(entries_of_scipy(matrix))

    @classmethod
    def from_entries(cls, entries: Entries) -> GraphView:
        """Build the view of checked rows, columns, sizes and values; see :class:`Entries`."""
        row, col, num_rows, num_cols, value = entries
        if value is None:
            index = build_index(row, col, num_rows, num_cols)
        else:
            index, value = index_of_values(row, col, value, num_rows, num_cols)
        return cls(
            rowptr=index.rowptr,
            col=index.col,
            t_rowptr=index.colptr,
            t_col=index.row,
            value=value,
            t_edge=None if value is None else index.perm,
        )

    def __repr__(self) -> str:
        return f"GraphView({self.num_rows} x {self.num_cols}, {self.nnz} edges, {self.device})"

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
        return rows_of(self.rowptr, self.nnz)

    def edge_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the entry of the matrix at every position, (E,): value times scales.

        Args:
            dtype: Of the result and the products; None takes that of the values and scales, which
                is float32 for a binary graph.
        """
        factors = (self.value, self.row_scale, self.col_scale)
        if dtype is None:
            dtype = next((t.dtype for t in factors if t is not None), torch.float32)
        if self.value is None:
            weight = torch.ones(self.nnz, dtype=dtype, device=self.device)
        else:
            value = self.value.to(dtype)
            weight = value if self.edge is None else value[self.edge]
        if self.col_scale is not None:
            weight = weight * self.col_scale.to(dtype)[self.col]
        if self.row_scale is not None:
            weight = weight * self.row_scale.to(dtype)[self.row_of_edge()]
        return weight

    def overwrite(self, other: GraphView) -> None:
        """Become a view of the same size, with as many edges, in the arrays of this one.

        Views that share arrays with this one, such as its transpose, change with it.
        """
        for name, array in vars(self).items():
            if array is not None:
                array.copy_(getattr(other, name))

    def to(self, device: torch.device | str) -> GraphView:
        """Return the same view on another device; itself if it is there."""
        if torch.device(device) == self.device:
            return self
        view: GraphView = moved(self, device, {})
        return view

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the dense (R, C) matrix, for tests and small examples."""
        dense = torch.zeros(self.num_rows, self.num_cols, dtype=dtype, device=self.device)
        place = self.row_of_edge(), self.col.long()
        return dense.index_put(place, self.edge_weight(dtype), accumulate=True)

    def to_sparse_csr(self) -> Tensor:
        """Return the matrix as a sparse (R, C) tensor in CSR layout, on the same device.

        Gradients flow back to :attr:`value`. The row pointers are this view's, and so are the
        values if the view has values by row and no scales; change neither in place. The column
        indices are a copy, since torch requires one dtype, int64, of both index arrays.
        """
        size = (self.num_rows, self.num_cols)
        return torch.sparse_csr_tensor(
            self.rowptr, self.col.long(), self.edge_weight(), size, check_invariants=False
        )

    def to_sparse_coo(self) -> Tensor:
        """Return the matrix as a sparse, coalesced (R, C) tensor in COO layout.

        As :meth:`to_sparse_csr`, but both rows of the indices are new.
        """
        return torch.sparse_coo_tensor(
            torch.stack([self.row_of_edge(), self.col.long()]),
            self.edge_weight(),
            (self.num_rows, self.num_cols),
            is_coalesced=True,
            check_invariants=False,
        )

    def to_scipy(self) -> Any:
        """Return the matrix as an (R, C) ``scipy.sparse.csr_matrix``, without gradient.

        It shares no memory with this view, since scipy rearranges entries in place.
        """
        from scipy import sparse

        value, col, rowptr = (
            t.detach().cpu().numpy() for t in (self.edge_weight(), self.col, self.rowptr)
        )
        size = (self.num_rows, self.num_cols)
        return sparse.csr_matrix((value, col, rowptr), shape=size, copy=True)


def moved(part: Any, device: torch.device | str, arrays: dict[int, Tensor]) -> Any:
    """Move what a graph consists of to a device.

    Args:
        part: A tensor, an index, scales or a view; anything else is returned as it is.
        device: Where to.
        arrays: What has been moved so far by the id of the original, since the index and both views
            of a graph share their arrays.
    """
    if isinstance(part, Tensor):
        if id(part) not in arrays:
            arrays[id(part)] = part.to(device)
        return arrays[id(part)]
    if isinstance(part, tuple):
        parts = tuple(moved(array, device, arrays) for array in part)
        return GraphIndex(*parts) if isinstance(part, GraphIndex) else parts
    if isinstance(part, GraphView):
        return GraphView(**{name: moved(t, device, arrays) for name, t in vars(part).items()})
    return part


def views_of(
    index: GraphIndex,
    normalization: Normalization,
    value: Tensor | None,
    scales: tuple[Tensor, Tensor] | None,
) -> tuple[GraphView, GraphView]:
    """Compute the views of users and of items of a graph.

    Args:
        index: Its edges.
        normalization: Its normalization.
        value: (E,) values, or None.
        scales: (U,) and (I,) float32 where they are known, so that nothing is computed or checked.
    """
    if value is not None and scales is None:
        check_finite(index, value)
    parts = normalized(index, normalization, value, scales)
    both = normalization == "sym"
    ui = GraphView(
        rowptr=index.rowptr,
        col=index.col,
        t_rowptr=index.colptr,
        t_col=index.row,
        row_scale=parts.user_scale,
        col_scale=parts.item_scale if both else None,
        value=parts.ui_value,
        t_edge=None if value is None else index.perm,
    )
    iu = replace(  # each direction is scaled by its own row sums
        ui.transpose(),
        row_scale=parts.item_scale,
        col_scale=parts.user_scale if both else None,
        value=parts.iu_value,
    )
    return ui, iu
