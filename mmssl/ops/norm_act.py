"""LeakyReLU, batch normalization and dropout of a hidden layer in one op, twice differentiable.

A gradient penalty differentiates the input gradient of a critic, which passes over every
elementwise step between its products a dozen times. Here each of the three passes reads and writes
its arrays once.

Legend: N rows, H columns, G groups of rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import _extension
from mmssl.errors import InputError
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Bad, Sample
from mmssl.ops._checks import (
    accumulation_dtype,
    check_device,
    check_integer,
    check_not_negative,
    check_number,
    check_shape,
    check_tensor,
    is_cpu_half,
)
from mmssl.ops._critic import OPERATORS as CRITIC_OPERATORS
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native


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
    groups: int = 1,
) -> Tensor:
    """Apply the elementwise part of a hidden layer in train mode.

    Equal to::

        a = F.leaky_relu(x, negative_slope)
        y = F.batch_norm(a, running_mean, running_var, weight, bias, True, momentum, eps)
        y = y * keep * keep_scale

    With ``groups``, that is done to each of G equal blocks of rows: each is normalized by its own
    statistics, and the running statistics see one after the other. Gradients flow to ``x``,
    ``weight`` and ``bias`` and can be differentiated once more; a third derivative is not
    supported. Sums over the rows are formed in blocks and added in float64; the result has the same
    bits for any number of threads.

    Args:
        x: (N, H) floating point, N >= 2.
        weight: (H,), in the dtype of ``x`` or float32.
        bias: (H,), the same.
        negative_slope: Negative slope of the LeakyReLU, >= 0.
        keep: (N, H) uint8 of 0 and 1, the dropout mask; None keeps everything.
        keep_scale: Factor on the kept elements, usually 1 / (1 - rate).
        running_mean: (H,) updated in place, or None.
        running_var: (H,) updated in place with the unbiased variance, or None.
        momentum: Weight of the batch in the running statistics, in [0, 1].
        eps: Added to the variance, >= 0.
        groups: G, a divisor of N with N / G >= 2.

    Returns:
        (N, H) in the dtype of ``x``.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    _check(x, weight, bias, keep, groups)
    check_not_negative("negative_slope", negative_slope)
    check_not_negative("keep_scale", keep_scale)
    check_not_negative("eps", eps)
    check_number("momentum", momentum, 0, math.nextafter(1, 2), "a number in [0, 1]")
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None:
            check_tensor(name, running, dims="(H,)")
            check_shape(name, running, x.shape[1:])
    dtype = x.dtype
    if is_cpu_half(x):
        x, weight, bias = x.float(), weight.float(), bias.float()
    if not use_native("norm_act", x.device.type, x.dtype):
        statistics = (running_mean, running_var)
        return norm_act_reference(
            *(x, weight, bias, keep, keep_scale, negative_slope, eps, statistics, momentum, groups)
        ).to(dtype)
    acc = accumulation_dtype(x.dtype)
    arguments = x, weight.to(acc), bias.to(acc), keep, keep_scale, negative_slope, eps, groups
    moved = Running(running_mean, running_var, None, momentum)
    if moves_running(x, moved) and not torch.compiler.is_compiling():
        y, *_ = _call_moved(*arguments, *moved)
    else:
        y, mean, rstd = _call(*arguments)
        with torch.no_grad():
            update_running(moved, mean, rstd, eps, x.shape[0], groups)
    out: Tensor = y.to(dtype)
    return out


class Running(NamedTuple):
    """Running statistics and how they move, in the order of ``mmssl::norm_act_moved``."""

    mean: Tensor | None  # (H,)
    var: Tensor | None  # (H,)
    seen: Tensor | None  # (), number of groups of rows
    momentum: float


def moves_running(x: Tensor, running: Running) -> bool:
    """Whether a GPU moves these in the launch of the forward pass over ``x``."""
    if not _extension.on_gpu(x) or running.mean is None or running.var is None:
        return False
    acc = accumulation_dtype(x.dtype)
    return all(t.dtype == acc and t.is_contiguous() for t in (running.mean, running.var))


