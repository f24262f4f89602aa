"""A graph whose rows are divided over processes, and products with it.

Every process holds the edges of its users and of its items. In a product with the graph it needs
rows of other processes, always the same ones: the lists are exchanged once. The rows travel while
the product with the process's own rows is computed. The gradient takes the way back; all sums are
formed in a fixed order.

Legend: U users, I items, E edges, D features, R rows of a view, S rows sent, H rows received.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmssl import ops
from mmssl.convert import Entries
from mmssl.distributed.group import Processes
from mmssl.distributed.partition import Partition, Ranges, within
from mmssl.graph import GraphView, Normalization
from mmssl.indexing import pointers
from mmssl.normalization import degree_scale

# Rows that are packed at a time, so that only this many exist twice.
_ROWS_AT_ONCE = 1 << 18


class Exchange:
    """The rows of a divided table that the processes send each other in every product.

    Args:
        group: The processes.
        ranges: Which process holds which rows of the table.
        needed: (H,) int64 rows of other processes that this one needs, ascending.
        wire: Data type in which the numbers travel; None means that of the table.
    """

    def __init__(
        self, group: Processes, ranges: Ranges, needed: Tensor, wire: torch.dtype | None
    ) -> None:
        self.group = group
        self.wire = wire
        self.own = ranges.of(group.rank)
        self.needed = needed
        self.received = ranges.counts_of(needed.cpu())  # rows from each process
        counts = torch.tensor(self.received)
        sent = torch.empty_like(counts)
        group.all_to_all(sent, counts)
        self.sent: list[int] = sent.tolist()  # rows to each process
        wanted = torch.empty(sum(self.sent), dtype=torch.int64, device=needed.device)
        group.all_to_all(wanted, needed, self.sent, self.received)
        self.rows = wanted - self.own.start  # (S,) own rows, by receiver
        by_row, order = self.rows.sort(stable=True)
        own = ranges.count(group.rank)
        slots = torch.arange(self.rows.numel(), device=needed.device)
        # Adds what the receivers of a row send back, in the order of the receivers.
        self.back = GraphView(
            rowptr=pointers(by_row, own),
            col=order.int(),
            t_rowptr=torch.arange(slots.numel() + 1, device=needed.device),
            t_col=self.rows.int(),
        )

    def start(self, table: Tensor) -> Callable[[], Tensor]:
        """Send own rows of a (R, D) table; the result waits for the (H, D) rows of the others.

        It is valid until the next exchange of the group starts.
        """
        packed = self._buffer("sent", len(self.rows), table)
        blocks = zip(packed.split(_ROWS_AT_ONCE), self.rows.split(_ROWS_AT_ONCE), strict=True)
        for block, rows in blocks:
            block.copy_(table.index_select(0, rows))
        return self._travel(packed, table, self.sent, self.received)

    def exact(self, table: Tensor) -> Tensor:
        """Return the (H, D) rows of the others, in the data type of the table."""
        out = table.new_empty(sum(self.received), table.shape[1])
        self.group.all_to_all(out, table.index_select(0, self.rows), self.received, self.sent)
        return out

    def start_back(self, grads: Tensor) -> Callable[[], Tensor]:
        """Send (H, D) gradients to where the rows came from; the result waits for (S, D).

        It is valid until the next exchange of the group starts.
        """
        packed = grads
        if self.wire not in (None, grads.dtype):
            packed = self._buffer("sent", len(grads), grads).copy_(grads)
        return self._travel(packed, grads, self.received, self.sent)

    def _travel(
        self, packed: Tensor, like: Tensor, sent: list[int], received: list[int]
    ) -> Callable[[], Tensor]:
        out = self._buffer("received", sum(received), like)
        finish = self.group.start_all_to_all(out, packed, received, sent)

        def wait() -> Tensor:
            finish()
            if out.dtype == like.dtype:
                return out
            return self.group.buffer("widened", out.shape, like.dtype, out.device).copy_(out)

        return wait

    def _buffer(self, name: str, num_rows: int, like: Tensor) -> Tensor:
        shape = (num_rows, like.shape[1])
        return self.group.buffer(name, shape, self.wire or like.dtype, like.device)


@dataclass(frozen=True)
class ShardedView:
    """A process's rows of a sparse matrix whose columns are rows of a divided table."""

    local: GraphView
    """(R, C) columns that this process holds."""
    remote: GraphView
    """(R, H) columns of other processes."""
    exchange: Exchange

    def multiply(self, table: Tensor) -> Tensor:
        """Return this process's rows (R, D) of the product with a divided (., D) table."""
        out: Tensor = _Product.apply(table, self)
        return out

    def product(self, table: Tensor) -> Tensor:
        """Compute :meth:`multiply` without a gradient."""
        return _two_products(self.exchange.start(table), self.local, self.remote, table)

    def edges(self) -> tuple[Tensor, Tensor]:
        """Return the edges of this process: rows, counted from its first, and all columns."""
        local, remote, exchange = self.local, self.remote, self.exchange
        row = torch.cat([local.row_of_edge(), remote.row_of_edge()])
        column = torch.cat([local.col + exchange.own.start, exchange.needed[remote.col.long()]])
        return row, column

    @property
    def nnz(self) -> int:
        """Edges of this process."""
        return self.local.nnz + self.remote.nnz


