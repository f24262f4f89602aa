"""Matrix products of the critic: the fastest kernel torch has for them on this machine.

On CPUs torch multiplies float32 matrices with MKL, which runs at half rate on AMD processors; the
oneDNN that torch carries too does not. Under ``ops.backend("reference")``, for other types and on
other devices these are plain ``@``.

Legend: n rows, p and q columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl.ops.dispatch import requested_backend

# A symmetric product is formed in so many block columns, each down from its diagonal: 7/12 of it.
_SYMMETRIC_BLOCKS = 6
# Below this much work the calls cost more than half a product saves.
_MIN_SYMMETRIC_WORK = 1 << 30


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, differentiable any number of times.

    Args:
        a: (n, p).
        b: (p, q), same dtype and device.

    Returns:
        (n, q).
    """
    if not _takes_onednn(a):
        return a @ b
    out: Tensor = _Product.apply(a, b)
    return out


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """``a.T @ b`` where that is known to be symmetric; only half of it is computed.

    Not differentiable; for the inside of an autograd function.

    Args:
        a: (n, p).
        b: (n, p), such as ``weight[:, None] * a``.

    Returns:
        (p, p).
    """
    n, p = a.shape
    if requested_backend() == "reference" or n * p * p < _MIN_SYMMETRIC_WORK:
        return _multiply(a.T, b)
    out = a.new_empty(p, p)
    width = -(-p // _SYMMETRIC_BLOCKS)
    for begin in range(0, p, width):
        end = min(begin + width, p)
        out[begin:end, begin:] = _multiply(a[:, begin:end].T, b[:, begin:])
        out[end:, begin:end] = out[begin:end, end:].T
    return out


def squared_norms_through(delta: Tensor, weight: Tensor) -> Tensor:
    """``(delta @ weight.T).square().sum(1)``, differentiable once.

    Forming ``weight.T @ weight`` costs ``2 q^2 p`` half saved by symmetry, and once more in
    backward; ``delta @ weight.T`` three times ``2 n q p``. The cheaper one is taken.

    Args:
        delta: (n, q).
        weight: (p, q).

    Returns:
        (n,), float32 for bfloat16 inputs.
    """
    out: Tensor = _SquaredNorms.apply(delta, weight)
    return out


def _takes_onednn(a: Tensor) -> bool:
    return (
        a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.numel() > 0
        and requested_backend() != "reference"
        and torch.backends.mkldnn.is_available()
    )


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    if not _takes_onednn(a) or b.numel() == 0:
        return a @ b
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _multiply(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        to_a = product(grads[0], b.T) if ctx.needs_input_grad[0] else None
        to_b = product(a.T, grads[0]) if ctx.needs_input_grad[1] else None
        return to_a, to_b


class _SquaredNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, delta: Tensor, weight: Tensor) -> Tensor:
        ctx.through_gram = 2 * weight.shape[1] < 3 * delta.shape[0]
        if ctx.through_gram:
            image = _multiply(delta, symmetric_product(weight, weight))  # (n, q)
            ctx.save_for_backward(delta, weight, image)
            return _row_dot(image, delta)
        image = _multiply(delta, weight.T)  # (n, p)
        ctx.save_for_backward(delta, weight, image)
        return _row_dot(image, image)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        delta, weight, image = ctx.saved_tensors
        factor = (2 * grads[0])[:, None].to(delta.dtype)
        to_delta = to_weight = None
        if ctx.through_gram:
            if ctx.needs_input_grad[0]:
                to_delta = factor * image
            if ctx.needs_input_grad[1]:
                to_weight = _multiply(weight, symmetric_product(delta, factor * delta))
            return to_delta, to_weight
        scaled = factor * image
        if ctx.needs_input_grad[0]:
            to_delta = _multiply(scaled, weight)
        if ctx.needs_input_grad[1]:
            to_weight = _multiply(scaled.T, delta)
        return to_delta, to_weight


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """(n,) row by row dot products, summed in float32 at least."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b).sum(1)
