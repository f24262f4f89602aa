"""Forward pass and critic as the released code computes them, costs included.

Legend: U users, I items, D embedding dim, M modalities, H heads, B batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.graph import GraphView
from mmssl.models.mmssl.critic import Critic
from mmssl.models.mmssl.model import MMSSL


class PeerOutput(NamedTuple):
    """What the forward pass returns; lists hold one entry per modality."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    user_feature: list[Tensor]  # (U, D)
    item_feature: list[Tensor]  # (I, D)
    user_modality: list[Tensor]  # (U, D)
    item_modality: list[Tensor]  # (I, D)


class Pair(NamedTuple):
    """Both directions of a graph as torch COO matrices with their values written out."""

    ui: Tensor  # (U, I)
    iu: Tensor  # (I, U)


def coo(view: GraphView) -> Tensor:
    """A graph view as a coalesced torch COO matrix."""
    value = torch.ones(view.nnz, device=view.device) if view.value is None else view.value
    value = value if view.edge is None else value[view.edge]
    row, col = view.row_of_edge(), view.col.long()
    if view.row_scale is not None:
        value = value * view.row_scale[row]
    if view.col_scale is not None:
        value = value * view.col_scale[col]
    size = (view.num_rows, view.num_cols)
    index = torch.stack([row, col])
    return torch.sparse_coo_tensor(index, value, size, check_invariants=False).coalesce()


class PeerModel(nn.Module):
    """Twelve sparse products for two modalities, and an attention whose weights cancel.

    Args:
        source: a model of variant ``released``, whose parameters are copied.
    """

    def __init__(self, source: MMSSL) -> None:
        super().__init__()
        self.config = source.config
        dim = self.config.embedding_dim
        self.modalities = source.modalities
        self.graph = Pair(coo(source.graph.ui), coo(source.graph.iu))
        self.modality_graphs = [self.graph] * len(self.modalities)
        self.user_embedding = nn.Parameter(source.user_embedding.detach().clone())
        self.item_embedding = nn.Parameter(source.item_embedding.detach().clone())
        self.raw = [source.get_buffer(f"raw_{m}") for m in range(len(self.modalities))]
        self.projection = nn.ModuleList(nn.Linear(raw.shape[1], dim) for raw in self.raw)
        self.projection.load_state_dict(source.projection.state_dict())
        self.to(source.graph.device)
        self.dropout = nn.Dropout(self.config.dropout)
        # Queries are computed and cancel, so this weight gets a gradient of zero.
        self.query = nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, dim)))
        self.head_mix = nn.Parameter(source.attention.output.detach().clone())  # (H D, D)

    def forward(self) -> PeerOutput:
        """Embeddings of every user and item."""
        ui, iu = self.graph
        user_feature, item_feature, user_modality, item_modality = [], [], [], []
        for raw, layer, own in zip(self.raw, self.projection, self.modality_graphs, strict=True):
            user_feature.append(torch.sparse.mm(ui, self.dropout(layer(raw))))
            item_feature.append(torch.sparse.mm(iu, user_feature[-1]))
            user_modality.append(torch.sparse.mm(own.ui, self.item_embedding))
            item_modality.append(torch.sparse.mm(own.iu, self.user_embedding))
        weight, config = self.config.id_weight, self.config
        user = self.user_embedding + weight * F.normalize(self._attention(user_modality).mean(0))
        item = self.item_embedding + weight * F.normalize(self._attention(item_modality).mean(0))
        users, items = [user], [item]
        for layer_number in range(config.num_layers):
            last = layer_number == config.num_layers - 1
            user = torch.sparse.mm(ui, item)
            user = torch.softmax(user, -1) if last else user
            item = torch.sparse.mm(iu, user)
            item = torch.softmax(item, -1) if last else item
            users.append(user)
            items.append(item)
        user, item = torch.stack(users).mean(0), torch.stack(items).mean(0)
        for of_user, of_item in zip(user_feature, item_feature, strict=True):
            user = user + config.feat_weight * F.normalize(of_user)
            item = item + config.feat_weight * F.normalize(of_item)
        return PeerOutput(user, item, user_feature, item_feature, user_modality, item_modality)

    def _attention(self, views: list[Tensor]) -> Tensor:
        """(M, N, D): heads of the attention, concatenated and mixed.

        The values are broadcast along the queries and not along the keys that the softmax runs
        over, so the weights sum out; they are computed all the same.
        """
        view = torch.stack(views)  # (M, N, D)
        count, nodes, dim = view.shape
        heads = self.config.num_heads
        query = (view @ self.query).view(count, nodes, heads, dim // heads).permute(2, 0, 1, 3)
        score = (query.unsqueeze(2) * query.unsqueeze(1)).sum(-1) * (dim // heads) ** -0.5
        share = score.softmax(2).unsqueeze(-1)  # (H, M queries, M keys, N, 1)
        mixed = (share * view.unsqueeze(1)).sum(2)  # (H, M, N, D)
        return torch.cat(list(mixed), -1) @ self.head_mix


class PeerCritic(nn.Module):
    """Three dense layers over (n, I) rows.

    Args:
        source: a critic of the package, whose parameters and statistics are copied.
    """

    def __init__(self, source: Critic) -> None:
        super().__init__()
        items, hidden = source.weight.shape
        first, second, third, _ = source.head  # hidden, linear, hidden, linear
        slope, half = first.negative_slope, second.out_features
        self.layers = nn.Sequential(
            nn.Linear(items, hidden),
            nn.LeakyReLU(slope),
            nn.BatchNorm1d(hidden),
            nn.Dropout(first.rate),
            nn.Linear(hidden, half),
            nn.LeakyReLU(slope),
            nn.BatchNorm1d(half),
            nn.Dropout(third.rate),
            nn.Linear(half, 1),
            nn.Sigmoid(),
        )
        state = source.state_dict()
        self.layers.load_state_dict({peer_name(name): to_peer(name, state[name]) for name in state})

    def forward(self, rows: Tensor) -> Tensor:
        """Scores (n,) in (0, 100) of (n, I) rows."""
        return 100 * self.layers(rows).view(-1)


def peer_name(name: str) -> str:
    """A critic tensor's name in the package -> in :attr:`PeerCritic.layers`."""
    if name in ("weight", "bias"):
        return f"0.{name}"
    _, position, kind = name.split(".")
    return f"{2 * int(position) + 2}.{kind}"  # LeakyReLU, BatchNorm and dropout are one there


def to_peer(name: str, tensor: Tensor) -> Tensor:
    """The package keeps the first weight as (I, h), a Linear as (h, I)."""
    return tensor.detach().T.clone() if name == "weight" else tensor.detach().clone()
