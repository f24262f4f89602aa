"""Dropout whose mask is a function of one drawn number: any part of it, on any device, the same.

torch draws CPU masks element by element from a serial generator, a sixth of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops import _extension
from mmssl.ops._checks import check_number
from mmssl.ops.dispatch import use_native
from mmssl.ops.reference import keep_mask_reference

_STEPS = 1 << 16


def keep_mask(
    shape: Sequence[int], rate: float, device: torch.device | str = "cpu"
) -> tuple[Tensor | None, float]:
    """What dropout lets through, and the factor on it.

    The mask follows from one number that is drawn from torch's default generator of the device. The
    rate is rounded to 1 / 65,536 and the factor belongs to the rounded one, so that the expectation
    is exact.

    Args:
        shape: of the mask.
        rate: share that is dropped, in [0, 1).
        device: where the mask is wanted.

    Returns:
        uint8 of 0 and 1, or None where nothing is dropped, and 1 / (1 - rate).

    Raises:
        InputError: a rate outside [0, 1).
    """
    check_number("rate", rate, 0, 1, "a number in [0, 1)")
    if any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"shape: expected integers >= 0, got {tuple(shape)}")
    dropped = min(round(rate * _STEPS), _STEPS - 1)
    if dropped == 0:
        return None, 1.0
    device = torch.device(device)
    seed = torch.randint(1 << 62, (1,), device=device)
    limit, count = dropped - _STEPS // 2, math.prod(shape)
    if use_native("keep_mask", device.type):
        keep = torch.ops.mmssl.keep_mask(seed, count, limit)
    else:
        keep = keep_mask_reference(seed, count, limit)
    return keep.view(*shape), _STEPS / (_STEPS - dropped)


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """As ``torch.nn.functional.dropout``, with the mask of :func:`keep_mask`.

    Args:
        x: any shape, floating point.
        rate: share that is dropped, in [0, 1).
        training: False returns ``x``.

    Raises:
        InputError: a rate outside [0, 1).
    """
    if not training:
        return x
    keep, scale = keep_mask(x.shape, rate, x.device)
    return x if keep is None else x * (keep.to(x.dtype) * scale)


def _fake(seed: Tensor, n: int, limit: int) -> Tensor:
    return seed.new_empty(n, dtype=torch.uint8)


if _extension.ops is not None:
    torch.library.register_fake("mmssl::keep_mask")(_fake)
