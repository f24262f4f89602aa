"""The tasks of models whose users and items are divided over processes.

Legend: U users, I items, B batch, D embedding dim, K drawn items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.distributed.pruning import ShardedPruning
from mmssl.distributed.rows import shared_logsumexp
from mmssl.distributed.sharded_graph import ShardedView, sharded_view
from mmssl.models.configs import LightGCNConfig
from mmssl.models.embeddings import Embeddings
from mmssl.models.item_graph import Share
from mmssl.models.lightgcn import LightGCN, LightGCNTask, bpr_with_l2
from mmssl.models.plus.config import PlusConfig
from mmssl.models.plus.item_graph import build_item_graph
from mmssl.models.plus.loss import sampled_softmax
from mmssl.models.plus.model import Plus
from mmssl.models.plus.task import PlusTask
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask
from mmssl.training.sharded import ShardedPairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class ShardedLightGCNTask(ShardedPairwiseTask[LightGCN, LightGCNConfig], LightGCNTask):
    """:class:`mmssl.models.lightgcn.LightGCNTask` with divided users and items."""

    def build(self, dataset: InteractionDataset) -> LightGCN:
        """See the base class."""
        width, layers = self.config.model.embedding_dim, self.settings.num_layers
        model = LightGCN(self.sharded, embedding_dim=width, num_layers=layers)
        self.initialize(model.user_embedding, model.item_embedding, std=0.1)
        return model

    def train_on(self, batch: Triples) -> Tensor:
        """See the base class; the rows of a batch come from several processes."""
        return PairwiseTask.train_on(self, batch)

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        final, places = self.batch_rows(self.model(), batch)
        ego, _ = self.batch_rows(self.model.ego(), batch)
        return bpr_with_l2(final, ego, places, self.settings.reg)


class ShardedPlusTask(ShardedPairwiseTask[Plus, PlusConfig], PlusTask):
    """:class:`mmssl.models.plus.task.PlusTask` with divided users and items."""

    def build(self, dataset: InteractionDataset) -> Plus:
        """See the base class."""
        settings = self.settings
        model = Plus(
            self.sharded,
            self._item_graph(dataset),
            embedding_dim=self.config.model.embedding_dim,
            num_layers=settings.num_layers,
            item_weight=settings.item_weight,
        )
        self.initialize(model.user_embedding, model.item_embedding, std=None)
        return model

    def edge_pruning(self) -> ShardedPruning:
        """See the base class; the same edges are drawn as in a single process."""
        return ShardedPruning(
            self.shards,
            self.partition,
            self.graph,
            self.item_degree,
            self.settings.prune,
            self.sharded.ui.exchange.wire,
        )

    def draw_epoch(self) -> None:
        """See the base class."""
        super().draw_epoch()
        self.prune_edges()

    def _item_graph(self, dataset: InteractionDataset) -> ShardedView | None:
        """Build this process's rows of the item graph that a single process builds."""
        own = self.partition.own_items
        share = Share(self.shards, own, self.item_degree)
        view = build_item_graph(dataset, self.graph, self.settings, share)
        if view is None:
            return None
        return sharded_view(
            self.shards,
            self.partition.items,
            own.stop - own.start,
            view.row_of_edge(),
            view.col.long(),
            value=view.edge_weight(),
            wire=self.sharded.ui.exchange.wire,
        )

    @property
    def item_degree(self) -> Tensor:
        """See the base class; of all processes."""
        return self.users_of_items

    @property
    def own_items(self) -> slice:
        """See the base class."""
        return self.partition.own_items

    def ranking(self, final: Embeddings, batch: Triples) -> Tensor:
        """See the base class; every process computes the whole batch's loss."""
        if self.settings.ranking == "bpr":
            rows, places = self.batch_rows(final, batch)
            return ops.bpr_loss(*rows, *places)
        user, item, temperature = self._scored(
            self.user_rows(final.user, batch.user), final.item, self.settings.popularity
        )
        drawn, positive = self._draw_items(), batch.pos_item
        if drawn is not None:
            both = self.item_rows(item, torch.cat([drawn, positive]))
            negative, target = both.split([drawn.numel(), positive.numel()])
            same, count = drawn == positive[:, None], self.partition.items.num_rows
            return sampled_softmax(user, negative, target, same, temperature, count)
        total = shared_logsumexp(self.shards, user, item, temperature)
        score = F.cosine_similarity(user, self.item_rows(item, positive)) / temperature
        return (total - score).mean().to(user.dtype)
