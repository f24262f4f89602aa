"""InfoNCE in plain PyTorch, its matrices written out.

Legend: N pairs, K negatives, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.ops.reference.common import accumulation_dtype


def info_nce_reference(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    *,
    negatives: Tensor | None = None,
    intra_view: bool = True,
    symmetric: bool = False,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Batched InfoNCE on cosine similarities, with the N x N matrices written out.

    ``l_i = -log(exp(s12_ii / t) / (sum_j exp(s12_ij / t) + sum_{j != i} exp(s11_ij / t)
    + sum_k exp(s1n_ik / t)) + eps)``, where ``s12`` are the cosines between anchors and positives,
    ``s11`` between anchors (left out without ``intra_view``) and ``s1n`` against ``negatives``.
    With ``symmetric`` the roles are swapped as well and the two losses averaged.

    Args:
        anchor: (..., N, D); leading dimensions are independent problems.
        positive: (..., N, D), row i is the positive of anchor i.
        temperature: > 0, a float or a tensor of one element (which gets a gradient).
        negatives: (K, D) further negatives, shared by all anchors.
        intra_view: whether the other anchors are negatives too.
        symmetric: average with the loss of (positive, anchor).
        eps: added inside the log (the released MMSSL adds 1e-8).
        reduction: "mean" or "sum" over N, or "none".

    Returns:
        (...) for "mean" and "sum", (..., N) for "none"; float32 for the half types.
    """
    acc = accumulation_dtype(anchor.dtype)
    z1 = F.normalize(anchor.to(acc), dim=-1)
    z2 = F.normalize(positive.to(acc), dim=-1)
    zn = None if negatives is None else F.normalize(negatives.to(acc), dim=-1)
    loss = _info_nce_rows(z1, z2, zn, temperature, intra_view, eps)
    if symmetric:
        loss = (loss + _info_nce_rows(z2, z1, zn, temperature, intra_view, eps)) / 2
    if reduction == "none":
        return loss
    return loss.sum(-1) if reduction == "sum" else loss.mean(-1)


def _info_nce_rows(
    z1: Tensor,
    z2: Tensor,
    zn: Tensor | None,
    temperature: float | Tensor,
    intra_view: bool,
    eps: float,
) -> Tensor:
    logits = [z1 @ z2.mT / temperature]
    if intra_view:
        self_pair = torch.eye(z1.shape[-2], dtype=torch.bool, device=z1.device)
        logits.append((z1 @ z1.mT / temperature).masked_fill(self_pair, -torch.inf))
    if zn is not None:
        logits.append(z1 @ zn.mT / temperature)
    log_ratio = (z1 * z2).sum(-1) / temperature - torch.cat(logits, -1).logsumexp(-1)
    if eps:
        log_eps = torch.log(log_ratio.new_tensor(eps))
        return -torch.logaddexp(log_ratio, log_eps)
    return -log_ratio
