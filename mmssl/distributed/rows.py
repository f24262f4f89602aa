"""Rows of a divided table in every process, and sums over its rows.

Every process computes the whole loss of the batch from rows that all of them have, so the gradient
of such a row needs no exchange: the process that holds it adds it to its table.

Legend: B rows of a batch, R rows of a process, D columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import Processes


def gathered(group: Processes, table: Tensor, own: slice, ids: Tensor) -> Tensor:
    """Return some rows of a divided table, the same in every process.

    Args:
        group: The processes.
        table: (R, D), this process's rows.
        own: Which rows these are.
        ids: (B,) int64, the same in every process; rows may repeat.

    Returns:
        (B, D).
    """
    out: Tensor = _Gathered.apply(table, group, own, ids)
    return out


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, group: Processes, own: slice, ids: Tensor) -> Tensor:
        place = ((ids >= own.start) & (ids < own.stop)).nonzero().squeeze(1)
        row = ids[place] - own.start
        ctx.rows = table.shape
        ctx.save_for_backward(place, row)
        out = table.new_zeros(ids.numel(), table.shape[1])
        return group.sum(out.index_copy_(0, place, table[row]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        place, row = ctx.saved_tensors
        total = grad.new_zeros(ctx.rows)
        # In the order of the batch: index_put sorts on a GPU, where index_add would be atomic.
        return total.index_put_((row,), grad[place], accumulate=True), None, None, None


def shared_logsumexp(group: Processes, anchor: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Compute :func:`mmssl.ops.cosine_logsumexp` over the rows of all processes.

    No cosine exceeds 1, so that plain sums of ``exp((cos - 1) / temperature)`` in float64 are exact
    enough for any temperature from 0.003 on, and one number per anchor is exchanged.

    Args:
        group: The processes.
        anchor: (B, D), the same in every process.
        rows: (R, D), this process's rows.
        temperature: > 0.

    Returns:
        (B,) float64, the same in every process.
    """
    part = ops.cosine_logsumexp(_Copied.apply(anchor, group), rows, temperature)
    sums: Tensor = _Summed.apply((part.double() - 1 / temperature).exp(), group)
    return sums.log() + 1 / temperature


class _Copied(torch.autograd.Function):
    """What every process uses for its part of a sum: the gradients of the parts are added."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Processes) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.sum(grad.clone(memory_format=torch.contiguous_format)), None


class _Summed(torch.autograd.Function):
    """The sum of the parts, of which every process computes the whole loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Processes) -> Tensor:
        return group.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
