"""Dense matrix products, each by the fastest kernel available on this machine.

On CPUs torch multiplies float32 matrices with MKL, which runs at half speed on AMD processors;
oneDNN, which torch also contains, does not. Neither is good at products over many rows with few
columns on either side, such as the gradient of a linear layer's weight; those have a kernel here.
Under ``ops.backend("reference")``, for other dtypes and on other devices the products are plain
``@``. This is the only file that calls torch's private oneDNN operator.

Legend: n rows, p and q columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmssl import _extension
from mmssl.ops._autograd import Operator, under_torch_func
from mmssl.ops._cases import Sample, normal
from mmssl.ops._registry import KERNEL_DTYPES, Contract, Op, declare
from mmssl.ops.dispatch import requested_backend

# Number of block columns of a symmetric product, each formed from its diagonal down: 7/12 of it.
_SYMMETRIC_BLOCKS = 6
# Below this amount of work the calls cost more than half a product saves.
_MIN_SYMMETRIC_WORK = 1 << 30
# Rows per column from which a product over the rows uses the kernel of this package.
_TALL = 8


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``a @ b``, differentiable any number of times.

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


def batched_affine(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    """Compute ``torch.baddbmm(shift, a, b)``, differentiable any number of times.

    Args:
        a: (K, n, p).
        b: (K, p, q), same dtype and device.
        shift: (K, n, q), the same.

    Returns:
        (K, n, q).
    """
    if not _takes_onednn(a):
        return torch.baddbmm(shift, a, b)
    return torch.stack([product(left, right) for left, right in zip(a, b, strict=True)]) + shift


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``x @ weight + bias``, differentiable any number of times.

    Args:
        x: (n, p).
        weight: (p, q), same dtype and device.
        bias: (q,), the same.

    Returns:
        (n, q).
    """
    if not _takes_onednn(x):
        return torch.addmm(bias, x, weight)
    return product(x, weight) + bias


