"""Fakes and gradients of ``mmssl::spmm``, ``mmssl::spmm_value_grad`` and ``mmssl::propagate``.

Legend: R rows, C columns, E edges of a view, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmssl.ops import _extension
from mmssl.ops._autograd import past_autograd
from mmssl.ops.reference import accumulation_dtype


class Operands(NamedTuple):
    """What the ops take beside x: one of each, or for a batch a list of each."""

    rowptr: Any
    col: Any
    t_rowptr: Any
    t_col: Any
    row_scale: Any
    col_scale: Any
    value: Any
    edge: Any
    t_edge: Any

    def transpose(self) -> Operands:
        """Those of the transposed views."""
        return Operands(
            self.t_rowptr,
            self.t_col,
            self.rowptr,
            self.col,
            self.col_scale,
            self.row_scale,
            self.value,
            self.t_edge,
            self.edge,
        )


def _spmm_fake(
    x: Tensor,
    rowptr: Tensor,
    col: Tensor,
    t_rowptr: Tensor,
    t_col: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    value: Tensor | None,
    edge: Tensor | None,
    t_edge: Tensor | None,
) -> Tensor:
    return x.new_empty(rowptr.shape[0] - 1, x.shape[1])


def _spmm_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # x is kept only where the gradient of the values will want it.
    x = inputs[0] if ctx.needs_input_grad[7] else None
    ctx.save_for_backward(x, *inputs[1:])


def _spmm_gradients(
    grad: Tensor, x: Tensor | None, a: Operands, needs_x: bool, needs_value: bool
) -> tuple[Tensor | None, Tensor | None]:
    grad_x = torch.ops.mmssl.spmm(grad, *a.transpose()) if needs_x else None
    grad_value = None
    if needs_value:
        grad_value = torch.ops.mmssl.spmm_value_grad(grad, x, *a[:6], a.edge, a.t_edge)
    return grad_x, grad_value


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    needed = ctx.needs_input_grad
    grad_x, grad_value = _spmm_gradients(grad, x, Operands(*saved), needed[0], needed[7])
    return grad_x, None, None, None, None, None, None, grad_value, None, None


class Spmm(torch.autograd.Function):
    """The op with its gradient for eager code, at half the Python of ``register_autograd``.

    That shows on small graphs. The index arrays go past autograd, which looks at every tensor it is
    handed; ``value`` is handed over beside the operands that hold it, for its gradient.
    """

    @staticmethod
    def forward(ctx: Any, a: Operands, x: Tensor, value: Tensor | None) -> Tensor:
        ctx.operands = a
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, value)
        with past_autograd():
            y: Tensor = torch.ops.mmssl.spmm(x, *a)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, value = ctx.saved_tensors
        a = ctx.operands._replace(value=value)
        with past_autograd():
            return None, *_spmm_gradients(grad, x, a, *ctx.needs_input_grad[1:])


def _propagate_fake(x: list[Tensor], rowptr: list[Tensor], *_: Any) -> list[Tensor]:
    return [t.new_empty(p.shape[0] - 1, t.shape[1]) for t, p in zip(x, rowptr, strict=True)]


def _save_lists(ctx: Any, lists: Sequence[list[Tensor | None]]) -> None:
    ctx.set_materialize_grads(False)  # nothing is multiplied for a result without a gradient
    ctx.save_for_backward(*(t for column in lists for t in column))


def _propagate_gradients(
    ctx: Any, needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """One batch of the transposed products, for the inputs that need it."""
    saved, count = ctx.saved_tensors, len(grads)
    wanted = [n for n in range(count) if needed[n] and grads[n] is not None]
    out: list[Tensor | None] = [None] * count
    if wanted:
        lists = [[saved[i * count + n] for n in wanted] for i in range(len(Operands._fields))]
        batch = [grads[n] for n in wanted]
        results = torch.ops.mmssl.propagate(batch, *Operands(*lists).transpose())
        for n, result in zip(wanted, results, strict=True):
            out[n] = result
    return out


class Propagate(torch.autograd.Function):
    """As :class:`Spmm`."""

    @staticmethod
    def forward(ctx: Any, lists: Operands, *xs: Tensor) -> tuple[Tensor, ...]:
        _save_lists(ctx, lists)
        with past_autograd():
            return tuple(torch.ops.mmssl.propagate(list(xs), *lists))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with past_autograd():
            return None, *_propagate_gradients(ctx, ctx.needs_input_grad[1:], grads)


def _propagate_save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _save_lists(ctx, inputs[1:])
    # register_autograd wants the structure of the inputs back; a list with a None is no structure.
    ctx.no_gradients = [
        [None] * len(column) if all(isinstance(t, Tensor) for t in column) else None
        for column in inputs[1:]
    ]


def _propagate_backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    return _propagate_gradients(ctx, ctx.needs_input_grad[0], grads), *ctx.no_gradients


def _value_grad_fake(
    grad: Tensor,
    x: Tensor,
    rowptr: Tensor,
    col: Tensor,
    t_rowptr: Tensor,
    t_col: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    edge: Tensor | None,
    t_edge: Tensor | None,
) -> Tensor:
    return x.new_empty(col.shape[0], dtype=accumulation_dtype(x.dtype))


def _value_grad_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _value_grad_backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
    """The op is bilinear in grad and x, so both get a product with ``up`` (E,) as the values."""
    grad, x, rowptr, col, t_rowptr, t_col, row_scale, col_scale, edge, t_edge = ctx.saved_tensors
    to_grad = to_x = None
    if ctx.needs_input_grad[0]:
        to_grad = torch.ops.mmssl.spmm(
            x, rowptr, col, t_rowptr, t_col, row_scale, col_scale, up, edge, t_edge
        )
    if ctx.needs_input_grad[1]:
        to_x = torch.ops.mmssl.spmm(
            grad, t_rowptr, t_col, rowptr, col, col_scale, row_scale, up, t_edge, edge
        )
    return to_grad, to_x, None, None, None, None, None, None, None, None


if _extension.ops is not None:
    torch.library.register_fake("mmssl::spmm")(_spmm_fake)
    torch.library.register_autograd("mmssl::spmm", _spmm_backward, setup_context=_spmm_save)
    torch.library.register_fake("mmssl::propagate")(_propagate_fake)
    torch.library.register_autograd(
        "mmssl::propagate", _propagate_backward, setup_context=_propagate_save
    )
    torch.library.register_fake("mmssl::spmm_value_grad")(_value_grad_fake)
    torch.library.register_autograd(
        "mmssl::spmm_value_grad", _value_grad_backward, setup_context=_value_grad_save
    )
