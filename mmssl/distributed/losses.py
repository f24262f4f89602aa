"""Losses of a batch whose rows are divided over processes.

Legend: N rows of the whole batch, H columns, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import Group


def shared_info_nce(
    group: Group,
    anchor: Tensor,
    positive: Tensor,
    temperature: float,
    eps: float = 0.0,
    num_rows: Tensor | None = None,
) -> Tensor:
    """Compute this process's summand of ``info_nce`` with these arguments.

    Its part of the anchors is compared with all anchors and positives of the batch.

    Args:
        group: The processes.
        anchor: (N, D), the same in every process.
        positive: (N, D), likewise.
        temperature: > 0.
        eps: Added inside the logarithm.
        num_rows: (), the rows that are not padding; None for all. Several processes wait for it.
    """
    if group.size == 1:
        return ops.info_nce(anchor, positive, temperature, num_rows=num_rows, eps=eps)
    if num_rows is not None:
        anchor, positive = anchor[: int(num_rows)], positive[: int(num_rows)]
    rows = anchor.shape[0]
    mine = group.part(rows)
    total = ops.info_nce(
        anchor[mine],
        positive,
        temperature,
        target=torch.arange(mine.start, mine.stop, device=anchor.device),
        negatives=torch.cat([anchor[: mine.start], anchor[mine.stop :]]),
        eps=eps,
        reduction="sum",
    )
    return total / rows


def shared_norm_act(
    group: Group,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    *,
    negative_slope: float,
    keep: Tensor | None,
    keep_scale: float,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """Compute :func:`mmssl.ops.norm_act` with the statistics of the rows of all processes.

    In plain PyTorch, with sums in float64; differentiable any number of times.

    Args:
        group: The processes.
        x: This process's rows, (n, H).
        weight: (H,).
        bias: (H,).
        num_rows: N, rows of all processes.
        negative_slope: As in the op, like the arguments below.
        keep: (n, H) uint8 or None.
        keep_scale: Factor on the kept elements.
        running_mean: (H,), updated in place.
        running_var: (H,), updated in place.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.
    """
    a = F.leaky_relu(x, negative_slope).to(weight.dtype)
    sums = torch.stack([a.sum(0, dtype=torch.float64), a.square().sum(0, dtype=torch.float64)])
    mean, square = (group.total(sums) / num_rows).unbind()
    variance = (square - mean.square()).clamp_min(0)
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (num_rows / max(num_rows - 1, 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = weight * (variance + eps).rsqrt().to(a.dtype)
    y = (a - mean.to(a.dtype)) * scale + bias
    return (y if keep is None else y * (keep.to(y.dtype) * keep_scale)).to(x.dtype)
