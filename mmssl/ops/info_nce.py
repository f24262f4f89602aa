"""Batched InfoNCE on cosine similarities that never holds an N x N matrix.

Legend: N pairs, K negatives, D features; leading dimensions are independent problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._checks import (
    accumulation_dtype,
    check_not_negative,
    check_number,
    check_shape,
    check_tensor,
)
from mmssl.ops._registry import KERNEL_DTYPES, Bad, Op, Sample, declare
from mmssl.ops.dispatch import use_native

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
    """Compute InfoNCE with the other anchors and positives as negatives, in O(N D) memory.

    Equal to (one direction, no ``negatives``)::

        z1, z2 = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
        s12, s11 = z1 @ z2.mT / temperature, z1 @ z1.mT / temperature
        s11 = s11.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf)  # if intra_view
        log_ratio = s12.diagonal(0, -2, -1) - torch.cat([s12, s11], -1).logsumexp(-1)
        loss = -(log_ratio.exp() + eps).log()

    Gradients flow to ``anchor``, ``positive``, ``negatives`` and a tensor ``temperature``; double
    backward is not supported. The kernels give the same bits every time, on the CPU for any number
    of threads. bfloat16 inputs are multiplied unchanged and summed in float32; on processors with
    bfloat16 arithmetic the weights of the gradient are rounded to bfloat16 as well. On a GPU,
    float32 products follow ``torch.backends.cuda.matmul.fp32_precision``, which
    ``torch.set_float32_matmul_precision`` sets as well: TF32 where it is "tf32". Under autocast the
    inputs keep their dtype.

    Args:
        anchor: (..., N, D) floating point, D >= 1; leading dimensions are independent problems
            that share one launch.
        positive: (..., N, D), the same shape; row i is the positive of anchor i.
        temperature: > 0, a float or a tensor of one element (which gets a gradient; its value is
            not checked, since that would wait for the device).
        negatives: (K, D) further negatives, shared by all anchors, or None.
        intra_view: whether the other anchors are negatives too.
        symmetric: average with the loss of (positive, anchor).
        eps: >= 0, added inside the logarithm (the released MMSSL adds 1e-8).
        reduction: "mean" or "sum" over N, or "none".

    Returns:
        (...) for "mean" and "sum", (..., N) for "none"; float32 for the half types, else the dtype
        of ``anchor``.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.

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
    tf32 = anchor.is_cuda and _takes_tf32()
    options = (intra_view, symmetric, eps, tf32)
    loss, *_ = _call(anchor, positive, scale, negatives, *options, reduction)
    out: Tensor = loss
    return out


