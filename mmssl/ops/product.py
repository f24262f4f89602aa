"""Dense matrix products: the fastest kernel there is for each on this machine.

On CPUs torch multiplies float32 matrices with MKL, which runs at half rate on AMD processors; the
oneDNN that torch carries too does not. Neither is good at products over many rows with few columns
on either side, as the gradient of a linear layer's weight is; those have a kernel here. Under
``ops.backend("reference")``, for other types and on other devices these are plain ``@``.

Legend: n rows, p and q columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl.ops import _extension
from mmssl.ops.dispatch import requested_backend

# A symmetric product is formed in so many block columns, each down from its diagonal: 7/12 of it.
_SYMMETRIC_BLOCKS = 6
# Below this much work the calls cost more than half a product saves.
_MIN_SYMMETRIC_WORK = 1 << 30
# Rows for each column from which on a product over the rows is one for the kernel here.
_TALL = 8


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


def symmetric_product(a: Tensor, scale: Tensor | None = None) -> Tensor:
    """``a.T @ (scale[:, None] * a)``, of which only one triangle is computed.

    Not differentiable; for the inside of an autograd function.

    Args:
        a: (n, p).
        scale: (n,) weights of the rows, or None.

    Returns:
        (p, p).
    """
    n, p = a.shape
    if scale is None and _takes_onednn(a) and _native(a) and a.is_contiguous() and n >= _TALL * p:
        tall: Tensor = torch.ops.mmssl.tall_product(a, a)
        return tall
    if requested_backend() == "reference" or n * p * p < _MIN_SYMMETRIC_WORK:
        return _multiply(a.T, a if scale is None else scale[:, None] * a)
    left = _transposed(a)
    right = left if scale is None else left * scale
    out = a.new_empty(p, p)
    width = -(-p // _SYMMETRIC_BLOCKS)
    for begin in range(0, p, width):
        end = min(begin + width, p)
        out[begin:, begin:end] = _multiply(left[begin:], right[begin:end].T)
        out[begin:end, end:] = out[end:, begin:end].T
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


def gram(x: Tensor) -> Tensor:
    """``x.double().T @ x.double()``, not differentiable.

    Args:
        x: (n, p).

    Returns:
        (p, p) float64.
    """
    if _native(x):
        out: Tensor = torch.ops.mmssl.gram(x)
        return out
    wide = x.double()
    return wide.T @ wide


def _native(x: Tensor) -> bool:
    """Whether the kernels of csrc/ops/products are to be used."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and _extension.ops is not None
        and requested_backend() != "reference"
    )


def _transposed(a: Tensor) -> Tensor:
    """``a.T.contiguous()``."""
    if _native(a) and a.is_contiguous():
        out: Tensor = torch.ops.mmssl.transposed(a)
        return out
    return a.T.contiguous()


def _rows_contiguous(a: Tensor) -> Tensor:
    """``a.contiguous()``."""
    return _transposed(a.T) if a.T.is_contiguous() else a.contiguous()


def _takes_onednn(a: Tensor) -> bool:
    return (
        a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.numel() > 0
        and requested_backend() != "reference"
        and torch.backends.mkldnn.is_available()
        # Inductor has no lowering for the call; it makes its own choice of `@`.
        and not torch.compiler.is_compiling()
    )


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``; oneDNN wants one operand's rows contiguous, so the smaller one is copied."""
    if not _takes_onednn(a) or b.numel() == 0:
        return a @ b
    if (
        a.shape[1] >= _TALL * max(a.shape[0], b.shape[1])
        and a.T.is_contiguous()
        and b.is_contiguous()
        and _native(a)
    ):
        out: Tensor = torch.ops.mmssl.tall_product(a.T, b)
        return out
    copy_a = 0 if a.is_contiguous() else a.numel()
    copy_b = 0 if b.T.is_contiguous() else b.numel()
    if copy_a <= copy_b:
        return _linear(_rows_contiguous(a), b.T)
    return _linear(_rows_contiguous(b.T), a).T


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T`` by oneDNN."""
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # it has only a slow loop for gaps between the rows
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
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
            image = _multiply(delta, symmetric_product(weight))  # (n, q)
            ctx.save_for_backward(delta, weight, image)
            return _row_dot(image, delta)
        image = _multiply(delta, weight.T)  # (n, p)
        ctx.save_for_backward(delta, weight, image)
        return _row_dot(image, image)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        delta, weight, image = ctx.saved_tensors
        factor = (2 * grads[0]).to(delta.dtype)
        to_delta = to_weight = None
        if ctx.through_gram:
            if ctx.needs_input_grad[0]:
                to_delta = factor[:, None] * image
            if ctx.needs_input_grad[1]:
                to_weight = _multiply(weight, symmetric_product(delta, factor))
            return to_delta, to_weight
        scaled = factor[:, None] * image
        if ctx.needs_input_grad[0]:
            to_delta = _multiply(scaled, weight)
        if ctx.needs_input_grad[1]:
            to_weight = _multiply(scaled.T, delta)
        return to_delta, to_weight


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """(n,) row by row dot products, summed in float32 at least."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b).sum(1)


def _pair_fake(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[1], b.shape[1])


def _gram_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[1], dtype=torch.float64)


def _transposed_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[0])


if _extension.ops is not None:
    torch.library.register_fake("mmssl::tall_product")(_pair_fake)
    torch.library.register_fake("mmssl::gram")(_gram_fake)
    torch.library.register_fake("mmssl::transposed")(_transposed_fake)
