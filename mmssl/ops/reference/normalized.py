"""A sum of normalised views in plain PyTorch.

Legend: M views, N rows, D features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmssl.ops.reference.common import accumulation_dtype


def add_normalized_reference(base: Tensor, x: Tensor, weight: float) -> Tensor:
    """``base + weight * F.normalize(x, dim=-1).sum(0)``.

    Args:
        base: (N, D).
        x: (M, N, D).
        weight: factor on the sum.

    Returns:
        (N, D).
    """
    acc = accumulation_dtype(x.dtype)
    unit = F.normalize(x.to(acc), dim=-1)
    return (base.to(acc) + weight * unit.sum(0)).to(base.dtype)
