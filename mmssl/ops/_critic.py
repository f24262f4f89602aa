"""What lies between the products and the normalized layers of a critic's pass.

Each step is one launch on a GPU; the CPU composes the same numbers from smaller operators.

Legend: n rows of a group, G groups (fake, real and mixed rows), B real rows, h columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmssl import _extension
from mmssl.ops._autograd import Operator
from mmssl.ops._checks import accumulation_dtype
from mmssl.ops.product import added_product, affine, product

# As in the released code, the sigmoid is scaled by 100 and the penalty by 0.3.
SCORE_SCALE = 100.0
PENALTY_SCALE = 0.3


def grouped_rows(pre: Tensor, bias: Tensor, alpha: Tensor | None, rows: int, groups: int) -> Tensor:
    """Return fake rows, a real row for each of them, and mixed rows: (G n, h).

    Args:
        pre: (n + B, h) products of the fake rows and of the B real ones, (n, h) without the latter.
        bias: (h,), added to all of them.
        alpha: (n, 1) shares of the real rows in the mixed ones; None without these.
        rows: n, a multiple of B.
        groups: G.
    """
    if _extension.on_gpu(pre):
        acc = accumulation_dtype(pre.dtype)
        wide = None if alpha is None else alpha.to(acc)
        out: Tensor = torch.ops.mmssl.critic_rows(pre, bias.to(acc), wide, rows, groups)
        return out
    x = pre.new_empty(groups * rows, pre.shape[1])
    bias = bias.to(pre.dtype)
    torch.add(pre[:rows], bias, out=x[:rows])
    if groups > 1:
        real = pre[rows:]
        blocks = x[rows : 2 * rows].view(-1, *real.shape)
        torch.add(real.expand_as(blocks), bias, out=blocks)
    if alpha is not None:
        torch.lerp(x[:rows], x[rows : 2 * rows], alpha.to(x.dtype), out=x[2 * rows :])
    return x


def ungrouped_rows(grad: Tensor, alpha: Tensor | None, rows: int, batch: int) -> Tensor:
    """Return the gradient (n + B, h) of :func:`grouped_rows` for ``pre``.

    Args:
        grad: (G n, h), of two or three groups; may be overwritten.
        alpha: (n, 1), or None.
        rows: n.
        batch: B.
    """
    if _extension.on_gpu(grad):
        wide = None if alpha is None else alpha.to(accumulation_dtype(grad.dtype))
        result: Tensor = torch.ops.mmssl.critic_rows_backward(grad, wide, rows, batch)
        return result
    out = grad.new_empty(rows + batch, grad.shape[1])
    fake, real = grad[:rows], grad[rows : 2 * rows]
    if alpha is None:
        out[:rows] = fake
    else:
        share, mixed = alpha.to(grad.dtype), grad[2 * rows :]
        torch.addcmul(fake, 1 - share, mixed, out=out[:rows])
        real.addcmul_(share, mixed)
    torch.sum(real.view(-1, batch, real.shape[1]), 0, out=out[rows:])
    return out


def scores(y: Tensor, weight: Tensor, bias: Tensor, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the last layer, and start the gradients of the last scores.

    Args:
        y: (G n, p).
        weight: (1, p).
        bias: (1,).
        last: Number of rows whose score is differentiated.

    Returns:
        The sigmoids (G n,) of ``y @ weight.T + bias`` and the derivatives (G n,) of 100 times
        these, both at least float32, and the gradients (last, p) of the last rows' scores for y.
    """
    if _extension.on_gpu(y):
        acc = accumulation_dtype(y.dtype)
        vectors = weight.to(acc).flatten(), bias.to(acc)
        share, slope, to_y = torch.ops.mmssl.critic_scores(y, *vectors, last)
        return share, slope, to_y
    weight = weight.to(y.dtype)
    logit = affine(y, weight.T, bias.to(y.dtype)).squeeze(1)
    share = torch.sigmoid(logit.to(accumulation_dtype(logit.dtype)))
    slope = SCORE_SCALE * share * (1 - share)
    return share, slope, slope[slope.shape[0] - last :].to(y.dtype)[:, None] * weight


