"""The item graph: nearest neighbors of every modality, merged into one row-normalized matrix.

As in FREEDOM, the graph is built once and stays fixed. Source: Zhou, Shen: "A Tale of Two Graphs:
Freezing and Denoising Graph Structures for Multimodal Recommendation", MM 2023, arXiv 2211.06924.

Legend: U users, I items, E edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.distributed.group import SINGLE, Group
from mmssl.errors import InputError
from mmssl.graph import GraphView, InteractionGraph
from mmssl.models.item_graph import WHOLE, Share, modality_edges

if TYPE_CHECKING:
    from mmssl.config import PlusConfig
    from mmssl.data.dataset import InteractionDataset

# Users of an edge's first item that are searched among those of its second at the same time; pairs
# that are sent to other processes at the same time.
_PAIRS_PER_BLOCK = 1 << 22


def co_visits(
    graph: InteractionGraph, first: Tensor, second: Tensor, group: Group = SINGLE
) -> Tensor:
    """Number of users who have a train edge to both items of each pair.

    Args:
        graph: The train graph.
        first: (E,) int64 items.
        second: (E,) int64 items.
        group: The processes that divide the users, each with those of its own in ``graph`` and
            with pairs of its own. Every process counts among its users for all.

    Returns:
        (E,) int64.
    """
    if group.size == 1:
        return _co_visits(graph, first, second)
    numbers = torch.zeros(group.size, dtype=torch.int64)
    numbers[group.rank] = first.numel()
    counts = torch.zeros_like(first)
    for owner, number in enumerate(group.sum(numbers).tolist()):
        for start in range(0, number, _PAIRS_PER_BLOCK):
            part = slice(start, min(start + _PAIRS_PER_BLOCK, number))
            pairs = first.new_empty(2, part.stop - part.start)
            if owner == group.rank:
                pairs = torch.stack((first[part], second[part]))
            group.broadcast(pairs, owner)
            found = group.sum(_co_visits(graph, *pairs))
            if owner == group.rank:
                counts[part] = found
    return counts


def _co_visits(graph: InteractionGraph, first: Tensor, second: Tensor) -> Tensor:
    user, item = graph.ui.row_of_edge(), graph.index.col.long()
    edges = user * graph.num_items + item  # ascending
    colptr, row = graph.index.colptr, graph.index.row.long()
    degree = colptr.diff()[first]
    counts = torch.zeros_like(first)
    blocks = (degree.cumsum(0) - degree) // _PAIRS_PER_BLOCK
    for block in torch.split(
        torch.arange(first.numel(), device=first.device), torch.bincount(blocks).tolist()
    ):
        size = degree[block]
        pair = block.repeat_interleave(size)
        start = colptr[first[block]] - (size.cumsum(0) - size)
        users = row[torch.arange(pair.numel(), device=pair.device) + start.repeat_interleave(size)]
        key = users * graph.num_items + second[pair]
        found = edges[torch.searchsorted(edges, key).clamp_max(edges.numel() - 1)] == key
        counts.index_add_(0, pair, found.long())
    return counts


def co_visit_lift(
    graph: InteractionGraph, first: Tensor, second: Tensor, share: Share = WHOLE
) -> float:
    """How much more often two neighbors share users than two items of their popularity by chance.

    The ratio of the mean of ``c_ij / sqrt(d_i d_j)`` over the pairs, with c the number of common
    train users and d the number of users of an item, to the mean that is expected if every user
    had drawn the items by their popularity: ``c_ij = d_i d_j sum_u d_u (d_u - 1) / E^2``. Pairs
    with an item without train users are left out.

    Args:
        graph: The train graph.
        first: (P,) int64 items.
        second: (P,) int64 items.
        share: What this process has of users and items; the pairs are those of its items.

    Returns:
        1 for neighbors unrelated to the interactions; 0 if no pair is left.
    """
    group, of_item = share.group, _item_degree(graph, share)
    of_user = graph.index.rowptr.diff().double()
    both = (of_item[first] > 0) & (of_item[second] > 0)
    first, second = first[both], second[both]
    scale = (of_item[first] * of_item[second]).double().sqrt()
    pairs = group.sum((of_user * (of_user - 1)).sum())
    chance = group.sum(scale.sum()) * pairs / int(of_item.sum()) ** 2
    found = group.sum((co_visits(graph, first, second, group) / scale).sum())
    return float(found / chance) if float(chance) > 0 else 0.0


def _item_degree(graph: InteractionGraph, share: Share) -> Tensor:
    """Return the number of train users of every item, (I,) on the device of the graph."""
    if share.item_degree is None:
        return graph.index.colptr.diff()
    return share.item_degree.to(graph.device)


def build_item_graph(
    dataset: InteractionDataset,
    graph: InteractionGraph,
    settings: PlusConfig,
    share: Share = WHOLE,
) -> GraphView | None:
    """Merge the neighbors of all modalities, by their weights, into a row-normalized matrix.

    ``A[i, j] = sum_m w_m a_m[i, j] / sum_jm w_m a_m[i, j]``, where a_m has row sums of 1. The
    weight of a modality is the one in ``modality_weights``, else its co-visit lift minus 1, which
    is what it tells beyond popularity; if no modality tells anything, all weights are equal.

    With ``min_co_visits`` an edge stays only if enough train users have both items (DA-MRS, Xv et
    al., KDD 2024); edges of an item without train users stay, because nothing is known about them.

    Args:
        dataset: Features and neighbor lists.
        graph: The train graph.
        settings: Section ``plus`` of the configuration.
        share: What this process has of users and items.

    Returns:
        The (I, I) view, of which a process has the rows of its items; or None without modalities or
        without edges. An item without neighbors has a zero row.

    Raises:
        InputError: A weight of a modality that the data set lacks.
    """
    modalities = sorted({*dataset.features, *dataset.neighbors})
    for name in settings.modality_weights:
        if name not in modalities:
            have = ", ".join(modalities) or "no modalities"
            raise InputError(f"plus.modality_weights: expected {have}, got {name!r:.60}")
    if settings.item_weight == 0:
        return None
    train, size = graph.to("cpu"), dataset.num_items
    group, degree = share.group, _item_degree(train, share)
    edges = {m: modality_edges(dataset, m, settings.num_neighbors, share=share) for m in modalities}
    weights = {m: settings.modality_weights.get(m) for m in modalities}
    lifts = {m: co_visit_lift(train, *edges[m][:2], share) for m, w in weights.items() if w is None}
    told = any(lift > 1 for lift in lifts.values())
    measured = {m: max(lift - 1, 0.0) if told else 1.0 for m, lift in lifts.items()}
    rows, columns, values = [], [], []
    for name, (row, column, value) in edges.items():
        given = weights[name]
        weight = measured[name] if given is None else given
        if weight == 0:
            continue
        sums = torch.zeros(size).index_add_(0, row, value)
        rows.append(row)
        columns.append(column)
        values.append(weight * value / sums[row])
    if not rows:
        return None
    row, column, value = torch.cat(rows), torch.cat(columns), torch.cat(values)
    if settings.min_co_visits > 0:
        keep = co_visits(train, row, column, group) >= settings.min_co_visits
        keep |= degree[row] == 0
        row, column, value = row[keep], column[keep], value[keep]
    if not any(group.any(row.numel() > 0)):
        return None
    own = range(size)[share.items]
    merged = InteractionGraph.from_edges(
        row - own.start, column, len(own), size, normalization="row", value=value
    )
    return merged.to(graph.device).ui
