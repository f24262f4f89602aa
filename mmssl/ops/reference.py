"""Every op in plain PyTorch: the fallback, the oracle of the tests, one side of every benchmark.

Nothing here imports the extension. Gradients are ordinary autograd. Shapes are written beside the
arguments; legend: U users, I items, B batch, D embedding dim, E edges, N pairs, K negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from mmssl.graph import GraphView, InteractionGraph

# A block of score rows stays near this many elements (64 MB in float32), so that a full ranking of
# any number of users needs bounded memory.
_BLOCK_ELEMENTS = 1 << 24


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half types, the type itself otherwise."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def spmm_reference(view: GraphView, x: Tensor) -> Tensor:
    """``view.to_dense() @ x`` by gather and ordered scatter-add.

    Args:
        view: an (R, C) graph view.
        x: (C, D).

    Returns:
        (R, D), in the dtype of ``x``, accumulated in float32 for the half types.
    """
    acc = accumulation_dtype(x.dtype)
    col = view.col.long()
    gathered = x.to(acc)[col]  # (E, D)
    if view.value is not None:
        value = view.value if view.edge is None else view.value[view.edge]
        gathered = gathered * value.to(acc)[:, None]
    if view.col_scale is not None:
        gathered = gathered * view.col_scale.to(acc)[col][:, None]
    out = gathered.new_zeros(view.num_rows, x.shape[1]).index_add(0, view.row_of_edge(), gathered)
    if view.row_scale is not None:
        out = out * view.row_scale.to(acc)[:, None]
    return out.to(x.dtype)


def info_nce_reference(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    *,
    negatives: Tensor | None = None,
    intra_view: bool = True,
    symmetric: bool = False,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Batched InfoNCE on cosine similarities, with the N x N matrices written out.

    ``l_i = -log(exp(s12_ii / t) / (sum_j exp(s12_ij / t) + sum_{j != i} exp(s11_ij / t)
    + sum_k exp(s1n_ik / t)) + eps)``, where ``s12`` are the cosines between anchors and positives,
    ``s11`` between anchors (left out without ``intra_view``) and ``s1n`` against ``negatives``.
    With ``symmetric`` the roles are swapped as well and the two losses averaged.

    Args:
        anchor: (..., N, D); leading dimensions are independent problems.
        positive: (..., N, D), row i is the positive of anchor i.
        temperature: > 0, a float or a tensor of one element (which gets a gradient).
        negatives: (K, D) further negatives, shared by all anchors.
        intra_view: whether the other anchors are negatives too.
        symmetric: average with the loss of (positive, anchor).
        eps: added inside the log (the released MMSSL adds 1e-8).
        reduction: "mean" or "sum" over N, or "none".

    Returns:
        (...) for "mean" and "sum", (..., N) for "none"; float32 for the half types.
    """
    acc = accumulation_dtype(anchor.dtype)
    z1 = F.normalize(anchor.to(acc), dim=-1)
    z2 = F.normalize(positive.to(acc), dim=-1)
    zn = None if negatives is None else F.normalize(negatives.to(acc), dim=-1)
    loss = _info_nce_rows(z1, z2, zn, temperature, intra_view, eps)
    if symmetric:
        loss = (loss + _info_nce_rows(z2, z1, zn, temperature, intra_view, eps)) / 2
    if reduction == "none":
        return loss
    return loss.sum(-1) if reduction == "sum" else loss.mean(-1)


def _info_nce_rows(
    z1: Tensor,
    z2: Tensor,
    zn: Tensor | None,
    temperature: float | Tensor,
    intra_view: bool,
    eps: float,
) -> Tensor:
    logits = [z1 @ z2.mT / temperature]
    if intra_view:
        self_pair = torch.eye(z1.shape[-2], dtype=torch.bool, device=z1.device)
        logits.append((z1 @ z1.mT / temperature).masked_fill(self_pair, -torch.inf))
    if zn is not None:
        logits.append(z1 @ zn.mT / temperature)
    log_ratio = (z1 * z2).sum(-1) / temperature - torch.cat(logits, -1).logsumexp(-1)
    if eps:
        log_eps = torch.log(log_ratio.new_tensor(eps))
        return -torch.logaddexp(log_ratio, log_eps)
    return -log_ratio


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


def masked_similarity_reference(
    user_emb: Tensor, item_emb: Tensor, users: Tensor, exclude: GraphView
) -> Tensor:
    """``normalize((user_emb[users] @ item_emb.T) * (1 - A[users]))``.

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        exclude: (U, I) view A; its edges become 0.

    Returns:
        (B, I) rows of unit length (zero rows stay zero).
    """
    score = user_emb[users] @ item_emb.T
    score = score.index_put(edges_of_rows(exclude, users), score.new_zeros(()))
    return F.normalize(score, dim=1)


class Triples(NamedTuple):
    """BPR training triples, (B,) int64 each."""

    user: Tensor
    pos_item: Tensor
    neg_item: Tensor


def triples_from_draws_reference(graph: InteractionGraph, draw: Tensor) -> Triples:
    """The batch that :func:`mmssl.ops.sample_bpr` makes of its draws.

    The negative is the r-th missing item of the user, found by binary search.

    Args:
        graph: the train graph.
        draw: (3, B) float64 in [0, 1), for the users, their items and their missing items.
    """
    candidates = graph.trainable_users
    user = candidates[distinct_reference(draw[0], candidates.numel())]
    rowptr, col = graph.index.rowptr, graph.index.col
    degree = rowptr[user + 1] - rowptr[user]
    position = (draw[1] * degree).long().minimum(degree - 1)
    return Triples(user, col[rowptr[user] + position].long(), graph.missing_item(user, draw[2]))


