"""Item graphs of the modalities: nearest neighbors by features, or lists that the data brings.

Legend: I items, d width of a modality, k neighbors, P pairs of an item and its neighbor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.edges import laplacian_values

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


def nearest_neighbors(features: Tensor, k: int, *, centered: bool = True) -> tuple[Tensor, Tensor]:
    """Find the k items with the highest cosine to each item.

    The search is exact and holds no I x I matrix; equal cosines rank by smaller id. A zero row
    stands for an item without content; it has no neighbors and is not a neighbor.

    Args:
        features: (I, d) float32.
        k: Number of neighbors; may exceed the number of items.
        centered: Whether to subtract the mean row first: features of real encoders share a large
            common component, which puts all cosines close together. A row equal to the mean then
            has no direction and counts as a zero row.

    Returns:
        item and neighbor, (P,) int64 each, sorted by item, nearest neighbor first.
    """
    known = features.any(1).nonzero().squeeze(1)  # (n,)
    rows = features[known].double()
    shifted = rows - rows.mean(0) if centered else rows
    # What rounding leaves of rows that are all the same is no direction.
    distinct = shifted.norm(dim=1) > 1e-6 * rows.norm(dim=1)
    known, shifted = known[distinct], shifted[distinct]
    count = known.numel()
    k = min(k, max(count - 1, 0))
    if k == 0:
        return known.new_empty(0), known.new_empty(0)
    directions = F.normalize(shifted).float().contiguous()  # (n, d)
    each = torch.arange(count, device=features.device)
    itself = InteractionGraph.from_edges(each, each, count, count, normalization="none").ui
    _, nearest = ops.masked_topk(directions, directions, k, exclude=itself)  # (n, k)
    return known.repeat_interleave(k), known[nearest.flatten()]


def modality_edges(
    dataset: InteractionDataset, name: str, num_neighbors: int, *, centered: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return items, their neighbors and the values of the edges, (P,) each, of one modality.

    The neighbor list in the data set has precedence over neighbors computed from the features,
    whose values are 1.
    """
    if name not in dataset.neighbors:
        features = torch.from_numpy(dataset.features[name])
        row, column = nearest_neighbors(features, num_neighbors, centered=centered)
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
