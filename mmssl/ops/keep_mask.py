"""Dropout whose mask is a function of one drawn number, the same on every device.

torch draws CPU masks element by element from a serial generator, which takes a sixth of a training
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmssl import _extension
from mmssl.errors import InputError
from mmssl.ops._autograd import Operator
from mmssl.ops._cases import Bad, Sample
from mmssl.ops._checks import check_number
from mmssl.ops._registry import Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native

_STEPS = 1 << 16
_ELEMENTS = 4  # of a word of 64 bits
# SplitMix64's constants as int64.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def keep_mask(
    shape: Sequence[int], rate: float, device: torch.device | str = "cpu"
) -> tuple[Tensor | None, float]:
    """Draw a dropout mask and return it with the factor on the kept elements.

    The mask follows from one number that is drawn from torch's default generator of the device. The
    rate is rounded to 1 / 65,536 and the factor belongs to the rounded rate, so that the
    expectation is exact.

    Args:
        shape: Shape of the mask.
        rate: Share that is dropped, in [0, 1).
        device: Device of the mask.

    Returns:
        uint8 of 0 and 1, or None if nothing is dropped, and 1 / (1 - rate).

    Raises:
        InputError: ``rate`` is outside [0, 1) or ``shape`` is not made of integers >= 0.
    """
    return _one(keep_masks(1, [(shape, rate)], device))


def keep_mask_reference(
    shape: Sequence[int], rate: float, device: torch.device | str = "cpu"
) -> tuple[Tensor | None, float]:
    """Compute :func:`keep_mask` in plain PyTorch, from the same drawn number."""
    return _one(_drawn(1, [(shape, rate)], device, mask_from_seed, 0))


def _one(masks: list[tuple[Tensor | None, float]]) -> tuple[Tensor | None, float]:
    keep, scale = masks[0]
    return None if keep is None else keep[0], scale


def keep_masks(
    count: int,
    layers: Sequence[tuple[Sequence[int], float]],
    device: torch.device | str = "cpu",
    *,
    first: int = 0,
) -> list[tuple[Tensor | None, float]]:
    """Draw what ``count`` rounds of :func:`keep_mask` over some layers draw.

    Args:
        count: K, number of rounds.
        layers: Shape and rate of each layer's mask.
        device: Device of the masks.
        first: Position of the first element, where these are parts of the masks of larger tensors.

    Returns:
        For each layer its masks (K, shape), or None if nothing is dropped, and the factor.
    """
    for shape, rate in layers:
        check_number("rate", rate, 0, 1, "a number in [0, 1)")
        if any(type(n) is not int or n < 0 for n in shape):
            raise InputError(f"shape: expected integers >= 0, got {tuple(shape)}")
    native = use_native("keep_mask", torch.device(device).type)
    compute = torch.ops.mmssl.keep_mask if native else mask_from_seed
    return _drawn(count, layers, device, compute, first)


def _drawn(
    count: int,
    layers: Sequence[tuple[Sequence[int], float]],
    device: torch.device | str,
    compute: Callable[[Tensor, int, int], Tensor],
    first: int,
) -> list[tuple[Tensor | None, float]]:
    dropped = [_dropped(rate) for _, rate in layers]
    drawing = sum(d > 0 for d in dropped)
    if not drawing:
        return [(None, 1.0)] * len(layers)
    seeds = torch.randint(1 << 62, (count, drawing), device=device)
    words, skipped = divmod(first, _ELEMENTS)
    if words:
        seeds = seeds + torch.full_like(seeds, words) * _GOLDEN  # wraps on purpose
    if drawing > 1 and compute is not mask_from_seed and _extension.on_gpu(seeds):
        each = zip(dropped, layers, strict=True)
        sizes = [math.prod(shape) + skipped for d, (shape, _) in each if d]
        limits = [d - _STEPS // 2 for d in dropped if d]
        together = iter(torch.ops.mmssl.keep_masks(seeds, sizes, limits))

        def compute(*_: Any) -> Tensor:
            return next(together)

    of_layer, masks = iter(seeds.unbind(1)), []
    for d, (shape, _) in zip(dropped, layers, strict=True):
        keep = None
        if d:
            length = math.prod(shape) + skipped
            keep = compute(next(of_layer), length, d - _STEPS // 2).view(count, length)
            keep = keep[:, skipped:].view(count, *shape)
        masks.append((keep, _STEPS / (_STEPS - d)))
    return masks


def _dropped(rate: float) -> int:
    """Return the rate in units of 1 / _STEPS."""
    return min(round(rate * _STEPS), _STEPS - 1)


def mask_from_seed(seed: Tensor, n: int, limit: int) -> Tensor:
    """Compute masks from their seeds in plain PyTorch, as ``mmssl::keep_mask`` does.

    Element ``4 w + j`` is kept if the j-th 16 bits, signed, of the w-th output of SplitMix64
    (Steele, Lea, Flood, OOPSLA 2014) after the seed are at least ``limit``.

    Args:
        seed: (K,) int64.
        n: Number of elements of a mask.
        limit: Smallest value that is kept, in [-2^15, 2^15).

    Returns:
        (K n,) uint8 of 0 and 1, one mask after the other.
    """
    number = torch.arange(1, (n + 3) // 4 + 1, device=seed.device)
    word = seed[:, None] + number * _GOLDEN  # wraps on purpose
    word = (word ^ _shift_right(word, 30)) * _MIX_1
    word = (word ^ _shift_right(word, 27)) * _MIX_2
    word = word ^ _shift_right(word, 31)
    return (word.view(torch.int16)[:, :n] >= limit).to(torch.uint8).flatten()


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift an unsigned number, where int64 would repeat the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def dropout(x: Tensor, rate: float, training: bool = True, *, first: int = 0) -> Tensor:
    """Apply ``torch.nn.functional.dropout`` with the mask of :func:`keep_mask`.

    Args:
        x: any shape, floating point.
        rate: Share that is dropped, in [0, 1).
        training: False returns ``x``.
        first: Position of the first element in the mask, for a part of a larger tensor.

    Raises:
        InputError: ``rate`` is outside [0, 1).
    """
    if not training:
        return x
    keep, scale = _one(keep_masks(1, [(x.shape, rate)], x.device, first=first))
    return x if keep is None else x * (keep.to(x.dtype) * scale)


def dropout_of_columns(x: Tensor, blocks: int, rate: float, *, first: int = 0) -> Tensor:
    """Apply :func:`dropout` to K blocks of columns, one after the other.

    Args:
        x: (N, K D) floating point.
        blocks: K.
        rate: Share that is dropped, in [0, 1).
        first: As in :func:`dropout`, in the mask of every block.

    Raises:
        InputError: ``rate`` is outside [0, 1).
    """
    rows, width = x.shape[0], x.shape[1] // blocks
    ((keep, scale),) = keep_masks(blocks, [((rows, width), rate)], x.device, first=first)
    if keep is None:
        return x
    if _extension.on_gpu(x):
        out: Tensor = _Masked.apply(x, keep.transpose(0, 1), scale)
        return out
    factor = keep.transpose(0, 1).to(x.dtype, memory_format=torch.contiguous_format) * scale
    return x * factor.flatten(1)


class ColumnDropout(NamedTuple):
    """What :func:`dropout_of_columns` draws, for the kernel of a GPU that applies it."""

    seeds: Tensor  # (K,)
    limit: int
    scale: float

    @classmethod
    def draw(cls, blocks: int, rate: float, device: torch.device) -> ColumnDropout | None:
        """Draw it; None if nothing is dropped."""
        dropped = _dropped(rate)
        if not dropped:
            return None
        seeds = torch.randint(1 << 62, (blocks,), device=device)
        return cls(seeds, dropped - _STEPS // 2, _STEPS / (_STEPS - dropped))

    def apply(self, x: Tensor, biases: Sequence[Tensor] = ()) -> Tensor:
        """Add biases and drop; the same for the gradient, without biases.

        Not differentiable; for use inside an autograd function.

        Args:
            x: (N, K D) float32 or float64.
            biases: (D,) for each block of columns, K <= 8, or none.
        """
        out: Tensor = torch.ops.mmssl.drop_columns(x, biases, *self)
        return out


class _Masked(torch.autograd.Function):
    """``x * keep * scale``, a launch each way, by the operator that is torch's backward of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.keep, ctx.scale = keep, scale
        return _masked(x, ctx.keep, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _masked(grads[0], ctx.keep, ctx.scale), None, None


def _masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """Multiply (N, K D) by a mask (N, K, D) of 0 and 1 and a factor; not differentiable."""
    mask = keep.view(torch.bool)
    out = torch.ops.aten.native_dropout_backward(x.reshape(keep.shape), mask, scale)
    return out.reshape(x.shape)


def _fake(seed: Tensor, n: int, limit: int) -> Tensor:
    return seed.new_empty(seed.shape[0] * n, dtype=torch.uint8)


def _masks_fake(seed: Tensor, n: Sequence[int], limit: Sequence[int]) -> list[Tensor]:
    return [seed.new_empty(seed.shape[0] * size, dtype=torch.uint8) for size in n]


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("typical", {"shape": (7, 5), "rate": 0.3})
    yield Sample("one element", {"shape": (1,), "rate": 0.5})
    yield Sample("no element", {"shape": (0, 4), "rate": 0.5})
    yield Sample("nothing dropped", {"shape": (3, 2), "rate": 1e-7})
    yield Sample("large", {"shape": (700, 101), "rate": 0.9}, tiny=False)


def _bad() -> Iterator[Bad]:
    for value in (-0.1, 1, 1.5, float("nan"), "half", None):
        yield Bad("rate", value, rf"rate: expected a number in \[0, 1\), got {value!r}")
    for shape in ((-1, 2), (2.0, 3), (True,)):
        yield Bad("shape", shape, r"shape: expected integers >= 0, got \(")


declare(
    Op(
        keep_mask,
        Contract(_samples, _bad, derivatives=0),
        Words("the mask and the factor of dropout", "a serial generator", page="norm_act"),
        dtypes={"cpu": (torch.uint8,), "cuda": (torch.uint8,)},
        operators=(Operator("keep_mask", fake=_fake),),
        gpu_operators=(
            Operator("keep_masks", fake=_masks_fake),
            Operator("drop_columns", fake=lambda x, *_: torch.empty_like(x)),
        ),
    )
)
