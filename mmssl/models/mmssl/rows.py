"""The interaction rows that the critic scores, kept as factors.

A *row* holds one value per item for one user. Generated rows are low rank except for the user's
train items. A real row is the softened observed row plus zeta times such a row; whether the
softened part has a closed form depends on the temperature, see :func:`gumbel_form`. The critic only
ever *multiplies* rows by its first weight (:func:`multiply`), so they need not be formed.

Legend: U users, I items, B batch, D embedding dim, H outputs, M blocks, n train edges of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.graph import GraphView
from mmssl.models.mmssl.config import CriticConfig
from mmssl.ops._similarity import fused_factors, takes_fused
from mmssl.ops.masked_similarity import BatchEdges, similarity_factors
from mmssl.ops.product import added_product, batched_affine, product
from mmssl.ops.propagate import spmm_added

# The released Gumbel draw adds this inside both logarithms, which bounds it to +-18.5.
_LOG_EPS = 1e-8
_MAX_GUMBEL = 18.5
_GUMBEL_STD = math.pi / math.sqrt(6)

# Accepted deviation of a closed form from the dense row, relative to its norm: four float32 ulps.
_TOLERANCE = 2.0**-22

GumbelForm = Literal["sparse", "flat", "dense"]


class FactoredRows(NamedTuple):
    """K blocks of rows ``left @ item_emb.T + sparse + floor``, never formed."""

    left: Tensor  # (K, B, D)
    item_emb: Tensor  # (K, I, D)
    edges: BatchEdges
    value: Tensor  # (K, n) the sparse part, on the batch's edges
    floor: Tensor | None  # (K, B) added to every entry of a row; None: 0

    def detach(self) -> FactoredRows:
        """Return the same rows without gradient history."""
        floor = None if self.floor is None else self.floor.detach()
        left, item_emb, value = (t.detach() for t in (self.left, self.item_emb, self.value))
        return FactoredRows(left, item_emb, self.edges, value, floor)


class DenseRows(NamedTuple):
    """Rows in memory."""

    rows: Tensor  # (B, I)


Rows = FactoredRows | DenseRows
AddGradient = Callable[[Tensor, Tensor | None], Tensor]


def multiply(blocks: Sequence[Rows], weight: Tensor) -> Tensor:
    """Multiply M blocks of rows by a weight; one pass over it for all factored blocks.

    Args:
        blocks: M blocks of B rows of length I, all of one batch of users.
        weight: (I, H); its dtype is the dtype of the products.

    Returns:
        (M B, H).
    """
    factored = [block for block in blocks if isinstance(block, FactoredRows)]
    if len(factored) == len(blocks):
        return _multiply_factored(factored, weight)
    parts = [
        _multiply_factored([block], weight)
        if isinstance(block, FactoredRows)
        else product(block.rows.to(weight.dtype), weight)
        for block in blocks
    ]
    return torch.cat(parts)


def multiply_constant(blocks: Sequence[FactoredRows], weight: Tensor) -> tuple[Tensor, AddGradient]:
    """Compute :func:`multiply` of rows without a gradient, and what adds that of the weight.

    For the kernels of a GPU, inside an autograd function.

    Args:
        blocks: Factored blocks without a floor.
        weight: (I, H).

    Returns:
        (M B, H), and a function of its gradient and of another gradient (I, H) for the weight, or
        None, which it overwrites.
    """
    left, items, edges = _factors(blocks, weight.dtype)
    count, num_rows, dim = left.shape
    through = (items.T @ weight).view(count, dim, -1)
    on_edges = ops.spmm(edges, weight).view(count, num_rows, -1)

    def add_gradient(grad: Tensor, to: Tensor | None) -> Tensor:
        of_through = torch.bmm(left.mT, grad.view(count, num_rows, -1)).flatten(0, 1)
        return spmm_added(edges.transpose(), grad, added_product(to, items, of_through))

    return torch.baddbmm(on_edges, left, through).flatten(0, 1), add_gradient


def constant(blocks: Sequence[FactoredRows]) -> bool:
    """Whether no block has a gradient."""
    parts = (t for b in blocks for t in (b.left, b.item_emb, b.value))
    return not any(t.requires_grad for t in parts)


def _factors(
    blocks: Sequence[FactoredRows], dtype: torch.dtype
) -> tuple[Tensor, Tensor, GraphView]:
    """Return the rows (M, B, D), the items (I, M D) and the (M B, I) matrix of the sparse parts."""
    left = _joined([block.left for block in blocks], 0).to(dtype)
    items = _joined([block.item_emb.transpose(0, 1).flatten(1) for block in blocks], 1).to(dtype)
    value = _joined([block.value for block in blocks], 0)  # (M, n)
    return left, items, blocks[0].edges.stacked(value)


def _multiply_factored(blocks: Sequence[FactoredRows], weight: Tensor) -> Tensor:
    dtype = weight.dtype
    left, items, edges = _factors(blocks, dtype)
    count, num_rows, dim = left.shape
    through = product(items.T, weight).view(count, dim, -1)  # (M, D, H)
    on_edges = ops.spmm(edges, weight)
    out = batched_affine(left, through, on_edges.view(count, num_rows, -1)).flatten(0, 1)
    if any(block.floor is not None for block in blocks):
        zero = out.new_zeros(num_rows)
        floor = torch.cat(
            [zero.expand(len(b.left), -1) if b.floor is None else b.floor.to(dtype) for b in blocks]
        )
        out = out + floor.reshape(-1, 1) * weight.sum(0)
    return out


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def similarity_rows(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, edges: BatchEdges
) -> FactoredRows:
    """Return the rows of :func:`mmssl.ops.masked_similarity` as factors; differentiable once.

    Args:
        user_emb: (K, U, D), a block of rows for each of the K tables.
        item_emb: (K, I, D).
        users: (B,) int64.
        edges: Edges of the same users; these entries of the rows are 0.
    """
    left, value = similarity_factors(user_emb, item_emb, users, edges)
    return FactoredRows(left, item_emb, edges, value, None)


def joint_similarity_rows(
    feature: tuple[Tensor, Tensor, Tensor],
    final: tuple[Tensor, Tensor],
    users: Tensor,
    edges: BatchEdges,
) -> tuple[FactoredRows, FactoredRows]:
    """Compute :func:`similarity_rows` of the features and of the final embeddings together.

    For the kernels of a GPU and the edges to all items.

    Args:
        feature: (K, U, D) and (K, I, D), and the latter again, for the product with the rows.
        final: (U, D) and (I, D), constants.
        users: (B,) int64.
        edges: Edges of the same users.

    Returns:
        The K blocks of the features, and the same without a gradient with the last one behind them.
    """
    detached = final[0].detach(), final[1].detach()
    user, item, for_product = feature
    left, value, joint = fused_factors(user, item, users, edges.view, detached)
    own = FactoredRows(left, for_product, edges, value, None)
    return own, FactoredRows(joint.left, joint.item_emb, edges, joint.value, None)


def soften(rows: FactoredRows, uniform: Tensor, config: CriticConfig) -> None:
    """Make the last block real rows, see :func:`real_rows`, in the ``sparse`` form on a GPU."""
    view = rows.edges.view
    torch.ops.mmssl.gumbel_rows(
        *(uniform, rows.left[-1], rows.value[-1], view.rowptr, view.col),
        *(config.gumbel_tau, config.gumbel_scale, config.similarity_scale),
    )


def gumbel_form(config: CriticConfig, num_items: int) -> GumbelForm:
    """Return the cheapest form of the Gumbel-softmax row that is exact to float32 rounding.

    - ``sparse``: the temperature divides the whole logit. Off the train items a row then holds at
      most exp(-(1 - 2 noise) / tau) of a train item's share, I times; below the tolerance it is
      left out.
    - ``flat``: the temperature divides only the noise. The logits are 0 and 1 up to noise of
      standard deviation scale / tau * 1.28, so a row is 1/Z everywhere and (e - 1)/Z more on the
      train items. The noise left out has a norm of about that deviation / sqrt(I), against zeta.
    - ``dense``: neither bound holds; the row is formed.
    """
    noise = config.gumbel_scale * _MAX_GUMBEL
    if config.gumbel_divides == "logit":
        tail = math.log(num_items) - (1 - 2 * noise) / config.gumbel_tau
        return "sparse" if tail < math.log(_TOLERANCE) else "dense"
    if config.similarity_scale <= 0:
        return "dense"
    deviation = config.gumbel_scale / config.gumbel_tau * _GUMBEL_STD
    lost = deviation / math.sqrt(num_items) / config.similarity_scale
    return "flat" if lost < 2 * _TOLERANCE else "dense"


def uniform_shape(form: GumbelForm, edges: BatchEdges) -> tuple[int, ...]:
    """Return the shape of the uniform draws that :func:`real_rows` needs."""
    if form == "dense":
        return edges.view.num_rows, edges.view.num_cols
    return (edges.position.numel() if form == "sparse" else 0,)


def real_rows(
    similarity: FactoredRows, uniform: Tensor, config: CriticConfig, form: GumbelForm
) -> Rows:
    """Soften the observed rows by a Gumbel softmax and bridge them to the generated ones.

    ``normalize(softmax(logit(A[users])) + zeta * similarity)``.

    Args:
        similarity: One block of rows of the final embeddings, detached; a GPU overwrites it.
        uniform: Draws from (0, 1) of shape :func:`uniform_shape`.
        config: Temperature, noise and zeta.
        form: Result of :func:`gumbel_form`.
    """
    if form == "dense":
        return DenseRows(dense_real_rows(similarity, uniform, config))
    edges, zeta = similarity.edges, config.similarity_scale
    own_left, own_value = similarity.left[0], similarity.value[0]
    if form == "sparse" and edges.whole and takes_fused(own_left):
        soften(similarity, uniform, config)
        return similarity
    # A similarity row has norm 1 unless it is zero, and no entry on the train items.
    square = zeta**2 * own_left.any(1)
    degree = edges.total(edges.view.rowptr.diff()).to(own_left.dtype)
    floor = None
    if form == "sparse":
        logit = _gumbel(uniform, config) / config.gumbel_tau  # the common 1 / tau cancels
        weight = logit.exp()
        observed = weight / edges.row_sum(weight)[edges.position]
        square = square + edges.row_sum(observed.square())
    else:
        num_items = edges.total(degree.new_full((), edges.view.num_cols))
        floor = 1 / (num_items + (math.e - 1) * degree)
        square = square + floor.square() * (num_items + (math.e**2 - 1) * degree)
        row_sum = own_left @ edges.total(similarity.item_emb[0].sum(0)) + edges.row_sum(own_value)
        square = square + 2 * zeta * floor * row_sum
        observed = ((math.e - 1) * floor)[edges.position]
    scale = square.rsqrt()
    return FactoredRows(
        left=((zeta * scale)[:, None] * own_left)[None],
        item_emb=similarity.item_emb,
        edges=edges,
        value=(scale[edges.position] * (observed + zeta * own_value))[None],
        floor=None if floor is None else (scale * floor)[None],
    )


def dense_real_rows(similarity: FactoredRows, uniform: Tensor, config: CriticConfig) -> Tensor:
    """Form the same rows (B, I) for (B, I) draws: the reference, and the ``dense`` form."""
    edges = similarity.edges
    noise = _gumbel(uniform, config)
    if config.gumbel_divides == "noise":
        noise = noise / config.gumbel_tau
    one = noise.new_ones(()) if edges.live is None else edges.live.to(noise.dtype)
    logit = noise.index_put((edges.position, edges.item), one, accumulate=True)
    if config.gumbel_divides == "logit":
        logit = logit / config.gumbel_tau
    own = dense_similarity(similarity)
    return F.normalize(logit.softmax(1) + config.similarity_scale * own, dim=1)


def dense_similarity(rows: FactoredRows) -> Tensor:
    """Form one block of similarity rows (B, I)."""
    score = rows.left[0] @ rows.item_emb[0].T
    score = score.index_put((rows.edges.position, rows.edges.item), score.new_zeros(()))
    return F.normalize(score, dim=1)


def _gumbel(uniform: Tensor, config: CriticConfig) -> Tensor:
    """Return scaled Gumbel noise, drawn as in the released code."""
    return -config.gumbel_scale * torch.log(_LOG_EPS - torch.log(uniform + _LOG_EPS))
