"""What other packages call a sparse matrix or a bipartite graph, as the entries of a matrix.

The two constructors of this package, :class:`mmssl.graph.InteractionGraph` and
:class:`mmssl.view.GraphView`, read all of them through this module. Neither scipy, torch_sparse nor
torch_geometric is imported: their objects are recognized by the methods that are called.

Legend: R rows, C columns, E entries, U users, I items.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmssl.arrays import as_count, as_ids, as_numbers
from mmssl.columns import leaves_float32
from mmssl.errors import InputError
from mmssl.indexing import check_pointers, check_range, rows_of

_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


class Entries(NamedTuple):
    """The entries of an (R, C) matrix in any order."""

    row: Tensor  # (E,) int64
    col: Tensor  # (E,) int64
    num_rows: int
    num_cols: int
    value: Tensor | None = None  # (E,) float32 or float64; None: all are 1, repeated ones too


def entries_of_torch(matrix: Any) -> Entries:
    """List the entries of a sparse tensor, after adding up repeated ones in float64.

    Args:
        matrix: (R, C) sparse tensor in COO, CSR or CSC layout, or a ``torch_sparse.SparseTensor``;
            of real numbers or bool.

    Returns:
        Every stored entry, one of value 0 as well, in the order of a coalesced tensor. Without
        values if all are 1 and none requires a gradient; a stored False is no entry.

    Raises:
        InputError: ``matrix`` is something else, or its indices are out of range.
    """
    if isinstance(matrix, Tensor) and matrix.layout in _LAYOUTS:
        matrix = _as_coo(matrix)
    elif hasattr(matrix, "coo") and hasattr(matrix, "sparse_sizes"):  # torch_sparse.SparseTensor
        row, col, value = matrix.coo()
        num_rows, num_cols = (as_count("matrix", size) for size in matrix.sparse_sizes())
        if value is None:
            return Entries(row, col, num_rows, num_cols)
        matrix = _coo_of(row, col, value, (num_rows, num_cols))
    else:
        raise InputError(
            "matrix: expected a sparse tensor of shape (R, C) in COO, CSR or CSC layout, got "
            f"{_kind(matrix)}"
        )
    row, col = matrix.indices()
    num_rows, num_cols = matrix.shape
    value = matrix.values()
    if value.dtype == torch.bool:
        return Entries(row[value], col[value], num_rows, num_cols)
    value = as_numbers("matrix", value)
    return Entries(row, col, num_rows, num_cols, _unless_binary(value))


def entries_of_scipy(matrix: Any) -> Entries:
    """List the entries of a scipy sparse matrix that are not 0, after adding up repeated ones.

    Args:
        matrix: (R, C), in any format; left as it is.

    Returns:
        The entries by row, then by column, without values if all are 1. Values are float32;
        float64 if one is outside the range of float32.

    Raises:
        InputError: ``matrix`` is not a two-dimensional sparse matrix of real numbers.
    """
    if not hasattr(matrix, "tocsr") or len(getattr(matrix, "shape", ())) != 2:
        raise InputError(
            "matrix: expected a scipy sparse matrix of shape (R, C), got "
            f"{type(matrix).__name__} {tuple(getattr(matrix, 'shape', ()))}"
        )
    if matrix.dtype.kind not in "biuf":
        raise InputError(f"matrix: expected real numbers, got {matrix.dtype}")
    if matrix.dtype.kind in "iu" or matrix.dtype == np.float16:
        matrix = matrix.astype(np.float64)  # small integers would wrap around where they add up
    csr = matrix.tocsr()
    if not csr.has_canonical_format or bool((csr.data == 0).any()):
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    coo = csr.tocoo()
    dtype = np.float64 if leaves_float32(coo.data) else np.float32
    value = _unless_binary(as_numbers("matrix", coo.data.astype(dtype)))
    ids = as_ids("matrix", coo.row), as_ids("matrix", coo.col)
    num_rows, num_cols = matrix.shape
    return Entries(*ids, num_rows, num_cols, value)


def entries_of_edge_index(edge_index: Any, num_users: Any, num_items: Any) -> Entries:
    """List the edges of a bipartite ``edge_index`` of torch_geometric.

    Args:
        edge_index: (2, E) integers: users in row 0, items in row 1, both counted from 0. Any array
            type, or a ``torch_geometric.EdgeIndex``.
        num_users: U; None takes it from an ``EdgeIndex`` that knows its ``sparse_size``.
        num_items: I, likewise.

    Raises:
        InputError: Not integers of shape (2, E), ids out of range, in particular items counted from
            U, or an ``EdgeIndex`` that is undirected or of other sizes.
    """
    if hasattr(edge_index, "sparse_size") and hasattr(edge_index, "as_tensor"):
        if edge_index.is_undirected:
            raise InputError(
                "edge_index: expected edges from users to items, got an undirected EdgeIndex; take "
                "those from users, with users and items counted from 0 each"
            )
        known_users, known_items = edge_index.sparse_size()
        for name, given, known in (
            ("num_users", num_users, known_users),
            ("num_items", num_items, known_items),
        ):
            if given is not None and known is not None and given != known:
                raise InputError(
                    f"{name}: expected {known}, as the sparse_size of edge_index says, got "
                    f"{given!r:.60}; users and items are counted from 0 each"
                )
        num_users = known_users if num_users is None else num_users
        num_items = known_items if num_items is None else num_items
        edge_index = edge_index.as_tensor()
    ids = as_ids("edge_index", edge_index)
    if ids.dim() != 2 or ids.shape[0] != 2:
        how = "; transpose it" if ids.dim() == 2 and ids.shape[1] == 2 else ""
        raise InputError(
            f"edge_index: expected shape (2, E), users in row 0 and items in row 1, got "
            f"{tuple(ids.shape)}{how}"
        )
    num_users, num_items = as_count("num_users", num_users), as_count("num_items", num_items)
    user, item = ids
    if ids.numel():
        low, most_user, most_item = int(ids.min()), int(user.max()), int(item.max())
        outside = most_user >= num_users or most_item >= num_items
        if low >= 0 and outside and max(most_user, most_item) < num_users + num_items:
            raise InputError(
                f"edge_index: expected users in [0, {num_users}) in row 0 and items in "
                f"[0, {num_items}) in row 1, got up to {most_user} and {most_item}; if items are "
                "counted from num_users, take the columns with edge_index[0] < num_users and "
                "subtract num_users from row 1"
            )
    return Entries(user, item, num_users, num_items)


def _unless_binary(value: Tensor) -> Tensor | None:
    """Return the values of a matrix, or None if all are 1 and will stay so."""
    return None if not value.requires_grad and bool((value == 1).all()) else value


def _as_coo(matrix: Tensor) -> Tensor:
    """Convert a sparse tensor to a coalesced COO tensor; its values keep their dtype."""
    if matrix.dim() != 2 or matrix.dense_dim():
        raise InputError(
            f"matrix: expected shape (R, C) without dense dimensions, got {_kind(matrix)}"
        )
    if matrix.layout is torch.sparse_coo:
        if matrix.is_coalesced():
            return matrix
        row, col = matrix._indices()  # torch does not check them
        _check_indices(row, col, matrix.shape)
        return _coalesced(matrix)
    by_row = matrix.layout is torch.sparse_csr
    pointer = matrix.crow_indices() if by_row else matrix.ccol_indices()
    minor = matrix.col_indices() if by_row else matrix.row_indices()
    check_pointers("matrix", pointer, minor.numel())
    major = rows_of(pointer, minor.numel())
    row, col = (major, minor) if by_row else (minor, major)
    return _coo_of(row, col, matrix.values(), matrix.shape)


def _coo_of(row: Tensor, col: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if value.dim() != 1:
        raise InputError(
            f"matrix: expected one number per entry, got values of shape {tuple(value.shape)}"
        )
    _check_indices(row, col, shape)
    indices = torch.stack([row.long(), col.long()])
    return _coalesced(torch.sparse_coo_tensor(indices, value, shape, check_invariants=False))


def _check_indices(row: Tensor, col: Tensor, shape: tuple[int, ...]) -> None:
    check_range("matrix, row", row, shape[0])
    check_range("matrix, column", col, shape[1])


def _coalesced(matrix: Tensor) -> Tensor:
    """Sort the entries of a COO tensor and add up repeated ones, other than of bool in float64."""
    if matrix.dtype == torch.bool:
        return matrix.coalesce()
    if matrix.is_complex():
        raise InputError(f"matrix: expected real numbers, got {matrix.dtype}")
    dtype = matrix.dtype if matrix.dtype == torch.float64 else torch.float32
    return matrix.to(torch.float64).coalesce().to(dtype)


def _kind(matrix: Any) -> str:
    if not isinstance(matrix, Tensor):
        return type(matrix).__name__
    dense = ""
    if matrix.layout is torch.strided:
        dense = "; convert a dense matrix with .to_sparse(), and see from_edge_index for edges"
    return f"layout {matrix.layout} of shape {tuple(matrix.shape)}{dense}"
