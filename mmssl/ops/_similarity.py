"""What a GPU does between the products of similarity rows: a launch where torch needs dozens.

The CPU computes the same numbers by the functions of :mod:`mmssl.ops.masked_similarity`, which say
what they are.

Legend: K blocks, U users, I items, B batch, D embedding dim, n edges of the batch, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmssl import _extension
from mmssl.graph import GraphView
from mmssl.ops import dispatch
from mmssl.ops._autograd import Operator
from mmssl.ops.propagate import propagate_packed

_DTYPES = (torch.float32, torch.float64)
MOST_BLOCKS = 8
"""Blocks of rows that one call takes."""


def takes_fused(x: Tensor) -> bool:
    """Whether the operators of this file compute rows of this dtype on this device."""
    if not _extension.on_gpu(x) or x.dtype not in _DTYPES:
        return False
    return dispatch.use_native("spmm", x.device.type, x.dtype)


class JointFactors(NamedTuple):
    """The factors of K blocks and of a constant one behind them, without a gradient."""

    left: Tensor  # (K + 1, B, D)
    value: Tensor  # (K + 1, n)
    item_emb: Tensor  # (K + 1, I, D), whose blocks are columns of one table


def fused_factors(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    view: GraphView,
    constant: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, JointFactors]:
    """Compute the factors of K blocks of rows; differentiable once.

    Args:
        user_emb: (K, U, D).
        item_emb: (K, I, D).
        users: (B,) int64.
        view: (B, I), the edges of the batch.
        constant: Tables (U, D) and (I, D) of one more block, which gets no gradient.

    Returns:
        left (K, B, D) and value (K, n), 0 behind the edges, and those of all blocks.
    """
    joint: list[Tensor] = []
    left, value = _Factors.apply(users, view, constant, joint, user_emb, item_emb)
    return left, value, JointFactors(*joint)


class _Factors(torch.autograd.Function):
    """:class:`mmssl.ops.masked_similarity._Factors` of all blocks at once."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        view: GraphView,
        constant: tuple[Tensor, Tensor] | None,
        joint: list[Tensor],
        user_emb: Tensor,
        item_emb: Tensor,
    ) -> tuple[Tensor, Tensor]:
        tables = zip(user_emb.unbind(), item_emb.unbind(), strict=True)
        user_tables, item_tables = zip(*tables, *([constant] if constant else []), strict=True)
        user, wide_user, packed, wide_item = torch.ops.mmssl.similarity_tables(
            user_tables, item_tables, users
        )
        through = torch.bmm(wide_user, torch.bmm(wide_item.mT, wide_item))  # (K, B, D)
        left, value, masked, scale = torch.ops.mmssl.similarity_factors(
            user, packed.transpose(0, 1), through, view.rowptr, view.col
        )
        joint += left, value, packed.transpose(0, 1)
        count = user_emb.shape[0]
        ctx.view, ctx.shape = view, user_emb.shape
        parts = (part[:count] for part in (user, through, masked, scale))
        ctx.save_for_backward(users, item_emb, *parts)
        return left[:count], value[:count]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        users, item_emb, user, through, masked, scale = ctx.saved_tensors
        view = ctx.view
        of_rows, to_masked, weighted = torch.ops.mmssl.similarity_factors_backward(
            *grads, user, item_emb, through, masked, scale, view.rowptr, view.col
        )
        to_user = to_item = None
        if ctx.needs_input_grad[4]:
            to_user = of_rows.new_zeros(ctx.shape)
            torch.ops.aten.index_put_(to_user, [None, users], of_rows, True)
        if ctx.needs_input_grad[5]:
            on_edges = [
                GraphView(
                    view.t_rowptr, view.t_col, view.rowptr, view.col, value=value, edge=view.t_edge
                )
                for value in to_masked
            ]
            sums = propagate_packed(on_edges, list(user)).view_as(item_emb)  # (K, I, D)
            to_item = torch.baddbmm(sums, item_emb, torch.bmm(user.mT, weighted))
        return None, None, None, None, to_user, to_item


def stacked_edges(view: GraphView, value: Tensor) -> GraphView:
    """Return the (K B, C) matrix of K blocks of values, one block below the other.

    Args:
        view: (B, C), the edges of the batch, whose arrays may have a capacity n.
        value: (K, n), anything behind the edges.
    """
    rowptr, col, t_rowptr, t_col, edge, t_edge = torch.ops.mmssl.stack_edges(
        view.rowptr, view.col, view.t_rowptr, view.t_col, view.t_edge, value.shape[0]
    )
    return GraphView(rowptr, col, t_rowptr, t_col, value=value.flatten(), edge=edge, t_edge=t_edge)


def _factors_fake(
    user: Tensor, item: Tensor, through: Tensor, rowptr: Tensor, col: Tensor
) -> tuple[Tensor, ...]:
    of_edges = user.new_empty(user.shape[0], col.shape[0])
    return (
        user.new_empty(user.shape),
        of_edges,
        torch.empty_like(of_edges),
        user.new_empty(user.shape[:2]),
    )


def _factors_backward_fake(
    to_left: Tensor, to_value: Tensor, user: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return user.new_empty(user.shape), torch.empty_like(to_value), user.new_empty(user.shape)


def _tables_fake(
    user: Sequence[Tensor], item: Sequence[Tensor], users: Tensor
) -> tuple[Tensor, ...]:
    blocks, (items, dim) = len(user), item[0].shape
    rows = user[0].new_empty(blocks, users.shape[0], dim)
    wide = user[0].new_empty(blocks, items, dim, dtype=torch.float64)
    wide_rows = torch.empty_like(rows, dtype=torch.float64)
    return rows, wide_rows, user[0].new_empty(items, blocks, dim), wide


def _stack_fake(
    rowptr: Tensor, col: Tensor, t_rowptr: Tensor, t_col: Tensor, t_edge: Tensor, blocks: int
) -> tuple[Tensor, ...]:
    count = blocks * col.shape[0]
    return (
        rowptr.new_empty(blocks * (rowptr.shape[0] - 1) + 1),
        col.new_empty(count),
        t_rowptr.new_empty(t_rowptr.shape),
        t_col.new_empty(count),
        t_edge.new_empty(count),
        t_edge.new_empty(count),
    )


def _rows_fake(
    rowptr: Tensor, col: Tensor, rows: Tensor, num_cols: int, capacity: int
) -> tuple[Tensor, ...]:
    position, item, edge = (rows.new_empty(capacity) for _ in range(3))
    of_rows, of_columns = rows.new_empty(rows.shape[0] + 1), rows.new_empty(num_cols + 1)
    narrow, t_narrow = (col.new_empty(capacity) for _ in range(2))
    live = rows.new_empty(capacity, dtype=torch.bool)
    return position, item, of_rows, narrow, of_columns, t_narrow, edge, live


def _scale_fake(rowptr: Tensor, root: bool) -> Tensor:
    return rowptr.new_empty(rowptr.shape[0] - 1, dtype=torch.float32)


OPERATORS = (
    Operator("similarity_factors", fake=_factors_fake),
    Operator("similarity_factors_backward", fake=_factors_backward_fake),
    Operator("similarity_tables", fake=_tables_fake),
    Operator("gumbel_rows", fake=lambda *_: None),
    Operator("stack_edges", fake=_stack_fake),
    Operator("index_of_rows", fake=_rows_fake),
    Operator("index_of_lists", fake=lambda *_: None),
    Operator("store_lists", fake=lambda *_: None),
    Operator("degree_scale", fake=_scale_fake),
)
