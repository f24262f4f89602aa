"""The critic of the adversarial task: real and generated interaction rows, WGAN-GP.

Wei et al., WWW 2023, section 3.1; gradient penalty after Gulrajani et al., NIPS 2017.

Legend: U users, I items, B batch, M modalities, h width of the first layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.config import CriticConfig
from mmssl.graph import GraphView
from mmssl.ops.reference import edges_of_rows

# Of the released code: the sigmoid is scaled by 100, the penalty by 0.3, and 1e-8 keeps both
# logarithms of the Gumbel draw finite.
_SCORE_SCALE = 100.0
_PENALTY_SCALE = 0.3
_LOG_EPS = 1e-8


class Critic(nn.Module):
    """Linear(I, h), Linear(h, h/2), Linear(h/2, 1) with LeakyReLU, BatchNorm, dropout; 100 sigmoid.

    The first layer is apart from the rest: rows enter only through it, and what follows from its
    linearity (mixed rows, gradients with respect to rows) is worked out on its outputs, the
    *pre-activations*, so that no row of length I is formed twice.
    """

    def __init__(self, num_items: int, config: CriticConfig) -> None:
        super().__init__()
        hidden = max(2, num_items // 4) if config.hidden == "paper" else config.hidden
        half = hidden // 2
        self.first = nn.Linear(num_items, hidden)
        self.head = nn.Sequential(
            nn.LeakyReLU(config.negative_slope),
            nn.BatchNorm1d(hidden),
            nn.Dropout(config.dropout[0]),
            nn.Linear(hidden, half),
            nn.LeakyReLU(config.negative_slope),
            nn.BatchNorm1d(half),
            nn.Dropout(config.dropout[1]),
            nn.Linear(half, 1),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def score(self, pre_activation: Tensor) -> Tensor:
        """Scores in (0, 100), shape (n,), of (n, h) outputs of the first layer."""
        return _SCORE_SCALE * torch.sigmoid(self.head(pre_activation).squeeze(1))

    def forward(self, rows: Tensor) -> Tensor:
        """Scores (n,) of (n, I) rows."""
        return self.score(self.first(rows))


class CriticLoss(NamedTuple):
    """The critic's terms, scalars."""

    fake: Tensor
    real: Tensor
    penalty: Tensor

    def total(self) -> Tensor:
        """``E[D(fake)] - E[D(real)] + penalty``, to be minimised by the critic."""
        return self.fake - self.real + self.penalty


def critic_loss(
    critic: Critic, fake_rows: Tensor, real_rows: Tensor, alpha: Tensor, gp_weight: float
) -> CriticLoss:
    """Wasserstein loss with gradient penalty on mixed rows.

    Args:
        critic: in train mode; BatchNorm sees the fake, the real, then the mixed rows.
        fake_rows: (M, B, I) generated rows, one block per modality.
        real_rows: (B, I), the same for every modality.
        alpha: (M B, 1) share of the real row in each mixed row.
        gp_weight: factor on the penalty.
    """
    fake = critic.first(fake_rows.flatten(0, 1))
    real = critic.first(real_rows).repeat(fake_rows.shape[0], 1)
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
    weight = critic.first.weight  # (h, I); d row = delta @ weight
    # The norm needs delta W W^T delta^T only. Forming W W^T costs 2 h^2 I forward and once more
    # backward, delta W three times 2 n h I, so the cheaper one depends on n and h.
    if 2 * weight.shape[0] < 3 * delta.shape[0]:
        square = ((delta @ _Gram.apply(weight)) * delta).sum(1)
    else:
        square = (delta @ weight).square().sum(1)
    norm = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    return _PENALTY_SCALE * (norm - 1).square().mean()


class _Gram(torch.autograd.Function):
    """``W W^T`` (h, h); its gradient ``(G + G^T) W`` is one product where autograd pays two."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return (grads[0] + grads[0].T) @ weight


def real_rows(
    interactions: GraphView,
    users: Tensor,
    similarity: Tensor,
    uniform: Tensor,
    config: CriticConfig,
) -> Tensor:
    """Observed rows softened by a Gumbel softmax and bridged to the generated ones.

    ``normalize(softmax(logit(A[users])) + zeta * similarity)``.

    Args:
        interactions: (U, I) view A.
        users: (B,) int64.
        similarity: (B, I) normalised similarity rows of the final embeddings.
        uniform: (B, I) draws from (0, 1).
        config: temperature, noise and zeta.

    Returns:
        (B, I) rows of unit length.
    """
    noise = -config.gumbel_scale * torch.log(_LOG_EPS - torch.log(uniform + _LOG_EPS))
    if config.gumbel_divides == "noise":
        noise = noise / config.gumbel_tau
    position, item = edges_of_rows(interactions, users)
    one = torch.ones((), dtype=noise.dtype, device=noise.device)
    logit = noise.index_put((position, item), one, accumulate=True)
    if config.gumbel_divides == "logit":
        logit = logit / config.gumbel_tau
    return F.normalize(logit.softmax(1) + config.similarity_scale * similarity, dim=1)
