"""Item graphs of the modalities: nearest neighbors by features, or lists that the data brings.

Legend: I items, d width of a modality, k neighbors, P pairs of an item and its neighbor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import SINGLE, Group
from mmssl.graph import InteractionGraph
from mmssl.models.edges import laplacian_values
from mmssl.models.linear import row_slices

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

RESIDENT = 1 << 26
"""Numbers of the directions of features that are held at once: 256 MB."""


class Share(NamedTuple):
    """What a process has of the users and items."""

    group: Group = SINGLE
    """The processes that divide them."""
    items: slice = slice(None)
    """The items of this process."""
    item_degree: Tensor | None = None
    """(I,) train users of every item, of all processes; None: those of this process's graph."""


WHOLE = Share()
"""All of them."""


def nearest_neighbors(
    features: Tensor, k: int, *, centered: bool = True, group: Group = SINGLE, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Find the k items with the highest cosine to each item.

    The search is exact and holds no I x I matrix; equal cosines rank by smaller id. A zero row
    stands for an item without content; it has no neighbors and is not a neighbor. The features are
    read block by block. Their directions are held in float32 if they have at most ``RESIDENT``
    numbers, else formed again for every pair of blocks.

    Args:
        features: (I, d) float32 or float16.
        k: Number of neighbors; may exceed the number of items.
        centered: Whether to subtract the mean row first: features of real encoders share a large
            common component, which puts all cosines close together. A row equal to the mean then
            has no direction and counts as a zero row.
        group: The processes that divide the items in ascending order, each with the rows of its
            own in ``features``. The directions travel, block by block.
        first: The item that row 0 belongs to.

    Returns:
        item and neighbor, (P,) int64 each, sorted by item, nearest neighbor first. In a group, the
        items are those of this process.
    """
    rows = _Directions(features, centered=centered, group=group)
    mine, size = rows.known.numel(), features.shape[1]
    counts = torch.zeros(group.size, dtype=torch.int64)
    counts[group.rank] = mine
    count = int(group.sum(counts).sum())
    k = min(k, max(count - 1, 0))
    if k == 0:
        return rows.known.new_empty(0), rows.known.new_empty(0)
    resident = count * size <= RESIDENT
    step = max(count if resident else RESIDENT // (4 * size), 1)
    held = rows[slice(0, mine)] if resident else None
    parts = [slice(at, min(at + step, mine)) for at in range(0, mine, step)]
    own = int(counts[: group.rank].sum())
    best: list[_Ranked | None] = [None] * len(parts)
    start = 0
    for owner, number in enumerate(counts.tolist()):
        for at in range(0, number, step):
            part = slice(at, min(at + step, number))
            length = part.stop - part.start
            if owner == group.rank:
                block, ids = rows[part] if held is None else held[part], rows.known[part] + first
            else:
                block, ids = torch.empty(length, size), torch.empty(length, dtype=torch.int64)
            group.broadcast(block, owner)
            group.broadcast(ids, owner)
            for place, queried in enumerate(parts):
                queries = rows[queried] if held is None else held[queried]
                found = _ranked(queries, block, k, own + queried.start - start)
                best[place] = _merged(best[place], found._replace(items=ids[found.items]))
            start += length
    nearest = [found.items for found in best if found is not None]
    items = rows.known + first
    return items.repeat_interleave(k), torch.cat(
        [items[:0, None].expand(-1, k), *nearest]
    ).flatten()


class _Ranked(NamedTuple):
    """Best items first."""

    scores: Tensor  # (B, k)
    items: Tensor  # (B, k) int64


class _Directions:
    """Unit rows, float32, of the features of the items that have any.

    Attributes:
        known: (n,) int64 rows of these items, ascending.
    """

    def __init__(self, features: Tensor, *, centered: bool, group: Group) -> None:
        self._features = features
        self._mean: Tensor | None = None
        blocks = list(row_slices(*features.shape))
        content = torch.cat([features[:0].any(1), *(features[part].any(1) for part in blocks)])
        self.known = content.nonzero().squeeze(1)  # (n,)
        count = int(group.sum(torch.tensor(self.known.numel())))
        if centered and count:
            none = features.new_zeros(1, features.shape[1], dtype=torch.float64)
            sums = [self._rows(part).sum(0) for part in self._slices()]
            self._mean = group.sum(torch.stack(sums).sum(0) if sums else none[0]) / count
        # What rounding leaves of rows that are all the same is no direction.
        distinct = [self._shifted(part).norm(dim=1) > self._least(part) for part in self._slices()]
        if distinct:
            self.known = self.known[torch.cat(distinct)]

    def __getitem__(self, part: slice) -> Tensor:
        return F.normalize(self._shifted(part)).float().contiguous()

    def _slices(self) -> list[slice]:
        return list(row_slices(self.known.numel(), self._features.shape[1]))

    def _rows(self, part: slice) -> Tensor:
        return self._features[self.known[part]].double()

    def _shifted(self, part: slice) -> Tensor:
        rows = self._rows(part)
        return rows if self._mean is None else rows - self._mean

    def _least(self, part: slice) -> Tensor:
        return 1e-6 * self._rows(part).norm(dim=1)


def _ranked(queries: Tensor, rows: Tensor, k: int, offset: int) -> _Ranked:
    """Rank rows (n, d) by their cosine to queries (B, d), of which row b is query b + offset."""
    each = torch.arange(queries.shape[0], device=rows.device)
    inside = (each + offset >= 0) & (each + offset < rows.shape[0])
    itself = InteractionGraph.from_edges(
        each[inside], (each + offset)[inside], *(len(queries), len(rows)), normalization="none"
    ).ui
    return _Ranked(*ops.masked_topk(queries, rows, k, exclude=itself))


def _merged(best: _Ranked | None, found: _Ranked) -> _Ranked:
    """Merge the best of the blocks so far with those of the next."""
    if best is None:
        return found
    # Earlier blocks have the smaller ids, which a stable sort leaves in front.
    scores = torch.cat((best.scores, found.scores), 1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, : found.items.shape[1]]
    items = torch.cat((best.items, found.items), 1)
    return _Ranked(scores.gather(1, order), items.gather(1, order))


def modality_edges(
    dataset: InteractionDataset,
    name: str,
    num_neighbors: int,
    *,
    centered: bool = True,
    share: Share = WHOLE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return items, their neighbors and the values of the edges, (P,) each, of one modality.

    The neighbor list in the data set has precedence over neighbors computed from the features,
    whose values are 1.

    Args:
        dataset: Features and neighbor lists.
        name: The modality.
        num_neighbors: Neighbors of an item.
        centered: As in :func:`nearest_neighbors`.
        share: The items whose neighbors are found; those listed in ``dataset`` are theirs.
    """
    if name not in dataset.neighbors:
        features = torch.from_numpy(dataset.features[name][share.items])
        first = share.items.start or 0
        row, column = nearest_neighbors(
            features, num_neighbors, centered=centered, group=share.group, first=first
        )
        return row, column, torch.ones(row.numel())
    listed = dataset.neighbors[name]
    row, column = torch.from_numpy(listed.row), torch.from_numpy(listed.col)
    value = torch.ones(row.numel()) if listed.value is None else torch.from_numpy(listed.value)
    return row, column, value


def modality_weights(modalities: Sequence[str], image_weight: float) -> dict[str, float]:
    """Give "image" its weight and the other modalities equal parts of the rest.

    Without "image", or with no other modality, all weights are equal. They sum to 1.
    """
    count = len(modalities)
    if "image" not in modalities or count == 1:
        return dict.fromkeys(modalities, 1 / count)
    rest = (1 - image_weight) / (count - 1)
    return {name: image_weight if name == "image" else rest for name in modalities}


def with_itself(
    dataset: InteractionDataset, name: str, num_neighbors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of an item and one of its neighbors, itself included, of one modality.

    As :func:`modality_edges`, with the cosines of the features as they are; the value of an item
    and itself is 1.

    Args:
        dataset: Features and neighbor lists.
        name: The modality.
        num_neighbors: Neighbors of an item, itself included; a neighbor list in the data is used as
            it is.

    Returns:
        items, neighbors and values, (P,) each.
    """
    row, column, value = modality_edges(dataset, name, num_neighbors - 1, centered=False)
    each = torch.arange(dataset.num_items)
    ones = torch.ones(dataset.num_items)
    return torch.cat((each, row)), torch.cat((each, column)), torch.cat((ones, value))


def frozen_item_graph(
    dataset: InteractionDataset, weights: Mapping[str, float], num_neighbors: int
) -> InteractionGraph:
    """Sum the normalized neighbor graphs of the modalities, an item being its own neighbor.

    ``A = sum_m w_m D_m^-1/2 N_m D_m^-1/2``, where ``N_m[i, j]`` is 1 if j is i or one of the
    ``num_neighbors - 1`` items with the highest cosine to i, else 0, and D_m its row sums
    (Zhou, Shen: "A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal
    Recommendation", MM 2023, arXiv 2211.06924, equations 1 to 4). A neighbor list in the data is
    used as it is, without its values.

    Args:
        dataset: Features and neighbor lists.
        weights: w_m by modality, at least one.
        num_neighbors: Neighbors of an item, itself included.

    Returns:
        The (I, I) graph, on the CPU; A is its view ``ui``.
    """
    size, parts = dataset.num_items, []
    for name, weight in weights.items():
        row, column, value = with_itself(dataset, name, num_neighbors)
        value = laplacian_values(row, column, torch.ones_like(value, dtype=torch.float64), size)
        parts.append((row, column, weight * value))
    row, column, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return InteractionGraph.from_edges(
        row, column, size, size, normalization="none", value=value.float()
    )
