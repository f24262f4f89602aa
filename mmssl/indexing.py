"""Index arrays of graphs and batches, sorted both ways by counting sorts.

On the CPU :mod:`mmssl._host` does the work; the plain torch next to each call of it serves the
other devices, and the CPU if that module was not built.

Legend: U users, I items, E edges, B batch, M modalities, n edges of a batch.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl import _extension
from mmssl.errors import InputError


class GraphIndex(NamedTuple):
    """The edges of a bipartite graph sorted both ways; each edge once."""

    rowptr: Tensor  # (U + 1,) int64
    col: Tensor  # (E,) int32, ascending within a user
    colptr: Tensor  # (I + 1,) int64
    row: Tensor  # (E,) int32, ascending within an item
    perm: Tensor | None = None  # (E,) int64: position by item -> by user; only values need it


class RowEdges(NamedTuple):
    """The edges of B rows of a matrix, as a (B, C) matrix sorted both ways.

    With a capacity the arrays hold more than the n edges at which both row pointers end. What is
    behind them repeats the last edge by row, so that values that are computed for it are finite.
    """

    position: Tensor  # (n,) int64, row in [0, B) of each edge
    item: Tensor  # (n,) int64
    rowptr: Tensor  # (B + 1,) int64
    col: Tensor  # (n,) int32, the items again
    t_rowptr: Tensor  # (C + 1,) int64
    t_col: Tensor  # (n,) int32, ascending within an item
    t_edge: Tensor  # (n,) int64: position by item -> by row
    live: Tensor | None = None  # (n,) bool with a capacity: what is an edge


def check_range(name: str, ids: Tensor, limit: int) -> None:
    """Raise InputError unless all ids lie in [0, limit)."""
    if ids.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < 0 or high >= limit:
        raise InputError(f"{name}: expected ids in [0, {limit}), got {low if low < 0 else high}")


def check_pointers(name: str, pointer: Tensor, nnz: int) -> None:
    """Raise InputError unless these are (R + 1,) row pointers: ascending, from 0 to ``nnz``."""
    steps = pointer.diff()
    if (
        pointer.dim() != 1
        or pointer.numel() == 0
        or bool((pointer[0] != 0) | (pointer[-1] != nnz) | (steps < 0).any())
    ):
        raise InputError(f"{name}: expected ascending row pointers from 0 to {nnz}, got others")


def build_index(user: Tensor, item: Tensor, num_users: int, num_items: int) -> GraphIndex:
    """Sort (E,) int64 edges both ways and drop repetitions.

    Args:
        user: (E,) int64.
        item: (E,) int64.
        num_users: U, less than 2^31.
        num_items: I, less than 2^31.

    Raises:
        InputError: an id or a count is out of range.
    """
    check_range("user", user, num_users)
    check_range("item", item, num_items)
    for name, count in (("num_users", num_users), ("num_items", num_items)):
        if not 0 <= count < 2**31:
            raise InputError(f"{name}: expected an integer in [0, 2^31), got {count}")
    host = _host_for(user)
    if host is not None:
        arrays = host.build_index(user.numpy(), item.numpy(), num_users, num_items)
        return GraphIndex(*(torch.from_numpy(a) for a in arrays))
    key = torch.unique(user * num_items + item)  # sorted by user, then item
    return _index_of_keys(key, num_users, num_items)


def index_of_values(
    user: Tensor, item: Tensor, value: Tensor, num_users: int, num_items: int
) -> tuple[GraphIndex, Tensor]:
    """Sort (E,) edges both ways; the values of repeated ones add up in float64.

    Args:
        user: (E,) int64.
        item: (E,) int64.
        value: (E,) float32 or float64.
        num_users: U, less than 2^31.
        num_items: I, less than 2^31.

    Returns:
        The index, and a value per edge, by user.

    Raises:
        InputError: an id or a count is out of range.
    """
    check_range("user", user, num_users)
    check_range("item", item, num_items)
    key = torch.add(item, user, alpha=num_items)
    key, position = torch.unique(key, return_inverse=True)
    summed = sum_by(position, value.double(), key.numel()).to(value.dtype)
    user = key // max(num_items, 1)
    item = torch.sub(key, user, alpha=num_items, out=key)
    return build_index(user, item, num_users, num_items), summed


def index_of_lists(lists: Tensor, other: GraphIndex) -> list[GraphIndex]:
    """Build the index of every user's list, one per modality.

    Args:
        lists: (M, U, k) distinct items; -1 where a list is shorter.
        other: index of the same users and items; a user with an empty list gets its edges.

    Raises:
        InputError: the shape is wrong, or an item is outside [-1, I) (not checked on a GPU, where
            reading the items would wait for the device).
    """
    num_users, num_items = _check_lists(lists, other)
    if lists.device.type == "cpu" and lists.numel():
        low, high = (int(v) for v in torch.aminmax(lists))
        if low < -1 or high >= num_items:
            raise InputError(
                f"lists: expected items in [-1, {num_items}), got {low if low < -1 else high}"
            )
    host = _host_for(lists)
    if host is not None:
        rowptr, col = other.rowptr.numpy(), other.col.numpy()
        built = [host.index_of_lists(t.int().numpy(), rowptr, col, num_items) for t in lists]
        return [GraphIndex(*(torch.from_numpy(a) for a in arrays)) for arrays in built]
    # One array of keys: those of the lists, then those of the other edges. Unused keys sort to the
    # end, so that only the numbers of used ones have to reach the host.
    present = lists >= 0  # (M, U, k)
    other_user = rows_of(other.rowptr, other.col.numel())
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


def index_of_repeated(
    user: Tensor, item: Tensor, num_users: int, num_items: int
) -> tuple[GraphIndex, Tensor]:
    """Sort (E,) edges both ways and count repeated ones, without a wait for the device.

    Args:
        user: (E,) int64 in [0, U).
        item: (E,) int64 in [0, I).
        num_users: U >= 1.
        num_items: I >= 1.

    Returns:
        The index, whose arrays of edges have length E and whose pointers end where the distinct
        edges do, and how often each of them occurs: (E,) float32, 0 behind them.
    """
    end = num_users * num_items
    key = torch.add(item, user, alpha=num_items).sort().values
    differs = key.diff(prepend=key.new_full((1,), -1)) != 0
    position = differs.cumsum(0) - 1
    count = sum_by(position, torch.ones_like(key, dtype=torch.float32), key.numel())
    # Places that are written several times get the same number.
    key = torch.full_like(key, end).scatter_(0, position, key)
    user, item = key // num_items, torch.where(key < end, key % num_items, num_items)
    by_item, perm = torch.sort(item, stable=True)
    index = GraphIndex(
        rowptr=pointers(user, num_users),
        col=item.clamp_max(num_items - 1).int(),
        colptr=pointers(by_item, num_items),
        row=user[perm].clamp_max(num_users - 1).int(),
        perm=perm,
    )
    return index, count


class PaddedIndices:
    """The indices of :func:`index_of_lists`, in arrays that the kernels of a GPU overwrite.

    Nothing waits for the numbers of edges: the edge arrays are as long as the lists and ``other``
    together, and the pointers end where the edges do.

    Args:
        lists: As in :func:`index_of_lists`.
        other: The same.
        power: That of the degrees in the scales, -1/2 or -1.
    """

    def __init__(self, lists: Tensor, other: GraphIndex, power: float) -> None:
        num_users, num_items = _check_lists(lists, other)
        self._other, self._root = other, power == -0.5
        count, edges = lists.shape[0], num_users * lists.shape[2] + other.col.numel()
        pointers, narrow = other.rowptr, other.col
        scale = narrow.new_empty(count, num_users, dtype=torch.float32)
        self._arrays = (
            pointers.new_empty(count, num_users + 1),
            narrow.new_empty(count, edges),
            pointers.new_empty(count, num_items + 1),
            narrow.new_empty(count, edges),
            scale,
            scale.new_empty(count, num_items),
        )
        self.rebuild(lists)

    def rebuild(self, lists: Tensor) -> None:
        """Overwrite the arrays by those of other lists of the same shape."""
        rowptr, col = self._other.rowptr, self._other.col
        torch.ops.mmssl.index_of_lists(lists.int(), rowptr, col, *self._arrays, self._root)

    def indices(self) -> list[tuple[GraphIndex, tuple[Tensor, Tensor]]]:
        """Return the M indices and their scales of users and items, which share the arrays."""
        return [
            (GraphIndex(rowptr, col, colptr, row), (user_scale, item_scale))
            for rowptr, col, colptr, row, user_scale, item_scale in zip(*self._arrays, strict=True)
        ]


def _check_lists(lists: Tensor, other: GraphIndex) -> tuple[int, int]:
    """Return the numbers of users and items."""
    num_users, num_items = other.rowptr.numel() - 1, other.colptr.numel() - 1
    if lists.dim() != 3 or lists.shape[1] != num_users:
        raise InputError(f"lists: expected shape (M, {num_users}, k), got {tuple(lists.shape)}")
    return num_users, num_items


def edges_of_rows(
    rowptr: Tensor, col: Tensor, num_cols: int, rows: Tensor, capacity: int | None = None
) -> RowEdges:
    """Gather the edges of some rows, sorted both ways.

    Without a capacity a GPU waits once, for their number n.

    Args:
        rowptr: (R + 1,) int64.
        col: (E,) int32.
        num_cols: C.
        rows: (B,) int64.
        capacity: length of the arrays, at least n; for the kernels of a GPU.
    """
    if capacity is not None:
        return RowEdges(*torch.ops.mmssl.index_of_rows(rowptr, col, rows, num_cols, capacity))
    host = _host_for(rowptr)
    if host is not None:
        arrays = host.edges_of_rows(rowptr.numpy(), col.numpy(), num_cols, rows.numpy())
        return RowEdges(*(torch.from_numpy(a) for a in arrays))
    position, item, pointer = row_edges(rowptr, col, rows)
    narrow = item.int()
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


def row_edges(rowptr: Tensor, col: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """List the edges of some rows in plain torch.

    Args:
        rowptr: (R + 1,) int64.
        col: (E,) int32.
        rows: (B,) int64.

    Returns:
        position (n,) int64 in ``rows`` and column (n,) int64 of each edge, and the row pointers
        (B + 1,) int64 of the edges.
    """
    first = rowptr[rows]
    pointer = torch.zeros(rows.numel() + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(rowptr[rows + 1] - first, 0, out=pointer[1:])
    position = rows_of(pointer, int(pointer[-1]))
    offset = torch.arange(position.numel(), device=rows.device) - pointer[position]
    return position, col[first[position] + offset].long(), pointer


def pointers(ids: Tensor, count: int) -> Tensor:
    """Return the (count + 1,) int64 row pointers of sorted (E,) row ids; no wait for the device."""
    return torch.searchsorted(ids, torch.arange(count + 1, dtype=ids.dtype, device=ids.device))


def sum_by(ids: Tensor, value: Tensor, count: int) -> Tensor:
    """Sum (E,) values by their id in [0, count), in the order of the edges.

    Deterministic, without a wait for the device, and differentiable any number of times.

    Args:
        ids: (E,) int32 or int64.
        value: (E,).
        count: Number of sums.

    Returns:
        (count,) in the dtype of ``value``.
    """
    total = value.new_zeros(count)
    if value.device.type == "cpu":  # one thread, in order
        return total.index_add(0, ids, value)
    # On a GPU index_add is atomic; index_put sorts the ids first.
    return total.index_put((ids.long(),), value, accumulate=True)


def sum_rows(rowptr: Tensor, value: Tensor) -> Tensor:
    """Sum (E,) values by row: the same as :func:`sum_by` with :func:`rows_of`, with less memory.

    Args:
        rowptr: (R + 1,) int64.
        value: (E,) by row.

    Returns:
        (R,) in the dtype of ``value``.
    """
    if value.requires_grad:  # torch.segment_reduce can be differentiated only once
        return sum_by(rows_of(rowptr, value.numel()), value, rowptr.numel() - 1)
    return torch.segment_reduce(value, "sum", offsets=rowptr, initial=0, unsafe=True)


def item_order(col: Tensor) -> Tensor:
    """Return the (E,) int64 positions of the edges, sorted by item, of their (E,) items by user."""
    return torch.sort(col, stable=True).indices


def _index_of_keys(key: Tensor, num_users: int, num_items: int) -> GraphIndex:
    """Build the index from ascending, distinct (E,) keys ``user * I + item``."""
    user, item = key // max(num_items, 1), key % max(num_items, 1)
    by_item, perm = torch.sort(item, stable=True)
    return GraphIndex(
        rowptr=pointers(user, num_users),
        col=item.int(),
        colptr=pointers(by_item, num_items),
        row=user[perm].int(),
        perm=perm,
    )


def rows_of(rowptr: Tensor, nnz: int) -> Tensor:
    """Return the row of every position, (E,) int64; no wait for the device."""
    rows = torch.arange(rowptr.numel() - 1, device=rowptr.device)
    return rows.repeat_interleave(rowptr.diff(), output_size=nnz)


def _host_for(array: Tensor) -> ModuleType | None:
    """Return :mod:`mmssl._host` for an array on the CPU if it was built, else None."""
    return _extension.host if array.device.type == "cpu" else None
