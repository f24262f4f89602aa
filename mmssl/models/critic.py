"""The critic of the adversarial task, WGAN-GP on interaction rows that are never formed.

Wei et al., WWW 2023, section 3.1; gradient penalty after Gulrajani et al., NIPS 2017. The rows are
in :mod:`mmssl.models.rows`.

Legend: I items, B batch, M modalities, h width of the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmssl.config import CriticConfig
from mmssl.models.dropout import Dropout
from mmssl.models.rows import Rows

# Of the released code: the sigmoid is scaled by 100 and the penalty by 0.3.
_SCORE_SCALE = 100.0
_PENALTY_SCALE = 0.3


class Critic(nn.Module):
    """Linear(I, h), Linear(h, h/2), Linear(h/2, 1) with LeakyReLU, BatchNorm, dropout; 100 sigmoid.

    The first layer is apart from the rest: rows enter only through it, and what follows from its
    linearity (low-rank rows, mixed rows, gradients with respect to rows) is worked out on its
    outputs, the *pre-activations*. Its weight is (I, h), so that the row of an item is contiguous.
    """

    def __init__(self, num_items: int, config: CriticConfig) -> None:
        super().__init__()
        hidden = max(2, num_items // 4) if config.hidden == "paper" else config.hidden
        half = hidden // 2
        self.weight = nn.Parameter(torch.empty(num_items, hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Sequential(
            nn.LeakyReLU(config.negative_slope),
            nn.BatchNorm1d(hidden),
            Dropout(config.dropout[0]),
            nn.Linear(hidden, half),
            nn.LeakyReLU(config.negative_slope),
            nn.BatchNorm1d(half),
            Dropout(config.dropout[1]),
            nn.Linear(half, 1),
        )
        nn.init.normal_(self.weight, std=math.sqrt(2 / num_items))  # Kaiming over the I inputs
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def pre_activation(self, rows: Rows) -> Tensor:
        """(B, h) outputs of the first layer."""
        return rows.linear(self.weight) + self.bias

    def score(self, pre_activation: Tensor) -> Tensor:
        """Scores in (0, 100), shape (n,), of (n, h) outputs of the first layer."""
        return _SCORE_SCALE * torch.sigmoid(self.head(pre_activation).squeeze(1))

    def forward(self, blocks: Sequence[Rows]) -> Tensor:
        """Scores (M B,) of M blocks of B rows, seen by BatchNorm as one batch."""
        return self.score(torch.cat([self.pre_activation(rows) for rows in blocks]))


class CriticLoss(NamedTuple):
    """The critic's terms, scalars."""

    fake: Tensor
    real: Tensor
    penalty: Tensor

    def total(self) -> Tensor:
        """``E[D(fake)] - E[D(real)] + penalty``, to be minimised by the critic."""
        return self.fake - self.real + self.penalty


def critic_loss(
    critic: Critic, fake_rows: Sequence[Rows], real_rows: Rows, alpha: Tensor, gp_weight: float
) -> CriticLoss:
    """Wasserstein loss with gradient penalty on mixed rows.

    Args:
        critic: in train mode; BatchNorm sees the fake, the real, then the mixed rows.
        fake_rows: M blocks of B generated rows.
        real_rows: B rows, the same for every modality.
        alpha: (M B, 1) share of the real row in each mixed row.
        gp_weight: factor on the penalty.
    """
    fake = torch.cat([critic.pre_activation(rows) for rows in fake_rows])
    real = critic.pre_activation(real_rows).repeat(len(fake_rows), 1)
    fake_score, real_score = critic.score(fake), critic.score(real)
    mixed = alpha * real + (1 - alpha) * fake  # the first layer is affine, so this needs no product
    penalty = gradient_penalty(critic, mixed)
    return CriticLoss(fake_score.mean(), real_score.mean(), gp_weight * penalty)


def gradient_penalty(critic: Critic, pre_activation: Tensor) -> Tensor:
    """``0.3 mean((||d sum(D) / d row|| - 1)^2)``, differentiable.

    Args:
        critic: gives D.
        pre_activation: (n, h) outputs of the first layer, attached to its weight.
    """
    score = critic.score(pre_activation)
    (delta,) = torch.autograd.grad(score.sum(), pre_activation, create_graph=True)  # (n, h)
    weight = critic.weight  # (I, h); d row = delta @ weight.T
    # The norm needs delta W^T W delta^T only. Forming W^T W costs 2 h^2 I forward and once more
    # backward, delta W^T three times 2 n h I, so the cheaper one depends on n and h.
    if 2 * weight.shape[1] < 3 * delta.shape[0]:
        square = ((delta @ _Gram.apply(weight)) * delta).sum(1)
    else:
        square = (delta @ weight.T).square().sum(1)
    norm = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    return _PENALTY_SCALE * (norm - 1).square().mean()


class _Gram(torch.autograd.Function):
    """``W^T W`` (h, h); its gradient ``W (G + G^T)`` is one product where autograd pays two."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.T @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return weight @ (grads[0] + grads[0].T)
