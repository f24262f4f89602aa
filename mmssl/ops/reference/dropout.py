"""The mask of dropout from a counter in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64's constants as int64.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def keep_mask_reference(seed: Tensor, n: int, limit: int) -> Tensor:
    """The mask of dropout from a counter, the same bits on every device.

    Element ``4 w + j`` keeps where the j-th 16 bits, signed, of the w-th output of SplitMix64
    (Steele, Lea, Flood, OOPSLA 2014) after the seed are at least ``limit``.

    Args:
        seed: (1,) int64.
        n: number of elements.
        limit: in [-2^15, 2^15).

    Returns:
        (n,) uint8 of 0 and 1.
    """
    number = torch.arange(1, (n + 3) // 4 + 1, device=seed.device)
    word = seed + number * _GOLDEN  # wraps, as it should
    word = (word ^ _shift_right(word, 30)) * _MIX_1
    word = (word ^ _shift_right(word, 27)) * _MIX_2
    word = word ^ _shift_right(word, 31)
    return (word.view(torch.int16)[:n] >= limit).to(torch.uint8)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """The shift of an unsigned number, where int64 would repeat the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
