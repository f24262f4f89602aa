"""Batched InfoNCE on cosine similarities that never holds an N x M matrix.

Legend: N anchors, M rows that hold their positives (M = N for pairs), K negatives, D features;
leading dimensions are independent problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Sample
from mmssl.ops._checks import accumulation_dtype, is_cpu_half, promoted, without_autocast
from mmssl.ops._info_nce_forms import (
    Form,
    bad_arguments,
    check_arguments,
    composed,
    info_nce_reference,
    reduced,
)
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    *,
    negatives: Tensor | None = None,
    target: Tensor | None = None,
    labels: Tensor | None = None,
    positive_labels: Tensor | None = None,
    num_rows: Tensor | None = None,
    in_batch: bool = True,
    intra_view: bool = True,
    symmetric: bool = False,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Compute InfoNCE with the other anchors and positives as negatives, in O((N + M) D) memory.

    Equal to (one direction, no ``negatives``)::

        z1, z2 = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
        s12, s11 = z1 @ z2.mT / temperature, z1 @ z1.mT / temperature
        s11 = s11.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf)  # if intra_view
        s_pos = s12.diagonal(0, -2, -1)  # s12.gather(-1, target[..., None])[..., 0] with target
        # s_pos[..., None] in place of s12 if not in_batch
        log_ratio = s_pos - torch.cat([s12, s11], -1).logsumexp(-1)
        loss = -(log_ratio.exp() + eps).log()

    With ``labels``, ``s_pos`` is the mean over all scores of the anchor with a row of an equal
    label: the loss of supervised contrastive learning with the mean outside the logarithm. An
    anchor without such a row has loss 0 and does not count in the mean.

    With ``num_rows``, the loss is that of ``anchor[:num_rows]`` and ``positive[:num_rows]``: the
    rows behind are padding, which may hold anything. On a GPU nothing waits for the number.

    Gradients flow to ``anchor``, ``positive``, ``negatives`` and a tensor ``temperature``; double
    backward is not supported. The kernels give the same bits every time, on the CPU for any number
    of threads. bfloat16 inputs are multiplied unchanged and summed in float32; on processors with
    bfloat16 arithmetic the weights of the gradient are rounded to bfloat16 as well. On a GPU,
    float32 products follow ``torch.backends.cuda.matmul.fp32_precision``, which
    ``torch.set_float32_matmul_precision`` sets as well: at least the 11 bits of TF32 where it is
    "tf32", all 24 otherwise. Under autocast the inputs keep their dtype; mixed ones
    are promoted to the widest.

    Args:
        anchor: (..., N, D) floating point, D >= 1; leading dimensions are independent problems
            that share one launch.
        positive: (..., M, D). Row i is the positive of anchor i and M = N, unless ``target`` or
            ``positive_labels`` is given.
        temperature: > 0, a float or a tensor of one element (which gets a gradient; its value is
            not checked, since that would wait for the device).
        negatives: further negatives: (K, D), shared by all anchors, or (..., N, K, D), those of
            each anchor; or None.
        target: (..., N) int64 in [0, M): the row of ``positive`` that is the positive of each
            anchor. On a GPU the values are not checked.
        labels: (..., N) int64, any values: the positives of an anchor are the rows of ``positive``,
            and with ``intra_view`` the other anchors, whose label is equal. Needs ``in_batch`` and
            eps = 0.
        positive_labels: (..., M) int64, the labels of ``positive`` where they are not ``labels``.
        num_rows: (...) int64 in [0, N]: how many rows of ``anchor`` and ``positive`` are there. The
            others are neither anchors nor negatives, have loss 0 and no gradient, and do not count
            in the mean. On a GPU the values are not checked. Excludes ``negatives``, ``target``,
            ``labels`` and ``positive_labels``.
        in_batch: whether the positives of the other anchors are negatives, which with ``target``
            means all other rows of ``positive``.
        intra_view: whether the other anchors are negatives.
        symmetric: average with the loss of (positive, anchor). Neither ``target`` nor
            ``positive_labels`` have one.
        eps: >= 0, added inside the logarithm (the released MMSSL adds 1e-8).
        reduction: "mean" or "sum" over N, or "none".

    Returns:
        (...) for "mean" and "sum", (..., N) for "none"; float32 for the half types, else the dtype
        of ``anchor``.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device, dtype and
            arguments.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018;
    the intra-view negatives are those of Zhu et al., "Deep Graph Contrastive Representation
    Learning", 2020, as MMSSL (WWW 2023) uses them; positives by labels: Khosla et al., "Supervised
    Contrastive Learning", NeurIPS 2020, equation 2.
    """
    anchor, positive, negatives = promoted(anchor, positive, negatives)
    form = Form(
        negatives,
        target,
        labels,
        positive_labels,
        num_rows,
        in_batch,
        intra_view,
        symmetric,
        eps,
        reduction,
    )
    check_arguments(anchor, positive, temperature, form)
    if is_cpu_half(anchor):
        negatives = None if negatives is None else negatives.float()
        options = form._replace(negatives=negatives)._asdict()
        return info_nce(anchor.float(), positive.float(), temperature, **options)
    if not use_native("info_nce", anchor.device.type, anchor.dtype):
        with without_autocast(anchor):
            return info_nce_reference(anchor, positive, temperature, **form._asdict())
    scale = _scale(temperature, anchor)
    if labels is not None or form.own() is not None:
        with without_autocast(anchor):
            return composed(partial(_rows, scale), anchor, positive, scale, form)
    return _rows(scale, anchor, positive, form)