def distinct_reference(draw: Tensor, count: int) -> Tensor:
    """The first B places of a shuffled ``arange(count)``, in O(B log B).

    Step b of the Fisher-Yates shuffle swaps place b with a uniform place p_b >= b. Instead of the
    array, follow one value back: what stands on a place was put there by the last step that swapped
    into it, and came from that step's own place, where the same holds; without such a step it is
    the place itself. All chains are followed at once, by doubling.

    Args:
        draw: (B,) float64 in [0, 1).
        count: at least B.
    """
    batch = draw.numel()
    step = torch.arange(batch, device=draw.device)
    place = step + (draw * (count - step)).long().minimum(count - step - 1)
    key = (place * batch + step).sort().values  # by place, then by step

    def last_step(at: Tensor) -> Tensor:
        """The last step before step b that swapped into place ``at[b]``; b if there is none."""
        slot = torch.searchsorted(key, at * batch + step) - 1
        found = key[slot.clamp_min(0)]
        there = (slot >= 0) & (found // max(batch, 1) == at)
        return torch.where(there, found % max(batch, 1), step)

    origin = last_step(step)
    for _ in range(max(batch - 1, 0).bit_length()):
        origin = origin[origin]
    source = last_step(place)
    return torch.where(source == step, place, origin[source])


def bpr_loss_reference(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    pos_items: Tensor,
    neg_items: Tensor,
    *,
    with_l2: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``-logsigmoid(<u, pos> - <u, neg>).mean()`` (Rendle et al., UAI 2009).

    Args:
        user_emb: (U, D).
        item_emb: (I, D).
        users: (B,) int64.
        pos_items: (B,) int64.
        neg_items: (B,) int64.
        with_l2: whether to return the sum of squares of the 3 B rows as well.

    Returns:
        A scalar or two, float32 for the half types.
    """
    acc = accumulation_dtype(user_emb.dtype)
    rows = [user_emb[users], item_emb[pos_items], item_emb[neg_items]]
    user, pos, neg = (row.to(acc) for row in rows)
    loss = -F.logsigmoid((user * pos).sum(1) - (user * neg).sum(1)).mean()
    if not with_l2:
        return loss
    return loss, user.square().sum() + pos.square().sum() + neg.square().sum()


def norm_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    negative_slope: float = 0.2,
    keep: Tensor | None = None,
    keep_scale: float = 1.0,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """LeakyReLU, batch normalisation with batch statistics, dropout by a given mask.

    Args:
        x: (N, H).
        weight: (H,).
        bias: (H,).
        negative_slope: of the LeakyReLU.
        keep: (N, H) uint8 of 0 and 1, or None.
        keep_scale: factor on what is kept.
        running_mean: (H,) updated in place, or None.
        running_var: (H,) updated in place, or None.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, H).
    """
    acc = accumulation_dtype(x.dtype)
    activation = F.leaky_relu(x.to(acc), negative_slope)
    y = F.batch_norm(
        activation, running_mean, running_var, weight.to(acc), bias.to(acc), True, momentum, eps
    )
    if keep is not None:
        y = y * (keep.to(acc) * keep_scale)
    return y.to(x.dtype)


def view_attention_reference(query: Tensor, key: Tensor, view: Tensor, num_heads: int) -> Tensor:
    """Attention between the views of a node, the mean over the queries.

    Args:
        query: (M, N, D).
        key: (M, N, D).
        view: (M, N, D).
        num_heads: H, a divisor of D.

    Returns:
        (N, H D).
    """
    num_views, num_nodes, dim = view.shape
    acc = accumulation_dtype(view.dtype)
    heads = (num_views, num_nodes, num_heads, dim // num_heads)
    # Elementwise over the few pairs of views: a batched product of N H tiny matrices is slower.
    product = query.to(acc).reshape(heads)[:, None] * key.to(acc).reshape(heads)
    score = product.sum(-1) * heads[-1] ** -0.5  # (M queries, M, N, H)
    weight = score.softmax(1).mean(0)  # (M, N, H)
    mixed = (weight[..., None] * view.to(acc)[:, :, None]).sum(0)
    return mixed.reshape(num_nodes, num_heads * dim).to(view.dtype)


# SplitMix64's constants as int64.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def keep_mask_reference(seed: Tensor, n: int, limit: int) -> Tensor:
    """The mask of dropout from a counter, the same bits on every device.

    Element ``4 w + j`` keeps where the j-th 16 bits, signed, of the w-th output of SplitMix64
    (Steele, Lea, Flood, OOPSLA 2014) after the seed are at least ``limit``.

    Args:
        seed: (1,) int64.
        n: number of elements.
        limit: in [-2^15, 2^15).

    Returns:
        (n,) uint8 of 0 and 1.
    """
    number = torch.arange(1, (n + 3) // 4 + 1, device=seed.device)
    word = seed + number * _GOLDEN  # wraps, as it should
    word = (word ^ _shift_right(word, 30)) * _MIX_1
    word = (word ^ _shift_right(word, 27)) * _MIX_2
    word = word ^ _shift_right(word, 31)
    return (word.view(torch.int16)[:n] >= limit).to(torch.uint8)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """The shift of an unsigned number, where int64 would repeat the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
