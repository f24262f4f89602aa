"""Cross-modal multi-head attention over the M views of a node, and what the released code computes.

Legend: M modalities, N nodes, D embedding dim, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl import ops
from mmssl.ops.product import product


class CrossModalAttention(nn.Module):
    """``mean_m concat_h( sum_m' softmax_m'(q_m^h . k_m'^h / sqrt(D/H)) e_m' ) W_O``.

    Every head weights the full D-dimensional views (Wei et al., WWW 2023, equation 9). Only the
    mean over the M queries is needed, and it commutes with everything after the softmax, so the
    attention weights are averaged first: one weighted sum per head instead of M.
    """

    def __init__(self, embedding_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(embedding_dim, embedding_dim))
        self.key = nn.Parameter(torch.empty(embedding_dim, embedding_dim))
        self.output = nn.Parameter(torch.empty(num_heads * embedding_dim, embedding_dim))
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, views: Tensor) -> Tensor:
        """Map (M, N, D) views to (N, D)."""
        rows = views.flatten(0, 1)  # (M N, D)
        query, key = (product(rows, w).view_as(views) for w in (self.query, self.key))
        mixed = ops.view_attention(query, key, views, self.num_heads)
        return product(mixed, self.output)  # (N, H D) @ (H D, D)


class IdentityAttention(nn.Module):
    """The attention of the released code, whose weights cancel.

    There the values are broadcast along the query axis, so the attention weights sum to one for
    each value and every head returns its input. What remains is the output projection of H
    concatenated copies: one product with the sum of its H blocks. W_Q and W_K would receive no
    gradient and are left out.
    """

    def __init__(self, embedding_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.output = nn.Parameter(torch.empty(num_heads * embedding_dim, embedding_dim))
        nn.init.xavier_uniform_(self.output)

    def forward(self, views: Tensor) -> Tensor:
        """Map (M, N, D) views to (N, D)."""
        dim = views.shape[-1]
        return product(views.mean(0), self.output.view(self.num_heads, dim, dim).sum(0))
