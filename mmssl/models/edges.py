"""Values of the edges of a graph that are computed from the vectors of their ends.

Legend: U users, I items, E edges, D embedding dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl import ops
from mmssl.graph import InteractionGraph


def edge_products(graph: InteractionGraph, user: Tensor, item: Tensor) -> Tensor:
    """Compute ``user[u] . item[i]`` for every edge (u, i), differentiable in both tables.

    This is the gradient of ``sum(user * spmm(graph.ui, item))`` for the values of the edges, which
    the kernel of spmm's gradient computes without (E, D) copies of the rows.

    Args:
        graph: Normalization "none"; its own values have no effect.
        user: (U, D).
        item: (I, D).

    Returns:
        (E,) in the order of ``graph.ui``.
    """
    trained = torch.is_grad_enabled() and (user.requires_grad or item.requires_grad)
    with torch.enable_grad():
        value = torch.ones(graph.nnz, device=user.device, dtype=user.dtype, requires_grad=True)
        sums = ops.spmm(graph.with_value(value).ui, item)
        (products,) = torch.autograd.grad(sums, value, user, create_graph=trained)
    return products


def laplacian_values(row: Tensor, column: Tensor, value: Tensor, size: int) -> Tensor:
    """Return the values of ``D^-1/2 N D^-1/2``, with D the row sums of the (size, size) matrix N.

    A row whose sum is not positive has no neighbors. The values can be differentiated.

    Args:
        row: (E,) int64.
        column: (E,) int64.
        value: (E,) entries of N.
        size: Number of rows and columns.
    """
    sums = value.new_zeros(size).index_add(0, row, value)
    positive = sums > 0
    scale = torch.where(positive, torch.where(positive, sums, 1).rsqrt(), 0)
    return value * scale[row] * scale[column]


def cosine_softmax(cosine: Tensor, row: Tensor, size: int) -> Tensor:
    """Compute the softmax of cosines over the edges of each row.

    Args:
        cosine: (E,) in [-1, 1], so that no exponential overflows.
        row: (E,) int64 in [0, size).
        size: Number of rows.

    Returns:
        (E,) that sum to 1 over the edges of a row.
    """
    weight = cosine.exp()
    sums = weight.new_zeros(size).index_add(0, row, weight)
    return weight / sums[row]
