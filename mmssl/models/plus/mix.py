"""The closed-form part of `plus`: CEASE, reduced to vectors, added to the score after training.

Legend: U users, I items, D embedding dim, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import SINGLE, Group
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
    dataset: InteractionDataset,
    graph: InteractionGraph,
    settings: PlusConfig,
    seed: int,
    group: Group = SINGLE,
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
        group: The processes that divide the users, each with the rows of its own in ``graph`` and
            in the result. Only the leading one holds W, the others nothing larger than (I, r).
    """
    binary = InteractionGraph.from_edges(
        graph.ui.row_of_edge(),
        graph.index.col.long(),
        graph.num_users,
        graph.num_items,
        normalization="none",
    )
    weight = gram(binary, torch.float32, group)  # (I, I), empty unless this process leads
    if group.leads:
        if dataset.features:
            features = feature_directions(dataset).float().to(graph.device)
            weight.addmm_(features, features.T, alpha=settings.mix_content)
        weight = ease_weights(weight, settings.mix_reg)
    generator = torch.Generator().manual_seed(seed)
    rank = min(settings.mix_rank, graph.num_items)
    vectors = torch.randn(graph.num_items, rank, generator=generator).to(graph.device)

    def led(compute: Callable[[], Tensor]) -> Tensor:
        """Compute (I, r) numbers in the leading process, for all."""
        out = compute().contiguous() if group.leads else torch.empty_like(vectors)
        group.broadcast(out, 0)
        return out

    def forward() -> Tensor:
        return ops.spmm(binary.ui, led(lambda: weight @ vectors))  # (U, r)

    def backward(scores: Tensor) -> Tensor:
        back = group.sum(ops.spmm(binary.iu, scores))  # (I, r)
        return led(lambda: torch.linalg.qr(weight.T @ back).Q)

    for _ in range(_ITERATIONS):
        vectors = backward(forward())
    return Embeddings(forward(), vectors)


def mixed(
    learned: Embeddings, history: Embeddings, share: float, group: Group = SINGLE
) -> Embeddings:
    """Return vectors whose scores are the learned ones plus weighted ones of the histories.

    Args:
        learned: (U, D) and (I, D).
        history: (U, r) and (I, r); its scores are scaled to the standard deviation of the learned
            ones, over all users and items.
        share: The weight; 0 returns ``learned``.
        group: The processes that divide users and items, each with its own rows.

    Returns:
        Vectors of D + r columns.
    """
    if share == 0:
        return learned
    width = spread(history, group)
    scale = torch.where(width > 0, share * spread(learned, group) / width, 0)
    users = history.user * scale.to(history.user.dtype)
    return Embeddings(
        torch.cat([learned.user, users], 1), torch.cat([learned.item, history.item], 1)
    )


def spread(vectors: Embeddings, group: Group = SINGLE) -> Tensor:
    """Return the standard deviation () float64 of the scores of all users and items.

    Args:
        vectors: (U, D) and (I, D).
        group: The processes that divide users and items, each with its own rows.
    """
    means, squares = [], []
    for table in vectors:
        rows = table.double()
        count = group.sum(rows.new_tensor(float(rows.shape[0])))
        means.append(group.sum(rows.sum(0)) / count)
        squares.append(group.sum(rows.T @ rows) / count)
    variance = (squares[0] * squares[1]).sum() - (means[0] @ means[1]).square()
    return variance.clamp_min(0).sqrt()
