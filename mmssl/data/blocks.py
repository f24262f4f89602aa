"""Work on long columns in blocks, so that what is computed on the way stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.int32] | npt.NDArray[np.int64]

BLOCK = 1 << 22
"""Rows of a block: an int64 column of it is 32 MB."""


def blocks(size: int) -> Iterator[slice]:
    """Yield slices of at most ``BLOCK`` rows that cover ``range(size)`` in order."""
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


def counts(ids: IdArray, size: int) -> IntArray:
    """Return how often each of 0 .. size - 1 occurs, (size,).

    ``np.bincount`` of a column of int32 would first convert all of it to int64.
    """
    found = np.zeros(size, dtype=np.int64)
    for part in blocks(ids.size):
        found += np.bincount(ids[part], minlength=size)
    return found


def ascending(user: IdArray, item: IdArray) -> bool:
    """Return whether pairs (E,) are sorted by user, then item, and unique."""
    for part in blocks(user.size - 1):
        first, second = part, slice(part.start + 1, part.stop + 1)
        down = user[second] < user[first]  # not np.diff, which wraps around for unsigned ids
        repeated = (user[second] == user[first]) & (item[second] <= item[first])
        if down.any() or repeated.any():
            return False
    return True


def without_gaps(ids: IdArray, size: int) -> tuple[IntArray, npt.NDArray[np.int32]]:
    """Return the ids that occur, ascending, and the position of each of ``ids`` among them."""
    used = np.flatnonzero(counts(ids, size))
    number = np.zeros(size, dtype=np.int32)
    number[used] = np.arange(used.size, dtype=np.int32)
    return used, number[ids]


def row_numbers(size: int) -> IdArray:
    """Return 1, 2, .., size; int32 where they fit."""
    return np.arange(1, size + 1, dtype=np.int32 if size < 2**31 - 1 else np.int64)


def by_users(user: IdArray) -> Iterator[IntArray]:
    """Yield the positions of the edges of one range of users after the other, ascending in each.

    A range has at most ``4 BLOCK`` edges, unless a single user has more: every range takes a pass
    over all edges.

    Args:
        user: (E,) users from 0, in any order.
    """
    if user.size <= 4 * BLOCK:
        yield np.arange(user.size)
        return
    ends = np.cumsum(counts(user, int(user.max()) + 1))
    first = done = 0
    while first < ends.size:
        last = max(int(np.searchsorted(ends, done + 4 * BLOCK, side="right")), first + 1)
        yield np.flatnonzero((user >= first) & (user < last))
        first, done = last, int(ends[last - 1])


def whole_users(user: IdArray) -> Iterator[slice]:
    """Yield ranges of edges, sorted by user, that hold all edges of their users.

    A range has at most ``BLOCK`` edges, unless a single user has more.

    Args:
        user: (E,) sorted.
    """
    first = 0
    while first < user.size:
        last = min(first + BLOCK, user.size)
        if last < user.size:
            last = int(np.searchsorted(user, user[last], side="left"))
        if last <= first:  # a user with more edges than a block
            last = int(np.searchsorted(user, user[first], side="right"))
        yield slice(first, last)
        first = last


def row_blocks(rows: npt.NDArray[np.generic]) -> Iterator[slice]:
    """Yield slices of the rows of an (N, d) array, each of about ``BLOCK`` numbers."""
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))
