"""LeakyReLU, batch normalisation and dropout of a hidden layer in one op, twice differentiable.

A gradient penalty differentiates a critic's input gradient, so every elementwise step between its
products is walked over a dozen times; here each of the three passes reads and writes once.

Legend: N rows, H columns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops import _extension
from mmssl.ops._checks import check_not_negative, check_number, check_shape, check_tensor
from mmssl.ops.dispatch import use_native
from mmssl.ops.reference import accumulation_dtype, norm_act_reference


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    negative_slope: float = 0.2,
    keep: Tensor | None = None,
    keep_scale: float = 1.0,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """A hidden layer's elementwise part in train mode: activation, batch statistics, dropout.

    Equal to::

        a = F.leaky_relu(x, negative_slope)
        y = F.batch_norm(a, running_mean, running_var, weight, bias, True, momentum, eps)
        y = y * keep * keep_scale

    Gradients flow to ``x``, ``weight`` and ``bias`` and can be differentiated once more (not
    twice). Sums over the rows are formed in blocks and added in float64; the same bits come out for
    any number of threads.

    Args:
        x: (N, H) floating point, N >= 2.
        weight: (H,), in the dtype of ``x`` or float32.
        bias: (H,), the same.
        negative_slope: of the LeakyReLU, >= 0.
        keep: (N, H) uint8 of 0 and 1, what dropout lets through; None: everything.
        keep_scale: factor on what is kept, 1 / (1 - rate).
        running_mean: (H,) updated in place, or None.
        running_var: (H,) updated in place with the unbiased variance, or None.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, H) in the dtype of ``x``.

    Raises:
        InputError: an argument is not as above.
        RuntimeError: backend "native" is required and there is no kernel for device and dtype.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    _check(x, weight, bias, keep)
    check_not_negative("negative_slope", negative_slope)
    check_not_negative("keep_scale", keep_scale)
    check_not_negative("eps", eps)
    check_number("momentum", momentum, 0, math.nextafter(1, 2), "a number in [0, 1]")
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None:
            check_tensor(name, running, dims="(H,)")
            check_shape(name, running, x.shape[1:])
    if not use_native("norm_act", x.device.type, x.dtype):
        return norm_act_reference(
            x,
            weight,
            bias,
            negative_slope=negative_slope,
            keep=keep,
            keep_scale=keep_scale,
            running_mean=running_mean,
            running_var=running_var,
            momentum=momentum,
            eps=eps,
        )
    acc = accumulation_dtype(x.dtype)
    y, mean, rstd = torch.ops.mmssl.norm_act(
        x, weight.to(acc), bias.to(acc), keep, keep_scale, negative_slope, eps
    )
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = (rstd.double().pow(-2) - eps) * (x.shape[0] / (x.shape[0] - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    out: Tensor = y
    return out


def _check(x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None) -> None:
    if not isinstance(x, Tensor) or x.dim() != 2 or not x.dtype.is_floating_point:
        got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"x: expected an (N, H) floating point tensor, got {got}")
    if x.shape[0] < 2:
        raise InputError(f"x: expected at least 2 rows for batch statistics, got {x.shape[0]}")
    for name, vector in (("weight", weight), ("bias", bias)):
        check_tensor(name, vector, dims="(H,)")
        check_shape(name, vector, x.shape[1:])
        if vector.device != x.device:
            raise InputError(f"{name}: expected device {x.device}, got {vector.device}")
    if keep is None:
        return
    if not isinstance(keep, Tensor):
        raise InputError(f"keep: expected a torch.Tensor or None, got {type(keep).__name__}")
    if keep.shape != x.shape or keep.dtype != torch.uint8:
        raise InputError(
            f"keep: expected shape {tuple(x.shape)} of uint8, got {tuple(keep.shape)} of "
            f"{keep.dtype}"
        )
    if keep.device != x.device:
        raise InputError(f"keep: expected device {x.device}, got {keep.device}")


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, *_: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)


def _backward_fake(
    grad_y: Tensor, x: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)


def _double_backward_fake(
    up_x: Tensor, up_weight: Tensor, up_bias: Tensor, grad_y: Tensor, x: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), torch.empty_like(up_weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _bias, keep, ctx.keep_scale, ctx.slope, _eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, mean, rstd, keep)


def _backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd, keep = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = torch.ops.mmssl.norm_act_backward(
        grad_y, x, weight, mean, rstd, keep, ctx.keep_scale, ctx.slope
    )
    return grad_x, grad_weight, grad_bias, None, None, None, None


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.keep_scale, ctx.slope = inputs
    ctx.save_for_backward(*tensors)


def _backward_backward(
    ctx: Any, up_x: Tensor, up_weight: Tensor, up_bias: Tensor
) -> tuple[Tensor | None, ...]:
    """The statistics are functions of x; their share is in the gradient for x."""
    grad_y, x, weight, mean, rstd, keep = ctx.saved_tensors
    to_grad_y, to_x, to_weight = torch.ops.mmssl.norm_act_double_backward(
        up_x, up_weight, up_bias, grad_y, x, weight, mean, rstd, keep, ctx.keep_scale, ctx.slope
    )
    return to_grad_y, to_x, to_weight, None, None, None, None, None


def _third_order(ctx: Any, *_: Any) -> Any:
    raise RuntimeError(
        "mmssl.ops.norm_act: its kernels are differentiable twice; for a third derivative take "
        'ops.backend("reference")'
    )


if _extension.ops is not None:
    torch.library.register_fake("mmssl::norm_act")(_fake)
    torch.library.register_fake("mmssl::norm_act_backward")(_backward_fake)
    torch.library.register_fake("mmssl::norm_act_double_backward")(_double_backward_fake)
    torch.library.register_autograd("mmssl::norm_act", _backward, setup_context=_save)
    torch.library.register_autograd(
        "mmssl::norm_act_backward", _backward_backward, setup_context=_backward_save
    )
    torch.library.register_autograd("mmssl::norm_act_double_backward", _third_order)