def multiply(matrix: GraphView | ShardedView, table: Tensor) -> Tensor:
    """Multiply a sparse matrix, or this process's rows of one, by a table."""
    return matrix.multiply(table) if isinstance(matrix, ShardedView) else ops.spmm(matrix, table)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, view: ShardedView) -> Tensor:
        ctx.view = view
        return view.product(table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        view, grad = ctx.view, grad.contiguous()
        back = view.exchange.start_back(ops.spmm(view.remote.transpose(), grad))
        return _two_products(back, view.local.transpose(), view.exchange.back, grad), None


def _two_products(
    arriving: Callable[[], Tensor], local: GraphView, remote: GraphView, table: Tensor
) -> Tensor:
    """Multiply own rows while the others are on their way, then those."""
    out = ops.spmm(local, table)
    rows = arriving()
    return out.add_(ops.spmm(remote, rows)) if remote.nnz else out


def sharded_view(
    group: Processes,
    columns: Ranges,
    num_rows: int,
    row: Tensor,
    column: Tensor,
    *,
    value: Tensor | None = None,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
    local: GraphView | None = None,
    wire: torch.dtype | None = None,
) -> ShardedView:
    """Build a process's rows of a divided sparse matrix. All processes call this together.

    Args:
        group: The processes.
        columns: Which process holds which row of the tables that are multiplied.
        num_rows: R, rows of this process.
        row: (E,) int64 in [0, R).
        column: (E,) int64, of all columns.
        value: (E,), or None for ones.
        row_scale: (R,) factors, or None.
        col_scale: (C,) factors of the columns that this process holds, or None.
        local: The edges to these columns, with scales, if they have been sorted before.
        wire: Data type in which rows travel; None means that of the tables.
    """
    own = columns.of(group.rank)
    here = within(column, own)
    needed = column[~here].unique()

    def part(mask: Tensor, position: Tensor, count: int, scale: Tensor | None) -> GraphView:
        values = None if value is None else value[mask]
        view = GraphView.from_entries(Entries(row[mask], position, num_rows, count, values))
        return replace(view, row_scale=row_scale, col_scale=scale)

    if local is None:
        local = part(here, column[here] - own.start, columns.count(group.rank), col_scale)
    exchange = Exchange(group, columns, needed, wire)
    scale = None if col_scale is None else exchange.exact(col_scale[:, None]).squeeze(1)
    position = torch.searchsorted(needed, column[~here])
    remote = part(~here, position, needed.numel(), scale)
    return ShardedView(local, remote, exchange)


def edges_of_items(
    group: Processes, items: Ranges, user: Tensor, item: Tensor
) -> tuple[Tensor, Tensor]:
    """Send edges to the processes that hold their items. All processes call this together.

    Args:
        group: The processes.
        items: Which process holds which item.
        user: (n,) int64, below 2^31.
        item: (n,) int64.

    Returns:
        Users and items of the edges that arrive here, by sender, each in the order it sent them.
    """
    bounds = torch.tensor(items.bounds[1:], device=item.device)
    owner = torch.searchsorted(bounds, item, right=True)
    order = torch.sort(owner, stable=True).indices
    sent = torch.bincount(owner, minlength=group.size).cpu()
    received = torch.empty_like(sent)
    group.all_to_all(received, sent)
    edges = torch.stack([user, item], 1)[order].int()
    out = edges.new_empty(int(received.sum()), 2)
    group.all_to_all(out, edges, received.tolist(), sent.tolist())
    return out[:, 0].long(), out[:, 1].long()


class ShardedGraph:
    """This process's part of a normalized interaction graph, in both directions.

    Args:
        group: The processes.
        partition: Which process holds which user and item.
        of_users: Users and items (n,) int64 of the edges of this process's users, each edge once.
        of_items: The same of its items.
        normalization: As in :class:`mmssl.graph.InteractionGraph`, other than "none".
        wire: Data type in which rows travel; None means that of the tables.
    """

    def __init__(
        self,
        group: Processes,
        partition: Partition,
        of_users: tuple[Tensor, Tensor],
        of_items: tuple[Tensor, Tensor],
        normalization: Normalization = "sym",
        wire: torch.dtype | None = None,
    ) -> None:
        self.partition = partition
        self.normalization = normalization
        self.num_users = partition.users.count(partition.rank)
        """Users of this process."""
        self.num_items = partition.items.count(partition.rank)
        """Items of this process."""
        user = of_users[0] - partition.own_users.start
        item = of_items[1] - partition.own_items.start
        of_user, of_item = (
            degree_scale(torch.bincount(row, minlength=count), normalization)
            for row, count in ((user, self.num_users), (item, self.num_items))
        )
        both = normalization == "sym"
        self.ui = sharded_view(
            group,
            partition.items,
            self.num_users,
            user,
            of_users[1],
            row_scale=of_user,
            col_scale=of_item if both else None,
            wire=wire,
        )
        """Own users times all items."""
        col_scale = of_user if both else None
        self.iu = sharded_view(
            group,
            partition.users,
            self.num_items,
            item,
            of_items[0],
            # The edges between own users and own items are the same in both directions.
            local=replace(self.ui.local.transpose(), row_scale=of_item, col_scale=col_scale),
            row_scale=of_item,
            col_scale=col_scale,
            wire=wire,
        )
        """Own items times all users."""

    @property
    def device(self) -> torch.device:
        """Device of the index arrays."""
        return self.ui.local.device

    def propagate_layers(
        self, user: Tensor, item: Tensor, num_layers: int
    ) -> tuple[Tensor, Tensor]:
        """Compute this process's rows of :func:`mmssl.ops.propagate_layers`.

        Args:
            user: (U', D) rows of this process's users.
            item: (I', D) rows of its items.
            num_layers: Number of layers.
        """
        assert self.normalization == "sym"  # the gradient's matrix is the same
        out: tuple[Tensor, Tensor] = _Propagated.apply(user, item, self, num_layers)
        return out

    def _mean_of_layers(self, user: Tensor, item: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
        # Horner's scheme, x + S (x + S (x + ...)), needs no table for the sum.
        users, items = user, item
        for _ in range(num_layers):
            users, items = self.ui.product(items).add_(user), self.iu.product(users).add_(item)
        scale = 1.0 / (num_layers + 1)
        return (
            (users.mul_(scale), items.mul_(scale)) if num_layers else (user.clone(), item.clone())
        )


class _Propagated(torch.autograd.Function):
    """The mean of the layers, whose matrix is symmetric: the gradient is that of the gradients."""

    @staticmethod
    def forward(
        ctx: Any, user: Tensor, item: Tensor, graph: ShardedGraph, num_layers: int
    ) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.num_layers = graph, num_layers
        return graph._mean_of_layers(user, item, num_layers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_user: Tensor, grad_item: Tensor) -> tuple[Tensor | None, ...]:
        grads = grad_user.contiguous(), grad_item.contiguous()
        return *ctx.graph._mean_of_layers(*grads, ctx.num_layers), None, None
