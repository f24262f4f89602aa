"""Ops whose gradient is an op as well, and has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mmssl.ops import _extension


def register(
    op: str,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
    backward_fake: Callable[..., Any],
) -> None:
    """Registers fakes and gradient of ``mmssl::OP`` and ``mmssl::OP_backward``, if built.

    Args:
        op: name in ``mmssl.ops``.
        fake: what the op returns, without computing it.
        save: ``setup_context`` of the op.
        backward: its gradient, by way of ``mmssl::OP_backward``.
        backward_fake: what that returns.
    """
    if _extension.ops is None:
        return

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"mmssl.ops.{op}: gradients of gradients are not there; use "
            'mmssl.ops.backend("reference")'
        )

    torch.library.register_fake(f"mmssl::{op}")(fake)
    torch.library.register_autograd(f"mmssl::{op}", backward, setup_context=save)
    torch.library.register_fake(f"mmssl::{op}_backward")(backward_fake)
    torch.library.register_autograd(f"mmssl::{op}_backward", refuse)


def past_autograd() -> AbstractContextManager[Any]:
    """For the body of an autograd function.

    Nothing is recorded there, and past the autograd key an op does without the Python that
    torch.library puts there: 4 us a call in place of 7. torch.library does the same. A backward
    that is to be differentiated itself is recorded.
    """
    if torch.is_grad_enabled():
        return nullcontext()
    guard: AbstractContextManager[Any] = torch._C._AutoDispatchBelowAutograd()
    return guard


def once_differentiable(
    op: str,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
    backward_fake: Callable[..., Any],
) -> Callable[..., Any]:
    """:func:`register`, with the same arguments; returns how to call the op.

    Eager code takes an autograd function of its own, which costs half the Python of what
    ``torch.library`` makes of the same pieces; that shows on small problems.
    """
    register(op, fake=fake, save=save, backward=backward, backward_fake=backward_fake)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with past_autograd():
                output = getattr(torch.ops.mmssl, op)(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            with past_autograd():
                return backward(ctx, *grads)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return getattr(torch.ops.mmssl, op)(*inputs)
        return Eager.apply(*inputs)

    return call
