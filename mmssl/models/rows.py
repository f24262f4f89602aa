"""The rows the critic is shown, as factors: what a linear layer makes of them without forming them.

A generated row is low rank but for the user's train items. A real row is the softened observed row
plus zeta times such a row; whether the softened part has a closed form depends on the temperature,
see :func:`gumbel_form`.

Legend: U users, I items, B batch, H outputs, n train edges of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.config import CriticConfig
from mmssl.ops.product import product
from mmssl.ops.similarity import BatchEdges, FactoredRows, linear

# Keeps both logarithms of the released Gumbel draw finite, and so the draw within +-18.5.
_LOG_EPS = 1e-8
_MAX_GUMBEL = 18.5
_GUMBEL_STD = math.pi / math.sqrt(6)

# What a row may deviate from its dense form, relative to its norm: four float32 roundings.
_TOLERANCE = 2.0**-22

GumbelForm = Literal["sparse", "flat", "dense"]


class DenseRows(NamedTuple):
    """Rows that are really there."""

    rows: Tensor  # (B, I)


Rows = FactoredRows | DenseRows


def linear_rows(blocks: Sequence[Rows], weight: Tensor) -> Tensor:
    """(M B, H): M blocks of B rows of one batch, times an (I, H) weight of the wanted dtype."""
    factored = [block for block in blocks if isinstance(block, FactoredRows)]
    if len(factored) == len(blocks):
        return linear(factored, weight)
    parts = [
        linear([block], weight)
        if isinstance(block, FactoredRows)
        else product(block.rows.to(weight.dtype), weight)
        for block in blocks
    ]
    return torch.cat(parts)


def gumbel_form(config: CriticConfig, num_items: int) -> GumbelForm:
    """The cheapest form of the Gumbel-softmax row that is exact to float32 rounding.

    - ``sparse``: the temperature divides the whole logit. Off the train items a row then holds at
      most exp(-(1 - 2 noise) / tau) of a train item's share, I times; below the tolerance it is
      left out.
    - ``flat``: the temperature divides only the noise. The logits are 0 and 1 up to noise of
      standard deviation scale / tau * 1.28, so a row is 1/Z everywhere and (e - 1)/Z more on the
      train items. The noise left out has norm of about that deviation / sqrt(I), beside zeta.
    - ``dense``: where neither bound holds; the row is formed.
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
    """Shape of the uniform draws that :func:`real_rows` needs."""
    if form == "dense":
        return edges.view.num_rows, edges.view.num_cols
    return (edges.position.numel() if form == "sparse" else 0,)


def real_rows(
    similarity: FactoredRows, uniform: Tensor, config: CriticConfig, form: GumbelForm
) -> Rows:
    """Observed rows softened by a Gumbel softmax and bridged to the generated ones.

    ``normalize(softmax(logit(A[users])) + zeta * similarity)``.

    Args:
        similarity: B rows of the final embeddings, detached.
        uniform: draws from (0, 1), shaped by :func:`uniform_shape`.
        config: temperature, noise and zeta.
        form: of :func:`gumbel_form`.
    """
    if form == "dense":
        return DenseRows(dense_real_rows(similarity, uniform, config))
    own, edges, zeta = similarity, similarity.edges, config.similarity_scale
    # A similarity row has norm 1 unless it is zero, and no entry on the train items.
    square = zeta**2 * own.left.any(1)
    degree = edges.view.rowptr.diff().to(own.left.dtype)
    floor = None
    if form == "sparse":
        logit = _gumbel(uniform, config) / config.gumbel_tau  # the common 1 / tau cancels
        weight = logit.exp()
        observed = weight / edges.row_sum(weight)[edges.position]
        square = square + edges.row_sum(observed.square())
    else:
        num_items = edges.view.num_cols
        floor = 1 / (num_items + (math.e - 1) * degree)
        square = square + floor.square() * (num_items + (math.e**2 - 1) * degree)
        square = square + 2 * zeta * floor * own.row_sum()
        observed = ((math.e - 1) * floor)[edges.position]
    scale = square.rsqrt()
    return FactoredRows(
        left=(zeta * scale)[:, None] * own.left,
        item_emb=own.item_emb,
        edges=edges,
        value=scale[edges.position] * (observed + zeta * own.value),
        floor=None if floor is None else scale * floor,
    )


def dense_real_rows(similarity: FactoredRows, uniform: Tensor, config: CriticConfig) -> Tensor:
    """The same rows (B, I), formed, for (B, I) draws: the reference, and the ``dense`` form."""
    edges = similarity.edges
    noise = _gumbel(uniform, config)
    if config.gumbel_divides == "noise":
        noise = noise / config.gumbel_tau
    one = noise.new_ones(())
    logit = noise.index_put((edges.position, edges.item), one, accumulate=True)
    if config.gumbel_divides == "logit":
        logit = logit / config.gumbel_tau
    own = dense_similarity(similarity)
    return F.normalize(logit.softmax(1) + config.similarity_scale * own, dim=1)


def dense_similarity(rows: FactoredRows) -> Tensor:
    """(B, I): similarity rows, formed."""
    score = rows.left @ rows.item_emb.T
    score = score.index_put((rows.edges.position, rows.edges.item), score.new_zeros(()))
    return F.normalize(score, dim=1)


def _gumbel(uniform: Tensor, config: CriticConfig) -> Tensor:
    """Scaled Gumbel noise, as the released code draws it."""
    return -config.gumbel_scale * torch.log(_LOG_EPS - torch.log(uniform + _LOG_EPS))
