"""Score, mask and select in one pass: the best items of every user without a U x I matrix.

Legend: U users, I items, B users to rank for, D features, E edges of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmssl import _extension
from mmssl.indexing import row_edges
from mmssl.ops._autograd import Operator, eager
from mmssl.ops._cases import Bad, Sample, sample_graph
from mmssl.ops._checks import (
    accumulation_dtype,
    check_ids,
    check_integer,
    check_tables,
    check_view,
    is_cpu_half,
    promoted,
    without_autocast,
)
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import requested_backend, use_native

if TYPE_CHECKING:
    from mmssl.graph import GraphView

# The CUDA kernel sorts a list in shared memory, which longer lists do not fit (kMaxTopk in csrc);
# those are ranked by the reference.
_MAX_CUDA_K = 1024
# A block of score rows of the reference has about this number of elements (64 MB in float32), so
# that ranking any number of users needs bounded memory.
_BLOCK_ELEMENTS = 1 << 24


def masked_topk(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    *,
    users: Tensor | None = None,
    exclude: GraphView | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``(user_emb[users] @ item_emb.T).masked_fill(excluded, -inf).topk(k)``.

    Ties are ordered by smaller id. The (B, I) scores are never formed. The lists have the same bits
    every time, on the CPU for any number of threads and independent of the other users in the call.
    They carry no gradient; ``(user_emb[users][:, None] * item_emb[items]).sum(-1)`` has it.

    Args:
        user_emb: (U, D) floating point.
        item_emb: (I, D), same dtype and device.
        k: Length of the lists, >= 0; may exceed I. Beyond 1024 a GPU uses the reference.
        users: (B,) int64 rows of ``user_emb`` to rank for, on the same device; all by default. On a
            GPU ids are not checked, since that would wait for the device; a row out of range gets
            an empty list.
        exclude: (U, I) view whose edges are never returned, such as the train interactions.

    Returns:
        scores (B, k), highest first, float32 for the half types, and items (B, k) int64. If fewer
        than k items are left, the tail is -inf and -1. NaN and -inf are never returned.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.
    """
    user_emb, item_emb = promoted(user_emb, item_emb)
    check_tables(user_emb, item_emb)
    check_integer("k", k, 0)
    if users is not None:
        check_ids("users", users, user_emb.shape[0], user_emb.device)
    if exclude is not None:
        shape = (user_emb.shape[0], item_emb.shape[0])
        check_view("exclude", exclude, shape=shape, device=user_emb.device)
    user_emb, item_emb = user_emb.detach(), item_emb.detach()
    if is_cpu_half(user_emb):
        user_emb, item_emb = user_emb.float(), item_emb.float()
    native = use_native("masked_topk", user_emb.device.type, user_emb.dtype)
    if native and _extension.on_gpu(user_emb) and k > _MAX_CUDA_K:
        if requested_backend() == "native":
            raise RuntimeError(
                "mmssl.ops.masked_topk: backend 'native' is required, but the CUDA kernel makes "
                f"lists of at most {_MAX_CUDA_K}, got k = {k}"
            )
        native = False
    if not native:
        with without_autocast(user_emb):
            return masked_topk_reference(user_emb, item_emb, k, users, exclude)
    rowptr, col = (None, None) if exclude is None else (exclude.rowptr, exclude.col)
    scores, items = _call(user_emb, item_emb, k, users, rowptr, col)
    return scores, items


def masked_topk_reference(
    user_emb: Tensor, item_emb: Tensor, k: int, users: Tensor | None, exclude: GraphView | None
) -> tuple[Tensor, Tensor]:
    """Compute :func:`masked_topk` in plain PyTorch, block by block of the users."""
    acc = accumulation_dtype(user_emb.dtype)
    user_emb, item_emb = user_emb.to(acc), item_emb.to(acc)
    if users is None:
        users = torch.arange(user_emb.shape[0], device=user_emb.device)
    return rank_in_blocks(
        lambda ids: user_emb[ids] @ item_emb.T,
        users,
        k,
        item_emb.shape[0],
        exclude=exclude,
        dtype=acc,
    )