def row_norms(image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lengths of n gradients and what the penalty makes of them, at least float32.

    Args:
        image: (n, p).
        other: (n, p); the dot products of the rows of both are the squared lengths.

    Returns:
        The lengths (n,), and twice the derivatives of ``0.3 mean((length - 1)^2)`` with respect to
        the squares.
    """
    if _extension.on_gpu(image):
        norm, factor = torch.ops.mmssl.critic_norms(image, other)
        return norm, factor
    square = (image.to(accumulation_dtype(image.dtype)) * other).sum(1)
    tiny = torch.finfo(square.dtype).tiny
    norm = square.clamp_min(tiny).sqrt()
    return norm, 2 * PENALTY_SCALE / norm.shape[0] * (1 - 1 / norm) * (square >= tiny)


def loss_terms(share: Tensor, norm: Tensor | None, rows: int, weight: float) -> Tensor:
    """Return ``E[D(fake)] - E[D(real)] + weight penalty`` and these three terms, (4,).

    Args:
        share: (G n,) sigmoids; with G = 1 the loss is the mean of the fake scores.
        norm: (n,) lengths of the penalty's gradients, or None without it.
        rows: n.
        weight: Of the penalty.
    """
    if _extension.on_gpu(share):
        out: Tensor = torch.ops.mmssl.critic_terms(share, norm, rows, weight)
        return out
    means = SCORE_SCALE * share[: 2 * rows].view(-1, rows).mean(1)
    fake, real = (means[0], means[1]) if means.shape[0] == 2 else (means[0], means.new_zeros(()))
    penalty = means.new_zeros(())
    if norm is not None:
        penalty = weight * PENALTY_SCALE * (norm - 1).square().mean()
    return torch.stack([fake - real + penalty, fake, real, penalty])


def scaled_rows(
    grad: Tensor, factor: Tensor, first: Tensor, second: Tensor | None, weight: float
) -> tuple[Tensor, Tensor | None]:
    """Multiply rows by ``grad * weight * factor``; on a GPU only.

    Args:
        grad: A scalar.
        factor: (n,).
        first: (n, p).
        second: (n, p), or None.
        weight: A number.
    """
    one, two = torch.ops.mmssl.critic_scale(grad, factor, first, second, weight)
    return one, None if second is None else two


def logit_gradient(
    grad: Tensor,
    share: Tensor,
    slope: Tensor,
    y: Tensor,
    up: Tensor | None,
    weight: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients for the logits (G n,) and for what the last layer reads (G n, p).

    Args:
        grad: A scalar, that for the loss of :func:`loss_terms`.
        share: (G n,).
        slope: (G n,).
        y: (G n, p), whose shape and dtype the result has.
        up: (n, p), for the last result of :func:`scores`; None without mixed rows.
        weight: (1, p), of the last layer.
        rows: n.
    """
    if _extension.on_gpu(share):
        wide = weight.to(accumulation_dtype(y.dtype)).flatten()
        arguments = grad, share, slope, y, up, wide, rows
        to_logit, to_y = torch.ops.mmssl.critic_logits_backward(*arguments)
        return to_logit, to_y
    weight = weight.to(y.dtype)
    out = slope.clone()
    out[:rows] *= grad / rows
    out[rows : 2 * rows] *= -grad / rows
    if up is not None:
        to_slope = product(up, weight.T).squeeze(1).to(slope.dtype)
        out[2 * rows :] *= to_slope * (1 - 2 * share[2 * rows :])
    return out, out.to(y.dtype)[:, None] * weight


def last_gradient(
    to_logit: Tensor, slope: Tensor, y: Tensor, up: Tensor | None, rows: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients for weight (1, p) and bias (1,) of the last layer.

    Args:
        to_logit: (G n,), that for the logits.
        slope: (G n,).
        y: (G n, p).
        up: (n, p), as in :func:`logit_gradient`.
        rows: n.
    """
    if _extension.on_gpu(y):
        of_weight, of_bias = torch.ops.mmssl.critic_last_backward(to_logit, slope, y, up, rows)
        return of_weight[None], of_bias
    column = to_logit.to(y.dtype)[:, None]
    more = None
    if up is not None:
        more = product(slope[2 * rows :].to(y.dtype)[None], up)
    return added_product(more, column.T, y), column.sum(0)


def _rows_fake(pre: Tensor, bias: Tensor, alpha: Tensor | None, rows: int, groups: int) -> Tensor:
    return pre.new_empty(groups * rows, pre.shape[1])


def _rows_backward_fake(grad: Tensor, alpha: Tensor | None, rows: int, batch: int) -> Tensor:
    return grad.new_empty(rows + batch, grad.shape[1])


def _scores_fake(
    y: Tensor, weight: Tensor, bias: Tensor, last: int
) -> tuple[Tensor, Tensor, Tensor]:
    share = weight.new_empty(y.shape[0])
    return share, torch.empty_like(share), y.new_empty(last, y.shape[1])


def _norms_fake(image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    norm = image.new_empty(image.shape[0], dtype=accumulation_dtype(image.dtype))
    return norm, torch.empty_like(norm)


def _terms_fake(share: Tensor, norm: Tensor | None, rows: int, weight: float) -> Tensor:
    return share.new_empty(4)


def _scale_fake(
    grad: Tensor, factor: Tensor, first: Tensor, second: Tensor | None, weight: float
) -> tuple[Tensor, Tensor]:
    two = first.new_empty(0, first.shape[1]) if second is None else torch.empty_like(second)
    return torch.empty_like(first), two


def _logits_fake(
    grad: Tensor, share: Tensor, slope: Tensor, y: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(share), y.new_empty(y.shape)


def _last_fake(to_logit: Tensor, slope: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return slope.new_empty(y.shape[1]), slope.new_empty(1)


_FAKES: dict[str, Callable[..., Any]] = {
    "rows": _rows_fake,
    "rows_backward": _rows_backward_fake,
    "scores": _scores_fake,
    "norms": _norms_fake,
    "terms": _terms_fake,
    "scale": _scale_fake,
    "logits_backward": _logits_fake,
    "last_backward": _last_fake,
}
OPERATORS = tuple(Operator(f"critic_{name}", fake=fake) for name, fake in _FAKES.items())
