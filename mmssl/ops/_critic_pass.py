"""The critic's loss on all rows at once, with its gradient written out.

The fake, the real and the mixed rows go through the head together, each group with batch statistics
of its own, and one backward pass does what autograd would do in five: one for each group, one for
the input gradient of the penalty, and one for the gradient of that. :func:`critic_loss` in
:mod:`mmssl.models.mmssl.critic` is the same by autograd.

Legend: n rows of a group, G groups, h width of the first layer, h2 of the second, I items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl import _extension
from mmssl.ops._critic import (
    grouped_rows,
    last_gradient,
    logit_gradient,
    loss_terms,
    row_norms,
    scaled_rows,
    scores,
    ungrouped_rows,
)
from mmssl.ops.norm_act import Running, moves_running, update_running
from mmssl.ops.product import (
    added_product,
    affine,
    product,
    row_images,
    row_images_backward,
)


class HeadWeights(NamedTuple):
    """The parameters of the layers behind the first."""

    norm1: Tensor  # (h,)
    shift1: Tensor  # (h,)
    weight2: Tensor  # (h2, h)
    bias2: Tensor  # (h2,)
    norm2: Tensor  # (h2,)
    shift2: Tensor  # (h2,)
    weight3: Tensor  # (1, h2)
    bias3: Tensor  # (1,)


@dataclass(frozen=True)
class Hidden:
    """LeakyReLU, batch normalization and dropout of one hidden layer, for one pass."""

    running: Running  # updated in place
    keep: Tensor | None  # (G n, width)
    keep_scale: float
    slope: float
    eps: float

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> _Normalized:
        """Map (G n, width) to the same shape, and keep what the gradients read."""
        arguments = x, weight, bias, self.keep, self.keep_scale, self.slope, self.eps, groups
        if moves_running(x, self.running):
            y, mean, rstd = torch.ops.mmssl.norm_act_moved(*arguments, *self.running)
        else:
            y, mean, rstd = torch.ops.mmssl.norm_act(*arguments)
            update_running(self.running, mean, rstd, self.eps, x.shape[0], groups)
        return _Normalized(self, x, y, weight, mean, rstd, self.keep, groups)


@dataclass(frozen=True)
class _Normalized:
    """A hidden layer's input, output and statistics."""

    layer: Hidden
    x: Tensor  # (G n, width)
    y: Tensor  # (G n, width)
    weight: Tensor  # (width,)
    mean: Tensor  # (G width,)
    rstd: Tensor  # (G width,)
    keep: Tensor | None
    groups: int

    def last(self) -> _Normalized:
        """Return the last group alone."""
        n, width = self.x.shape[0] // self.groups, self.x.shape[1]
        keep = None if self.keep is None else self.keep[-n:]
        statistics = self.mean[-width:], self.rstd[-width:]
        return _Normalized(self.layer, self.x[-n:], self.y[-n:], self.weight, *statistics, keep, 1)

    def _arguments(self) -> tuple[Any, ...]:
        layer = self.layer
        tensors = self.x, self.weight, self.mean, self.rstd, self.keep
        return *tensors, layer.keep_scale, layer.slope, self.groups

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients for x, weight and bias, given that for y."""
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.mmssl.norm_act_backward(
            grad, *self._arguments()
        )
        return grads

    def backward_added(
        self, grad: Tensor, more_x: Tensor | None, more_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Compute :meth:`backward` and add more to it.

        Args:
            grad: As in :meth:`backward`.
            more_x: (n, width), for the x of the last group, or None.
            more_weight: (width,), or None.

        Returns:
            The three gradients, and on a GPU the sums of that for x over the rows.
        """
        if _extension.on_gpu(grad):
            sums: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.mmssl.norm_act_backward_added(
                grad, *self._arguments(), more_x, more_weight
            )
            return sums
        to_x, to_weight, to_bias = self.backward(grad)
        if more_x is not None and more_weight is not None:
            to_x[-more_x.shape[0] :].add_(more_x)
            to_weight.add_(more_weight)
        return to_x, to_weight, to_bias, None

    def double_backward(self, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients for grad, x and weight, given that for what backward gave for x."""
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.mmssl.norm_act_double_backward(
            up, None, None, grad, *self._arguments()
        )
        return grads


class _Head:
    """The forward pass through the head, and its gradient."""

    def __init__(
        self,
        x: Tensor,
        weights: HeadWeights,
        layers: tuple[Hidden, Hidden],
        groups: int,
        mixed: int = 0,
    ) -> None:
        w = self.weights = weights
        self.weight2 = w.weight2.to(x.dtype)
        self.first = layers[0].forward(x, w.norm1, w.shift1, groups)
        second = affine(self.first.y, self.weight2.T, w.bias2.to(x.dtype))
        self.second = layers[1].forward(second, w.norm2, w.shift2, groups)
        last = self.second.y, w.weight3, w.bias3
        # (G n,), (G n,), and for the mixed rows the gradients (n, h2) of their scores
        self.share, self.slope, self.of_scores = scores(*last, mixed)

    def to_input(self, to_output: Tensor) -> Tensor:
        """Return the gradient (G n, h) for the input, given that for the second layer's output."""
        to_second, *_ = self.second.backward(to_output)
        to_first, *_ = self.first.backward(product(to_second, self.weight2))
        return to_first


class _Penalty:
    """``0.3 mean((||d score / d row|| - 1)^2)`` over the last group, and its gradient."""

    def __init__(self, head: _Head, weight: Tensor) -> None:
        self.head, self.weight = head, weight
        self.first, self.second = head.first.last(), head.second.last()
        self.through_second, *_ = self.second.backward(head.of_scores)
        self.at_first = product(self.through_second, head.weight2)  # (n, h)
        self.delta, *_ = self.first.backward(self.at_first)
        self.image, self.other = row_images(self.delta, weight)
        self.norm, self.factor = row_norms(self.image, self.other)

    def backward(self, grad: Tensor, share: float) -> _PenaltyGradient:
        """Return what the penalty adds to the gradients, given that for a share of its value."""
        head = self.head
        up, to_weight = self._of_norms(grad, share)
        up, to_first, to_norm1 = self.first.double_backward(up, self.at_first)
        to_weight2 = product(self.through_second.T, up)
        up = product(up, head.weight2.T)
        up, to_second, to_norm2 = self.second.double_backward(up, head.of_scores)
        return _PenaltyGradient(to_weight, to_first, to_norm1, to_weight2, to_second, to_norm2, up)

    def _of_norms(self, grad: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return the gradients for the rows' gradients ``delta`` (n, h) and the weight (I, h)."""
        delta, weight = self.delta, self.weight
        if not _extension.on_gpu(delta):
            factor = (grad * share) * self.factor
            up, to_weight = row_images_backward(factor, delta, weight, self.image)
            assert up is not None and to_weight is not None
            return up, to_weight
        through_gram = self.other is delta
        second = delta if through_gram else None
        scaled, right = scaled_rows(grad, self.factor, self.image, second, share)
        if right is None:
            return scaled @ weight, scaled.T @ delta
        return scaled, weight @ (delta.T @ right)


class _PenaltyGradient(NamedTuple):
    """The penalty's share of the gradients; those of rows belong to the last group."""

    weight: Tensor  # (I, h)
    first: Tensor  # (n, h) for the input of the first hidden layer
    norm1: Tensor  # (h,)
    weight2: Tensor  # (h2, h)
    second: Tensor  # (n, h2) for the input of the second
    norm2: Tensor  # (h2,)
    up: Tensor  # (n, h2) for the gradients of the mixed scores


class _CriticLoss(torch.autograd.Function):
    """Maps the outputs of the first layer to the loss and its terms."""

    @staticmethod
    def forward(
        ctx: Any,
        layers: tuple[Hidden, Hidden],
        alpha: Tensor,
        gp_weight: float | None,
        add_gradient: Callable[[Tensor, Tensor | None], Tensor] | None,
        pre: Tensor,
        bias: Tensor,
        weight: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.add_gradient = add_gradient
        ctx.rows = n = alpha.shape[0]
        ctx.batch, ctx.gp_weight = pre.shape[0] - n, gp_weight
        ctx.alpha, groups = (None, 2) if gp_weight is None else (alpha, 3)
        x = grouped_rows(pre, bias, ctx.alpha, n, groups)
        mixed = 0 if ctx.alpha is None else n
        ctx.head = head = _Head(x, HeadWeights(*parameters), layers, groups, mixed)
        ctx.penalty = None if gp_weight is None else _Penalty(head, weight)
        norm = None if ctx.penalty is None else ctx.penalty.norm
        out = loss_terms(head.share, norm, n, gp_weight or 0.0)
        terms = out[1:]
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # no zeros for the terms
        return out[0], terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        head: _Head = ctx.head
        n = ctx.rows
        extra = None if ctx.penalty is None else ctx.penalty.backward(grad, ctx.gp_weight)
        up, weight3 = extra and extra.up, head.weights.weight3
        like = head.second.y
        to_logit, to_y = logit_gradient(grad, head.share, head.slope, like, up, weight3, n)
        to_weight3, to_bias3 = last_gradient(to_logit, head.slope, like, up, n)
        to_second, to_norm2, to_shift2, to_bias2 = head.second.backward_added(
            to_y, extra and extra.second, extra and extra.norm2
        )
        if to_bias2 is None:
            to_bias2 = to_second.sum(0)
        to_weight2 = added_product(extra and extra.weight2, to_second.T, head.first.y)
        to_first, to_norm1, to_shift1, to_bias = head.first.backward_added(
            product(to_second, head.weight2), extra and extra.first, extra and extra.norm1
        )
        to_pre = ungrouped_rows(to_first, ctx.alpha, n, ctx.batch)
        to_head = HeadWeights(
            *(to_norm1, to_shift1, to_weight2, to_bias2),
            *(to_norm2, to_shift2, to_weight3, to_bias3),
        )
        wide = (g.to(w.dtype) for g, w in zip(to_head, head.weights, strict=True))
        if to_bias is None:
            # Each mixed row is a mean of a fake and a real one, so that the shares add up.
            to_bias = to_pre.sum(0, dtype=to_norm1.dtype)
        to_weight = extra and extra.weight
        if ctx.add_gradient is not None:
            to_weight = ctx.add_gradient(to_pre, to_weight)
            return None, None, None, None, None, to_bias, to_weight, *wide
        return None, None, None, None, to_pre, to_bias, to_weight, *wide


class _MeanScore(torch.autograd.Function):
    """Maps the outputs of the first layer to the mean of the scores, with a gradient for them."""

    @staticmethod
    def forward(
        ctx: Any, layers: tuple[Hidden, Hidden], weights: HeadWeights, pre: Tensor, bias: Tensor
    ) -> Tensor:
        x = grouped_rows(pre, bias, None, pre.shape[0], 1)
        ctx.head = head = _Head(x, weights, layers, 1)
        return loss_terms(head.share, None, x.shape[0], 0.0)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        head: _Head = ctx.head
        rows, weight3 = head.share.shape[0], head.weights.weight3
        _, to_y = logit_gradient(grad, head.share, head.slope, head.second.y, None, weight3, rows)
        return None, None, head.to_input(to_y), None


def whole_loss(
    layers: tuple[Hidden, Hidden],
    weights: HeadWeights,
    pre: Tensor,
    bias: Tensor,
    weight: Tensor,
    alpha: Tensor,
    gp_weight: float | None,
    add_gradient: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``E[D(fake)] - E[D(real)] + gp_weight penalty``; differentiable once.

    Args:
        layers: The hidden layers, with masks for G n rows.
        weights: The parameters of the head.
        pre: (n + B, h) products of n fake and B real rows with ``weight``, without the bias.
        bias: (h,), of the first layer.
        weight: (I, h), of the first layer, in the dtype of ``pre``.
        alpha: (n, 1) shares of the real rows in the mixed ones; n is a multiple of B.
        gp_weight: Weight of the penalty, or None without it, where G is 2 instead of 3.
        add_gradient: If ``pre`` has no gradient history, what takes the gradient for it and adds
            the weight's share to another gradient for the weight, or to None.

    Returns:
        The loss and its three terms (3,), which have no gradient.
    """
    out: tuple[Tensor, Tensor] = _CriticLoss.apply(
        layers, alpha, gp_weight, add_gradient, pre, bias, weight, *weights
    )
    return out


def mean_score(
    layers: tuple[Hidden, Hidden], weights: HeadWeights, pre: Tensor, bias: Tensor
) -> Tensor:
    """Compute the mean score of n rows, with a gradient for ``pre`` only; differentiable once.

    Args:
        layers: The hidden layers, with masks for n rows.
        weights: The parameters of the head, constants.
        pre: (n, h) products of the rows with the first layer's weight, without the bias.
        bias: (h,), of the first layer, a constant.
    """
    out: Tensor = _MeanScore.apply(layers, weights, pre, bias)
    return out
