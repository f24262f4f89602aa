"""Which process holds which rows: contiguous ranges of users and of items.

Legend: U users, I items, N processes, R rows of a table, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Rows that are drawn at a time. A multiple of 16 numbers, so that torch's vectorized draws have the
# bits of a single draw of the whole table.
_ROWS_PER_DRAW = 1 << 16


@dataclass(frozen=True)
class Ranges:
    """A contiguous range of rows for every process, as the (N + 1) bounds between them."""

    bounds: tuple[int, ...]

    @classmethod
    def balanced(cls, degree: Tensor, size: int) -> Ranges:
        """Divide rows into ranges of about equal work and memory.

        A row counts as its edges plus the average number of edges: half of the total weight is the
        edges, half the rows.

        Args:
            degree: (R,) edges of every row.
            size: N.
        """
        weight = degree.double()
        weight = (weight + weight.mean().clamp_min(1e-9)).cumsum(0)
        wanted = weight[-1] * torch.arange(1, size, dtype=torch.float64) / size
        inner = torch.searchsorted(weight, wanted).tolist()
        return cls((0, *inner, degree.numel()))

    @property
    def num_rows(self) -> int:
        """R."""
        return self.bounds[-1]

    def of(self, rank: int) -> slice:
        """Return the rows of a process."""
        return slice(self.bounds[rank], self.bounds[rank + 1])

    def count(self, rank: int) -> int:
        """Return the number of rows of a process."""
        return self.bounds[rank + 1] - self.bounds[rank]

    def counts_of(self, ids: Tensor) -> list[int]:
        """Return how many of some ascending rows each process holds, (N,)."""
        return torch.searchsorted(ids, torch.tensor(self.bounds)).diff().tolist()


class Partition(NamedTuple):
    """The ranges of users and items, and the process whose view this is."""

    users: Ranges
    items: Ranges
    rank: int

    @property
    def own_users(self) -> slice:
        """The users of this process."""
        return self.users.of(self.rank)

    @property
    def own_items(self) -> slice:
        """The items of this process."""
        return self.items.of(self.rank)


def within(ids: Tensor, own: slice) -> Tensor:
    """Return which of some ids are in a range, bool of their shape."""
    return (ids >= own.start) & (ids < own.stop)


def draw_rows(
    num_rows: int, dim: int, own: slice, fill: Callable[[Tensor], object], out: Tensor
) -> None:
    """Draw a table from torch's default generator and keep some rows, in bounded memory.

    The generator is left, and the rows are, as if ``fill`` had been called on the whole table.

    Args:
        num_rows: R.
        dim: D.
        own: The rows to keep.
        fill: Draws the numbers of a tensor in place, one after the other.
        out: Where the rows go.
    """
    starts = list(range(0, max(num_rows - _ROWS_PER_DRAW, 0) + 1, _ROWS_PER_DRAW))
    for start, stop in zip(starts, [*starts[1:], num_rows], strict=True):
        block = torch.empty(stop - start, dim)
        fill(block)
        first, last = max(own.start, start), min(own.stop, stop)
        if first < last:
            out[first - own.start : last - own.start] = block[first - start : last - start]


def draw_tables(partition: Partition, user: Tensor, item: Tensor, std: float | None) -> None:
    """Draw a process's rows of both tables as a single process draws them.

    Args:
        partition: Which rows these are.
        user: (., D), filled in place.
        item: (., D), likewise, after the users.
        std: Draws from N(0, std^2); None for Xavier-uniform values.
    """
    for table, ranges in ((user, partition.users), (item, partition.items)):
        rows, dim = ranges.num_rows, table.shape[1]
        bound = math.sqrt(6 / (rows + dim))

        def fill(block: Tensor, bound: float = bound) -> None:
            if std is None:
                block.uniform_(-bound, bound)
            else:
                block.normal_(std=std)

        draw_rows(rows, dim, ranges.of(partition.rank), fill, table.data)
