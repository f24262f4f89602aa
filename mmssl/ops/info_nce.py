"""Batched InfoNCE on cosine similarities that never holds an N x N matrix.

Legend: N pairs, K negatives, D features; leading dimensions are independent problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._autograd import past_autograd, register
from mmssl.ops.dispatch import use_native
from mmssl.ops.reference import accumulation_dtype, info_nce_reference

_REDUCTIONS = ("mean", "sum", "none")


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    *,
    negatives: Tensor | None = None,
    intra_view: bool = True,
    symmetric: bool = False,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE with the other anchors and positives as negatives, in O(N D) memory.

    Equal to (one direction, no ``negatives``)::

        z1, z2 = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
        s12, s11 = z1 @ z2.mT / temperature, z1 @ z1.mT / temperature
        s11 = s11.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf)  # if intra_view
        log_ratio = s12.diagonal(0, -2, -1) - torch.cat([s12, s11], -1).logsumexp(-1)
        loss = -(log_ratio.exp() + eps).log()

    Gradients flow to ``anchor``, ``positive``, ``negatives`` and a tensor ``temperature``; they
    can't be differentiated again. The kernels give the same bits every time, on the CPU whatever
    the number of threads. bfloat16 inputs are multiplied as they are and summed in float32; on
    processors with bfloat16 arithmetic the gradient's weights are rounded to bfloat16 as well. On a
    GPU float32 products follow ``torch.get_float32_matmul_precision()``: TF32 unless "highest".
    Under autocast the inputs keep their dtype, as with the losses of torch, which run in float32.

    Args:
        anchor: (..., N, D) floating point, D >= 1; leading dimensions are independent problems,
            which share one launch.
        positive: (..., N, D), the same shape; row i is the positive of anchor i.
        temperature: > 0, a float or a tensor of one element (which gets a gradient; its value is
            not checked, since that would wait for the device).
        negatives: (K, D) further negatives, shared by all anchors.
        intra_view: whether the other anchors are negatives too.
        symmetric: average with the loss of (positive, anchor).
        eps: >= 0, added inside the log (the released MMSSL adds 1e-8).
        reduction: "mean" or "sum" over N, or "none".

    Returns:
        (...) for "mean" and "sum", (..., N) for "none"; float32 for the half types, else the dtype
        of ``anchor``.

    Raises:
        InputError: an argument is not as above.
        RuntimeError: backend "native" is required and there is no kernel for device and dtype.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018;
    the intra-view negatives are those of Zhu et al., "Deep Graph Contrastive Representation
    Learning", 2020, as MMSSL (WWW 2023) uses them.
    """
    _check(anchor, positive, temperature, negatives, eps, reduction)
    if not use_native("info_nce", anchor.device.type, anchor.dtype):
        return info_nce_reference(
            anchor,
            positive,
            temperature,
            negatives=negatives,
            intra_view=intra_view,
            symmetric=symmetric,
            eps=eps,
            reduction=reduction,
        )
    acc = accumulation_dtype(anchor.dtype)
    if isinstance(temperature, Tensor):
        scale = temperature.to(device=anchor.device, dtype=acc).reshape(1)
    else:
        scale = torch.full((1,), temperature, dtype=acc, device=anchor.device)
    tf32 = anchor.is_cuda and torch.get_float32_matmul_precision() != "highest"
    options = (intra_view, symmetric, eps, tf32)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _compute(anchor, positive, scale, negatives, options, reduction)[0]
    out: Tensor = _InfoNce.apply(anchor, positive, scale, negatives, options, reduction)
    return out