def symmetric_product(a: Tensor, scale: Tensor | None = None) -> Tensor:
    """Compute one triangle of ``a.T @ (scale[:, None] * a)`` and mirror it.

    Not differentiable; for use inside an autograd function.

    Args:
        a: (n, p).
        scale: (n,) weights of the rows, or None.

    Returns:
        (p, p).
    """
    n, p = a.shape
    if scale is None and _takes_onednn(a) and _native(a) and a.is_contiguous() and n >= _TALL * p:
        return tall_product(a, a)
    if requested_backend() == "reference" or n * p * p < _MIN_SYMMETRIC_WORK:
        return _multiply(a.T, a if scale is None else scale[:, None] * a)
    left = transposed(a)
    right = left if scale is None else left * scale
    out = a.new_empty(p, p)
    width = -(-p // _SYMMETRIC_BLOCKS)
    for begin in range(0, p, width):
        end = min(begin + width, p)
        out[begin:, begin:end] = _multiply(left[begin:], right[begin:end].T)
        out[begin:end, end:] = out[end:, begin:end].T
    return out


def squared_norms_through(delta: Tensor, weight: Tensor) -> Tensor:
    """Compute ``(delta @ weight.T).square().sum(1)``, differentiable once.

    Forming ``weight.T @ weight`` costs ``2 q^2 p``, half of it saved by symmetry, and again in
    backward; ``delta @ weight.T`` costs three times ``2 n q p``. The cheaper way is chosen.

    Args:
        delta: (n, q).
        weight: (p, q).

    Returns:
        (n,), float32 for bfloat16 inputs.
    """
    if under_torch_func():
        image = delta @ weight.T
        return _row_dot(image, image)
    out: Tensor = _SquaredNorms.apply(delta, weight)
    return out


def gram(x: Tensor) -> Tensor:
    """Compute ``x.double().T @ x.double()``, not differentiable.

    Args:
        x: (n, p).

    Returns:
        (p, p) float64.
    """
    if not _native(x):
        return gram_reference(x)
    out: Tensor = torch.ops.mmssl.gram(x)
    return out


def gram_reference(x: Tensor) -> Tensor:
    """Compute :func:`gram` in plain PyTorch."""
    wide = x.double()
    return wide.T @ wide


def tall_product(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``a.T @ b`` for many rows and few columns, not differentiable.

    Args:
        a: (n, p), float32 or float64 with a kernel.
        b: (n, q), same dtype and device.

    Returns:
        (p, q).
    """
    if not _native(a) or a.dtype == torch.bfloat16:
        return tall_product_reference(a, b)
    out: Tensor = torch.ops.mmssl.tall_product(a, b)
    return out


def tall_product_reference(a: Tensor, b: Tensor) -> Tensor:
    """Compute :func:`tall_product` in plain PyTorch."""
    return a.T @ b


def transposed(x: Tensor) -> Tensor:
    """Compute ``x.T.contiguous()``, not differentiable.

    Args:
        x: (n, p).

    Returns:
        (p, n), contiguous.
    """
    if not _native(x) or not x.is_contiguous():
        return transposed_reference(x)
    out: Tensor = torch.ops.mmssl.transposed(x)
    return out


def transposed_reference(x: Tensor) -> Tensor:
    """Compute :func:`transposed` in plain PyTorch."""
    return x.T.contiguous()


def _native(x: Tensor) -> bool:
    """Whether the kernels of csrc/ops/products are used."""
    return (
        x.device.type == "cpu"
        and x.dtype in KERNEL_DTYPES
        and _extension.ops is not None
        and requested_backend() != "reference"
    )


def _rows_contiguous(a: Tensor) -> Tensor:
    """``a.contiguous()``, by the kernel if ``a`` is a transposed matrix."""
    return transposed(a.T) if a.T.is_contiguous() else a.contiguous()


def _takes_onednn(a: Tensor) -> bool:
    return (
        a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.numel() > 0
        and requested_backend() != "reference"
        and torch.backends.mkldnn.is_available()
        and not under_torch_func()
        # Inductor has no lowering for this operator; it chooses its own kernel for `@`.
        and not torch.compiler.is_compiling()
    )


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``; oneDNN needs contiguous rows of one operand, so the smaller one is copied."""
    if not _takes_onednn(a) or b.numel() == 0:
        return a @ b
    if (
        a.shape[1] >= _TALL * max(a.shape[0], b.shape[1])
        and a.T.is_contiguous()
        and b.is_contiguous()
        and _native(a)
    ):
        return tall_product(a.T, b)
    copy_a = 0 if a.is_contiguous() else a.numel()
    copy_b = 0 if b.T.is_contiguous() else b.numel()
    if copy_a <= copy_b:
        return _linear(_rows_contiguous(a), b.T)
    return _linear(_rows_contiguous(b.T), a).T


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T`` by oneDNN."""
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # oneDNN has only a slow loop for gaps between the rows
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
        image, other = row_images(delta, weight)
        ctx.save_for_backward(delta, weight, image)
        return _row_dot(image, other)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        delta, weight, image = ctx.saved_tensors
        return row_images_backward(2 * grads[0], delta, weight, image, ctx.needs_input_grad)


def row_images(delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows whose dot products are ``(delta @ weight.T).square().sum(1)``.

    Args:
        delta: (n, q).
        weight: (p, q).

    Returns:
        ``delta @ weight.T`` twice, or ``delta @ weight.T @ weight`` and ``delta``.
    """
    if _through_gram(delta, weight):
        return _multiply(delta, symmetric_product(weight)), delta
    image = _multiply(delta, weight.T)
    return image, image


def row_images_backward(
    factor: Tensor,
    delta: Tensor,
    weight: Tensor,
    image: Tensor,
    needed: Sequence[bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of the dot products of :func:`row_images`.

    Args:
        factor: (n,), twice the gradient for them.
        delta: (n, q).
        weight: (p, q).
        image: The first of the rows.
        needed: Which gradients are needed.

    Returns:
        (n, q) and (p, q).
    """
    factor = factor.to(delta.dtype)
    to_delta = to_weight = None
    if _through_gram(delta, weight):
        if needed[0]:
            to_delta = factor[:, None] * image
        if needed[1]:
            to_weight = _multiply(weight, symmetric_product(delta, factor))
        return to_delta, to_weight
    scaled = factor[:, None] * image
    if needed[0]:
        to_delta = _multiply(scaled, weight)
    if needed[1]:
        to_weight = _multiply(scaled.T, delta)
    return to_delta, to_weight


def _through_gram(delta: Tensor, weight: Tensor) -> bool:
    return 2 * weight.shape[1] < 3 * delta.shape[0]


def added_product(to: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Add ``a @ b`` to a matrix in place, not differentiable.

    Args:
        to: (n, q), or None for zeros.
        a: (n, p), same dtype and device.
        b: (p, q), the same.

    Returns:
        ``to``.
    """
    if to is None:
        return _multiply(a, b)
    return to.add_(_multiply(a, b)) if _takes_onednn(a) else to.addmm_(a, b)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """(n,) dot products of the rows, summed in at least float32."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b).sum(1)


def _samples(names: tuple[str, ...], dtype: torch.dtype) -> Iterator[Sample]:
    def sample(label: str, n: int, *columns: int) -> Sample:
        drawn = normal(dtype, n, *((n, count) for count in columns))
        return Sample(label, dict(zip(names, drawn, strict=False)), tiny=n < 20)

    yield sample("typical", 9, 4, 3)
    yield sample("one row", 1, 1, 1)
    yield sample("no row", 0, 3, 2)
    yield sample("odd sizes", 513, 37, 17)
    yield sample("large", 3000, 40, 24)
    strided = sample("strided", 30, 5, 4).arguments
    yield Sample("strided", {name: x.repeat(2, 1)[::2] for name, x in strided.items()})


def _tall_fake(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[1], b.shape[1])


def _gram_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[1], dtype=torch.float64)


def _transposed_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[0])


for _function, _inputs, _fake, _dtypes in (
    (tall_product, "ab", _tall_fake, (torch.float32, torch.float64)),
    (gram, "x", _gram_fake, KERNEL_DTYPES),
    (transposed, "x", _transposed_fake, KERNEL_DTYPES),
):
    declare(
        Op(
            _function,
            Contract(partial(_samples, tuple(_inputs)), derivatives=0),
            words=None,
            dtypes={"cpu": _dtypes},
            operators=(Operator(_function.__name__, fake=_fake),),
            folder="products",
        )
    )
