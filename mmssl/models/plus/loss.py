"""Softmax over the catalog, from InfoNCE without the B x I matrix of scores.

Legend: B batch, I items, n train edges, K drawn items, D embedding dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import _extension, ops
from mmssl.ops.add_normalized import offset_rows


class Scored(NamedTuple):
    """Vectors whose cosine over the temperature is the score."""

    user: Tensor  # (..., D + 1)
    item: Tensor  # (I, D + 1)
    temperature: float


def with_offset(
    user: Tensor, item: Tensor, offset: Tensor, temperature: float, *, largest: float
) -> Scored:
    """Express ``cos(user, item) / temperature + offset[item]`` as a cosine over a temperature.

    With R larger than the offsets, the unit vectors of ``[u / (temperature R), 1]`` and
    ``[sqrt(R^2 - offset^2) i, offset]``, where u and i have unit length, have the cosine
    ``(sqrt(1 - (offset / R)^2) cos / temperature + offset) / scale``. With R at least ten
    times the largest offset the first factor stays above .994.

    Args:
        user: (..., D).
        item: (I, D).
        offset: (I, 1), of the dtype of ``item``.
        temperature: > 0.
        largest: The largest absolute offset; reading it here would wait for the device.
    """
    radius = max(10 * largest, 1.0)
    slope = 1 / (temperature * radius)
    scale = 1 / (radius * math.hypot(slope, 1))
    if _extension.on_gpu(user) and user.dtype == item.dtype in (torch.float32, torch.float64):
        rows = offset_rows(user.reshape(-1, user.shape[-1]), None, slope)
        users = rows.view(*user.shape[:-1], -1)
        return Scored(users, offset_rows(item, offset.squeeze(1), radius), scale)
    one = user.new_ones((*user.shape[:-1], 1))
    users = torch.cat([F.normalize(user, dim=-1) * slope, one], -1)
    rest = (radius**2 - offset.square()).sqrt()
    items = torch.cat([F.normalize(item, dim=-1) * rest, offset], -1)
    return Scored(users, items, scale)


def density_temperature(num_items: int, num_edges: int) -> float:
    """Return the temperature that suits the number of interactions per item.

    ``0.8 (I / n)^(1/3)`` for n train edges, at most 0.3. Cosines are bounded, so the temperature
    limits how sharp the scores can be. An item with many interactions has a vector that is known
    well enough for sharp scores; with few, they fit the train edges only.
    """
    return min(0.3, 0.8 * (num_items / num_edges) ** (1 / 3))


def catalog_softmax(
    user: Tensor,
    item: Tensor,
    positive: Tensor,
    temperature: float,
    drawn: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each user's positive among all items, on cosines over the temperature.

    Equal to, without ``drawn``::

        F.cross_entropy(F.normalize(user) @ F.normalize(item).T / temperature, positive)

    With ``drawn``, the sum over the catalog in the denominator is estimated from K shared items,
    drawn uniformly without replacement: ``exp(s_pos) + I / K * sum_k exp(s_k)`` over the drawn
    items other than the positive. Its expectation is the exact sum, whatever K is, and for K = I it
    is the exact sum (the correction for the sampling distribution of Bengio and Senecal, IEEE
    Transactions on Neural Networks 2008, for a uniform one).

    The other positives of the batch are not negatives. They occur in proportion to their
    popularity, so that with B of them the optimum would be
    ``log p(i|u) - log(1 + B popularity(i))``, which ranks popular items too low.

    Args:
        user: (B, D) embeddings.
        item: (I, D) embeddings of the catalog.
        positive: (B,) int64 items.
        temperature: > 0.
        drawn: (K,) int64 distinct items; None means the whole catalog.

    Returns:
        The mean over the batch, a scalar.
    """
    if drawn is not None:
        same = drawn == positive[:, None]
        return sampled_softmax(user, item[drawn], item[positive], same, temperature, item.shape[0])
    return ops.info_nce(user, item, temperature, target=positive, intra_view=False)


def sampled_softmax(
    user: Tensor,
    negative: Tensor,
    target: Tensor,
    same: Tensor,
    temperature: float,
    num_items: int,
) -> Tensor:
    """Estimate :func:`catalog_softmax` from drawn items, whose (B, K) scores are written out.

    Args:
        user: (B, D).
        negative: (K, D) drawn items.
        target: (B, D) positives.
        same: (B, K) whether a drawn item is the positive.
        temperature: > 0.
        num_items: I.
    """
    anchor = F.normalize(user, dim=-1)  # (B, D)
    target_score = (anchor * F.normalize(target, dim=-1)).sum(-1) / temperature  # (B,)
    scores = anchor @ F.normalize(negative, dim=-1).T / temperature  # (B, K)
    # Not -inf, whose logsumexp has no gradient where K = 1.
    scores = scores.masked_fill(same, torch.finfo(scores.dtype).min / 2)
    rest = scores.logsumexp(-1) + math.log(num_items / negative.shape[0])
    return F.softplus(rest - target_score).mean()
