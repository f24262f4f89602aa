"""The peers of the ops: the package that each needs, and what it leaves out.

A maker binds a peer to a problem and returns the callable that is timed. If a package, a device or
memory is missing, it raises `Missing` with the reason, which becomes a line of the result.
``pip install -r benchmarks/requirements-peers.txt`` has the packages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.peers.registry import Missing, compiled, require, with_backend
from mmssl import ops
from mmssl.graph import GraphView
from mmssl.indexing import row_edges
from mmssl.ops.info_nce import info_nce_reference

Product = Callable[[Tensor], Tensor]  # (C, D) -> (R, D)
Loss = Callable[[Tensor, Tensor], Tensor]  # anchor, positive (N, D) -> ()
Lists = tuple[Tensor, Tensor]  # scores, items (B, k)
CHUNK = 1024  # rows of "chunked"


# --- sparse products -----------------------------------------------------------------------------


def _values(view: GraphView) -> Tensor:
    """(E,) the weights of the edges, written out."""
    value = torch.ones(view.nnz, device=view.device)
    if view.row_scale is not None:
        value = value * view.row_scale[view.row_of_edge()]
    return value if view.col_scale is None else value * view.col_scale[view.col.long()]


def _csr(view: GraphView, dtype: torch.dtype = torch.float32) -> Tensor:
    size = (view.num_rows, view.num_cols)
    return torch.sparse_csr_tensor(view.rowptr, view.col.long(), _values(view).to(dtype), size)


def _torch_csr(view: GraphView) -> Product:
    matrix = _csr(view)
    return lambda x: matrix @ x


def _torch_coo(view: GraphView) -> Product:
    matrix = _csr(view).to_sparse_coo().coalesce()
    return lambda x: torch.sparse.mm(matrix, x)


class _Pair(torch.autograd.Function):
    """A matrix for each direction, so that backward needs no transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiply: Any, transposed: Any) -> Tensor:
        ctx.transposed = transposed
        return multiply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed(grad), None, None


def _kept_transpose(view: GraphView) -> Product:
    """One CSR per direction, as written by hand."""
    matrix, transposed = _csr(view), _csr(view.transpose())
    return lambda x: _Pair.apply(x, matrix.__matmul__, transposed.__matmul__)


def _scipy(view: GraphView) -> Product:
    """One CSR for each direction; scipy uses one thread."""
    sparse = require("scipy.sparse", "scipy")
    if view.device.type != "cpu":
        raise Missing("scipy: CPU only")

    def product(view: GraphView) -> Callable[[Tensor], Tensor]:
        m = _csr(view)
        arrays = (m.values().numpy(), view.col.numpy(), m.crow_indices().numpy())
        matrix = sparse.csr_matrix(arrays, shape=(view.num_rows, view.num_cols))
        return lambda x: torch.from_numpy(matrix @ x.detach().numpy())

    there, back = product(view), product(view.transpose())
    return lambda x: _Pair.apply(x, there, back)


def _torch_sparse(view: GraphView) -> Product:
    module = require("torch_sparse", "torch-sparse")
    sparse = module.SparseTensor(
        rowptr=view.rowptr, col=view.col.long(), value=_values(view),
        sparse_sizes=(view.num_rows, view.num_cols), is_sorted=True,
    )  # fmt: skip
    return lambda x: module.matmul(sparse, x)


def _torch_geometric(view: GraphView) -> Product:
    """A convolution over an edge list: gather, weigh, scatter-add, as most of its layers do."""
    nn = require("torch_geometric.nn", "torch-geometric")
    edges, weight = torch.stack([view.col.long(), view.row_of_edge()]), _values(view)
    rows = torch.empty(view.num_rows, 0, device=view.device)  # only for the number of rows
    convolution = nn.SimpleConv(aggr="sum")
    return lambda x: convolution((x, rows), edges, weight)


def _spmm(backend: str, view: GraphView) -> Product:
    return lambda x: with_backend(backend, ops.spmm)(view, x)


SPARSE: dict[str, Callable[[GraphView], Product]] = {
    "native": functools.partial(_spmm, "native"),
    "kept transpose": _kept_transpose,
    "torch CSR": _torch_csr,
    "torch COO": _torch_coo,
    "torch-sparse": _torch_sparse,
    "torch-geometric": _torch_geometric,
    "scipy": _scipy,
    "reference": functools.partial(_spmm, "reference"),
    "torch.compile": lambda view: compiled(_spmm("reference", view)),
}