def logsumexp_over_rows(anchor: Tensor, rows: Tensor, temperature: float | Tensor) -> Tensor:
    """Return the logarithm of each anchor's denominator over some rows, by the kernel.

    Args:
        anchor: (N, D).
        rows: (M, D), M >= 1.
        temperature: > 0.

    Returns:
        (N,).
    """
    # A target of -1 stands for no positive: the loss is the logarithm of the denominator itself.
    nothing = torch.full(anchor.shape[:1], -1, device=anchor.device)
    form = Form(target=nothing, intra_view=False, reduction="none")
    return _rows(_scale(temperature, anchor), anchor, rows, form)


def _scale(temperature: float | Tensor, anchor: Tensor) -> Tensor:
    """Return the temperature as the operator expects it, (1,)."""
    acc = accumulation_dtype(anchor.dtype)
    if isinstance(temperature, Tensor):
        return temperature.to(device=anchor.device, dtype=acc).reshape(1)
    return torch.full((1,), temperature, dtype=acc, device=anchor.device)


def _rows(scale: Tensor, anchor: Tensor, positive: Tensor, form: Form) -> Tensor:
    """Call the kernel for a form that it has."""
    tf32 = anchor.is_cuda and takes_tf32()
    flags = (form.intra_view, form.symmetric, form.eps, tf32)
    rows = (form.target, form.in_batch, form.num_rows)
    loss, *_ = _call(anchor, positive, scale, form.negatives, *flags, *rows, form.reduction)
    out: Tensor = loss
    return out


def takes_tf32() -> bool:
    """Whether float32 products on a GPU are to be formed from TF32 operands.

    ``torch.get_float32_matmul_precision()`` raises once the newer setting has been used.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# Compiled code is guarded by the setting, but can't read it. This is what
# torch.compiler.assume_constant_result does, after it has imported the compiler, which takes
# seconds.
takes_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _pairs(x: Tensor) -> Tensor:
    """(..., N, D) as the operator expects it, (B, N, D)."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _ids(target: Tensor | None) -> Tensor | None:
    """(..., N) as the operator expects it, (B, N)."""
    if target is None:
        return None
    return target.reshape(math.prod(target.shape[:-1]), target.shape[-1])


def _per_pair(num_rows: Tensor | None) -> Tensor | None:
    """(...) as the operator expects it, (B,)."""
    return None if num_rows is None else num_rows.reshape(num_rows.numel())


