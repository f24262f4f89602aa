"""The critic of the adversarial task: WGAN-GP on interaction rows that are never formed.

Wei et al., WWW 2023, section 3.1; gradient penalty after Gulrajani et al., NIPS 2017. The rows are
those of :mod:`mmssl.models.mmssl.rows`.

Legend: I items, B batch, M modalities, h width of the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ops
from mmssl.distributed.group import SINGLE, Group
from mmssl.distributed.losses import shared_norm_act
from mmssl.models.linear import Linear
from mmssl.models.mmssl.config import CriticConfig
from mmssl.models.mmssl.rows import (
    AddGradient,
    FactoredRows,
    Rows,
    constant,
    multiply,
    multiply_constant,
)
from mmssl.ops._autograd import under_torch_func
from mmssl.ops._critic import PENALTY_SCALE, SCORE_SCALE
from mmssl.ops._critic_pass import HeadWeights, Hidden, mean_score, whole_loss
from mmssl.ops._similarity import takes_fused
from mmssl.ops.dispatch import use_native
from mmssl.ops.keep_mask import keep_masks
from mmssl.ops.norm_act import Running
from mmssl.ops.product import squared_norms_through


class HiddenLayer(nn.BatchNorm1d):
    """LeakyReLU, BatchNorm and dropout, as they follow a linear layer.

    In a group of processes, the statistics and the dropout mask are those of the rows of all.
    """

    group: Group = SINGLE
    batch_size: int = 0  # B, over all processes of the group

    def __init__(self, width: int, negative_slope: float, rate: float) -> None:
        super().__init__(width)
        self.negative_slope = negative_slope
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, width) to (n, width)."""
        if not self.training:
            return super().forward(F.leaky_relu(x, self.negative_slope).to(self.weight.dtype))
        if self.group.size > 1:
            return self._shared(x)
        keep, scale = ops.keep_mask(x.shape, self.rate, x.device)
        return ops.norm_act(
            x,
            self.weight,
            self.bias,
            negative_slope=self.negative_slope,
            keep=keep,
            keep_scale=scale,
            running_mean=self.running_mean,
            running_var=self.running_var,
            eps=self.eps,
        )

    def _shared(self, x: Tensor) -> Tensor:
        """Map this process's part of every block of B rows."""
        mine = self.group.part(self.batch_size)
        blocks = x.shape[0] // (mine.stop - mine.start)
        shape = (blocks, self.batch_size, x.shape[1])
        keep, scale = ops.keep_mask(shape, self.rate, x.device)  # the same in every process
        assert self.running_mean is not None and self.running_var is not None
        return shared_norm_act(
            self.group,
            x,
            self.weight,
            self.bias,
            blocks * self.batch_size,
            negative_slope=self.negative_slope,
            keep=None if keep is None else keep[:, mine].flatten(0, 1),
            keep_scale=scale,
            running_mean=self.running_mean,
            running_var=self.running_var,
            momentum=0.1 if self.momentum is None else self.momentum,
            eps=self.eps,
        )


