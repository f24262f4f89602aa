"""LATTICE: LightGCN plus an item graph that is learned from the features.

Zhang, Zhu, Liu, Wu, Wang, Wang: "Mining Latent Structures for Multimedia Recommendation", MM 2021,
arXiv 2104.09036, equations 1 to 10. The neighbors of the learned graph are chosen at the start of
every epoch, as in the authors' code; the values of its edges follow the projections in every step.

Legend: I items, D embedding dim, M modalities, k neighbors, P pairs of an item and its neighbor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ops
from mmssl.graph import GraphView, InteractionGraph
from mmssl.models.configs import LatticeConfig
from mmssl.models.edges import edge_products, laplacian_values
from mmssl.models.embeddings import Embeddings
from mmssl.models.item_graph import with_itself
from mmssl.models.linear import row_slices
from mmssl.models.modalities import FeatureProjections, MultiModalLightGCN, modalities_of
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class Lattice(MultiModalLightGCN):
    """``item = LightGCN_i + h_i / ||h_i||`` with ``h = A^n E_item``, users those of LightGCN.

    ``A = sum_m a_m (c S_m + (1 - c) L_m)``: the weights a are a softmax of parameters, S_m is the
    normalized graph of the raw features, L_m that of the projected ones.

    Args:
        graph: The train graph, normalization "sym".
        initial: S_m, (I, I) views.
        projections: Of the features of the same modalities.
        embedding_dim: D.
        num_layers: Layers of the convolution over the interaction graph.
        num_item_layers: n, layers of the convolution over the item graph.
        num_neighbors: k, itself included.
        initial_weight: c.

    Raises:
        InputError: As LightGCN.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        initial: Sequence[GraphView],
        projections: FeatureProjections,
        *,
        embedding_dim: int = 64,
        num_layers: int = 2,
        num_item_layers: int = 1,
        num_neighbors: int = 10,
        initial_weight: float = 0.9,
    ) -> None:
        super().__init__(graph, projections, embedding_dim=embedding_dim, num_layers=num_layers)
        self.initial = initial
        self.num_item_layers = num_item_layers
        self.initial_weight = initial_weight
        self.modality_weight = nn.Parameter(torch.zeros(len(initial)))
        shape = (len(initial), graph.num_items, min(num_neighbors, graph.num_items))
        self.register_buffer("neighbors", torch.zeros(shape, dtype=torch.int64))
        self.learned: list[InteractionGraph] = []

    @torch.no_grad()
    def choose_neighbors(self) -> None:
        """Choose the k items with the highest cosine of the projected features to each item."""
        directions = [F.normalize(features) for features in self.projections()]
        k = self.get_buffer("neighbors").shape[2]
        lists = [ops.masked_topk(rows, rows, k)[1] for rows in directions]
        self.set_neighbors(torch.stack(lists))

    def set_neighbors(self, neighbors: Tensor) -> None:
        """Build the learned graphs of given neighbors, (M, I, k) int64."""
        self.get_buffer("neighbors").copy_(neighbors)
        _, size, k = neighbors.shape
        row = torch.arange(size, device=neighbors.device).repeat_interleave(k)
        one = torch.ones(size * k, device=neighbors.device)
        self.learned = [
            InteractionGraph.from_edges(
                row, columns.flatten(), size, size, normalization="none", value=one
            )
            for columns in neighbors
        ]

    def forward(self) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D)."""
        user, item = super().forward()
        neighborhood: Tensor = self.item_embedding
        shares = self.modality_weight.softmax(0)
        views = self._learned_views()
        for _ in range(self.num_item_layers):
            count, x = len(views), neighborhood
            first = ops.propagate(self.initial, [x] * count)
            parts = zip(shares, first, ops.propagate(views, [x] * count), strict=True)
            c = self.initial_weight
            neighborhood = torch.stack([a * (c * s + (1 - c) * t) for a, s, t in parts]).sum(0)
        return Embeddings(user, item + F.normalize(neighborhood))

    def _learned_views(self) -> list[GraphView]:
        """L_m: cosines of the projected features of the chosen neighbors, normalized."""
        views = []
        for graph, features in zip(self.learned, self.projections(), strict=True):
            rows = F.normalize(features)  # (I, D)
            cosine = edge_products(graph, rows, rows)
            row, column = graph.ui.row_of_edge(), graph.index.col.long()
            value = laplacian_values(row, column, cosine, graph.num_items)
            views.append(graph.with_value(value).ui)
        return views


class LatticeTask(PairwiseTask[Lattice, LatticeConfig]):
    """BPR plus ``reg / (2 B)`` times the squared norms of the batch's final embeddings."""

    section = "lattice"
    terms = ("bpr", "l2")

    def build(self, dataset: InteractionDataset) -> Lattice:
        """See the base class."""
        settings, width = self.settings, self.config.model.embedding_dim
        names = modalities_of(dataset, "model lattice")
        initial = [initial_graph(dataset, name, settings.num_neighbors) for name in names]
        return Lattice(
            self.graph,
            [graph.to(self.device).ui for graph in initial],
            FeatureProjections({name: dataset.features[name] for name in names}, width),
            embedding_dim=width,
            num_layers=settings.num_layers,
            num_item_layers=settings.num_item_layers,
            num_neighbors=settings.num_neighbors,
            initial_weight=settings.initial_weight,
        )

    def start_epoch(self, epoch: int, step: int) -> None:
        """See the base class."""
        super().start_epoch(epoch, step)
        if step == 0:
            self.model.choose_neighbors()

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        user, item = self.model()
        bpr, squares = ops.bpr_loss(user, item, *batch, with_l2=True)
        return {"bpr": bpr, "l2": self.settings.reg * 0.5 * squares / batch.user.numel()}

    def embed(self) -> Embeddings:
        """See the base class."""
        self.model.choose_neighbors()
        return super().embed()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        super().load_state(tensors)
        self.model.set_neighbors(self.model.get_buffer("neighbors"))


def initial_graph(dataset: InteractionDataset, name: str, num_neighbors: int) -> InteractionGraph:
    """Build S_m of a modality: the cosines of each item's nearest neighbors, normalized.

    A neighbor list in the data is used as it is, with its values.

    Args:
        dataset: Features and neighbor lists.
        name: The modality, which has features.
        num_neighbors: Neighbors of an item, itself included.
    """
    row, column, value = with_itself(dataset, name, num_neighbors)
    if name not in dataset.neighbors:
        features = torch.from_numpy(dataset.features[name])
        value = value.double()
        for part in row_slices(row.numel(), features.shape[1]):
            first, second = (F.normalize(features[at[part]].double()) for at in (row, column))
            value[part] = torch.where(
                row[part] == column[part], value[part], (first * second).sum(1)
            )
    size = dataset.num_items
    value = laplacian_values(row, column, value.double(), size).float()
    return InteractionGraph.from_edges(row, column, size, size, normalization="none", value=value)
