"""Row-normalised views added to a table, the way a model adds its modalities.

Legend: M views, N rows, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._autograd import once_differentiable
from mmssl.ops.dispatch import use_native
from mmssl.ops.reference import accumulation_dtype, add_normalized_reference


def add_normalized(base: Tensor, x: Tensor, weight: float = 1.0) -> Tensor:
    """``base + weight * F.normalize(x, dim=-1).sum(0)`` in one pass each way.

    Gradients flow to ``base`` and ``x`` and can't be differentiated again. Half types are summed in
    float32. The same bits come out for any number of threads.

    Args:
        base: (N, D) floating point.
        x: (M, N, D), of the same dtype; rows contiguous, the rest in any order without a copy.
        weight: factor on the sum.

    Returns:
        (N, D) in the dtype of ``base``.

    Raises:
        InputError: an argument is not as above.
        RuntimeError: backend "native" is required and there is no kernel for device and dtype.
    """
    if not isinstance(x, Tensor) or x.dim() != 3 or not x.dtype.is_floating_point:
        got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"x: expected an (M, N, D) floating point tensor, got {got}")
    if not isinstance(base, Tensor) or base.shape != x.shape[1:] or base.dtype != x.dtype:
        got = f"{tuple(base.shape)} {base.dtype}" if isinstance(base, Tensor) else str(type(base))
        raise InputError(f"base: expected {tuple(x.shape[1:])} {x.dtype}, a view's, got {got}")
    if not use_native("add_normalized", x.device.type, x.dtype):
        return add_normalized_reference(base, x, weight)
    out, _ = _call(base, x, weight)
    return out


def _fake(base: Tensor, x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    inverse = x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype))
    return torch.empty_like(base, memory_format=torch.contiguous_format), inverse


def _backward_fake(grad: Tensor, x: Tensor, inverse: Tensor, weight: float) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, x, ctx.weight = inputs
    inverse = output[1]
    ctx.mark_non_differentiable(inverse)
    ctx.save_for_backward(x, inverse)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, inverse = ctx.saved_tensors
    to_x = None
    if ctx.needs_input_grad[1]:
        to_x = torch.ops.mmssl.add_normalized_backward(grad, x, inverse, ctx.weight)
    return grad, to_x, None


_call = once_differentiable(
    "add_normalized", fake=_fake, save=_save, backward=_backward, backward_fake=_backward_fake
)
