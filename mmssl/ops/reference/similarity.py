"""Similarity rows in plain PyTorch, formed.

Legend: U users, I items, B batch, D embedding dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from mmssl.ops.reference.topk import edges_of_rows

if TYPE_CHECKING:
    from mmssl.graph import GraphView


def masked_similarity_reference(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView
) -> Tensor:
    """``normalize((user_emb[users] @ item_emb.T) * (1 - A[users]))``.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        exclude: (U, I) view A; its edges become 0.

    Returns:
        (B, I) rows of unit length (zero rows stay zero).
    """
    score = user_emb[users] @ item_emb.T
    score = score.index_put(edges_of_rows(exclude, users), score.new_zeros(()))
    return F.normalize(score, dim=1)
