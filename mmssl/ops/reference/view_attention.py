"""Attention between the views of a node in plain PyTorch.

Legend: M views, N nodes, D features, H heads.
"""

from __future__ import annotations

from torch import Tensor

from mmssl.ops.reference.common import accumulation_dtype


def view_attention_reference(query: Tensor, key: Tensor, view: Tensor, num_heads: int) -> Tensor:
    """Attention between the views of a node, the mean over the queries.

    Args:
        query: (M, N, D).
        key: (M, N, D).
        view: (M, N, D).
        num_heads: H, a divisor of D.

    Returns:
        (N, H D).
    """
    num_views, num_nodes, dim = view.shape
    acc = accumulation_dtype(view.dtype)
    heads = (num_views, num_nodes, num_heads, dim // num_heads)
    # Elementwise over the few pairs of views: a batched product of N H tiny matrices is slower.
    product = query.to(acc).reshape(heads)[:, None] * key.to(acc).reshape(heads)
    score = product.sum(-1) * heads[-1] ** -0.5  # (M queries, M, N, H)
    weight = score.softmax(1).mean(0)  # (M, N, H)
    mixed = (weight[..., None] * view.to(acc)[:, :, None]).sum(0)
    return mixed.reshape(num_nodes, num_heads * dim).to(view.dtype)
