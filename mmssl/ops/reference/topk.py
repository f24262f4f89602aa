"""Ranking without the excluded items in plain PyTorch, block by block.

Legend: U users, I items, B batch, D embedding dim, n edges of some rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.ops.reference.common import accumulation_dtype

if TYPE_CHECKING:
    from mmssl.graph import GraphView

# A block of score rows stays near this many elements (64 MB in float32), so that a full ranking of
# any number of users needs bounded memory.
_BLOCK_ELEMENTS = 1 << 24


def masked_topk_reference(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    *,
    users: Tensor | None = None,
    exclude: GraphView | None = None,
) -> tuple[Tensor, Tensor]:
    """``(user_emb[users] @ item_emb.T).masked_fill(excluded, -inf).topk(k)``, ties by smaller id.

    A NaN score is never returned, whatever its sign.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        k: list length; may exceed I.
        users: (B,) int64 rows of ``user_emb`` to rank for; all of them by default.
        exclude: (U, I) view whose edges are never returned (the train interactions).

    Returns:
        scores (B, k), highest first (float32 for the half types), and items (B, k) int64. Where a
        user has fewer than k items left, the tail is -inf and -1.
    """
    acc = accumulation_dtype(user_emb.dtype)
    user_emb, item_emb = user_emb.to(acc), item_emb.to(acc)
    num_items = item_emb.shape[0]
    if users is None:
        users = torch.arange(user_emb.shape[0], device=user_emb.device)
    width = min(k, num_items)
    scores = user_emb.new_full((users.numel(), k), -torch.inf)
    items = torch.full((users.numel(), k), -1, dtype=torch.int64, device=user_emb.device)
    block = max(1, _BLOCK_ELEMENTS // max(num_items, 1))
    for start in range(0, users.numel() if width else 0, block):
        ids = users[start : start + block]
        score = user_emb[ids] @ item_emb.T  # (b, I)
        if exclude is not None:
            rows, cols = edges_of_rows(exclude, ids)
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

    torch.topk may return any of several equal entries, so the rows where the k-th value also
    stands outside the list are sorted in full; the others only need their k entries ordered.
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


def edges_of_rows(view: GraphView, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The edges of some rows of a view.

    Args:
        view: (R, C).
        rows: (B,) int64.

    Returns:
        position (n,) int64 in ``rows`` and column (n,) int64 of each edge.
    """
    first = view.rowptr[rows]
    count = view.rowptr[rows + 1] - first
    position = torch.arange(rows.numel(), device=rows.device).repeat_interleave(count)
    offset = torch.arange(position.numel(), device=rows.device)
    offset = offset - (count.cumsum(0) - count)[position]
    return position, view.col[first[position] + offset].long()
