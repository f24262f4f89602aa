"""Normalized similarity rows with some entries masked, and their product with a matrix.

The rows are low rank except for the masked entries, so the product never forms them.

Legend: U users, I items, B batch, D embedding dim, H outputs, n masked edges of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.graph import GraphView
from mmssl.indexing import RowEdges, edges_of_rows, row_edges
from mmssl.ops._autograd import under_torch_func
from mmssl.ops._cases import Bad, Sample, sample_graph
from mmssl.ops._checks import (
    check_ids,
    check_shape,
    check_tables,
    check_tensor,
    check_view,
    is_cpu_half,
    promoted,
    without_autocast,
)
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops._similarity import MOST_BLOCKS, OPERATORS, fused_factors, stacked_edges, takes_fused
from mmssl.ops.dispatch import runs_on_gpu, use_native
from mmssl.ops.product import gram, product
from mmssl.ops.propagate import spmm

# A squared norm is a difference. Below this share of the unmasked squared norm it is rounding error
# only (the user has, in effect, every item), and the row counts as zero.
_ROUNDING_SHARE = 1e-12
_EPS = 1e-12  # the default of torch.nn.functional.normalize


def _all_items(part: Tensor) -> Tensor:
    return part


class BatchEdges(NamedTuple):
    """The edges of a batch of users, indexed in both directions for :func:`mmssl.ops.spmm`.

    Where several processes divide the items, each has the edges to its own; ``total`` adds up what
    they computed of their parts of a sum over the items, without a gradient.
    """

    view: GraphView  # (B, I), without scales or values
    position: Tensor  # (n,) int64, each edge's row in the batch
    item: Tensor  # (n,) int64
    live: Tensor | None = None  # (n,) bool: what is an edge, where the arrays have a capacity
    total: Callable[[Tensor], Tensor] = _all_items

    @classmethod
    def of(cls, edges: RowEdges, total: Callable[[Tensor], Tensor] = _all_items) -> BatchEdges:
        """Return the edges of (B, I) rows in this form."""
        position, item, rowptr, col, t_rowptr, t_col, t_edge, live = edges
        view = GraphView(rowptr, col, t_rowptr, t_col, t_edge=t_edge)
        return cls(view, position, item, live, total)

    @property
    def whole(self) -> bool:
        """Whether these are the edges to all items."""
        return self.total is _all_items

    def with_value(self, value: Tensor) -> GraphView:
        """Return the (B, I) sparse matrix of (n,) edge values."""
        view = self.view
        return GraphView(
            view.rowptr, view.col, view.t_rowptr, view.t_col, value=value, t_edge=view.t_edge
        )

    def dots(self, row: Tensor, column: Tensor) -> Tensor:
        """Return the (n,) products ``<row[b], column[i]>`` of (B, D) and (I, D) over the edges."""
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

    def stacked(self, value: Tensor) -> GraphView:
        """Return the (K B, I) matrix of K blocks of edge values (K, n), one below the other."""
        view, count = self.view, value.shape[0]
        if count == 1:
            return self.with_value(value[0])
        if takes_fused(value):
            return stacked_edges(view, value)
        if self.live is not None:  # a block's last row takes what is behind its edges
            value = value * self.live
        assert view.t_edge is not None
        block = torch.arange(count, device=value.device)
        starts = view.rowptr[:-1] + block[:, None] * view.nnz
        return GraphView(
            rowptr=torch.cat([starts.flatten(), view.rowptr[-1:] * count]),
            col=view.col.repeat(count),
            t_rowptr=view.t_rowptr * count,
            t_col=(view.t_col[:, None] + block.int() * view.num_rows).flatten(),
            value=value.flatten(),
            t_edge=(view.t_edge[:, None] + block * view.nnz).flatten(),
        )

    def row_sum(self, value: Tensor) -> Tensor:
        """Return the (B,) sums of (n,) edge values, over all items."""
        ones = value.new_ones(self.view.num_cols, 1)
        return self.total(spmm(self.with_value(value), ones).squeeze(1))


def edge_capacity(interactions: GraphView, batch_size: int) -> int | None:
    """Return the most edges of a batch of distinct users, for :func:`batch_edges` on a GPU.

    Args:
        interactions: (U, I) view.
        batch_size: B.

    Returns:
        None on the CPU and without kernels, which need no capacity or don't take one.
    """
    if not runs_on_gpu("spmm", interactions.rowptr):
        return None
    return int(interactions.rowptr.diff().topk(batch_size).values.sum())


def batch_edges(interactions: GraphView, users: Tensor, capacity: int | None = None) -> BatchEdges:
    """Gather the edges of a batch; on a GPU this waits once, for their number, or has a capacity.

    Args:
        interactions: (U, I) view.
        users: (B,) int64.
        capacity: Result of :func:`edge_capacity`.
    """
    view = interactions
    return BatchEdges.of(edges_of_rows(view.rowptr, view.col, view.num_cols, users, capacity))


def similarity_factors(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, edges: BatchEdges
) -> tuple[Tensor, Tensor]:
    """Factor the rows of :func:`masked_similarity`; differentiable once.

    The rows are ``left @ item_emb.T`` plus ``value`` on the edges. A product with an (I, H) matrix
    therefore costs ``D (I + B) H`` for the low-rank part and n H for the masked entries, instead of
    B I H.

    Args:
        user_emb: (K, U, D), a block of rows for each of the K tables.
        item_emb: (K, I, D), of the items of ``edges``.
        users: (B,) int64.
        edges: Edges of the same users; these entries of the rows are 0.

    Returns:
        left (K, B, D), the scaled user rows, and value (K, n), the scaled masked entries, negated.
    """
    if edges.whole and takes_fused(user_emb) and len(user_emb) <= MOST_BLOCKS:
        return fused_factors(user_emb, item_emb, users, edges.view)[:2]
    pairs = zip(user_emb, item_emb, strict=True)
    left, value = zip(*(_Factors.apply(*pair, users, edges) for pair in pairs), strict=True)
    return torch.stack(left), torch.stack(value)


class _Factors(torch.autograd.Function):
    """The two factors that are not the item table: scaled user rows, scaled masked entries.

    With u_b a user's row, m_e the scores of its edges and ``G = E^T E``, the squared length of a
    row is ``q_b = u_b^T G u_b - sum_e m_e^2``, and its scale is ``q_b^-1/2``. The difference is
    formed in float64. Backward is written by hand because it can share work that autograd would
    repeat: one product with the item table and one pass over the edges in either direction.
    """

    @staticmethod
    def forward(
        ctx: Any, user_emb: Tensor, item_emb: Tensor, users: Tensor, edges: BatchEdges
    ) -> tuple[Tensor, Tensor]:
        user = user_emb[users]
        masked = edges.dots(user, item_emb)
        wide_user = user.double()
        through = wide_user @ edges.total(gram(item_emb))  # (B, D)
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
            low_rank = scale[:, None] * to_left + to_square[:, None] * through
            rows = low_rank + edges.total(spmm(view, item_emb))
            to_user = user.new_zeros(ctx.num_users, user.shape[1])
            to_user.index_put_((users,), rows, accumulate=True)
        if ctx.needs_input_grad[1]:
            inner = product(user.T, to_square[:, None] * user)  # (D, D)
            to_item = product(item_emb, inner) + spmm(view.transpose(), user)
        return to_user, to_item, None, None


def masked_similarity(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView
) -> Tensor:
    """Compute ``normalize((user_emb[users] @ item_emb.T) * (1 - A[users]))``, forming the rows.

    Args:
        user_emb: (U, D) floating point.
        item_emb: (I, D), same dtype as ``user_emb``.
        users: (B,) int64.
        exclude: (U, I) view A; its edges become 0.

    Returns:
        (B, I) rows of unit length (zero rows stay zero).

    Raises:
        InputError: an argument does not match its description.
    """
    user_emb, item_emb = promoted(user_emb, item_emb)
    check_rows(user_emb, item_emb, users, exclude)
    if is_cpu_half(user_emb):
        wide = masked_similarity(user_emb.float(), item_emb.float(), users, exclude)
        return wide.to(user_emb.dtype)
    use_native("masked_similarity", user_emb.device.type)
    with without_autocast(user_emb):
        return masked_similarity_reference(user_emb, item_emb, users, exclude)


def check_rows(user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView) -> None:
    """Raise InputError unless these are valid arguments of :func:`masked_similarity`."""
    check_tables(user_emb, item_emb)
    check_ids("users", users, user_emb.shape[0], user_emb.device)
    check_view("exclude", exclude, shape=(user_emb.shape[0], item_emb.shape[0]))


def masked_similarity_linear(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView, weight: Tensor
) -> Tensor:
    """Compute ``masked_similarity(user_emb, item_emb, users, exclude) @ weight`` without the rows.

    The result is exact up to rounding. The rows are low rank except for the masked entries, so the
    cost is about ``D/B + D/I`` of the dense product; gradients flow to the embeddings and to
    ``weight`` at the same saving. Double backward is not supported for the embeddings.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        exclude: (U, I) view; its edges are 0 in the rows.
        weight: (I, H), in the dtype of the embeddings.

    Returns:
        (B, H).

    Raises:
        InputError: an argument does not match its description.
    """
    user_emb, item_emb, weight = promoted(user_emb, item_emb, weight)
    check_rows(user_emb, item_emb, users, exclude)
    check_tensor("weight", weight, dims="(I, H)", like=item_emb)
    check_shape("weight", weight, (item_emb.shape[0], max(weight.shape[1], 1)))
    if is_cpu_half(user_emb):
        tables = user_emb.float(), item_emb.float()
        wide = masked_similarity_linear(*tables, users, exclude, weight.float())
        return wide.to(user_emb.dtype)
    native = use_native("masked_similarity_linear", user_emb.device.type, user_emb.dtype)
    with without_autocast(user_emb):
        if not native or under_torch_func():
            return masked_similarity_linear_reference(user_emb, item_emb, users, exclude, weight)
        edges = batch_edges(exclude, users)
        left, value = similarity_factors(user_emb[None], item_emb[None], users, edges)
        low_rank = product(left[0], product(item_emb.T, weight))
        return low_rank + spmm(edges.with_value(value[0]), weight)


def masked_similarity_reference(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView
) -> Tensor:
    """Compute :func:`masked_similarity` in plain PyTorch."""
    score = user_emb[users] @ item_emb.T
    position, item, _ = row_edges(exclude.rowptr, exclude.col, users)
    return F.normalize(score.index_put((position, item), score.new_zeros(())), dim=1)


def masked_similarity_linear_reference(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView, weight: Tensor
) -> Tensor:
    """Compute :func:`masked_similarity_linear` in plain PyTorch, with the (B, I) rows."""
    return masked_similarity_reference(user_emb, item_emb, users, exclude) @ weight


def _samples(dtype: torch.dtype, outputs: bool) -> Iterator[Sample]:
    def sample(label: str, u: int, i: int, d: int, edges: int, batch: int, h: int) -> Sample:
        generator = torch.Generator().manual_seed(u + i)
        user, item = (torch.randn(n, d, generator=generator).to(dtype) for n in (u, i))
        arguments = {
            "user_emb": user,
            "item_emb": item,
            "users": torch.randint(u, (batch,), generator=generator),
            "exclude": sample_graph(u, i, edges).ui,
        }
        if outputs:
            arguments["weight"] = torch.randn(i, h, generator=generator).to(dtype)
        return Sample(label, arguments, tiny=u < 20)

    yield sample("typical", 6, 5, 3, 8, 3, 4)
    yield sample("one user", 1, 4, 2, 1, 1, 1)
    yield sample("no user in the batch", 3, 4, 2, 5, 0, 2)
    yield sample("no edge", 3, 4, 2, 0, 2, 2)
    yield sample("odd sizes", 11, 13, 7, 40, 5, 3)
    yield sample("large", 300, 200, 33, 4000, 64, 8)
    strided = sample("strided", 6, 8, 4, 9, 3, 2).arguments
    yield Sample("strided", {**strided, "user_emb": strided["user_emb"].T.contiguous().T})


def _bad() -> Iterator[Bad]:
    user, item = torch.zeros(6, 3), torch.zeros(5, 3)
    yield Bad("user_emb", None, "user_emb: expected a torch.Tensor, got NoneType")
    yield Bad("user_emb", user.int(), "user_emb: expected a floating point dtype, got torch.int32")
    yield Bad("item_emb", item[0], r"item_emb: expected shape \(I, D\), got \(3,\)")
    yield Bad("item_emb", item[:, :2], r"item_emb: expected shape \(5, 3\), got \(5, 2\)")
    yield Bad("item_emb", item.to("meta"), "item_emb: expected device cpu, got meta")
    yield Bad("users", torch.tensor([0, 6]), r"users: expected ids in \[0, 6\), got 6")
    yield Bad("users", user[0], r"users: expected shape \(B,\) int64, got \(3,\) torch.float32")
    graph = sample_graph(6, 5, 3)
    message = r"exclude: expected a view of shape \(6, 5\), got \(5, 6\)"
    yield Bad("exclude", graph.iu, message)
    yield Bad("exclude", None, "exclude: expected a GraphView, such as graph.ui, got NoneType")


def _linear_bad() -> Iterator[Bad]:
    yield from _bad()
    weight = torch.zeros(5, 4)
    yield Bad("weight", None, "weight: expected a torch.Tensor, got NoneType")
    yield Bad("weight", weight[:4], r"weight: expected shape \(5, 4\), got \(4, 4\)")
    yield Bad("weight", weight.double(), "weight: expected dtype torch.float32, like the other")


declare(
    Op(
        masked_similarity,
        Contract(
            lambda dtype: _samples(dtype, False),
            _bad,
            differentiable=("user_emb", "item_emb"),
            derivatives=2,
        ),
        Words(
            "normalized score rows with train items at 0",
            "nothing: it returns the B x I matrix",
            page="masked_similarity_linear",
        ),
        folder="-",
    )
)
declare(
    Op(
        masked_similarity_linear,
        Contract(
            lambda dtype: _samples(dtype, True),
            _linear_bad,
            differentiable=("user_emb", "item_emb", "weight"),
        ),
        Words(
            "a linear layer on these rows",
            "a B x I matrix",
            notes=dict.fromkeys(("cpu", "cuda"), "PyTorch products around `spmm`"),
        ),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        gpu_operators=OPERATORS,
        folder="similarity",
    )
)
