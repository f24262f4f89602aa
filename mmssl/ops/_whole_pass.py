"""The forward pass of MMSSL as one node of the autograd graph, for the kernels of a GPU.

:meth:`mmssl.models.mmssl.model.MMSSL.forward` is the same by autograd. Written out, what several
uses of a table add to its gradient is added by the kernels that compute it, both sides of the graph
share launches, and neither zeros nor copies are made for parts of a table.

Legend: U users, I items, N = U + I, D embedding dim, M modalities, H heads, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl.graph import InteractionGraph
from mmssl.ops._autograd import Operator
from mmssl.ops.keep_mask import ColumnDropout
from mmssl.ops.propagate import propagate_packed, spmm, spmm_added

MOST_LAYERS = 7
"""Layers behind the first that one kernel averages."""
MOST_MODALITIES = 7
"""Blocks, but one, that one kernel gathers."""


class Constants(NamedTuple):
    """What a pass reads and does not differentiate."""

    num_heads: int
    num_layers: int  # L
    num_feature_layers: int
    id_weight: float
    feat_weight: float
    dropout: float
    graph: InteractionGraph
    modality_graphs: Sequence[InteractionGraph]  # M
    features: Sequence[Tensor]  # (I, d_m) each, in the dtype of the parameters


class Parameters(NamedTuple):
    """The parameters, of one dtype."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    query: Tensor  # (D, D)
    key: Tensor  # (D, D)
    output: Tensor  # (H D, D)


class _WholePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, constants: Constants, user: Tensor, item: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.constants, ctx.parameters = constants, Parameters(user, item, *weights[:3])
        graph, p = constants.graph, ctx.parameters
        dim, count = user.shape[1], len(constants.features)
        layers = list(zip(constants.features, weights[3::2], weights[4::2], strict=True))
        ctx.dropout = ColumnDropout.draw(count, constants.dropout, user.device)
        if ctx.dropout is None:
            projected = torch.cat([torch.addmm(bias, raw, w.T) for raw, w, bias in layers], 1)
        else:
            projected = item.new_empty(item.shape[0], count * dim)
            for part, (raw, w, _) in zip(projected.split(dim, 1), layers, strict=True):
                torch.mm(raw, w.T, out=part)
            projected = ctx.dropout.apply(projected, weights[4::2])
        of_items = projected
        for _ in range(constants.num_feature_layers):
            of_users = spmm(graph.ui, of_items)  # (U, M D)
            of_items = spmm(graph.iu, of_users)
        features = [t.view(-1, count, dim).transpose(0, 1) for t in (of_users, of_items)]

        pairs = [(g.ui, g.iu) for g in constants.modality_graphs]
        views = propagate_packed(
            [view for pair in pairs for view in pair], [item, user] * count
        ).view(count, -1, dim)
        rows = views.flatten(0, 1)
        ctx.query, ctx.key = ((rows @ w).view_as(views) for w in (p.query, p.key))
        ctx.heads = torch.ops.mmssl.view_attention(ctx.query, ctx.key, views, constants.num_heads)
        users = user.shape[0]
        mixed = [part[None] for part in (ctx.heads @ p.output).split([users, item.shape[0]])]
        packed, ctx.mixed_inverse = normalized_tables([user, item], mixed, 1.0, constants.id_weight)
        layered = [[packed[:users]], [packed[users:]]]
        for _ in range(constants.num_layers):
            layered[0].append(spmm(graph.ui, layered[1][-1]))
            layered[1].append(spmm(graph.iu, layered[0][-1]))
        flat = [*layered[0], *layered[1]]
        share = 1 / (constants.num_layers + 1)
        final, ctx.inverse = normalized_tables(flat, features, share, constants.feat_weight)
        ctx.views, ctx.mixed, ctx.features = views, mixed, features
        ctx.set_materialize_grads(False)
        sides = views[:, :users], views[:, users:]
        again = (part.view_as(part) for part in (*features, features[1]))
        return final[:users], final[users:], *features, *sides, *again

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        constants: Constants = ctx.constants
        graph, raw = constants.graph, constants.features
        graphs = constants.modality_graphs
        p: Parameters = ctx.parameters
        features = ctx.features
        count, (users, dim) = len(raw), p.user.shape
        tables = p.user, p.item
        to_user, to_item = (
            torch.zeros_like(t) if g is None else g.contiguous()
            for g, t in zip(grads[:2], tables, strict=True)
        )
        more = [*grads[2:4], *grads[6:8], None, grads[8]]  # of users, of items, of users ...
        both = [to_user, to_item]
        of_features = normalized_tables_backward(
            both, features, ctx.inverse, more, constants.feat_weight
        ).flatten(1)  # (N, M D)

        # The sum of the layers, whose gradient is scaled where it is read.
        share = 1 / (constants.num_layers + 1)
        ui, iu = graph.ui.transpose(), graph.iu.transpose()
        last_item = to_item
        for _ in range(constants.num_layers):
            last_user = spmm_added(iu, last_item, to_user)
            last_item = spmm_added(ui, last_user, to_item)
        of_sums = [to_user, last_item]

        of_mixed = normalized_tables_backward(
            of_sums, ctx.mixed, ctx.mixed_inverse, [], share * constants.id_weight
        ).flatten(1)  # (N, D)
        of_output = ctx.heads.T @ of_mixed
        of_query, of_key, of_views = torch.ops.mmssl.view_attention_backward(
            of_mixed @ p.output.T, ctx.query, ctx.key, ctx.views, constants.num_heads
        )
        for part, grad in ((of_views[:, :users], grads[4]), (of_views[:, users:], grads[5])):
            if grad is not None:
                part += grad
        rows, flat = ctx.views.flatten(0, 1), of_views.flatten(0, 1)  # (M N, D)
        scores = of_query.flatten(0, 1), of_key.flatten(0, 1)
        of_weights = [rows.T @ grad for grad in scores]
        for grad, weight in zip(scores, (p.query, p.key), strict=True):
            flat.addmm_(grad, weight.T)

        sparse = [view.transpose() for g in graphs for view in (g.ui, g.iu)]
        sides = [part for view in of_views for part in (view[:users], view[users:])]
        packed = propagate_packed(sparse, sides)  # items, users, items ...
        parts = packed.split([len(p.item), users] * count)
        of_tables = torch._foreach_add([parts[1], parts[0]], of_sums, alpha=share)
        for n in range(1, count):
            torch._foreach_add_(of_tables, [parts[2 * n + 1], parts[2 * n]])

        hop_users: Tensor | None = of_features[:users]
        hop_items = of_features[users:]
        for _ in range(constants.num_feature_layers):
            through = spmm(iu, hop_items) if hop_users is None else None
            if hop_users is not None:
                through = spmm_added(iu, hop_items, hop_users)
            assert through is not None
            hop_users, hop_items = None, spmm(ui, through)
        if ctx.dropout is not None:
            hop_items = ctx.dropout.apply(hop_items)
        of_bias = hop_items.sum(0).view(count, dim)
        of_modality = hop_items.view(-1, count, dim).unbind(1)
        projections = [
            grad for n, part in enumerate(of_modality) for grad in (part.T @ raw[n], of_bias[n])
        ]
        return None, *of_tables, *of_weights, of_output, *projections


