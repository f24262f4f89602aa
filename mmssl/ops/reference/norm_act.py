"""The elementwise part of a hidden layer in plain PyTorch.

Legend: N rows, H columns.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmssl.ops.reference.common import accumulation_dtype


def norm_act_reference(
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
    """LeakyReLU, batch normalisation with batch statistics, dropout by a given mask.

    Args:
        x: (N, H).
        weight: (H,).
        bias: (H,).
        negative_slope: of the LeakyReLU.
        keep: (N, H) uint8 of 0 and 1, or None.
        keep_scale: factor on what is kept.
        running_mean: (H,) updated in place, or None.
        running_var: (H,) updated in place, or None.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, H).
    """
    acc = accumulation_dtype(x.dtype)
    activation = F.leaky_relu(x.to(acc), negative_slope)
    y = F.batch_norm(
        activation, running_mean, running_var, weight.to(acc), bias.to(acc), True, momentum, eps
    )
    if keep is not None:
        y = y * (keep.to(acc) * keep_scale)
    return y.to(x.dtype)
