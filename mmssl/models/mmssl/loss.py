"""The terms of the recommender's loss, pure functions of embeddings (docs/model.md, "Loss").

Legend: U users, I items, B batch, D embedding dim, M modalities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import SINGLE, Group
from mmssl.distributed.losses import shared_info_nce
from mmssl.models.mmssl.config import LossConfig
from mmssl.models.mmssl.model import MultiModalEmbeddings
from mmssl.ops import Triples


class LossTerms(NamedTuple):
    """The weighted terms, scalars; their sum is minimized."""

    bpr: Tensor
    l2: Tensor
    feat_reg: Tensor
    contrastive: Tensor
    adversarial: Tensor

    def total(self) -> Tensor:
        """Return the loss, the sum of the terms."""
        return torch.stack(self).sum()


def recommender_loss(
    embeddings: MultiModalEmbeddings,
    batch: Triples,
    fake_score: Tensor | None,
    config: LossConfig,
    *,
    batch_size: int,
    group: Group = SINGLE,
) -> LossTerms:
    """Compute all terms of the recommender's loss, or this process's summand of each.

    Args:
        embeddings: Embeddings of the whole graph.
        batch: The (B,) triples.
        fake_score: (M B,) critic scores of the generated rows, or None without a critic; those of
            this process's part of the batch.
        config: The weights.
        batch_size: Divisor of the L2 term.
        group: The processes that divide the batch; each of them has the whole of it.
    """
    user, item = embeddings.user, embeddings.item
    users, share = batch.user, 1.0
    if group.size > 1:
        mine = group.part(users.numel())
        batch = Triples(*(ids[mine] for ids in batch))
        share = batch.user.numel() / users.numel()
    bpr, squares = ops.bpr_loss(user, item, *batch, with_l2=True)
    contrast = None
    if config.cl_weight > 0:
        contrast = contrastive_loss(embeddings, users, config, group)
    features = feature_squares(embeddings) / item.shape[0]
    terms = weighted(bpr, squares / batch_size, features, contrast, fake_score, config)
    if group.size > 1:
        bpr, feat_reg, adversarial = terms.bpr, terms.feat_reg, terms.adversarial
        terms = terms._replace(
            bpr=share * bpr, feat_reg=share * feat_reg, adversarial=share * adversarial
        )
    return terms


def weighted(
    bpr: Tensor,
    squares: Tensor,
    features: Tensor,
    contrast: Tensor | None,
    fake_score: Tensor | None,
    config: LossConfig,
) -> LossTerms:
    """Apply the weights of the terms.

    Args:
        bpr: The ranking loss.
        squares: Squares of the batch's final embeddings, per triple.
        features: Squares of the propagated features, per item.
        contrast: InfoNCE, or None without it.
        fake_score: (n,) critic scores of generated rows, or None without a critic.
        config: The weights.
    """
    zero = bpr.new_zeros(())
    return LossTerms(
        bpr,
        config.decay * 0.5 * squares,
        config.feat_reg_decay * 0.5 * features,
        zero if contrast is None else config.cl_weight * contrast,
        zero if fake_score is None else -config.g_weight * fake_score.mean(),
    )


def feature_squares(embeddings: MultiModalEmbeddings) -> Tensor:
    """Compute ``sum_m ||f_i^m||^2 + ||f_u^m||^2``."""
    return embeddings.user_feature.square().sum() + embeddings.item_feature.square().sum()


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