@torch.compiler.assume_constant_result  # compiled code is guarded by the setting, but can't read it
def _takes_tf32() -> bool:
    """Whether float32 products on a GPU are to be formed from TF32 operands.

    ``torch.get_float32_matmul_precision()`` raises once the newer setting has been used.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _check(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    negatives: Tensor | None,
    eps: float,
    reduction: str,
) -> None:
    check_tensor("anchor", anchor, dims="(..., N, D)")
    if anchor.shape[-1] == 0:
        raise InputError(
            f"anchor: expected shape (..., N, D) with D >= 1, got {tuple(anchor.shape)}"
        )
    check_tensor("positive", positive, dims="(..., N, D)", like=anchor)
    check_shape("positive", positive, anchor.shape)
    if negatives is not None:
        check_tensor("negatives", negatives, dims="(K, D)", like=anchor)
        check_shape("negatives", negatives, (negatives.shape[0], anchor.shape[-1]))
    if not isinstance(temperature, Tensor):
        least = math.nextafter(0, 1)
        check_number("temperature", temperature, least, math.inf, "a finite number > 0")
    elif temperature.numel() != 1 or not temperature.dtype.is_floating_point:
        raise InputError(
            "temperature: expected a number or a floating point tensor of one element, got "
            f"shape {tuple(temperature.shape)} of {temperature.dtype}"
        )
    check_not_negative("eps", eps)
    if reduction not in _REDUCTIONS:
        raise InputError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {reduction!r}")


def info_nce_reference(
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
    """Compute :func:`info_nce` in plain PyTorch, with the N x N matrices in memory."""
    acc = accumulation_dtype(anchor.dtype)
    z1 = F.normalize(anchor.to(acc), dim=-1)
    z2 = F.normalize(positive.to(acc), dim=-1)
    zn = None if negatives is None else F.normalize(negatives.to(acc), dim=-1)
    loss = _one_direction(z1, z2, zn, temperature, intra_view, eps)
    if symmetric:
        loss = (loss + _one_direction(z2, z1, zn, temperature, intra_view, eps)) / 2
    return _reduce(loss, reduction)


def _one_direction(
    z1: Tensor,
    z2: Tensor,
    zn: Tensor | None,
    temperature: float | Tensor,
    intra_view: bool,
    eps: float,
) -> Tensor:
    logits = [z1 @ z2.mT / temperature]
    if intra_view:
        self_pair = torch.eye(z1.shape[-2], dtype=torch.bool, device=z1.device)
        logits.append((z1 @ z1.mT / temperature).masked_fill(self_pair, -torch.inf))
    if zn is not None:
        logits.append(z1 @ zn.mT / temperature)
    log_ratio = (z1 * z2).sum(-1) / temperature - torch.cat(logits, -1).logsumexp(-1)
    if eps:
        log_eps = torch.log(log_ratio.new_tensor(eps))
        return -torch.logaddexp(log_ratio, log_eps)
    return -log_ratio


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum(-1) if reduction == "sum" else loss.mean(-1)


def _pairs(x: Tensor) -> Tensor:
    """(..., N, D) as the operator expects it, (B, N, D)."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _compute(
    anchor: Tensor,
    positive: Tensor,
    temperature: Tensor,
    negatives: Tensor | None,
    intra_view: bool,
    symmetric: bool,
    eps: float,
    tf32: bool,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The operator with its reduction: one node of the graph instead of five.

    That saves a fifth of the time of a small problem.
    """
    loss, saved = torch.ops.mmssl.info_nce(
        _pairs(anchor),
        _pairs(positive),
        temperature,
        negatives,
        intra_view,
        symmetric,
        eps,
        tf32,
    )
    return _reduce(loss.reshape(anchor.shape[:-1]), reduction), saved


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
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = 0 if negatives is None else negatives.shape[0]
    return (
        torch.empty_like(anchor, memory_format=torch.contiguous_format),
        torch.empty_like(positive, memory_format=torch.contiguous_format),
        torch.empty_like(temperature),
        anchor.new_empty(rows, anchor.shape[2]),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save for both the operator, which returns one loss per row, and :func:`_compute`."""
    ctx.options = inputs[4:8]
    ctx.reduction = inputs[8] if len(inputs) > 8 else "none"
    ctx.save_for_backward(*inputs[:4], output[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    anchor, positive, temperature, negatives, saved = ctx.saved_tensors
    pairs, n = math.prod(anchor.shape[:-2]), anchor.shape[-2]
    if ctx.reduction == "mean":
        grad = grad / n
    each = n if ctx.reduction == "none" else 1
    grad_anchor, grad_positive, grad_temperature, grad_negatives = (
        torch.ops.mmssl.info_nce_backward(
            grad.reshape(pairs, each).expand(pairs, n),
            _pairs(anchor),
            _pairs(positive),
            temperature,
            negatives,
            saved,
            *ctx.options,
        )
    )
    return (
        grad_anchor.reshape(anchor.shape),
        grad_positive.reshape(positive.shape),
        grad_temperature,
        None if negatives is None else grad_negatives,
    )


_FORWARD = Operator(
    "info_nce", fake=_fake, save=_save, backward=_backward, differentiable=(0, 1, 2, 3), hidden=1
)
_call = eager(_FORWARD, _compute)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(
        label: str,
        n: int,
        d: int,
        k: int | None = None,
        batch: tuple[int, ...] = (),
        **options: Any,
    ) -> Sample:
        generator = torch.Generator().manual_seed(n + d)
        anchor = torch.randn(*batch, n, d, generator=generator)
        arguments = {
            "anchor": anchor.to(dtype),
            "positive": (anchor + torch.randn(anchor.shape, generator=generator)).to(dtype),
            "temperature": torch.tensor(0.3, dtype=accumulation_dtype(dtype)),
        }
        if k is not None:
            arguments["negatives"] = torch.randn(k, d, generator=generator).to(dtype)
        return Sample(label, {**arguments, **options}, tiny=n < 20)

    yield sample("typical", 5, 3, 4, eps=1e-8)
    yield sample("no intra-view negatives", 5, 3, intra_view=False)
    yield sample("symmetric", 4, 3, 2, symmetric=True, eps=0.1, reduction="none")
    yield sample("one pair", 1, 1)
    yield sample("no pair", 0, 4, 2, reduction="sum")
    yield sample("no negative", 3, 2, 0)
    yield sample("batch", 3, 5, 2, (2, 2), reduction="sum")
    yield sample("number as temperature", 7, 17, temperature=0.05)
    yield sample("large", 300, 33, 130, (2,), symmetric=True)
    strided = sample("strided", 8, 6).arguments
    strided["anchor"] = strided["anchor"].mT.contiguous().mT
    strided["positive"] = strided["positive"].repeat(2, 1)[::2]
    yield Sample("strided", strided)


def _bad() -> Iterator[Bad]:
    x = torch.zeros(5, 3)
    yield Bad("anchor", [1.0], "anchor: expected a torch.Tensor, got list")
    yield Bad("anchor", x.int(), "anchor: expected a floating point dtype, got torch.int32")
    yield Bad("anchor", x[0], r"anchor: expected shape \(\.\.\., N, D\), got \(3,\)")
    yield Bad("anchor", x[:, :0], r"anchor: expected shape .* with D >= 1, got \(5, 0\)")
    yield Bad("positive", x[:2], r"positive: expected shape \(5, 3\), got \(2, 3\)")
    yield Bad("positive", x.double(), "positive: expected dtype torch.float32, like the other")
    yield Bad("positive", x.to("meta"), "positive: expected device cpu, got meta")
    yield Bad("negatives", x[:, :2], r"negatives: expected shape \(5, 3\), got \(5, 2\)")
    yield Bad("negatives", x[0], r"negatives: expected shape \(K, D\), got \(3,\)")
    yield Bad("negatives", 3, "negatives: expected a torch.Tensor, got int")
    for value in (0, -1.0, float("nan"), float("inf"), "warm", None, True):
        yield Bad("temperature", value, f"temperature: expected a finite number > 0, got {value!r}")
    yield Bad("temperature", torch.ones(2), r"temperature: .* one element, got shape \(2,\)")
    yield Bad("temperature", torch.ones(1).int(), "temperature: .* of torch.int32")
    for value in (-1.0, float("nan"), float("inf"), "tiny", None):
        yield Bad("eps", value, f"eps: expected a finite number >= 0, got {value!r}")
    yield Bad("reduction", "max", "reduction: expected one of mean, sum, none, got 'max'")


declare(
    Op(
        name="info_nce",
        function=info_nce,
        reference=info_nce_reference,
        samples=_samples,
        dtypes={"cpu": KERNEL_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(
            _FORWARD,
            Operator("info_nce_backward", fake=_backward_fake, refused="double backward"),
        ),
        differentiable=("anchor", "positive", "temperature", "negatives"),
        bad=_bad,
        equals="InfoNCE on cosines with intra-view negatives",
        avoids="an N x N matrix",
        notes={"cpu": "bfloat16 by AMX or AVX512-BF16 where available"},
    )
)
