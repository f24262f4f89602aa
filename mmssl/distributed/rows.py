"""Rows of a divided table in every process, and sums over its rows.

Every process computes the whole loss of the batch from rows that all of them have, so the gradient
of such a row needs no exchange: the process that holds it adds it to its table.

Legend: B rows of a batch, R rows of a process, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import Processes
from mmssl.distributed.partition import within


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
    return gathered_together(group, [table], own, ids)[0]


def gathered_together(
    group: Processes, tables: Sequence[Tensor], own: slice, ids: Tensor
) -> tuple[Tensor, ...]:
    """Return :func:`gathered` of several tables of the same rows and width, in one exchange.

    Args:
        group: The processes.
        tables: (R, D) each.
        own: Which rows these are.
        ids: (B,) int64, the same in every process.
    """
    out: tuple[Tensor, ...] = _Gathered.apply(group, own, ids, *tables)
    return out


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, group: Processes, own: slice, ids: Tensor, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        place = within(ids, own).nonzero().squeeze(1)
        row = ids[place] - own.start
        ctx.rows = tables[0].shape
        ctx.save_for_backward(place, row)
        out = tables[0].new_zeros(len(tables), ids.numel(), tables[0].shape[1])
        for rows, table in zip(out, tables, strict=True):
            rows.index_copy_(0, place, table[row])
        return group.sum(out).unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        place, row = ctx.saved_tensors
        # In the order of the batch: index_put sorts on a GPU, where index_add would be atomic.
        totals = [
            grad.new_zeros(ctx.rows).index_put_((row,), grad[place], accumulate=True)
            for grad in grads
        ]
        return None, None, None, *totals


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
    part = ops.cosine_logsumexp(copied(group, anchor), rows, temperature)
    return summed(group, (part.double() - 1 / temperature).exp()).log() + 1 / temperature


def copied(group: Processes, tensor: Tensor) -> Tensor:
    """Return what every process has, for its part of a sum: the gradients of the parts are added.

    Args:
        group: The processes.
        tensor: The same in every process, and so is its gradient.
    """
    out: Tensor = _Copied.apply(tensor, group)
    return out


def summed(group: Processes, tensor: Tensor) -> Tensor:
    """Return the sum of the parts of all processes, of which each computes the whole loss.

    Args:
        group: The processes.
        tensor: This process's part.
    """
    out: Tensor = _Summed.apply(tensor, group)
    return out


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Processes) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.sum(grad.clone(memory_format=torch.contiguous_format)), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Processes) -> Tensor:
        return group.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
