"""Similarity rows of the critic, and a linear layer applied to them without ever forming them.

Legend: U users, I items, B batch, D embedding dim, H outputs, n train edges of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import GraphView
from mmssl.indexing import edges_of_rows
from mmssl.ops._checks import check_ids, check_shape, check_tensor, check_view
from mmssl.ops.dispatch import use_native
from mmssl.ops.product import product
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


class SimilarityRows(NamedTuple):
    """Rows ``scale * (user @ item_emb.T - masked)``, unit length, zero on the batch's train items.

    Never formed: a product with an (I, H) matrix costs ``D (I + B) H`` for the low-rank part and
    n H for the masked entries, instead of B I H.
    """

    user: Tensor  # (B, D)
    item_emb: Tensor  # (I, D)
    edges: BatchEdges
    masked: Tensor  # (n,) scores of the masked entries
    scale: Tensor  # (B,) 1 / norm, 0 for a zero row

    def factored(self) -> FactoredRows:
        """The same rows with the scale in the factors."""
        value = -self.scale[self.edges.position] * self.masked
        return FactoredRows(self.scale[:, None] * self.user, self.item_emb, self.edges, value, None)


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
    left = torch.stack([block.left for block in blocks]).to(dtype)  # (M, B, D)
    low_rank = left @ product(items.T, weight).view(count, dim, -1)
    out = low_rank.view(count * num_rows, -1)
    out = out + spmm(blocks[0].edges.stacked([block.value for block in blocks]), weight)
    if any(block.floor is not None for block in blocks):
        zero = left.new_zeros(num_rows)
        floor = torch.cat([zero if b.floor is None else b.floor.to(dtype) for b in blocks])
        out = out + floor[:, None] * weight.sum(0)
    return out


def similarity_rows(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, edges: BatchEdges
) -> SimilarityRows:
    """The factors of :func:`mmssl.ops.masked_similarity`'s rows.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        edges: of the same users, which become 0 in the rows.
    """
    user = user_emb[users]
    masked = (user[edges.position] * item_emb[edges.item]).sum(1)
    # ||row||^2 = u^T (E^T E) u - sum of the masked squares, in float64: it is a difference.
    wide_user, wide_item = user.double(), item_emb.double()
    unmasked = ((wide_user @ (wide_item.T @ wide_item)) * wide_user).sum(1)
    square = unmasked - edges.row_sum(masked.double().square())
    kept = square > _ROUNDING_SHARE * unmasked
    norm = torch.where(kept, square, 1.0).sqrt().clamp_min(_EPS)
    scale = torch.where(kept, norm.reciprocal(), 0.0).to(user.dtype)
    return SimilarityRows(user, item_emb, edges, masked, scale)


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
    same saving.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        exclude: (U, I) view; its edges are 0 in the rows.
        weight: (I, H).

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
    return linear([rows.factored()], weight)