def whole_pass(
    constants: Constants, parameters: Parameters, projections: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, ...]:
    """Compute the embeddings of every user and item in train mode; differentiable once.

    Args:
        constants: The attention is cross-modal, and the last layer has no softmax.
        parameters: Embeddings and attention.
        projections: Weight (D, d_m) and bias (D,) of every modality.

    Returns:
        The tensors of :class:`mmssl.models.mmssl.model.MultiModalEmbeddings`.
    """
    flat = [tensor for pair in projections for tensor in pair]
    out: tuple[Tensor, ...] = _WholePass.apply(constants, *parameters, *flat)
    return out


def normalized_tables(
    layers: Sequence[Tensor], x: Sequence[Tensor], scale: float, weight: float
) -> tuple[Tensor, Tensor]:
    """Add normalized views to both tables, users and items, in one launch.

    Not differentiable; for use inside an autograd function.

    Args:
        layers: The layers (N, D) of the first table, then as many of the second. The base of a
            table is ``scale`` times their sum.
        x: The views (M, N, D) of both tables.
        scale: A number.
        weight: Of the views.

    Returns:
        The rows of both tables (N1 + N2, D), and what the gradient reads.
    """
    out, inverse = torch.ops.mmssl.normalized_tables(layers, x, scale, weight)
    return out, inverse


def normalized_tables_backward(
    grads: Sequence[Tensor],
    x: Sequence[Tensor],
    inverse: Tensor,
    more: Sequence[Tensor | None],
    weight: float,
) -> Tensor:
    """Compute the gradient of :func:`normalized_tables` for the views, and add more to it.

    Args:
        grads: (N, D) for each table.
        x: As there.
        inverse: The second result.
        more: (M, N, D) or None for each table, up to three of these pairs.
        weight: As there.

    Returns:
        (N1 + N2, M, D).
    """
    backward = torch.ops.mmssl.normalized_tables_backward
    out: Tensor = backward(grads, x, inverse, more, weight)
    return out


def _tables_fake(layers: Sequence[Tensor], x: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    rows = sum(t.shape[1] for t in x)
    return x[0].new_empty(rows, x[0].shape[2]), x[0].new_empty(x[0].shape[0], rows)


def _tables_backward_fake(grads: Sequence[Tensor], x: Sequence[Tensor], *_: Any) -> Tensor:
    return x[0].new_empty(sum(t.shape[1] for t in x), x[0].shape[0], x[0].shape[2])


OPERATORS = (
    Operator("normalized_tables", fake=_tables_fake),
    Operator("normalized_tables_backward", fake=_tables_backward_fake),
)
