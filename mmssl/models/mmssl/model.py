"""The forward pass of MMSSL (Wei, Huang, Xia, Zhang: WWW 2023, arXiv 2302.10632, section 3).

Legend: U users, I items, D embedding dim, M modalities, d_m raw feature dim of modality m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.linear import Linear, project
from mmssl.models.mmssl.attention import CrossModalAttention, IdentityAttention
from mmssl.models.mmssl.config import ModelConfig
from mmssl.ops._similarity import takes_fused
from mmssl.ops._whole_pass import MOST_LAYERS, MOST_MODALITIES, Constants, Parameters, whole_pass
from mmssl.ops.keep_mask import dropout_of_columns


class MultiModalEmbeddings(NamedTuple):
    """Vectors of every user and item; scores are dot products of ``user`` and ``item``."""

    user: Tensor  # (U, D) final embeddings, z_u
    item: Tensor  # (I, D) final embeddings, z_i
    user_feature: Tensor  # (M, U, D) modality features propagated to the users
    item_feature: Tensor  # (M, I, D) and back to the items
    user_modality: Tensor  # (M, U, D) ID embeddings propagated over each modality's graph
    item_modality: Tensor  # (M, I, D)
    rows: tuple[Tensor, Tensor, Tensor] | None = None  # as `features`, with gradients of their own

    def detach(self) -> MultiModalEmbeddings:
        """Return the same vectors without gradient history."""
        return MultiModalEmbeddings._make([*(tensor.detach() for tensor in self[:6]), None])

    @property
    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """The features of users and items, and those of items for the product with them."""
        return self.rows or (self.user_feature, self.item_feature, self.item_feature)


class MMSSL(nn.Module):
    """ID embeddings and modality features propagated over the interaction and modality graphs.

    Args:
        graph: The train interactions.
        features: Modality name -> (I, d_m) raw features; at least one modality.
        config: See :class:`mmssl.models.mmssl.config.ModelConfig`.

    Raises:
        InputError: No modality, or features of another shape than (I, d_m).
    """

    first_item: int = 0
    """The first of the items whose rows this module has."""

    def __init__(
        self, graph: InteractionGraph, features: Mapping[str, Tensor], config: ModelConfig
    ) -> None:
        super().__init__()
        if not features:
            raise InputError("features: MMSSL needs at least one modality, got none")
        self.config = config
        self.graph = graph
        self.modalities = tuple(features)
        dim = config.embedding_dim
        self.user_embedding = nn.Parameter(torch.empty(graph.num_users, dim))
        self.item_embedding = nn.Parameter(torch.empty(graph.num_items, dim))
        # Indexed by position: a modality may have any name, including those of module attributes.
        self.projection = nn.ModuleList()
        for position, (name, raw) in enumerate(features.items()):
            if raw.dim() != 2 or raw.shape[0] != graph.num_items:
                raise InputError(
                    f"features[{name!r}]: expected shape ({graph.num_items}, d), "
                    f"got {tuple(raw.shape)}"
                )
            self.register_buffer(f"raw_{position}", raw, persistent=False)
            self.projection.append(Linear(raw.shape[1], dim))
        attention = CrossModalAttention if config.attention == "cross_modal" else IdentityAttention
        self.attention = attention(dim, config.num_heads)
        # One graph per modality: the interactions, until structure learning replaces them.
        self.modality_graphs: list[InteractionGraph] = [graph] * len(self.modalities)
        self._draw_tables()
        for layer in self.projection:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)

    def _draw_tables(self) -> None:
        nn.init.xavier_uniform_(self.user_embedding)
        nn.init.xavier_uniform_(self.item_embedding)

    def forward(self) -> MultiModalEmbeddings:
        """Compute the embeddings of every user and item."""
        if self._in_one_pass():
            out = self._whole_pass()
            return MultiModalEmbeddings._make([*out[:6], out[6:]])
        user_feature, item_feature = self._propagate_features()
        views = self._propagate_ids()
        config, tables = self.config, (self.user_embedding, self.item_embedding)
        mixed = self.attention(views).split([table.shape[0] for table in tables])
        user, item = (
            ops.add_normalized(table, rows[None], config.id_weight)
            for table, rows in zip(tables, mixed, strict=True)
        )
        user, item = self._propagate_layers(user, item)
        return MultiModalEmbeddings(
            ops.add_normalized(user, user_feature, config.feat_weight),
            ops.add_normalized(item, item_feature, config.feat_weight),
            user_feature,
            item_feature,
            views[:, : user.shape[0]],
            views[:, user.shape[0] :],
        )

    def _in_one_pass(self) -> bool:
        """Whether gradients are those written out in :mod:`mmssl.ops._whole_pass`."""
        dtype = self.user_embedding.dtype
        return (
            self.training
            and torch.is_grad_enabled()
            and takes_fused(self.user_embedding)
            and isinstance(self.graph, InteractionGraph)
            and isinstance(self.attention, CrossModalAttention)
            and not self.config.final_softmax
            and self.config.num_layers <= MOST_LAYERS
            and len(self.modalities) <= MOST_MODALITIES
            and all(self.get_buffer(f"raw_{n}").dtype == dtype for n in range(len(self.modalities)))
        )

    def _whole_pass(self) -> tuple[Tensor, ...]:
        config, attention = self.config, cast(CrossModalAttention, self.attention)
        weights = attention.query, attention.key, attention.output
        features = [self.get_buffer(f"raw_{n}") for n in range(len(self.modalities))]
        layers = [cast(Linear, layer) for layer in self.projection]
        return whole_pass(
            Constants(
                *(config.num_heads, config.num_layers, config.num_feature_layers),
                *(config.id_weight, config.feat_weight, config.dropout),
                *(self.graph, self.modality_graphs, features),
            ),
            Parameters(self.user_embedding, self.item_embedding, *weights),
            [(layer.weight, layer.bias) for layer in layers],
        )

    def _propagate_features(self) -> tuple[Tensor, Tensor]:
        """Propagate the projected features, all modalities in one product per hop.

        Returns:
            (M, U, D) and (M, I, D).
        """
        projected = [
            project(cast(Linear, layer), self.get_buffer(f"raw_{position}"))
            for position, layer in enumerate(self.projection)
        ]
        item = dropout_of_columns(
            torch.cat(projected, 1),  # (I, M D)
            len(projected),
            self.config.dropout if self.training else 0.0,
            first=self.first_item * self.config.embedding_dim,
        )
        for _ in range(self.config.num_feature_layers):
            user = self._to_users(item)
            item = self._to_items(user)
        return self._split(user), self._split(item)

    def _split(self, columns: Tensor) -> Tensor:
        """Reshape (N, M D) to (M, N, D)."""
        shape = columns.shape[0], len(self.modalities), self.config.embedding_dim
        return columns.view(shape).transpose(0, 1)

    def _propagate_ids(self) -> Tensor:
        """Propagate the ID embeddings over each modality's graph: (M, U + I, D)."""
        graphs: Sequence[InteractionGraph] = self.modality_graphs
        if all(graph is graphs[0] for graph in graphs):
            graphs = graphs[:1]
        users, items = self._over(graphs)
        nodes = users[0].shape[0] + items[0].shape[0]
        pairs = [side for pair in zip(users, items, strict=True) for side in pair]
        # Not -1: a process of a sharded run may have no nodes.
        views = torch.cat(pairs).view(len(graphs), nodes, self.config.embedding_dim)
        return views.expand(len(self.modalities), -1, -1)

    def _propagate_layers(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Average the layers; each item hop reads the user side that was just computed.

        Args:
            user: (U, D), layer 0.
            item: (I, D), layer 0.
        """
        sums = [user, item]
        for layer in range(1, self.config.num_layers + 1):
            last = self.config.final_softmax and layer == self.config.num_layers
            user = self._to_users(item)
            user = user.softmax(-1) if last else user
            item = self._to_items(user)
            item = item.softmax(-1) if last else item
            sums = list(torch._foreach_add(sums, [user, item]))
        user, item = torch._foreach_div(sums, self.config.num_layers + 1)
        return user, item

    def _to_users(self, item: Tensor) -> Tensor:
        """Multiply (I, D) by the interactions."""
        return ops.spmm(self.graph.ui, item)

    def _to_items(self, user: Tensor) -> Tensor:
        """Multiply (U, D) by the interactions."""
        return ops.spmm(self.graph.iu, user)

    def _over(self, graphs: Sequence[InteractionGraph]) -> tuple[list[Tensor], list[Tensor]]:
        """Multiply the ID embeddings by every graph: (U, D) and (I, D) for each."""
        # No product reads another's result, so all of them run as one batch.
        products = ops.propagate(
            [graph.ui for graph in graphs] + [graph.iu for graph in graphs],
            [self.item_embedding] * len(graphs) + [self.user_embedding] * len(graphs),
        )
        return products[: len(graphs)], products[len(graphs) :]
