"""Similarity rows of the critic, and a linear layer applied to them without ever forming them.

Legend: U users, I items, B batch, D embedding dim, H outputs, n train edges of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import GraphView
from mmssl.indexing import edges_of_rows
from mmssl.ops._checks import check_ids, check_shape, check_tensor, check_view
from mmssl.ops.dispatch import use_native
from mmssl.ops.product import gram, product
from mmssl.ops.propagate import spmm
from mmssl.ops.reference import masked_similarity_reference

# Squared norms are differences; below this share of the unmasked norm nothing but rounding is left
# (the user has, in effect, every item), and the row counts as zero.
_ROUNDING_SHARE = 1e-12
_EPS = 1e-12  # of torch.nn.functional.normalize


class BatchEdges(NamedTuple):
    """The edges of some users, indexed both ways for :func:`mmssl.ops.spmm`."""

    view: GraphView  # (B, I), without scales or values
    position: Tensor  # (n,) int64 row in the batch of each edge
    item: Tensor  # (n,) int64

    def with_value(self, value: Tensor) -> GraphView:
        """The (B, I) sparse matrix of (n,) edge values."""
        view = self.view
        return GraphView(
            view.rowptr, view.col, view.t_rowptr, view.t_col, value=value, t_edge=view.t_edge
        )

    def stacked(self, values: Sequence[Tensor]) -> GraphView:
        """The (M B, I) sparse matrix of M blocks of (n,) edge values, one below the other."""
        view, count, value = self.view, len(values), torch.cat(list(values))
        if count == 1:
            return self.with_value(value)
        assert view.t_edge is not None
        block = torch.arange(count, device=value.device)
        starts = view.rowptr[:-1] + block[:, None] * view.nnz
        return GraphView(
            rowptr=torch.cat([starts.flatten(), view.rowptr[-1:] * count]),
            col=view.col.repeat(count),
            t_rowptr=view.t_rowptr * count,
            t_col=(view.t_col[:, None] + block.int() * view.num_rows).flatten(),
            value=value,
            t_edge=(view.t_edge[:, None] + block * view.nnz).flatten(),
        )

    def dots(self, row: Tensor, column: Tensor) -> Tensor:
        """(n,) products ``<row[b], column[i]>`` of (B, D) and (I, D) over the edges."""
        if not use_native("spmm", row.device.type, row.dtype):
            return (row[self.position] * column[self.item]).sum(1)
        view = self.view
        out: Tensor = torch.ops.mmssl.spmm_value_grad(
            row,
            column,
            view.rowptr,
            view.col,
            view.t_rowptr,
            view.t_col,
            None,
            None,
            None,
            view.t_edge,
        )
        return out.to(row.dtype)

    def row_sum(self, value: Tensor) -> Tensor:
        """(B,) sums of (n,) edge values."""
        ones = value.new_ones(self.view.num_cols, 1)
        return spmm(self.with_value(value), ones).squeeze(1)


def batch_edges(interactions: GraphView, users: Tensor) -> BatchEdges:
    """Gathers the edges of a batch; on a GPU with one wait, for their number.

    Args:
        interactions: (U, I) view.
        users: (B,) int64.
    """
    view = interactions
    edges = edges_of_rows(view.rowptr, view.col, view.num_cols, users)
    position, item, rowptr, col, t_rowptr, t_col, t_edge = edges
    return BatchEdges(GraphView(rowptr, col, t_rowptr, t_col, t_edge=t_edge), position, item)


class FactoredRows(NamedTuple):
    """Rows ``left @ item_emb.T + sparse + floor``, never formed."""

    left: Tensor  # (B, D)
    item_emb: Tensor  # (I, D)
    edges: BatchEdges
    value: Tensor  # (n,) the sparse part, on the batch's edges
    floor: Tensor | None  # (B,) what is added to every entry of a row; None: 0

    def row_sum(self) -> Tensor:
        """(B,) sums over the items of each row."""
        total = self.left @ self.item_emb.sum(0) + self.edges.row_sum(self.value)
        if self.floor is not None:
            total = total + self.floor * self.item_emb.shape[0]
        return total


def linear(blocks: Sequence[FactoredRows], weight: Tensor) -> Tensor:
    """The rows of M blocks over the same edges, times a weight; one pass over it for all blocks.

    Args:
        blocks: M blocks of B rows of length I, of one batch of users.
        weight: (I, H); its dtype is the dtype of the products.

    Returns:
        (M B, H).
    """
    count, (num_rows, dim) = len(blocks), blocks[0].left.shape
    dtype = weight.dtype
    items = torch.cat([block.item_emb for block in blocks], 1).to(dtype)  # (I, M D)
    through = product(items.T, weight).view(count, dim, -1)  # (M, D, H)
    pairs = zip(blocks, through, strict=True)
    out = torch.cat([product(block.left.to(dtype), right) for block, right in pairs])
    out = out + spmm(blocks[0].edges.stacked([block.value for block in blocks]), weight)
    if any(block.floor is not None for block in blocks):
        zero = out.new_zeros(num_rows)
        floor = torch.cat([zero if b.floor is None else b.floor.to(dtype) for b in blocks])
        out = out + floor[:, None] * weight.sum(0)
    return out


def similarity_rows(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, edges: BatchEdges
) -> FactoredRows:
    """:func:`mmssl.ops.masked_similarity`'s rows, in factors; differentiable once.

    They are of unit length and zero on the edges: ``scale * (user @ item_emb.T - masked)``. A
    product with an (I, H) matrix costs ``D (I + B) H`` for the low-rank part and n H for the masked
    entries, instead of B I H.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        edges: of the same users, which become 0 in the rows.
    """
    left, value = _Factors.apply(user_emb, item_emb, users, edges)
    return FactoredRows(left, item_emb, edges, value, None)


class _Factors(torch.autograd.Function):
    """The two factors that are not the item table: scaled user rows, scaled masked entries.

    With u_b a user's row, m_e the scores of its edges and ``G = E^T E``, the squared length of a
    row is ``q_b = u_b^T G u_b - sum_e m_e^2``, in float64 since it is a difference, and the scale
    ``q_b^-1/2``. Written out, backward shares what it can: one product with the item table and one
    pass over the edges in either direction.
    """

    @staticmethod
    def forward(
        ctx: Any, user_emb: Tensor, item_emb: Tensor, users: Tensor, edges: BatchEdges
    ) -> tuple[Tensor, Tensor]:
        user = user_emb[users]
        masked = edges.dots(user, item_emb)
        wide_user = user.double()
        through = wide_user @ gram(item_emb)  # (B, D)
        unmasked = (through * wide_user).sum(1)
        square = unmasked - edges.row_sum(masked.double().square())
        kept = square > _ROUNDING_SHARE * unmasked
        norm = torch.where(kept, square, 1.0).sqrt().clamp_min(_EPS)
        scale = torch.where(kept, norm.reciprocal(), 0.0).to(user.dtype)
        ctx.edges, ctx.num_users = edges, user_emb.shape[0]
        ctx.save_for_backward(users, user, item_emb, masked, through.to(user.dtype), scale)
        return scale[:, None] * user, -scale[edges.position] * masked

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        users, user, item_emb, masked, through, scale = ctx.saved_tensors
        (to_left, to_value), edges = grads, ctx.edges
        to_scale = (to_left * user).sum(1) - edges.row_sum(to_value * masked)
        # A scale at its bound is a constant.
        to_square = torch.where(scale < 1 / _EPS, -scale.pow(3) * to_scale, 0.0)  # twice it
        per_edge = torch.stack([scale, to_square], 1)[edges.position]  # (n, 2)
        to_masked = -torch.addcmul(per_edge[:, 0] * to_value, per_edge[:, 1], masked)
        view = edges.with_value(to_masked)
        to_user = to_item = None
        if ctx.needs_input_grad[0]:
            rows = scale[:, None] * to_left + to_square[:, None] * through + spmm(view, item_emb)
            to_user = user.new_zeros(ctx.num_users, user.shape[1])
            to_user.index_put_((users,), rows, accumulate=True)
        if ctx.needs_input_grad[1]:
            inner = product(user.T, to_square[:, None] * user)  # (D, D)
            to_item = product(item_emb, inner) + spmm(view.transpose(), user)
        return to_user, to_item, None, None


def masked_similarity(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView
) -> Tensor:
    """``normalize((user_emb[users] @ item_emb.T) * (1 - A[users]))``, with the rows written out.

    Args:
        user_emb: (U, D) floating point.
        item_emb: (I, D), in its dtype.
        users: (B,) int64.
        exclude: (U, I) view A; its edges become 0.

    Returns:
        (B, I) rows of unit length (zero rows stay zero).

    Raises:
        InputError: an argument is not as above.
    """
    check_rows(user_emb, item_emb, users, exclude)
    use_native("masked_similarity", user_emb.device.type)
    return masked_similarity_reference(user_emb, item_emb, users, exclude)


def check_rows(user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView) -> None:
    """Raises InputError unless these are the arguments of :func:`masked_similarity`."""
    check_tensor("user_emb", user_emb, dims="(U, D)")
    check_tensor("item_emb", item_emb, dims="(I, D)", like=user_emb)
    check_shape("item_emb", item_emb, (item_emb.shape[0], user_emb.shape[1]))
    check_ids("users", users, user_emb.shape[0], user_emb.device)
    check_view("exclude", exclude)
    expected, got = (
        (user_emb.shape[0], item_emb.shape[0]),
        (exclude.num_rows, exclude.num_cols),
    )
    if got != expected:
        raise InputError(f"exclude: expected a view of shape {expected}, got {got}")


def masked_similarity_linear(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView, weight: Tensor
) -> Tensor:
    """``masked_similarity(user_emb, item_emb, users, exclude) @ weight`` without the (B, I) rows.

    Exact up to rounding. Rows are low rank but for the masked entries, so the cost is about
    ``D/B + D/I`` of the dense product; gradients flow to the embeddings and to ``weight`` at the
    same saving. Those of the embeddings can't be differentiated again.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        exclude: (U, I) view; its edges are 0 in the rows.
        weight: (I, H), in the dtype of the embeddings.

    Returns:
        (B, H).

    Raises:
        InputError: an argument is not as above.
    """
    check_rows(user_emb, item_emb, users, exclude)
    check_tensor("weight", weight, dims="(I, H)", like=item_emb)
    check_shape("weight", weight, (item_emb.shape[0], weight.shape[1]))
    if not use_native("masked_similarity_linear", user_emb.device.type, user_emb.dtype):
        return masked_similarity_reference(user_emb, item_emb, users, exclude) @ weight
    rows = similarity_rows(user_emb, item_emb, users, batch_edges(exclude, users))
    return linear([rows], weight)
