"""Index arrays of graphs and batches: sorted both ways, by counting sorts where they were built.

On the CPU :mod:`mmssl._host` does the work; the plain torch beside each call to it serves the other
devices, and the CPU where that module was not built.

Legend: U users, I items, E edges, B batch, M modalities, n edges of a batch.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


class GraphIndex(NamedTuple):
    """The edges of a bipartite graph sorted both ways; each edge once."""

    rowptr: Tensor  # (U + 1,) int64
    col: Tensor  # (E,) int32, ascending within a user
    colptr: Tensor  # (I + 1,) int64
    row: Tensor  # (E,) int32, ascending within an item
    perm: Tensor | None = None  # (E,) int64: position by item -> by user; only values need it


class RowEdges(NamedTuple):
    """The edges of B rows of a matrix, as a (B, C) matrix sorted both ways."""

    position: Tensor  # (n,) int64, row in [0, B) of each edge
    item: Tensor  # (n,) int64
    rowptr: Tensor  # (B + 1,) int64
    col: Tensor  # (n,) int32, the items once more
    t_rowptr: Tensor  # (C + 1,) int64
    t_col: Tensor  # (n,) int32, ascending within an item
    t_edge: Tensor  # (n,) int64: position by item -> by row


def check_range(name: str, ids: Tensor, limit: int) -> None:
    """Raises a ValueError unless all ids lie in [0, limit)."""
    if ids.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < 0 or high >= limit:
        raise ValueError(f"{name} ids must lie in [0, {limit}), got {low if low < 0 else high}")


def build_index(user: Tensor, item: Tensor, num_users: int, num_items: int) -> GraphIndex:
    """Sorts (E,) int64 edges both ways and drops repetitions."""
    check_range("user", user, num_users)
    check_range("item", item, num_items)
    if max(num_users, num_items) >= 2**31:
        raise ValueError(f"at most 2^31 - 1 users and items, got {num_users} and {num_items}")
    host = _host_for(user)
    if host is not None:
        arrays = host.build_index(user.numpy(), item.numpy(), num_users, num_items)
        return GraphIndex(*(torch.from_numpy(a) for a in arrays))
    key = torch.unique(user * num_items + item)  # sorted by user, then item
    return _index_of_keys(key, num_users, num_items)


def index_of_lists(lists: Tensor, other: GraphIndex) -> list[GraphIndex]:
    """The index of every user's list, one per modality; an empty list stands for the other edges.

    Args:
        lists: (M, U, k) distinct items, -1 for none.
        other: of the same users and items.

    Raises:
        ValueError: an item outside [-1, I) (not checked on a GPU, where it would be a wait more).
    """
    num_users, num_items = other.rowptr.numel() - 1, other.colptr.numel() - 1
    if lists.dim() != 3 or lists.shape[1] != num_users:
        raise ValueError(f"lists must have shape (M, {num_users}, k), got {tuple(lists.shape)}")
    host = _host_for(lists)
    if host is not None:
        rowptr, col = other.rowptr.numpy(), other.col.numpy()
        built = [host.index_of_lists(t.int().numpy(), rowptr, col, num_items) for t in lists]
        return [GraphIndex(*(torch.from_numpy(a) for a in arrays)) for arrays in built]
    if lists.device.type == "cpu" and bool(((lists < -1) | (lists >= num_items)).any()):
        raise ValueError(f"lists must hold items in [-1, {num_items})")
    # One list of places for all: those of the lists, then the other edges. What is not taken sorts
    # behind the rest, and only the numbers of the rest have to come to the host.
    present = lists >= 0  # (M, U, k)
    other_user = _rows_of(other.rowptr, other.col.numel())
    unseen = ~present.any(2)[:, other_user]  # (M, E)
    user = torch.arange(num_users, device=lists.device)[:, None]
    end = num_users * num_items
    listed = torch.where(present, user * num_items + lists, end).flatten(1)
    rest = torch.where(unseen, other_user * num_items + other.col, end)
    key = torch.cat([listed, rest], 1).sort(1).values
    counts = (key < end).sum(1).tolist()
    return [
        _index_of_keys(row[:count], num_users, num_items)
        for row, count in zip(key, counts, strict=True)
    ]


def edges_of_rows(rowptr: Tensor, col: Tensor, num_cols: int, rows: Tensor) -> RowEdges:
    """The edges of some rows. On a GPU there is one wait, for their number n.

    Args:
        rowptr: (R + 1,) int64.
        col: (E,) int32.
        num_cols: C.
        rows: (B,) int64.
    """
    host = _host_for(rowptr)
    if host is not None:
        arrays = host.edges_of_rows(rowptr.numpy(), col.numpy(), num_cols, rows.numpy())
        return RowEdges(*(torch.from_numpy(a) for a in arrays))
    first = rowptr[rows]
    pointer = torch.zeros(rows.numel() + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(rowptr[rows + 1] - first, 0, out=pointer[1:])
    position = _rows_of(pointer, int(pointer[-1]))
    offset = torch.arange(position.numel(), device=rows.device) - pointer[position]
    narrow = col[first[position] + offset]
    item = narrow.long()
    by_item, order = torch.sort(narrow, stable=True)
    return RowEdges(
        position,
        item,
        pointer,
        narrow,
        pointers(by_item, num_cols),
        position[order].int(),
        order,
    )


def pointers(ids: Tensor, count: int) -> Tensor:
    """(count + 1,) int64 row pointers of sorted (E,) row ids, without waiting for the device."""
    return torch.searchsorted(ids, torch.arange(count + 1, dtype=ids.dtype, device=ids.device))


def _index_of_keys(key: Tensor, num_users: int, num_items: int) -> GraphIndex:
    """From ascending, distinct (E,) keys ``user * I + item``."""
    user, item = key // max(num_items, 1), key % max(num_items, 1)
    by_item, perm = torch.sort(item, stable=True)
    return GraphIndex(
        rowptr=pointers(user, num_users),
        col=item.int(),
        colptr=pointers(by_item, num_items),
        row=user[perm].int(),
        perm=perm,
    )


def _rows_of(rowptr: Tensor, nnz: int) -> Tensor:
    """(E,) int64: the row of every position."""
    rows = torch.arange(rowptr.numel() - 1, device=rowptr.device)
    return rows.repeat_interleave(rowptr.diff(), output_size=nnz)


def _host_for(array: Tensor) -> ModuleType | None:
    """:mod:`mmssl._host` for an array on the CPU, None elsewhere and where it was not built."""
    from mmssl.ops import _extension

    return _extension.host if array.device.type == "cpu" else None
