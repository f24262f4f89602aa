"""Training of `plus`: edges drawn uniformly, a softmax over the catalog, a light contrast.

Legend: U users, I items, B batch, K drawn items, n train edges.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.distributed.losses import shared_info_nce
from mmssl.distributed.pruning import ShardedPruning
from mmssl.models.embeddings import Embeddings
from mmssl.models.item_weights import MAX_DENSE_ITEMS, check_dense
from mmssl.models.lightgcn import TrainGraph
from mmssl.models.plus.config import PlusConfig
from mmssl.models.plus.item_graph import build_item_graph
from mmssl.models.plus.loss import Scored, catalog_softmax, density_temperature, with_offset
from mmssl.models.plus.mix import SHARES, history_vectors, mixed
from mmssl.models.plus.model import Plus, PlusViews
from mmssl.models.pruning import EdgePruning
from mmssl.models.scorer import Scorer
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask
from mmssl.training.selection import best_on_validation

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

# Weights of popularity that are tried on validation.
_RANKING_POPULARITY = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)


class PlusTask(PairwiseTask[Plus, PlusConfig]):
    """The ranking loss, plus a contrast of views, plus L2 on the ID embeddings of the batch."""

    section = "plus"
    terms = ("ranking", "contrast", "l2")
    varies = ""
    pruned: TrainGraph | None = None  # None: the train graph

    def prepare(self, dataset: InteractionDataset) -> None:
        """See the base class."""
        super().prepare(dataset)
        self.dataset = dataset
        degree = self.item_degree.double()
        given = self.settings.temperature
        if given == "density":
            given = density_temperature(degree.numel(), int(degree.sum()))
            self.selected = {"plus.temperature": given}
        self.temperature = given
        self.pruning = self.edge_pruning() if self.settings.prune else None
        # Centered, because a constant changes neither the softmax nor a ranking.
        popularity = (degree.log1p() - degree.log1p().mean())[:, None]
        self._popularity = popularity.float()[self.own_items]  # (I, 1), of this process's items
        self._offset = self.settings.popularity * self._popularity
        self._largest = float(popularity.abs().max())
        self._validation = self.evaluator(dataset, "val")

    @property
    def item_degree(self) -> Tensor:
        """(I,) number of train users of every item."""
        return self.graph.index.colptr.diff()

    @property
    def own_items(self) -> slice:
        """The items of this process."""
        return slice(None)

    def edge_pruning(self) -> EdgePruning | ShardedPruning:
        """Return what draws the edges that stay in the propagation."""
        return EdgePruning(self.graph, self.settings.prune)

    @property
    def mix(self) -> float | Literal["validation"]:
        """The field of that name; 0 in place of "validation" for a catalog too large for CEASE."""
        given = self.settings.mix
        too_large = self.graph.num_items > MAX_DENSE_ITEMS
        return 0.0 if given == "validation" and too_large else given

    def build(self, dataset: InteractionDataset) -> Plus:
        """See the base class."""
        settings = self.settings
        return Plus(
            self.graph,
            build_item_graph(dataset, self.graph, settings),
            embedding_dim=self.config.model.embedding_dim,
            num_layers=settings.num_layers,
            item_weight=settings.item_weight,
        )

    def draw_epoch(self) -> None:
        """Draw the order of the edges, and those that stay in the propagation."""
        super().draw_epoch()
        self.prune_edges()

    def prune_edges(self) -> None:
        """Draw the edges that stay in the propagation."""
        if self.pruning is not None:
            self.pruned = self.pruning.draw(self.generator)

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        settings = self.settings
        part, share = self.part(batch)
        views: PlusViews = self.model(self.pruned, views=settings.contrast_weight > 0)
        ranking = self.ranking(views.final, part)
        contrast = ranking.new_zeros(())
        if views.interaction is not None and views.modality is not None:
            contrast = self._contrast(views.interaction, views.modality, batch)
            contrast = settings.contrast_weight * contrast
        l2 = self._l2(part)
        if share != 1:
            ranking, l2 = share * ranking, share * l2
        return {"ranking": ranking, "contrast": contrast, "l2": l2}

    def ranking(self, final: Embeddings, batch: Triples) -> Tensor:
        """Compute the ranking loss of (B,) triples, a scalar."""
        if self.settings.ranking == "bpr":
            return ops.bpr_loss(final.user, final.item, batch.user, batch.pos_item, batch.neg_item)
        user, item, temperature = self._scored(
            final.user[batch.user], final.item, self.settings.popularity
        )
        return catalog_softmax(user, item, batch.pos_item, temperature, self._draw_items())

    @torch.no_grad()
    def embed(self) -> Embeddings:
        """Return vectors whose dot products rank items: of unit length, unless trained by BPR.

        They have D + 1 columns where popularity has a weight, see :func:`with_offset`.
        """
        self.model.eval()
        final: Embeddings = self.model().final
        if self.settings.ranking == "bpr":
            return final
        weight = self.settings.ranking_popularity
        if weight != "validation":
            return self._ranked(final, weight)
        _, best = best_on_validation(
            self._validation, _RANKING_POPULARITY, partial(self._ranked, final)
        )
        return best

    @torch.no_grad()
    def finish(self, best: Scorer) -> Scorer:
        """Add the scores of CEASE to those of the best epoch, see :mod:`mmssl.models.plus.mix`.

        Raises:
            InputError: ``plus.mix`` is a number, and there are too many items for CEASE.
        """
        given = self.mix
        if given == 0:
            if self.settings.mix == "validation":
                self.selected = {**self.selected, "plus.mix": 0.0}
            return best
        check_dense(self.graph.num_items, "plus with plus.mix > 0")
        assert isinstance(best, Embeddings)
        seed = self.config.training.seed
        history = history_vectors(self.dataset, self.graph, self.settings, seed, self.shards)
        history = history._replace(item=history.item[self.own_items])
        mix = partial(mixed, best, history, group=self.shards)
        if given != "validation":
            return mix(given)
        share, vectors = best_on_validation(self._validation, SHARES, mix)
        self.selected = {**self.selected, "plus.mix": share}
        return vectors

    def _ranked(self, final: Embeddings, popularity: float) -> Embeddings:
        user, item, _ = self._scored(*final, popularity)
        return Embeddings(F.normalize(user), F.normalize(item))

    def _scored(self, user: Tensor, item: Tensor, popularity: float) -> Scored:
        """Add a weight times the popularity of the items to their scores."""
        temperature = self.temperature
        if popularity == 0:
            return Scored(user, item, temperature)
        training = popularity == self.settings.popularity  # whose offset was formed once
        offset = self._offset if training else popularity * self._popularity
        largest = popularity * self._largest
        return with_offset(user, item, offset, temperature, largest=largest)

    def _draw_items(self) -> Tensor | None:
        """Return (K,) distinct items, or None for the whole catalog."""
        count = self.graph.num_items
        if self.settings.negatives == "all" or self.settings.negatives >= count:
            return None
        order = torch.randperm(count, generator=self.generator, device=self.device)
        return order[: self.settings.negatives]

    def _contrast(self, interaction: Embeddings, modality: Embeddings, batch: Triples) -> Tensor:
        """InfoNCE between the views of the distinct users and of the distinct items of a batch.

        In a group of processes, this process's summand.
        """
        tau = self.settings.contrast_temperature
        (users, items), numbers = distinct(torch.stack([batch.user, batch.pos_item]))
        pairs = (
            (self.user_rows(interaction.user, users), self.user_rows(modality.user, users)),
            (self.item_rows(interaction.item, items), self.item_rows(modality.item, items)),
        )
        of_users, of_items = (
            shared_info_nce(self.group, *pair, tau, num_rows=number)
            for pair, number in zip(pairs, numbers, strict=True)
        )
        return of_users + of_items

    def _l2(self, batch: Triples) -> Tensor:
        user, item = self.model.user_embedding, self.model.item_embedding
        rows = [self.user_rows(user, batch.user), self.item_rows(item, batch.pos_item)]  # (B, D)
        if self.settings.ranking == "bpr":
            rows.append(self.item_rows(item, batch.neg_item))
        squares = torch.cat(rows).square().sum()
        return self.settings.reg * 0.5 * squares / batch.user.numel()


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct numbers of every row, in arrays whose length does not depend on them.

    So nothing waits for the device, and a step that calls this can be recorded.

    Args:
        ids: (K, B) int64, B >= 1.

    Returns:
        (K, B): the distinct numbers of a row, ascending, then the smallest again as padding; and
        how many there are, (K,).
    """
    ordered = ids.sort(-1).values
    first = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    place = first.cumsum(-1)
    found = ordered[:, :1].expand_as(ordered).scatter(-1, place - 1, ordered)
    return found, place[:, -1]