def update_running(
    running: Running, mean: Tensor, rstd: Tensor, eps: float, rows: int, groups: int
) -> None:
    """Move the running statistics towards those of each group of a batch.

    Args:
        running: Updated in place.
        mean: (G H,), of the groups.
        rstd: (G H,), the same.
        eps: What was added to the variances.
        rows: N, of all groups.
        groups: G.
    """
    rows //= groups
    if running.seen is not None:
        running.seen.add_(groups)
    if running.mean is not None:
        for one in mean.view(groups, -1):
            running.mean.lerp_(one.to(running.mean.dtype), running.momentum)
    if running.var is not None:
        unbiased = (rstd.double().pow(-2) - eps) * (rows / (rows - 1))
        for one in unbiased.view(groups, -1):
            running.var.lerp_(one.to(running.var.dtype), running.momentum)


def _check(x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, groups: int) -> None:
    check_tensor("x", x, dims="(N, H)")
    check_integer("groups", groups, 1)
    if x.shape[0] < 2 * groups:
        of = "" if groups == 1 else f" of each of {groups} groups"
        raise InputError(f"x: expected at least 2 rows for batch statistics{of}, got {x.shape[0]}")
    if x.shape[0] % groups:
        raise InputError(f"groups: expected a divisor of the {x.shape[0]} rows of x, got {groups}")
    for name, vector in (("weight", weight), ("bias", bias)):
        check_tensor(name, vector, dims="(H,)")
        check_shape(name, vector, x.shape[1:])
        check_device(name, vector, x.device)
    if keep is None:
        return
    if not isinstance(keep, Tensor):
        raise InputError(f"keep: expected a torch.Tensor or None, got {type(keep).__name__}")
    if keep.shape != x.shape or keep.dtype != torch.uint8:
        raise InputError(
            f"keep: expected shape {tuple(x.shape)} of uint8, got {tuple(keep.shape)} of "
            f"{keep.dtype}"
        )
    check_device("keep", keep, x.device)


def norm_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor | None,
    keep_scale: float,
    slope: float,
    eps: float,
    running: tuple[Tensor | None, Tensor | None],
    momentum: float,
    groups: int = 1,
) -> Tensor:
    """Compute :func:`norm_act` in plain PyTorch; ``running`` are the mean and the variance."""
    if groups > 1:
        options = keep_scale, slope, eps, running, momentum
        masks = [None] * groups if keep is None else keep.chunk(groups)
        return torch.cat(
            [
                norm_act_reference(rows, weight, bias, mask, *options)
                for rows, mask in zip(x.chunk(groups), masks, strict=True)
            ]
        )
    acc = accumulation_dtype(x.dtype)
    a = F.leaky_relu(x.to(acc), slope)
    y = F.batch_norm(a, *running, weight.to(acc), bias.to(acc), True, momentum, eps)
    if keep is not None:
        y = y * (keep.to(acc) * keep_scale)
    return y.to(x.dtype)


