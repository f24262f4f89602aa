"""Add the normalized rows of several views to a table, as a model adds its modalities.

Legend: M views, N rows, D features.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Bad, Sample, normal
from mmssl.ops._checks import accumulation_dtype, check_shape, check_tensor, is_cpu_half, promoted
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops._whole_pass import OPERATORS as TABLES
from mmssl.ops.dispatch import use_native


def add_normalized(base: Tensor, x: Tensor, weight: float = 1.0) -> Tensor:
    """Compute ``base + weight * F.normalize(x, dim=-1).sum(0)`` in one pass each way.

    Gradients flow to ``base`` and ``x``; double backward is not supported. Half types are summed in
    float32. The result has the same bits for any number of threads.

    Args:
        base: (N, D) floating point.
        x: (M, N, D), same dtype and device; read without a copy if its rows are contiguous.
        weight: factor on the sum.

    Returns:
        (N, D) in the dtype of ``base``.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.
    """
    base, x = promoted(base, x)
    check_tensor("x", x, dims="(M, N, D)")
    check_tensor("base", base, dims="(N, D)", like=x)
    check_shape("base", base, x.shape[1:])
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise InputError(f"weight: expected a number, got {weight!r:.60}")
    if is_cpu_half(x):
        return add_normalized(base.float(), x.float(), weight).to(x.dtype)
    if not use_native("add_normalized", x.device.type, x.dtype):
        return add_normalized_reference(base, x, weight)
    out, *_ = _call(base, x, weight)
    return out


def add_normalized_reference(base: Tensor, x: Tensor, weight: float = 1.0) -> Tensor:
    """Compute :func:`add_normalized` in plain PyTorch."""
    acc = accumulation_dtype(x.dtype)
    unit = F.normalize(x.to(acc), dim=-1)
    return (base.to(acc) + weight * unit.sum(0)).to(base.dtype)


def offset_rows(x: Tensor, offset: Tensor | None, radius: float) -> Tensor:
    """Scale rows to one length and append a column; for the kernels of a GPU.

    ``[radius * normalize(x), 1]``, or with an offset
    ``[sqrt(radius^2 - offset^2) * normalize(x), offset]``; gradients flow to ``x``.

    Args:
        x: (N, D) float32 or float64.
        offset: (N,), same dtype and device, or None.
        radius: At least the largest absolute offset.

    Returns:
        (N, D + 1).
    """
    out: Tensor = _call_offset(x, offset, radius)
    return out


def _offset_fake(x: Tensor, offset: Tensor | None, radius: float) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] + 1)


def _offset_backward_fake(grad: Tensor, x: Tensor, offset: Tensor | None, radius: float) -> Tensor:
    return x.new_empty(x.shape)


def _offset_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, ctx.radius = inputs
    ctx.save_for_backward(x, offset)


def _offset_backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (_call_offset_backward(grad, *ctx.saved_tensors, ctx.radius),)


def _fake(base: Tensor, x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    inverse = x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype))
    return torch.empty_like(base, memory_format=torch.contiguous_format), inverse


def _backward_fake(grad: Tensor, x: Tensor, inverse: Tensor, weight: float) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, x, ctx.weight = inputs
    ctx.save_for_backward(x, output[1])  # the inverse length of every row


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    x, inverse = ctx.saved_tensors
    to_x = None
    if ctx.needed[1]:
        to_x = _call_backward(grad, x, inverse, ctx.weight)
    return grad, to_x


_FORWARD = Operator(
    "add_normalized", fake=_fake, save=_save, backward=_backward, differentiable=(0, 1), hidden=1
)
_BACKWARD = Operator("add_normalized_backward", fake=_backward_fake, refused="double backward")
_OFFSET = Operator(
    "offset_rows",
    fake=_offset_fake,
    save=_offset_save,
    backward=_offset_backward,
    differentiable=(0,),
)
_OFFSET_BACKWARD = Operator(
    "offset_rows_backward", fake=_offset_backward_fake, refused="double backward"
)
_call, _call_backward = eager(_FORWARD), eager(_BACKWARD)
_call_offset, _call_offset_backward = eager(_OFFSET), eager(_OFFSET_BACKWARD)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(label: str, m: int, n: int, d: int, weight: float = 0.7) -> Sample:
        base, x = normal(dtype, n, (n, d), (m, n, d))
        return Sample(label, {"base": base, "x": x, "weight": weight}, tiny=n < 20)

    yield sample("typical", 2, 4, 3)
    yield sample("one row", 1, 1, 1, -1.5)
    yield sample("no row", 2, 0, 4)
    yield sample("no view", 0, 3, 4)
    yield sample("no column", 2, 3, 0)
    yield sample("odd sizes", 5, 7, 33)
    yield sample("large", 2, 3000, 33)
    strided = sample("side by side", 3, 6, 4).arguments
    strided["x"] = strided["x"].transpose(0, 1).contiguous().transpose(0, 1)
    yield Sample("side by side", strided)
    columns = sample("strided columns", 2, 6, 8).arguments
    yield Sample("strided columns", {"base": columns["base"][:, ::2], "x": columns["x"][..., ::2]})


def _bad() -> Iterator[Bad]:
    x = torch.zeros(2, 4, 3)
    yield Bad("x", x[0], r"x: expected shape \(M, N, D\), got \(4, 3\)")
    yield Bad("x", x.int(), "x: expected a floating point dtype, got torch.int32")
    yield Bad("base", [1.0], "base: expected a torch.Tensor, got list")
    yield Bad("base", x[0, :2], r"base: expected shape \(4, 3\), got \(2, 3\)")
    yield Bad("base", x[0].double(), "base: expected dtype torch.float32, like the other")
    yield Bad("base", x[0].to("meta"), "base: expected device cpu, got meta")
    yield Bad("weight", "much", "weight: expected a number, got 'much'")
    yield Bad("weight", None, "weight: expected a number, got None")


declare(
    Op(
        add_normalized,
        Contract(_samples, _bad, differentiable=("base", "x")),
        Words("a table plus the normalized rows of M views", "the normalized views"),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_FORWARD, _BACKWARD),
        gpu_operators=(_OFFSET, _OFFSET_BACKWARD, *TABLES),
    )
)
