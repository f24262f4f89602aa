"""The closed-form part of `plus`: CEASE, reduced to vectors, added to the score after training.

Legend: U users, I items, D embedding dim, r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.cease import feature_directions
from mmssl.models.closed_form import gram
from mmssl.models.ease import ease_weights
from mmssl.models.embeddings import Embeddings

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.models.plus.config import PlusConfig

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Weights that are tried on validation."""
# Each iteration of the subspace multiplies by the matrix whose largest eigenvectors are wanted.
_ITERATIONS = 3


def history_vectors(
    dataset: InteractionDataset, graph: InteractionGraph, settings: PlusConfig, seed: int
) -> Embeddings:
    """Return the vectors (U, r) and (I, r) whose dot products are closest to the scores of CEASE.

    With R the train interactions and W the weights of CEASE (of EASE without features), the scores
    are ``R W``. With V the r right singular vectors of ``R W`` with the largest singular values,
    ``R W V`` and ``V`` have the least squared error of all vectors of r columns. V is found by
    subspace iteration from random columns, so that it is approximate.

    Args:
        dataset: The features.
        graph: The train graph, on the device of the vectors; its values have no effect.
        settings: ``mix_reg``, ``mix_content``, ``mix_rank``.
        seed: Of the random columns.
    """
    binary = InteractionGraph.from_edges(
        graph.ui.row_of_edge(),
        graph.index.col.long(),
        graph.num_users,
        graph.num_items,
        normalization="none",
    )
    products = gram(binary, torch.float32)
    if dataset.features:
        features = feature_directions(dataset).float().to(graph.device)
        products.addmm_(features, features.T, alpha=settings.mix_content)
    weight = ease_weights(products, settings.mix_reg)  # (I, I)
    generator = torch.Generator().manual_seed(seed)
    rank = min(settings.mix_rank, graph.num_items)
    vectors = torch.randn(graph.num_items, rank, generator=generator).to(graph.device)
    for _ in range(_ITERATIONS):
        scores = ops.spmm(binary.ui, weight @ vectors)  # (U, r)
        vectors = torch.linalg.qr(weight.T @ ops.spmm(binary.iu, scores)).Q
    return Embeddings(ops.spmm(binary.ui, weight @ vectors), vectors.contiguous())


def mixed(learned: Embeddings, history: Embeddings, share: float) -> Embeddings:
    """Return vectors whose scores are the learned ones plus weighted ones of the histories.

    Args:
        learned: (U, D) and (I, D).
        history: (U, r) and (I, r); its scores are scaled to the standard deviation of the learned
            ones, over all users and items.
        share: The weight; 0 returns ``learned``.

    Returns:
        Vectors of D + r columns.
    """
    if share == 0:
        return learned
    width = spread(history)
    scale = torch.where(width > 0, share * spread(learned) / width, 0)
    users = history.user * scale.to(history.user.dtype)
    return Embeddings(
        torch.cat([learned.user, users], 1), torch.cat([learned.item, history.item], 1)
    )


def spread(vectors: Embeddings) -> Tensor:
    """Return the standard deviation () float64 of the scores of all users and items."""
    user, item = vectors.user.double(), vectors.item.double()
    mean = user.mean(0) @ item.mean(0)
    square = ((user.T @ user) * (item.T @ item)).sum() / (user.shape[0] * item.shape[0])
    return (square - mean.square()).clamp_min(0).sqrt()
