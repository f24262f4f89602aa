"""The terms of the recommender's loss, pure functions of embeddings (docs/model.md, "Loss").

Legend: U users, I items, B batch, D embedding dim, M modalities.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl import ops
from mmssl.distributed.group import SINGLE, Group
from mmssl.distributed.losses import shared_info_nce
from mmssl.models.mmssl.config import LossConfig
from mmssl.models.mmssl.model import MultiModalEmbeddings
from mmssl.ops import Triples
from mmssl.ops._batch_loss import BatchTables, Contrast, batch_loss
from mmssl.ops._similarity import takes_fused


class LossTerms(NamedTuple):
    """The weighted terms, scalars without a gradient; their sum is minimized."""

    bpr: Tensor
    l2: Tensor
    feat_reg: Tensor
    contrastive: Tensor
    adversarial: Tensor


def recommender_loss(
    embeddings: MultiModalEmbeddings,
    batch: Triples,
    fake_score: Tensor | None,
    config: LossConfig,
    *,
    batch_size: int,
    group: Group = SINGLE,
) -> tuple[Tensor, LossTerms]:
    """Compute the recommender's loss and its terms, or this process's summand of each.

    Args:
        embeddings: Embeddings of the whole graph.
        batch: The (B,) triples.
        fake_score: The critic's mean score of the generated rows, a scalar, or None without a
            critic; that of this process's part of the batch.
        config: The weights.
        batch_size: Divisor of the L2 term.
        group: The processes that divide the batch; each of them has the whole of it.
    """
    user, item = embeddings.user, embeddings.item
    if group.size == 1 and takes_fused(user):
        return _as_one(embeddings, batch, fake_score, config, batch_size)
    users, share = batch.user, 1.0
    if group.size > 1:
        mine = group.part(users.numel())
        batch = Triples(*(ids[mine] for ids in batch))
        share = batch.user.numel() / users.numel()
    bpr, squares = ops.bpr_loss(user, item, *batch, with_l2=True)
    contrast = None
    if config.cl_weight > 0:
        contrast = contrastive_loss(embeddings, users, config, group)
    return weighted(
        bpr,
        squares,
        feature_squares(embeddings),
        contrast,
        fake_score,
        config,
        batch_size=batch_size,
        num_items=item.shape[0],
        share=share,
    )


def weighted(
    bpr: Tensor,
    squares: Tensor,
    features: Tensor,
    contrast: Tensor | None,
    fake_score: Tensor | None,
    config: LossConfig,
    *,
    batch_size: int,
    num_items: int,
    share: float = 1.0,
) -> tuple[Tensor, LossTerms]:
    """Apply the weights of the terms and add them up.

    Args:
        bpr: The ranking loss.
        squares: Sum of the squares of the batch's final embeddings.
        features: Sum of the squares of the propagated features.
        contrast: InfoNCE, or None without it.
        fake_score: The critic's mean score of generated rows, or None without a critic.
        config: The weights.
        batch_size: Divisor of the squares of the batch.
        num_items: Divisor of those of the features.
        share: Of this process, in what every process computes in full or of its own rows.
    """
    zero = None if contrast is not None and fake_score is not None else bpr.new_zeros(())
    weights = _weights(config, batch_size, num_items, share)
    values = bpr, squares, features, contrast, fake_score
    loss, terms = _WeightedSum.apply(weights, *(zero if v is None else v for v in values))
    return loss, LossTerms(*terms.unbind())


def _weights(
    config: LossConfig, batch_size: int, num_items: int, share: float
) -> tuple[float, ...]:
    return (
        share,
        config.decay * 0.5 / batch_size,
        share * config.feat_reg_decay * 0.5 / num_items,
        config.cl_weight,
        -share * config.g_weight,
    )


def _as_one(
    embeddings: MultiModalEmbeddings,
    batch: Triples,
    fake_score: Tensor | None,
    config: LossConfig,
    batch_size: int,
) -> tuple[Tensor, LossTerms]:
    """Compute :func:`recommender_loss` of one process by the kernels of a GPU."""
    user, item = embeddings.user, embeddings.item
    tables = user, item, *embeddings[2:4], embeddings.user_modality
    triples = batch.user, batch.pos_item, batch.neg_item
    weights = list(_weights(config, batch_size, item.shape[0], 1.0))
    weights[3] /= batch.user.numel()  # of the sum over rows, where InfoNCE is a mean
    options = user.dtype, user.device
    contrast, rows = None, 0
    if config.cl_weight > 0:
        contrast = Contrast(constant((config.temperature,), *options), config.cl_eps)
        rows = len(embeddings.user_modality) * batch.user.numel()
    of_loss = constant(tuple(weights), *options), _derivatives(tuple(weights), rows, *options)
    loss, terms = batch_loss(BatchTables(*tables), triples, contrast, fake_score, *of_loss)
    return loss, LossTerms(*terms.unbind())


@functools.lru_cache(maxsize=16)
def _derivatives(
    weights: tuple[float, ...], rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return what the gradient of a loss is multiplied by, see :func:`batch_loss`."""
    numbers = torch.tensor((*weights[:2], 2 * weights[2], *weights[3:]), dtype=dtype, device=device)
    return torch.cat([numbers, numbers[3].expand(rows)])


class _WeightedSum(torch.autograd.Function):
    """The sum of weighted scalars, and its summands without a gradient."""

    @staticmethod
    def forward(ctx: Any, weights: tuple[float, ...], *values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.weights = constant(weights, values[0].dtype, values[0].device)
        terms = torch.stack(values) * ctx.weights
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # no zeros for the summands
        return terms.sum(), terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * ctx.weights).unbind()


@functools.lru_cache(maxsize=16)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers on a device; they are copied there once."""
    return torch.tensor(values, dtype=dtype, device=device)


def feature_squares(embeddings: MultiModalEmbeddings) -> Tensor:
    """Compute ``sum_m ||f_i^m||^2 + ||f_u^m||^2``."""
    out: Tensor = _SumOfSquares.apply(embeddings.user_feature, embeddings.item_feature)
    return out


class _SumOfSquares(torch.autograd.Function):
    """The sum of the squares of two tensors; their gradients are formed together."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return parts[0].square().sum() + parts[1].square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch._foreach_mul(list(ctx.saved_tensors), 2 * grad))


def contrastive_loss(
    embeddings: MultiModalEmbeddings, users: Tensor, config: LossConfig, group: Group = SINGLE
) -> Tensor:
    """Compute InfoNCE of every modality view against the final user embedding, summed over M.

    The positive is z_u, the final embedding, although the paper writes h_u, the same vector before
    the modality features are added. Both variants follow the released code here: the published
    results come from it, and z_u is the vector that ranks items (docs/model.md, "Loss").

    Args:
        embeddings: Embeddings of the whole graph.
        users: (B,), the users of the batch.
        config: Temperature and eps.
        group: The processes that divide the anchors, for this process's summand.
    """
    anchor = embeddings.user_modality[:, users]  # (M, B, D)
    positive = embeddings.user[users].expand_as(anchor)  # z_u, not h_u
    if group.size > 1:
        summands = [
            shared_info_nce(group, *pair, config.temperature, config.cl_eps)
            for pair in zip(anchor, positive, strict=True)
        ]
        return torch.stack(summands).sum()
    return ops.info_nce(anchor, positive, config.temperature, eps=config.cl_eps).sum()