def _compute(
    anchor: Tensor,
    positive: Tensor,
    temperature: Tensor,
    negatives: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """The operator with its reduction: one node of the graph instead of five.

    That saves a fifth of the time of a small problem.
    """
    *flags, target, in_batch, num_rows, reduction = options
    rows = (_ids(target), in_batch, _per_pair(num_rows))
    loss, saved = torch.ops.mmssl.info_nce(
        _pairs(anchor), _pairs(positive), temperature, negatives, *flags, *rows
    )
    return reduced(loss.reshape(anchor.shape[:-1]), num_rows, reduction), saved


def _fake(
    anchor: Tensor,
    positive: Tensor,
    temperature: Tensor,
    negatives: Tensor | None,
    intra_view: bool,
    symmetric: bool,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    pairs, n = anchor.shape[:2]
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
    # The dispatcher leaves out trailing inputs that are the defaults of the schema.
    ctx.target = inputs[8] if len(inputs) > 8 else None
    ctx.in_batch = inputs[9] if len(inputs) > 9 else True
    ctx.num_rows = inputs[10] if len(inputs) > 10 else None
    ctx.reduction = inputs[11] if len(inputs) > 11 else "none"
    ctx.save_for_backward(*inputs[:4], output[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    anchor, positive, temperature, negatives, saved = ctx.saved_tensors
    pairs, n = math.prod(anchor.shape[:-2]), anchor.shape[-2]
    if ctx.reduction == "mean":
        grad = grad / (n if ctx.num_rows is None else ctx.num_rows)
    each = n if ctx.reduction == "none" else 1
    grad_anchor, grad_positive, grad_temperature, grad_negatives = _call_backward(
        grad.reshape(pairs, each).expand(pairs, n),
        _pairs(anchor),
        _pairs(positive),
        temperature,
        negatives,
        saved,
        *ctx.options,
        _ids(ctx.target),
        ctx.in_batch,
        _per_pair(ctx.num_rows),
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
_BACKWARD = Operator("info_nce_backward", fake=_backward_fake, refused="double backward")
_call, _call_backward = eager(_FORWARD, _compute), eager(_BACKWARD)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(
        label: str,
        n: int,
        d: int,
        k: int | tuple[int, ...] | None = None,
        batch: tuple[int, ...] = (),
        m: int | None = None,
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
            sizes = (k,) if isinstance(k, int) else k
            arguments["negatives"] = torch.randn(*sizes, d, generator=generator).to(dtype)
        if m is not None:
            rows = torch.randn(*batch, m, d, generator=generator)
            arguments["positive"] = rows.to(dtype)
            if "labels" not in options:
                options["target"] = torch.randint(m, (*batch, n), generator=generator)
        return Sample(label, {**arguments, **options}, tiny=n < 20)

    alone: dict[str, Any] = {"in_batch": False, "intra_view": False}
    yield sample("typical", 5, 3, 4, eps=1e-8)
    yield sample("target", 5, 3, 2, (2,), m=7, eps=1e-3)
    yield sample("negatives only", 5, 3, 4, **alone)
    yield sample("no intra-view negatives", 5, 3, intra_view=False)
    yield sample("symmetric", 4, 3, 2, symmetric=True, eps=0.1, reduction="none")
    yield sample("one pair", 1, 1)
    yield sample("no pair", 0, 4, 2, reduction="sum")
    yield sample("no negative", 3, 2, 0)
    yield sample("batch", 3, 5, 2, (2, 2), reduction="sum")
    yield sample("number as temperature", 7, 17, temperature=0.05)
    yield sample("large", 300, 33, 130, (2,), symmetric=True)
    yield sample("catalog", 6, 3, m=4, intra_view=False)
    yield sample("more anchors than rows", 300, 33, m=130, reduction="none")
    yield sample("more rows than anchors", 130, 33, m=500, temperature=0.01)
    yield sample("negatives only, symmetric", 300, 33, 130, (2,), in_batch=False, symmetric=True)
    yield sample("target and negatives only", 5, 4, 3, m=2, temperature=0.01, eps=0.1, **alone)
    yield sample("nothing but the positive", 3, 4, **alone)
    yield sample("negatives of each anchor", 4, 3, (2, 4, 2), (2,), eps=0.1, reduction="sum")
    yield sample("only negatives of each anchor", 4, 3, (4, 2), m=3, **alone)
    yield sample("no negatives of each anchor", 3, 4, (3, 0))
    yield sample("labels", 6, 3, labels=torch.tensor([3, -1, 3, 3, -1, 2]), symmetric=True)
    yield sample("labels and negatives of each anchor", 4, 3, (4, 2), labels=torch.arange(4) % 3)
    others: dict[str, Any] = {"labels": torch.tensor([[0, 1, 5], [1, 1, 2]]), "intra_view": False}
    others["positive_labels"] = torch.tensor([[1, 0, 1, 0], [2, 0, 3, 1]])
    yield sample("labels of other rows", 3, 4, batch=(2,), m=4, **others)
    yield sample("padded", 6, 3, num_rows=torch.tensor(4), eps=1e-3)
    counts: dict[str, Any] = {"symmetric": True, "reduction": "sum"}
    yield sample(
        "padded batch", 5, 4, batch=(2, 2), num_rows=torch.tensor([[5, 0], [1, 3]]), **counts
    )
    yield sample("padded, large", 300, 33, batch=(2,), num_rows=torch.tensor([130, 257]))
    strided = sample("strided", 8, 6).arguments
    strided["anchor"] = strided["anchor"].mT.contiguous().mT
    strided["positive"] = strided["positive"].repeat(2, 1)[::2]
    yield Sample("strided", strided)


declare(
    Op(
        info_nce,
        Contract(
            _samples,
            bad_arguments,
            differentiable=("anchor", "positive", "temperature", "negatives"),
        ),
        Words(
            "InfoNCE on cosines: negatives in the batch, of the same view or given; positives in "
            "pairs, by index (a softmax over a catalog) or by labels",
            "a matrix of scores",
            notes={"cpu": "bfloat16 by AMX or AVX512-BF16 where available"},
        ),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_FORWARD, _BACKWARD),
    )
)
