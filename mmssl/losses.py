"""The recommender's loss terms, pure functions of embeddings (MODEL.md section 1).

Legend: U users, I items, B batch, D embedding dim, M modalities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmssl import ops
from mmssl.config import LossConfig
from mmssl.models.embeddings import Embeddings
from mmssl.ops.reference import Triples


class LossTerms(NamedTuple):
    """The weighted terms, scalars; their sum is what is minimised."""

    bpr: Tensor
    l2: Tensor
    feat_reg: Tensor
    contrastive: Tensor
    adversarial: Tensor

    def total(self) -> Tensor:
        """The loss."""
        return torch.stack(self).sum()


def recommender_loss(
    embeddings: Embeddings,
    batch: Triples,
    fake_score: Tensor | None,
    config: LossConfig,
    *,
    batch_size: int,
) -> LossTerms:
    """All terms of the recommender's step.

    Args:
        embeddings: of the whole graph.
        batch: the (B,) triples.
        fake_score: (M B,) critic scores of the generated rows, or None without a critic.
        config: the weights.
        batch_size: what the L2 term is divided by.
    """
    user, item = embeddings.user, embeddings.item
    bpr, squares = ops.bpr_loss(
        user, item, batch.user, batch.pos_item, batch.neg_item, with_l2=True
    )
    l2 = config.decay * 0.5 * squares
    contrastive = bpr.new_zeros(())
    if config.cl_weight > 0:
        contrastive = config.cl_weight * contrastive_loss(embeddings, batch.user, config)
    adversarial = bpr.new_zeros(())
    if fake_score is not None:
        adversarial = -config.g_weight * fake_score.mean()
    return LossTerms(
        bpr,
        l2 / batch_size,
        config.feat_reg_decay * feature_regularizer(embeddings),
        contrastive,
        adversarial,
    )


def feature_regularizer(embeddings: Embeddings) -> Tensor:
    """``(sum_m ||f_i^m||^2 + ||f_u^m||^2) / (2 I)``."""
    total = embeddings.user_feature.square().sum() + embeddings.item_feature.square().sum()
    return 0.5 * total / embeddings.item.shape[0]


def contrastive_loss(embeddings: Embeddings, users: Tensor, config: LossConfig) -> Tensor:
    """InfoNCE of every modality view against the final user embedding, summed over M.

    Args:
        embeddings: of the whole graph.
        users: (B,) the batch.
        config: temperature and eps.
    """
    anchor = embeddings.user_modality[:, users]  # (M, B, D)
    positive = embeddings.user[users].expand_as(anchor)
    return ops.info_nce(anchor, positive, config.temperature, eps=config.cl_eps).sum()