def rank_in_blocks(
    score_of: Callable[[Tensor], Tensor],
    users: Tensor,
    k: int,
    num_items: int,
    *,
    exclude: GraphView | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Rank items by scores that are computed for a block of users at a time.

    Args:
        score_of: Returns (b, I) scores in ``dtype`` of users (b,); they are modified here.
        users: (B,) int64.
        k: Length of the lists.
        num_items: I.
        exclude: (U, I) view whose edges are never returned.
        dtype: Data type of the scores.

    Returns:
        scores (B, k) and items (B, k) as in :func:`masked_topk`.
    """
    width = min(k, num_items)
    scores = torch.full((users.numel(), k), -torch.inf, dtype=dtype, device=users.device)
    items = torch.full((users.numel(), k), -1, dtype=torch.int64, device=users.device)
    block = max(1, _BLOCK_ELEMENTS // max(num_items, 1))
    for start in range(0, users.numel() if width else 0, block):
        ids = users[start : start + block]
        score = score_of(ids)  # (b, I)
        if exclude is not None:
            rows, cols, _ = row_edges(exclude.rowptr, exclude.col, ids)
            score[rows, cols] = -torch.inf
        top_score, top_item = _stable_topk(score, width)
        if bool(top_score[:, 0].isnan().any()):  # topk ranks NaN first
            score = torch.where(score.isnan(), -torch.inf, score)
            top_score, top_item = _stable_topk(score, width)
        scores[start : start + block, :width] = top_score
        items[start : start + block, :width] = top_item.masked_fill(top_score == -torch.inf, -1)
    return scores, items


def _stable_topk(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(b, k) largest entries per row of (b, I), equal ones in the order of their ids.

    torch.topk may return any of several equal entries, so rows whose k-th value also occurs outside
    the list are sorted in full; the others only need their k entries ordered.
    """
    value, item = score.topk(k, dim=1)
    last = value[:, -1:]
    cut_tie = ((score == last).sum(1) > (value == last).sum(1)) & (last.squeeze(1) != -torch.inf)
    rows = cut_tie.nonzero().squeeze(1)
    if rows.numel():
        full_value, full_item = score[rows].sort(dim=1, descending=True, stable=True)
        value[rows], item[rows] = full_value[:, :k], full_item[:, :k]
    item, order = item.sort(dim=1)
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    return value, item.gather(1, order)


def _fake(
    user_emb: Tensor, item_emb: Tensor, k: int, users: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    batch = (user_emb if users is None else users).shape[0]
    scores = user_emb.new_empty(batch, k, dtype=accumulation_dtype(user_emb.dtype))
    return scores, user_emb.new_empty(batch, k, dtype=torch.int64)


_FORWARD = Operator("masked_topk", fake=_fake)
_call = eager(_FORWARD)


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    def sample(label: str, u: int, i: int, d: int, k: int, edges: int | None = None) -> Sample:
        generator = torch.Generator().manual_seed(u + i)
        # Products of small integers are exact in every order of summation, and many are equal.
        user, item = (torch.randint(-2, 3, (n, d), generator=generator).to(dtype) for n in (u, i))
        arguments: dict[str, Any] = {"user_emb": user, "item_emb": item, "k": k}
        if edges is not None:
            arguments["exclude"] = sample_graph(u, i, edges).ui
            arguments["users"] = torch.tensor([u - 1, 0, 0])
        return Sample(label, arguments, tiny=u < 20)

    yield sample("typical", 5, 9, 3, 4, 12)
    yield sample("all users", 5, 9, 3, 4)
    yield sample("one user, one item", 1, 1, 1, 1)
    yield sample("longer than the items", 3, 4, 2, 7, 5)
    yield sample("no item", 3, 0, 2, 2)
    yield sample("no list", 3, 4, 2, 0)
    yield sample("no user", 0, 4, 2, 2)
    yield sample("odd sizes", 11, 333, 17, 163, 70)
    yield sample("large", 300, 500, 33, 30)
    strided = sample("strided", 6, 10, 4, 3, 9).arguments
    strided["user_emb"] = strided["user_emb"].T.contiguous().T
    strided["item_emb"] = strided["item_emb"].repeat(2, 1)[::2]
    yield Sample("strided", strided)


def _bad() -> Iterator[Bad]:
    user, item = torch.zeros(5, 3), torch.zeros(9, 3)
    yield Bad("user_emb", [[1.0]], "user_emb: expected a torch.Tensor, got list")
    yield Bad("user_emb", user.int(), "user_emb: expected a floating point dtype, got torch.int32")
    yield Bad("item_emb", item[0], r"item_emb: expected shape \(I, D\), got \(3,\)")
    yield Bad("item_emb", item[:, :2], r"item_emb: expected shape \(9, 3\), got \(9, 2\)")
    yield Bad("item_emb", item.double(), "item_emb: expected dtype torch.float32, like the other")
    yield Bad("item_emb", item.to("meta"), "item_emb: expected device cpu, got meta")
    for value in (-1, 2.0, True, None, "many"):
        yield Bad("k", value, f"k: expected an integer >= 0, got {value!r}")
    yield Bad("users", [1], "users: expected a torch.Tensor, got list")
    yield Bad("users", user[0], r"users: expected shape \(B,\) int64, got \(3,\) torch.float32")
    yield Bad("users", torch.tensor([1]).to("meta"), "users: expected device cpu, got meta")
    for value in (5, -1, 2**40, -(2**63)):
        message = rf"users: expected ids in \[0, 5\), got {value}"
        yield Bad("users", torch.tensor([0, value]), message)
    graph = sample_graph(5, 9, 3)
    message = r"exclude: expected a view of shape \(5, 9\), got \(9, 5\)"
    yield Bad("exclude", graph.iu, message)
    yield Bad("exclude", graph, "exclude: expected a GraphView, such as graph.ui, got Interaction")
    yield Bad("exclude", graph.to("meta").ui, "exclude: expected device cpu, got meta")


declare(
    Op(
        masked_topk,
        Contract(_samples, _bad, derivatives=0),
        Words("matmul, mask of train items, top-k", "a B x I matrix"),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        operators=(Operator("masked_topk", fake=_fake),),
        folder="topk",
    )
)
