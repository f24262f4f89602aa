"""Registers an op whose gradient is an op as well, and has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmssl.ops import _extension


def register_once_differentiable(
    op: str,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
    backward_fake: Callable[..., Any],
) -> None:
    """Fakes and gradient of ``mmssl::OP`` and ``mmssl::OP_backward``; nothing without the kernels.

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