def _compute(
    anchor: Tensor,
    positive: Tensor,
    temperature: Tensor,
    negatives: Tensor | None,
    options: tuple[bool, bool, float, bool],
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The result, and what backward needs of the forward."""
    loss, saved = torch.ops.mmssl.info_nce(
        _pairs(anchor), _pairs(positive), temperature, negatives, *options
    )
    loss = loss.reshape(anchor.shape[:-1])
    if reduction == "none":
        return loss, saved
    return (loss.sum(-1) if reduction == "sum" else loss.mean(-1)), saved


def _pairs(x: Tensor) -> Tensor:
    """(..., N, D) as the op takes it, (B, N, D)."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


class _InfoNce(torch.autograd.Function):
    """The op with its reduction for eager code: one node of the graph in place of five.

    That is a fifth of the time of a few rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        positive: Tensor,
        temperature: Tensor,
        negatives: Tensor | None,
        options: tuple[bool, bool, float, bool],
        reduction: str,
    ) -> Tensor:
        with past_autograd():
            out, saved = _compute(anchor, positive, temperature, negatives, options, reduction)
        ctx.options, ctx.reduction = options, reduction
        ctx.save_for_backward(anchor, positive, temperature, negatives, saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        anchor, positive, temperature, negatives, saved = ctx.saved_tensors
        pairs, n = math.prod(anchor.shape[:-2]), anchor.shape[-2]
        if ctx.reduction == "mean":
            grad = grad / n
        each = n if ctx.reduction == "none" else 1
        with past_autograd():
            grad_anchor, grad_positive, *others = _gradients(
                grad.reshape(pairs, each).expand(pairs, n),
                (_pairs(anchor), _pairs(positive), temperature, negatives, saved),
                ctx.options,
            )
        shaped = grad_anchor.reshape(anchor.shape), grad_positive.reshape(positive.shape)
        return (*shaped, *others, None, None)


def _check(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    negatives: Tensor | None,
    eps: float,
    reduction: str,
) -> None:
    if not isinstance(anchor, Tensor):
        raise InputError(f"anchor: expected a torch.Tensor, got {type(anchor).__name__}")
    if not anchor.dtype.is_floating_point:
        raise InputError(f"anchor: expected a floating point dtype, got {anchor.dtype}")
    if anchor.dim() < 2 or anchor.shape[-1] == 0:
        raise InputError(
            f"anchor: expected shape (..., N, D) with D >= 1, got {tuple(anchor.shape)}"
        )
    _check_like("positive", positive, anchor, tuple(anchor.shape), "the anchor's")
    if negatives is not None:
        rows = negatives.shape[0] if isinstance(negatives, Tensor) and negatives.dim() == 2 else 0
        shape = (rows, anchor.shape[-1])
        _check_like("negatives", negatives, anchor, shape, f"(K, {anchor.shape[-1]})")
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.dtype.is_floating_point:
            raise InputError(
                "temperature: expected a number or a floating point tensor of one element, got "
                f"shape {tuple(temperature.shape)} of {temperature.dtype}"
            )
    elif isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise InputError(
            f"temperature: expected a number or a tensor, got {type(temperature).__name__}"
        )
    elif not 0 < temperature < math.inf:
        raise InputError(f"temperature: expected a finite number > 0, got {temperature}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise InputError(f"eps: expected a finite number >= 0, got {eps!r}")
    if reduction not in _REDUCTIONS:
        raise InputError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {reduction!r}")


def _check_like(name: str, x: Tensor, anchor: Tensor, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if tuple(x.shape) != shape:
        expected = f"shape {shape}, {what}" if name == "positive" else f"shape {what}"
        raise InputError(f"{name}: expected {expected}, got {tuple(x.shape)}")
    if x.dtype != anchor.dtype:
        raise InputError(f"{name}: expected dtype {anchor.dtype}, the anchor's, got {x.dtype}")
    if x.device != anchor.device:
        raise InputError(f"{name}: expected device {anchor.device}, the anchor's, got {x.device}")


def _fake(
    anchor: Tensor,
    positive: Tensor,
    temperature: Tensor,
    negatives: Tensor | None,
    intra_view: bool,
    symmetric: bool,
    eps: float,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    pairs, n, _ = anchor.shape
    loss = anchor.new_empty(pairs, n, dtype=accumulation_dtype(anchor.dtype))
    return loss, anchor.new_empty(2 + symmetric, pairs, n, dtype=torch.float64)


def _backward_fake(
    grad: Tensor,
    anchor: Tensor,
    positive: Tensor,
    temperature: Tensor,
    negatives: Tensor | None,
    saved: Tensor,
    intra_view: bool,
    symmetric: bool,
    eps: float,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = 0 if negatives is None else negatives.shape[0]
    return (
        torch.empty_like(anchor, memory_format=torch.contiguous_format),
        torch.empty_like(positive, memory_format=torch.contiguous_format),
        torch.empty_like(temperature),
        anchor.new_empty(rows, anchor.shape[2]),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    anchor, positive, temperature, negatives, *ctx.options = inputs
    saved = output[1]
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(anchor, positive, temperature, negatives, saved)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(grad, ctx.saved_tensors, ctx.options), None, None, None, None)


def _gradients(
    grad: Tensor, saved: Sequence[Tensor | None], options: Sequence[Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """For anchor, positive, temperature and negatives, the first four of ``saved``."""
    grad_anchor, grad_positive, grad_temperature, grad_negatives = (
        torch.ops.mmssl.info_nce_backward(grad, *saved, *options)
    )
    negatives = saved[3]
    return (
        grad_anchor,
        grad_positive,
        grad_temperature,
        None if negatives is None else grad_negatives,
    )


register("info_nce", fake=_fake, save=_save, backward=_backward, backward_fake=_backward_fake)
