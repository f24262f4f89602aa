"""The recommender's loss as one node of the autograd graph, for the kernels of a GPU.

The CPU composes the same terms from :func:`mmssl.ops.bpr_loss`, :func:`mmssl.ops.info_nce` and
operators of torch, see :mod:`mmssl.models.mmssl.loss`.

Legend: U users, I items, B triples, D features, M modalities.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl.ops._autograd import Operator
from mmssl.ops.info_nce import takes_tf32


class BatchTables(NamedTuple):
    """The tables that the loss reads, of one dtype."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    user_feature: Tensor  # (M, U, D)
    item_feature: Tensor  # (M, I, D)
    user_modality: Tensor  # (M, U, D)


class Contrast(NamedTuple):
    """InfoNCE of every modality view against the final user embedding."""

    temperature: Tensor  # (1,)
    eps: float


class _BatchLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        triples: tuple[Tensor, Tensor, Tensor],
        weights: Tensor,
        derivatives: Tensor,
        contrast: Contrast | None,
        score: Tensor | None,
        *tables: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.tables, ctx.triples = t, _ = BatchTables(*tables), triples
        ctx.derivatives, ctx.contrast, ctx.scored = derivatives, None, score is not None
        rows = None
        if contrast is not None:
            pair = torch.ops.mmssl.batch_rows(t.user, t.user_modality, triples[0])
            flags = True, False, contrast.eps, pair[0].is_cuda and takes_tf32()
            options = contrast.temperature, None
            rows, saved = torch.ops.mmssl.info_nce(*pair, *options, *flags)
            ctx.contrast = *pair, *options, saved, *flags
        # In the order of memory: modalities are columns.
        features = [f.transpose(0, 1) for f in (t.user_feature, t.item_feature)]
        out, ctx.slope = torch.ops.mmssl.batch_terms(
            t.user, t.item, *triples, *features, rows, score, weights
        )
        loss, terms = out[0], out[1:]
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # no zeros for the terms
        return loss, terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        t: BatchTables = ctx.tables
        scaled, of_rows = (grad * ctx.derivatives).tensor_split([5])
        of_pair: tuple[Tensor | None, ...] = (None, None)
        views, (users, dim) = 0, t.user.shape
        if ctx.contrast is not None:
            anchor = ctx.contrast[0]
            of_rows = of_rows.view(anchor.shape[:2])
            of_pair = torch.ops.mmssl.info_nce_backward(of_rows, *ctx.contrast)[:2]
            views = anchor.shape[0]
        flat = torch.ops.mmssl.batch_terms_backward(
            scaled, t.user, t.item, *ctx.triples, ctx.slope, *of_pair
        )
        of_user, of_item, of_views = flat.split([users, t.item.shape[0], views * users])
        of_modality = of_views.view(views, users, dim) if views else None
        of_features = torch._foreach_mul([t.user_feature, t.item_feature], scaled[2])
        of_score = scaled[4] if ctx.scored else None
        grads = of_user, of_item, *of_features, of_modality
        return None, None, None, None, of_score, *grads


def batch_loss(
    tables: BatchTables,
    triples: tuple[Tensor, Tensor, Tensor],
    contrast: Contrast | None,
    score: Tensor | None,
    weights: Tensor,
    derivatives: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the weighted sum of five losses; differentiable once.

    They are :func:`mmssl.ops.bpr_loss`, its sum of squares, the sum of the squares of both
    features, InfoNCE of every row of the batch and modality, and a score.

    Args:
        tables: float32 or float64.
        triples: (B,) int64 users, positive and negative items.
        contrast: None without InfoNCE.
        score: A scalar, or None.
        weights: (5,); that of InfoNCE multiplies the sum over rows and modalities.
        derivatives: The weights, that of the features' squares doubled, and with InfoNCE its weight
            for every row, M B times.

    Returns:
        The loss, and its weighted terms (5,), which have no gradient.
    """
    out: tuple[Tensor, Tensor] = _BatchLoss.apply(
        triples, weights, derivatives, contrast, score, *tables
    )
    return out


def _rows_fake(user: Tensor, modality: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
    shape = modality.shape[0], users.shape[0], user.shape[1]
    return user.new_empty(shape), user.new_empty(shape)


def _terms_fake(user: Tensor, item: Tensor, users: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return user.new_empty(6), user.new_empty(users.shape[0])


def _terms_backward_fake(
    scaled: Tensor,
    user: Tensor,
    item: Tensor,
    users: Tensor,
    pos: Tensor,
    neg: Tensor,
    slope: Tensor,
    to_anchor: Tensor | None,
    to_positive: Tensor | None,
) -> Tensor:
    views = 0 if to_anchor is None else to_anchor.shape[0]
    return user.new_empty((1 + views) * user.shape[0] + item.shape[0], user.shape[1])


OPERATORS = (
    Operator("batch_rows", fake=_rows_fake),
    Operator("batch_terms", fake=_terms_fake),
    Operator("batch_terms_backward", fake=_terms_backward_fake),
)