# --- InfoNCE -------------------------------------------------------------------------------------


def _chunked(temperature: float, intra_view: bool) -> Loss:
    """Rows in chunks that are recomputed in backward, as one writes it without a kernel."""

    def loss(anchor: Tensor, positive: Tensor) -> Tensor:
        z1, z2 = F.normalize(anchor.float(), dim=-1), F.normalize(positive.float(), dim=-1)

        def rows(first: int) -> Tensor:
            a, last = z1[first : first + CHUNK], min(first + CHUNK, len(z1))
            logits = a @ z2.T / temperature
            if intra_view:
                own = torch.arange(first, last, device=a.device)
                out = torch.full((), -torch.inf, device=a.device)
                s11 = (a @ z1.T / temperature).index_put((own - first, own), out)
                logits = torch.cat([logits, s11], 1)
            return ((a * z2[first:last]).sum(1) / temperature - logits.logsumexp(1)).sum()

        parts = [checkpoint(rows, n, use_reentrant=False) for n in range(0, len(z1), CHUNK)]
        return -torch.stack(parts).sum() / len(z1)

    return loss


def _native_loss(temperature: float, intra_view: bool) -> Loss:
    options = {"temperature": temperature, "intra_view": intra_view}
    return lambda a, p: with_backend("native", ops.info_nce)(a, p, **options)


def _eager(temperature: float, intra_view: bool) -> Loss:
    return lambda a, p: info_nce_reference(a, p, temperature, intra_view=intra_view)


def _catalog(temperature: float, _: bool) -> Loss:
    """The softmax over all rows of ``positive``, of which row i is the one of anchor i."""
    options = {"temperature": temperature, "intra_view": False}

    def loss(anchor: Tensor, positive: Tensor) -> Tensor:
        target = torch.arange(len(anchor), device=anchor.device)
        return with_backend("native", ops.info_nce)(anchor, positive, target=target, **options)

    return loss


def _cross_entropy(temperature: float, _: bool) -> Loss:
    def loss(anchor: Tensor, positive: Tensor) -> Tensor:
        row, column, target = _classes(anchor, positive, temperature)
        return F.cross_entropy((row @ column.T).float(), target)

    return loss


