"""Every op in NumPy and plain loops, in float64, from the definition in its docstring.

Nothing here shares code with the references, so that an error in a reference is found as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Arrays = list[Any]


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.sqrt((rows**2).sum(-1, keepdims=True)), 1e-12)


def dense(view: Any) -> np.ndarray:
    matrix = np.zeros((view.num_rows, view.num_cols))
    pointer, columns = view.rowptr.tolist(), view.col.tolist()
    for r in range(view.num_rows):
        for p in range(pointer[r], pointer[r + 1]):
            weight = 1.0
            if view.value is not None:
                weight = float(view.value[p if view.edge is None else int(view.edge[p])])
            for scale, place in ((view.row_scale, r), (view.col_scale, columns[p])):
                weight *= 1.0 if scale is None else float(scale[place])
            matrix[r, columns[p]] += weight
    return matrix


def spmm(view, x) -> Arrays:
    return [dense(view) @ array(x)]


def propagate(views, xs) -> Arrays:
    return [dense(view) @ array(x) for view, x in zip(views, xs, strict=True)]


def propagate_layers(graph, user, item, num_layers, combine="mean") -> Arrays:
    ui, iu = dense(graph.ui), dense(graph.iu)
    zeros = [np.zeros((len(ui), len(ui))), np.zeros((len(iu), len(iu)))]
    hop = np.block([[zeros[0], ui], [iu, zeros[1]]])  # of the whole bipartite graph
    both = np.concatenate([array(user), array(item)])
    out = sum(np.linalg.matrix_power(hop, n) @ both for n in range(num_layers + 1))
    out = out / (num_layers + 1) if combine == "mean" else out
    return [out[: len(user)], out[len(user) :]]


def propagated_bpr_loss(graph, user, item, users, pos_items, neg_items, num_layers) -> Arrays:
    final = [torch.from_numpy(t) for t in propagate_layers(graph, user, item, num_layers)]
    (loss,) = bpr_loss(*final, users, pos_items, neg_items)
    return [loss, bpr_loss(user, item, users, pos_items, neg_items, with_l2=True)[1]]


def propagated_rows(graph, user, item, users, items, num_layers) -> Arrays:
    of_user, of_item = propagate_layers(graph, user, item, num_layers)
    return [of_user[users.numpy()], of_item[items.numpy()]]


def propagated_bpr_step(
    graph, user, item, user_mean, item_mean, user_square, item_square, users, pos_items, neg_items,
    num_layers, reg, rates,
) -> Arrays:  # fmt: skip
    final = propagate_layers(graph, user, item, num_layers)
    grads = [np.zeros_like(t) for t in final]  # of the results, then of the tables
    decay = [np.zeros_like(t) for t in final]
    loss, squares = propagated_bpr_loss(graph, user, item, users, pos_items, neg_items, num_layers)
    share = 1 / len(users)
    for u, p, n in zip(users.tolist(), pos_items.tolist(), neg_items.tolist(), strict=True):
        slope = -share / (1 + np.exp(final[0][u] @ (final[1][p] - final[1][n])))
        grads[0][u] += slope * (final[1][p] - final[1][n])
        grads[1][p] += slope * final[0][u]
        grads[1][n] -= slope * final[0][u]
        for side, row in ((0, u), (1, p), (1, n)):
            decay[side][row] += reg * share * array((user, item)[side])[row]
    ui, iu = dense(graph.ui), dense(graph.iu)
    zeros = [np.zeros((len(ui), len(ui))), np.zeros((len(iu), len(iu)))]
    hop = np.block([[zeros[0], ui], [iu, zeros[1]]]).T
    both = np.concatenate(grads)
    both = sum(np.linalg.matrix_power(hop, n) @ both for n in range(num_layers + 1))
    both = both / (num_layers + 1) + np.concatenate(decay)
    out = [np.array([float(loss), float(reg * share / 2 * squares)])]
    tables = []
    for table, mean, square, grad in (
        (user, user_mean, user_square, both[: len(ui)]),
        (item, item_mean, item_square, both[len(ui) :]),
    ):
        m = rates.beta1 * array(mean) + (1 - rates.beta1) * grad
        v = rates.beta2 * array(square) + (1 - rates.beta2) * grad**2
        size = rates.lr / (1 - rates.beta1**rates.step)
        root = np.sqrt(v / (1 - rates.beta2**rates.step)) + rates.eps
        tables.append((array(table) - size * m / root, m, v))
    return out + [tables[side][n] for n in range(3) for side in (0, 1)]


def cosine_logsumexp(anchor, rows, temperature, partial=None) -> Arrays:
    a, r, t = unit(array(anchor)), unit(array(rows)), float(temperature)
    out = []
    for n in range(len(a)):
        terms = [np.exp(a[n] @ r[m] / t) for m in range(len(r))]
        terms += [] if partial is None else [np.exp(float(partial[n]))]
        out.append(np.log(sum(terms)))
    return [torch.tensor(out, dtype=torch.float64)]


def info_nce(
    anchor,
    positive,
    temperature,
    negatives=None,
    target=None,
    labels=None,
    positive_labels=None,
    num_rows=None,
    in_batch=True,
    intra_view=True,
    symmetric=False,
    eps=0.0,
    reduction="mean",
) -> Arrays:
    a, p, t = unit(array(anchor)), unit(array(positive)), float(temperature)
    n, m = a.shape[-2], p.shape[-2]
    own = np.zeros((0, a.shape[-1])) if negatives is None else unit(array(negatives))
    if own.ndim == 2:
        own = np.broadcast_to(own, (*a.shape[:-1], *own.shape))
    label = positive_label = np.zeros((*a.shape[:-2], 0))
    if labels is not None:
        label = labels.numpy()
        positive_label = label if positive_labels is None else positive_labels.numpy()

    def rows(place, x: np.ndarray, y: np.ndarray) -> list[float]:
        losses = []
        rest = 0 if num_rows is None else n - int(num_rows[place])
        for i in range(n - rest):
            others = [j for j in range(n - rest) if intra_view and j != i]
            exponents = [("row", j, x[i] @ y[j] / t) for j in range(m - rest)]
            exponents += [("anchor", j, x[i] @ x[j] / t) for j in others]
            of = {i} if target is None else {int(target[place][i])}
            mine = [e for kind, j, e in exponents if kind == "row" and j in of]
            if labels is not None:
                known = {"row": positive_label[place], "anchor": label[place]}
                mine = [e for kind, j, e in exponents if known[kind][j] == label[place][i]]
            if not in_batch:
                exponents = [(kind, j, e) for kind, j, e in exponents if kind != "row" or j in of]
            total = sum(np.exp(e) for _, _, e in exponents)
            total += sum(np.exp(x[i] @ z / t) for z in own[place][i])
            each = [-np.log(np.exp(e) / total + eps) for e in mine]
            losses.append(np.mean(each) if each else np.nan)
        return losses + [np.nan] * rest

    loss = np.zeros(a.shape[:-1])
    for place in np.ndindex(*a.shape[:-2]):
        loss[place] = rows(place, a[place], p[place])
        if symmetric:
            loss[place] = (loss[place] + rows(place, p[place], a[place])) / 2
    without = np.isnan(loss)
    loss = np.where(without, 0.0, loss)
    if reduction == "none":
        return [loss]
    total = loss.sum(-1)
    return [total if reduction == "sum" else total / (~without).sum(-1)]


def norm_act(
    x,
    weight,
    bias,
    negative_slope=0.2,
    keep=None,
    keep_scale=1.0,
    running_mean=None,
    running_var=None,
    momentum=0.1,
    eps=1e-5,
    groups=1,
) -> Arrays:
    if groups > 1:
        masks = [None] * groups if keep is None else keep.chunk(groups)
        parts, running = [], [running_mean, running_var]
        for rows, mask in zip(x.chunk(groups), masks, strict=True):
            options = negative_slope, mask, keep_scale, *running, momentum, eps
            part, *new = norm_act(rows, weight, bias, *options)
            parts.append(part)
            running = [torch.from_numpy(t) for t in new] or running
        return [np.concatenate(parts), *(array(t) for t in running if t is not None)]
    x = array(x)
    a = np.where(x > 0, x, negative_slope * x)
    mean = a.sum(0) / len(a)
    var = ((a - mean) ** 2).sum(0) / len(a)
    y = array(weight) * (a - mean) / np.sqrt(var + eps) + array(bias)
    out = [y if keep is None else y * array(keep) * keep_scale]
    if running_mean is not None:
        unbiased = var * len(a) / (len(a) - 1)
        for before, now in ((running_mean, mean), (running_var, unbiased)):
            out.append((1 - momentum) * array(before) + momentum * now)
    return out


def keep_mask(shape, rate, device="cpu") -> Arrays:
    dropped = round(rate * 65536)
    if dropped == 0:
        return [1.0]
    state, count, kept = int(torch.randint(1 << 62, (1,))), int(np.prod(shape)), []
    for w in range(1, count // 4 + 2):
        z = (state + w * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        for j in range(4):
            bits = (z >> (16 * j)) & 0xFFFF
            kept.append((bits + 32768) % 65536 >= dropped)
    return [np.array(kept[:count]).reshape(shape), 65536 / (65536 - dropped)]


def view_attention(query, key, view, num_heads) -> Arrays:
    q, k, v = array(query), array(key), array(view)
    m, n, d = v.shape
    width = d // num_heads
    out = np.zeros((n, num_heads * d))
    for node in range(n):
        for h in range(num_heads):
            part = slice(h * width, (h + 1) * width)
            weight = np.zeros(m)
            for a in range(m):
                score = np.array([q[a, node, part] @ k[b, node, part] for b in range(m)])
                e = np.exp(score / np.sqrt(width) - (score / np.sqrt(width)).max())
                weight += e / e.sum() / m
            out[node, h * d : (h + 1) * d] = sum(weight[b] * v[b, node] for b in range(m))
    return [out]


def add_normalized(base, x, weight=1.0) -> Arrays:
    out = array(base).copy()
    for view in array(x):
        out += weight * unit(view)
    return [out]


def masked_topk(user_emb, item_emb, k, users=None, exclude=None) -> Arrays:
    u, i = array(user_emb), array(item_emb)
    wanted = range(len(u)) if users is None else users.tolist()
    scores, items = np.full((len(wanted), k), -np.inf), np.full((len(wanted), k), -1)
    for b, user in enumerate(wanted):
        own: set[int] = set()
        if exclude is not None:
            own = set(exclude.col[exclude.rowptr[user] : exclude.rowptr[user + 1]].tolist())
        ranked = sorted((-float(i[n] @ u[user]), n) for n in range(len(i)) if n not in own)[:k]
        for place, (score, n) in enumerate(ranked):
            scores[b, place], items[b, place] = -score, n
    return [scores, items]


def masked_similarity(user_emb, item_emb, users, exclude) -> Arrays:
    score = array(user_emb)[users.tolist()] @ array(item_emb).T
    seen = dense(exclude)[users.tolist()] != 0
    return [unit(np.where(seen, 0.0, score))]


def masked_similarity_linear(user_emb, item_emb, users, exclude, weight) -> Arrays:
    (rows,) = masked_similarity(user_emb, item_emb, users, exclude)
    return [rows @ array(weight)]


def bpr_loss(user_emb, item_emb, users, pos_items, neg_items, with_l2=False) -> Arrays:
    u, i = array(user_emb), array(item_emb)
    losses, squares = [], 0.0
    for b in range(len(users)):
        user, pos, neg = u[users[b]], i[pos_items[b]], i[neg_items[b]]
        losses.append(np.log1p(np.exp(-(user @ pos - user @ neg))))
        squares += user @ user + pos @ pos + neg @ neg
    loss = np.mean(losses) if losses else np.nan
    return [loss, squares] if with_l2 else [loss]


def sample_bpr(graph, batch_size, generator=None) -> Arrays:
    draw = torch.rand(3, batch_size, generator=generator, dtype=torch.float64).tolist()
    pointer, columns = graph.index.rowptr.tolist(), graph.index.col.tolist()
    own = [columns[pointer[u] : pointer[u + 1]] for u in range(graph.num_users)]
    users = [u for u in range(graph.num_users) if 0 < len(own[u]) < graph.num_items]
    chosen: list[list[int]] = [[], [], []]
    for b in range(batch_size):
        place = b + int(draw[0][b] * (len(users) - b))
        users[b], users[place] = users[place], users[b]
        user = users[b]
        missing = [i for i in range(graph.num_items) if i not in own[user]]
        chosen[0].append(user)
        chosen[1].append(own[user][int(draw[1][b] * len(own[user]))])
        chosen[2].append(missing[int(draw[2][b] * len(missing))])
    return [np.array(ids, dtype=np.int64) for ids in chosen]


def tall_product(a, b) -> Arrays:
    return [np.einsum("np,nq->pq", array(a), array(b))]


def gram(x) -> Arrays:
    return [np.einsum("np,nq->pq", array(x), array(x))]


def transposed(x) -> Arrays:
    return [np.array([array(x)[:, c] for c in range(x.shape[1])]).reshape(x.shape[1], x.shape[0])]