def _fake(x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    length = options[-1] * weight.shape[0]
    return x.new_empty(x.shape), weight.new_empty(length), weight.new_empty(length)


def _moved_fake(x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(x, weight, *options[:6])


def _backward_fake(
    grad_y: Tensor, x: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)


def _added_fake(grad_y: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return *_backward_fake(grad_y, x, weight), torch.empty_like(weight)


def _double_backward_fake(
    up_x: Tensor, up_weight: Any, up_bias: Any, grad_y: Tensor, x: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _bias, keep, ctx.keep_scale, ctx.slope, _eps, ctx.groups = inputs[:8]
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # no zeros for the statistics
    ctx.save_for_backward(x, weight, mean, rstd, keep)


def _backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return None, None, None
    x, weight, mean, rstd, keep = ctx.saved_tensors
    grads: tuple[Tensor, Tensor, Tensor] = _call_backward(
        grad_y, x, weight, mean, rstd, keep, ctx.keep_scale, ctx.slope, ctx.groups
    )
    return grads


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.keep_scale, ctx.slope, ctx.groups = inputs
    ctx.set_materialize_grads(False)  # no zeros for the vectors
    ctx.save_for_backward(*tensors)


def _backward_backward(
    ctx: Any, up_x: Tensor | None, up_weight: Tensor | None, up_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics are functions of ``x``; their share is part of the gradient for ``x``."""
    saved = ctx.saved_tensors
    if up_x is None:
        up_x = torch.zeros_like(saved[1])
    grads: tuple[Tensor, Tensor, Tensor] = _call_double_backward(
        up_x, up_weight, up_bias, *saved, ctx.keep_scale, ctx.slope, ctx.groups
    )
    return grads


_FORWARD = Operator(
    "norm_act", fake=_fake, save=_save, backward=_backward, differentiable=(0, 1, 2)
)
_BACKWARD = Operator(
    "norm_act_backward",
    fake=_backward_fake,
    save=_backward_save,
    backward=_backward_backward,
    differentiable=(0, 1, 2),
)
_DOUBLE_BACKWARD = Operator(
    "norm_act_double_backward", fake=_double_backward_fake, refused="a third derivative"
)
_MOVED = Operator("norm_act_moved", fake=_moved_fake)
_ADDED = Operator("norm_act_backward_added", fake=_added_fake)
_call, _call_backward, _call_double_backward = map(eager, (_FORWARD, _BACKWARD, _DOUBLE_BACKWARD))
_call_moved = eager(dataclasses.replace(_FORWARD, name=_MOVED.name))


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(label: str, n: int, h: int, keep: bool = True, **options: Any) -> Sample:
        generator = torch.Generator().manual_seed(n)
        acc = accumulation_dtype(dtype)
        arguments = {
            "x": torch.randn(n, h, generator=generator).to(dtype),
            "weight": 1 + 0.3 * torch.randn(h, generator=generator).to(acc),
            "bias": torch.randn(h, generator=generator).to(acc),
        }
        if keep:
            mask = torch.rand(n, h, generator=generator) >= 0.3
            arguments["keep"] = mask.to(torch.uint8)
            options["keep_scale"] = 1.4
        return Sample(label, {**arguments, **options}, tiny=n < 20)

    acc = accumulation_dtype(dtype)
    statistics: dict[str, Any] = {
        "running_mean": torch.full((3,), 0.5, dtype=acc),
        "running_var": torch.full((3,), 2.0, dtype=acc),
    }
    yield sample("typical", 6, 3)
    yield sample("running statistics", 6, 3, **statistics, momentum=0.3)
    yield sample("no dropout", 6, 3, keep=False, negative_slope=0.0, eps=1e-3)
    yield sample("groups", 6, 3, groups=3)
    yield sample("groups, running statistics", 6, 3, groups=2, **statistics, momentum=0.3)
    yield sample("few rows", 3, 1)
    yield sample("odd sizes", 7, 17)
    yield sample("large", 300, 200)
    strided = sample("strided", 8, 5).arguments
    for name in ("x", "keep"):
        strided[name] = strided[name].T.contiguous().T
    yield Sample("strided", {**strided, "weight": strided["weight"].repeat(2)[::2]})


def _bad() -> Iterator[Bad]:
    x = torch.zeros(6, 3)
    yield Bad("x", x[0], r"x: expected shape \(N, H\), got \(3,\)")
    yield Bad("x", None, "x: expected a torch.Tensor, got NoneType")
    yield Bad("x", x[:1], "x: expected at least 2 rows for batch statistics, got 1")
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield Bad(name, x[0, :2], rf"{name}: expected shape \(3,\), got \(2,\)")
        yield Bad(name, x[0].int(), f"{name}: expected a floating point dtype, got torch.int32")
        yield Bad(name, [0.0], f"{name}: expected a torch.Tensor, got list")
    yield Bad("weight", x[0].to("meta"), "weight: expected device cpu, got meta")
    yield Bad("keep", x.bool(), r"keep: expected shape \(6, 3\) of uint8, got .* of torch.bool")
    yield Bad("keep", 3, "keep: expected a torch.Tensor or None, got int")
    yield Bad("keep", x.byte().to("meta"), "keep: expected device cpu, got meta")
    for name in ("negative_slope", "keep_scale", "eps"):
        for value in (-1.0, float("nan"), float("inf"), "small", None):
            yield Bad(name, value, f"{name}: expected a finite number >= 0, got {value!r}")
    for groups in (0, -1, 1.5, None):
        yield Bad("groups", groups, f"groups: expected an integer >= 1, got {groups!r}")
    yield Bad("groups", 4, "x: expected at least 2 rows .* of each of 4 groups, got 6")
    for value in (-1.0, 1.5, float("nan"), None):
        yield Bad("momentum", value, rf"momentum: expected a number in \[0, 1\], got {value!r}")


declare(
    Op(
        norm_act,
        Contract(
            _samples,
            _bad,
            differentiable=("x", "weight", "bias"),
            derivatives=2,
            updated=("running_mean", "running_var"),
        ),
        Words(
            "LeakyReLU, batch normalization, dropout; twice differentiable",
            "intermediate activations",
        ),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(_FORWARD, _BACKWARD, _DOUBLE_BACKWARD),
        gpu_operators=(_MOVED, _ADDED, *CRITIC_OPERATORS),
    )
)
