"""Ops whose gradient is an op as well, and has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmssl.ops import _extension

# Inside an autograd function nothing is recorded, and past the autograd key an op does without the
# Python that torch.library puts there: 4 us a call in place of 7. torch.library does the same.
below_autograd = torch._C._AutoDispatchBelowAutograd


def once_differentiable(
    op: str,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
    backward_fake: Callable[..., Any],
) -> Callable[..., Any]:
    """Registers fakes and gradient of ``mmssl::OP`` and ``mmssl::OP_backward``.

    Returns how to call the op. Eager code takes an autograd function of its own, which costs half
    the Python of what ``torch.library`` makes of the same pieces; that shows on small problems.

    Args:
        op: name in ``mmssl.ops``.
        fake: what the op returns, without computing it.
        save: ``setup_context`` of the op.
        backward: its gradient, by way of ``mmssl::OP_backward``.
        backward_fake: what that returns.
    """

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return getattr(torch.ops.mmssl, op)(*inputs)
        return Eager.apply(*inputs)

    if _extension.ops is None:
        return call

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"mmssl.ops.{op}: gradients of gradients are not there; use "
            'mmssl.ops.backend("reference")'
        )

    compute = getattr(torch.ops.mmssl, op)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with below_autograd():
                output = compute(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            if torch.is_grad_enabled():  # to be refused if somebody asks for its gradient
                return backward(ctx, *grads)
            with below_autograd():
                return backward(ctx, *grads)

    torch.library.register_fake(f"mmssl::{op}")(fake)
    torch.library.register_autograd(f"mmssl::{op}", backward, setup_context=save)
    torch.library.register_fake(f"mmssl::{op}_backward")(backward_fake)
    torch.library.register_autograd(f"mmssl::{op}_backward", refuse)
    return call