class Critic(nn.Module):
    """Linear(I, h), Linear(h, h/2), Linear(h/2, 1) with LeakyReLU, BatchNorm, dropout; 100 sigmoid.

    The first layer is kept apart from the others: rows enter only through it, and what follows from
    its linearity (low-rank rows, mixed rows, gradients with respect to rows) is computed on its
    outputs, the *pre-activations*. Its weight is (I, h), so that the row of an item is contiguous.
    """

    def __init__(self, num_items: int, config: CriticConfig) -> None:
        super().__init__()
        hidden = max(2, num_items // 4) if config.hidden == "paper" else config.hidden
        half = hidden // 2
        slope, rates = config.negative_slope, config.dropout
        self.half_precision = config.precision == "bfloat16"
        self.weight = nn.Parameter(torch.empty(self._num_rows(num_items), hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Sequential(
            HiddenLayer(hidden, slope, rates[0]),
            Linear(hidden, half),
            HiddenLayer(half, slope, rates[1]),
            Linear(half, 1),
        )
        self._draw_weight(math.sqrt(2 / num_items))  # Kaiming over the I inputs
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def _num_rows(self, num_items: int) -> int:
        """Return how many rows of the first layer's weight this module has."""
        return num_items

    def _draw_weight(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def divide(self, group: Group, batch_size: int) -> None:
        """Score this process's part of every block of rows from now on.

        Args:
            group: The processes that divide the rows.
            batch_size: B, rows of a block over all processes.
        """
        for layer in self.head:
            if isinstance(layer, HiddenLayer):
                layer.group, layer.batch_size = group, batch_size

    def count_batches(self, count: int) -> None:
        """Count batches that the hidden layers have seen in train mode."""
        layers = [layer for layer in self.head if isinstance(layer, HiddenLayer)]
        if self.training:
            counters = [layer.num_batches_tracked for layer in layers]
            torch._foreach_add_([c for c in counters if c is not None], count)

    def product_weight(self) -> Tensor:
        """Convert the first layer's weight (I, h) to the dtype of the products, once per pass."""
        return self.weight.to(torch.bfloat16) if self.half_precision else self.weight

    def pre_activation(self, blocks: Sequence[Rows], weight: Tensor) -> Tensor:
        """Apply the first layer to M blocks of B rows.

        Args:
            blocks: Blocks of one batch of users.
            weight: Result of :meth:`product_weight`.

        Returns:
            (M B, h).
        """
        return multiply(blocks, weight) + self.bias.to(weight.dtype)

    def squared_norms(self, delta: Tensor, weight: Tensor) -> Tensor:
        """Return the squared lengths (n,) of gradients ``delta @ weight.T``, differentiable once.

        Args:
            delta: (n, h) gradients with respect to outputs of the first layer.
            weight: Result of :meth:`product_weight`.
        """
        return squared_norms_through(delta, weight)

    def score(self, pre_activation: Tensor) -> Tensor:
        """Map (n, h) outputs of the first layer to scores (n,) in (0, 100)."""
        logit = self.head(pre_activation).squeeze(1)
        return SCORE_SCALE * torch.sigmoid(logit.to(self.bias.dtype))

    def forward(self, blocks: Sequence[Rows]) -> Tensor:
        """Score M blocks of B rows, one batch for BatchNorm: (M B,)."""
        self.count_batches(1)
        return self.score(self.pre_activation(blocks, self.product_weight()))

    def mean_score(self, blocks: Sequence[Rows]) -> Tensor:
        """Compute ``forward(blocks).mean()`` with a gradient for the rows only; a scalar."""
        weight = self.product_weight()
        if not self.in_one_pass(weight):
            return self.forward(blocks).mean()
        pre = multiply(blocks, weight)
        return mean_score(self.layers(pre.shape[0], 1), self.head_weights(), pre, self.bias)

    def in_one_pass(self, weight: Tensor) -> bool:
        """Whether gradients are those written out in :mod:`mmssl.ops._critic_pass`.

        Args:
            weight: Result of :meth:`product_weight`.
        """
        return (
            self.training
            and self.first.group.size == 1
            and not under_torch_func()
            and use_native("norm_act", weight.device.type, weight.dtype)
        )

    def layers(self, num_rows: int, groups: int) -> tuple[Hidden, Hidden]:
        """Draw the masks of one pass.

        Args:
            num_rows: n, rows of a group.
            groups: G.
        """
        both = self.first, self.second
        sizes = [((num_rows, layer.num_features), layer.rate) for layer in both]
        masks = keep_masks(groups, sizes, self.weight.device)
        first, second = (
            Hidden(
                Running(
                    layer.running_mean,
                    layer.running_var,
                    layer.num_batches_tracked,
                    0.1 if layer.momentum is None else layer.momentum,
                ),
                None if keep is None else keep.flatten(0, 1),
                scale,
                layer.negative_slope,
                layer.eps,
            )
            for layer, (keep, scale) in zip(both, masks, strict=True)
        )
        return first, second

    def head_weights(self) -> HeadWeights:
        """Return the parameters behind the first layer."""
        return HeadWeights(
            *(cast(Tensor, p) for layer in self.head for p in (layer.weight, layer.bias))
        )

    @property
    def first(self) -> HiddenLayer:
        """The hidden layer of width h."""
        return cast(HiddenLayer, self.head[0])

    @property
    def second(self) -> HiddenLayer:
        """The hidden layer of width h/2."""
        return cast(HiddenLayer, self.head[2])


class CriticLoss(NamedTuple):
    """The terms of the critic's loss, scalars without a gradient."""

    fake: Tensor
    real: Tensor
    penalty: Tensor


def critic_loss(
    critic: Critic,
    fake_rows: Sequence[Rows],
    real_rows: Rows | None,
    alpha: Tensor,
    gp_weight: float,
    *,
    with_penalty: bool = True,
) -> tuple[Tensor, CriticLoss]:
    """Compute the Wasserstein loss with a gradient penalty on mixed rows; differentiable once.

    Args:
        critic: In train mode; BatchNorm sees the fake, the real, then the mixed rows.
        fake_rows: M blocks of B generated rows, together or one by one.
        real_rows: B rows, the same for every modality; None if they are the last block of
            ``fake_rows``.
        alpha: (M B, 1) share of the real row in each mixed row.
        gp_weight: Weight of the penalty.
        with_penalty: False skips the penalty, which is then 0, and the mixed rows.

    Returns:
        ``E[D(fake)] - E[D(real)] + penalty``, which the critic minimizes, and its terms.
    """
    groups = 3 if with_penalty else 2
    weight = critic.product_weight()
    blocks = [*fake_rows] if real_rows is None else [*fake_rows, real_rows]
    if critic.in_one_pass(weight):
        layers, head = critic.layers(alpha.shape[0], groups), critic.head_weights()
        add_gradient: AddGradient | None = None
        factored = [b for b in blocks if isinstance(b, FactoredRows) and b.floor is None]
        if takes_fused(critic.weight) and len(factored) == len(blocks) and constant(factored):
            with torch.no_grad():
                pre, add_gradient = multiply_constant(factored, weight)
        else:
            pre = multiply(blocks, weight)
        rest = critic.bias, weight, alpha, gp_weight if with_penalty else None
        loss, vector = whole_loss(layers, head, pre, *rest, add_gradient)
        return loss, CriticLoss(*vector.unbind())
    critic.count_batches(groups)
    pre = critic.pre_activation(blocks, weight)
    fake, real = pre.tensor_split([alpha.shape[0]])
    real = real.repeat(fake.shape[0] // real.shape[0], 1)
    fake_score, real_score = critic.score(fake), critic.score(real)
    penalty = fake_score.new_zeros(())
    if with_penalty:
        # The first layer is affine, so the mixed rows need no product.
        mixed = torch.lerp(fake, real, alpha.to(fake.dtype))
        penalty = gp_weight * gradient_penalty(critic, mixed, weight)
    terms = CriticLoss(fake_score.mean(), real_score.mean(), penalty)
    loss = terms.fake - terms.real + terms.penalty
    return loss, CriticLoss(*(term.detach() for term in terms))


def gradient_penalty(critic: Critic, pre_activation: Tensor, weight: Tensor) -> Tensor:
    """Compute ``0.3 mean((||d sum(D) / d row|| - 1)^2)``; differentiable once.

    Args:
        critic: Computes D.
        pre_activation: (n, h) outputs of the first layer, attached to its weight.
        weight: (I, h), that weight; the result of :meth:`Critic.product_weight`.
    """
    score = critic.score(pre_activation)
    (delta,) = torch.autograd.grad(score.sum(), pre_activation, create_graph=True)  # (n, h)
    square = critic.squared_norms(delta, weight)  # d row = delta @ weight.T
    norm = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    return PENALTY_SCALE * (norm - 1).square().mean()
