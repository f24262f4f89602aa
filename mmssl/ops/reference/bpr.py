"""The BPR loss in plain PyTorch.

Legend: U users, I items, B triples, D features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmssl.ops.reference.common import accumulation_dtype


def bpr_loss_reference(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    *,
    with_l2: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``-logsigmoid(<u, pos> - <u, neg>).mean()`` (Rendle et al., UAI 2009).

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        pos_items: (B,) int64.
        neg_items: (B,) int64.
        with_l2: whether to return the sum of squares of the 3 B rows as well.

    Returns:
        A scalar or two, float32 for the half types.
    """
    acc = accumulation_dtype(user_emb.dtype)
    rows = [user_emb[users], item_emb[pos_items], item_emb[neg_items]]
    user, pos, neg = (row.to(acc) for row in rows)
    loss = -F.logsigmoid((user * pos).sum(1) - (user * neg).sum(1)).mean()
    if not with_l2:
        return loss
    return loss, user.square().sum() + pos.square().sum() + neg.square().sum()
