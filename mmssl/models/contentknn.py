"""Content kNN: the items whose features are most similar to those of the history.

It uses the train interactions as histories only, so that it ranks items without train users like
all others; see Lops, de Gemmis, Semeraro: "Content-based Recommender Systems: State of the Art and
Trends", Recommender Systems Handbook 2011.

Legend: I items, M modalities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from mmssl.graph import InteractionGraph
from mmssl.models.closed_form import ClosedFormTask
from mmssl.models.edges import edge_products
from mmssl.models.item_graph import modality_edges
from mmssl.models.item_weights import ItemWeights, sparse_weights
from mmssl.models.modalities import centered, modalities_of

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class ContentKNNTask(ClosedFormTask):
    """``W = sum_m W_m`` with ``W_m[j, i]`` the cosine of items i and j for the k nearest of j.

    The cosines are those of features from which the mean row is subtracted; negative ones count
    as 0. A neighbor list in the data replaces them, with its values.

    Raises:
        InputError: The data set has neither features nor neighbor lists.
    """

    def prepare(self, dataset: InteractionDataset) -> None:
        """See the base class."""
        super().prepare(dataset)
        size, parts = dataset.num_items, []
        for name in modalities_of(dataset, "model contentknn", lists=True):
            row, column, value = modality_edges(dataset, name, self.config.contentknn.num_neighbors)
            if name not in dataset.neighbors:
                graph = InteractionGraph.from_edges(
                    row, column, size, size, normalization="none", value=value
                )
                rows = torch.from_numpy(dataset.features[name]).float()
                directions = F.normalize(centered(rows))
                value = edge_products(graph, directions, directions)
                row, column = graph.ui.row_of_edge(), graph.index.col.long()
            parts.append((row, column, value.clamp_min(0)))
        row, column, value = (torch.cat(part) for part in zip(*parts, strict=True))
        edges = torch.stack((row, column)).to(self.device)
        self._weight = sparse_weights(edges[0], edges[1], value.to(self.device), size)

    def embed(self) -> ItemWeights:
        """See the base class."""
        return ItemWeights(self.graph, self._weight)