def _classes(anchor: Tensor, positive: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """InfoNCE without intra-view negatives as a linear layer with cross entropy."""
    z1, z2 = F.normalize(anchor.float(), dim=-1), F.normalize(positive.float(), dim=-1)
    scaled = (z1 / temperature).to(anchor.dtype)
    return scaled, z2.to(anchor.dtype), torch.arange(len(z1), device=z1.device)


def _cut_cross_entropy(temperature: float, _: bool) -> Loss:
    module = require("cut_cross_entropy", "cut-cross-entropy")

    def loss(anchor: Tensor, positive: Tensor) -> Tensor:
        row, column, target = _classes(anchor, positive, temperature)
        return module.linear_cross_entropy(row, column, target, filter_eps=None)

    return loss


def _liger(temperature: float, _: bool) -> Loss:
    module = require("liger_kernel.transformers", "liger-kernel")
    function = module.LigerFusedLinearCrossEntropyLoss()

    def loss(anchor: Tensor, positive: Tensor) -> Tensor:
        row, column, target = _classes(anchor, positive, temperature)
        return function(column, row, target)

    return loss


def _inf_cl(temperature: float, _: bool) -> Loss:
    module = require("inf_cl", "inf-cl")

    def loss(anchor: Tensor, positive: Tensor) -> Tensor:
        z1, z2 = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
        # One head of the full width, or it would be split into heads that it adds up.
        return module.cal_flash_loss(z1, z2, scale=1 / temperature, head_dim=z1.shape[1]).mean()

    return loss


def _siglip(temperature: float, _: bool) -> Loss:
    module = require("siglip_kernel", "siglip-kernel")

    def loss(anchor: Tensor, positive: Tensor) -> Tensor:
        z1, z2 = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
        scale = torch.full((), 1 / temperature, device=z1.device).log()
        return module.fused_siglip_loss(z1, z2, scale, torch.zeros((), device=z1.device))

    return loss


INFO_NCE: dict[str, Callable[[float, bool], Loss]] = {
    "native": _native_loss,
    "eager": _eager,
    "torch.compile": lambda t, intra_view: compiled(_eager(t, intra_view)),
    "chunked": _chunked,
}
CATALOG: dict[str, Callable[[float, bool], Loss]] = {
    "native": _catalog,
    "eager": _cross_entropy,
    "torch.compile": lambda t, _: compiled(_cross_entropy(t, False)),
}
CROSS_VIEW: dict[str, Callable[[float, bool], Loss]] = {  # GPU only, no intra-view negatives
    "cut-cross-entropy": _cut_cross_entropy,
    "liger-kernel": _liger,
    "inf-cl": _inf_cl,
    "siglip-kernel": _siglip,
}
# Peers that compute something else, whose time alone is compared, and what that is.
OTHER_FUNCTION = {
    "Python loop": "draws of its own",
    "torch bernoulli_": "draws of its own",
    "siglip-kernel": "a sigmoid loss over the same N x N products",
    "faiss": "ranks without any mask",
}


# --- full ranking --------------------------------------------------------------------------------


class Ranking(NamedTuple):
    """The k best items of some users, without their edges in ``view``."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    users: Tensor  # (B,)
    view: GraphView  # (U, I)
    k: int


def _score_mask_select(user: Tensor, item: Tensor, row: Tensor, col: Tensor, k: int) -> Lists:
    score = user @ item.T
    score[row, col] = -torch.inf
    return tuple(score.topk(k, dim=1))


def _by_hand(r: Ranking) -> Callable[[], Lists]:
    """One matrix of scores; the edges are looked up in every call."""

    def rank() -> Lists:
        edges = row_edges(r.view.rowptr, r.view.col, r.users)[:2]
        return _score_mask_select(r.user[r.users], r.item, *edges, r.k)

    return rank


def _by_hand_compiled(r: Ranking) -> Callable[[], Lists]:
    """The same under torch.compile, with the edges looked up beforehand."""
    edges = row_edges(r.view.rowptr, r.view.col, r.users)[:2]
    function = compiled(_score_mask_select)
    return lambda: function(r.user[r.users], r.item, *edges, r.k)


def _implicit(r: Ranking) -> Callable[[], Lists]:
    topk = require("implicit.cpu.topk", "implicit").topk
    sparse = require("scipy.sparse", "scipy")
    limits = require("threadpoolctl", "implicit").threadpool_limits
    if r.user.device.type != "cpu":
        raise Missing("implicit: its GPU build is not on the package index")
    arrays = (torch.ones(r.view.nnz).numpy(), r.view.col.numpy(), r.view.rowptr.numpy())
    own = sparse.csr_matrix(arrays, shape=(r.view.num_rows, r.view.num_cols))[r.users.numpy()]
    items, query, threads = r.item.numpy(), r.user[r.users].numpy(), torch.get_num_threads()

    def rank() -> Lists:
        with limits(1, "blas"):  # it calls BLAS from its own threads
            found, score = topk(items, query, r.k, filter_query_items=own, num_threads=threads)
        return torch.from_numpy(score), torch.from_numpy(found).long()

    return rank


def _faiss(r: Ranking) -> Callable[[], Lists]:
    module = require("faiss", "faiss-cpu")
    if r.user.device.type != "cpu":
        raise Missing("faiss: faiss-cpu has no GPU index")
    module.omp_set_num_threads(torch.get_num_threads())
    index = module.IndexFlatIP(r.item.shape[1])
    index.add(r.item.numpy())
    query = r.user[r.users].numpy()

    def rank() -> Lists:
        score, found = index.search(query, r.k)
        return torch.from_numpy(score), torch.from_numpy(found)

    return rank


def _ranked(backend: str, r: Ranking) -> Callable[[], Lists]:
    function = with_backend(backend, ops.masked_topk)
    return lambda: function(r.user, r.item, r.k, users=r.users, exclude=r.view)


RANKING: dict[str, Callable[[Ranking], Callable[[], Lists]]] = {
    "native": functools.partial(_ranked, "native"),
    "reference": functools.partial(_ranked, "reference"),
    "by hand": _by_hand,
    "torch.compile": _by_hand_compiled,
    "implicit": _implicit,
    "faiss": _faiss,
}
