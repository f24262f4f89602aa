"""MMSSL with users and items divided over processes: its training step and its task.

Every process holds the rows of its users and items: of the tables, the interactions, the learned
graphs, the features, and of the critic's first weight, whose rows are items. All of them compute
the loss of the whole batch, from the rows of its users, which are gathered, and from sums over the
items of all processes. The other parameters are held by every process.

Legend: U' users of this process, B batch, M modalities, n edges of the batch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl import ops
from mmssl.config import Config
from mmssl.distributed.dataset import DatasetPart
from mmssl.distributed.group import Processes
from mmssl.distributed.partition import Partition, Ranges, within
from mmssl.distributed.ring import ring_info_nce
from mmssl.distributed.rows import gathered, gathered_together, summed
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.indexing import edges_of_rows, pointers, row_edges, rows_of
from mmssl.models.mmssl.critic import Critic
from mmssl.models.mmssl.loss import LossTerms, feature_squares, weighted
from mmssl.models.mmssl.model import MultiModalEmbeddings
from mmssl.models.mmssl.sharded_model import ShardedCritic, ShardedMMSSL, ShardedStructure
from mmssl.models.mmssl.step import BatchViews, StepInput, TrainingStep, norm_of
from mmssl.models.mmssl.task import MMSSLTask, check_trainable
from mmssl.models.modalities import modalities_of
from mmssl.ops import Triples
from mmssl.ops.masked_similarity import BatchEdges
from mmssl.ops.sampling import shuffled_head, triples_of_users
from mmssl.training.sharded import ShardedTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

# Of the tensors in checkpoints, those with a row per user or, if "item" matches, per item.
_ROWS = re.compile(
    r"structure\.(latest|built)\.\d+"
    r"|(?P<item>critic\.weight|critic_optimizer\.0\.exp_avg(_sq)?)"
)


class ShardedStep(TrainingStep):
    """:class:`mmssl.models.mmssl.step.TrainingStep` on the rows of this process.

    Args:
        group: The processes.
        interactions: (U', I) train edges of this process's users, counted from its first one.
        model: As in the base class, like the arguments below.
        critic: None if its weight in the loss is 0.
        structure: The learned graphs.
        config: The complete configuration.
        generator: The same in every process.

    Raises:
        InputError: Fewer than two users that can be sampled, or a Gumbel softmax for which the
            critic's real rows have to be formed.
    """

    model: ShardedMMSSL
    structure: ShardedStructure

    def __init__(
        self,
        group: Processes,
        interactions: InteractionGraph,
        model: ShardedMMSSL,
        critic: Critic | None,
        structure: ShardedStructure,
        config: Config,
        generator: torch.Generator,
    ) -> None:
        self.shards, self.interactions = group, interactions
        self.partition: Partition = model.sharded.partition
        counts = group.gather(torch.tensor(interactions.trainable_users.numel()))
        self.candidates = Ranges((0, *counts.cumsum(0).tolist()))  # users that can be sampled
        check_trainable(self.candidates.num_rows)
        super().__init__(model, critic, structure, config, generator)
        if critic is not None and self.form == "dense":
            raise InputError(
                "critic.gumbel_tau, critic.gumbel_scale: expected values with which no row has to "
                "be formed, as --parallel sharded can't, got "
                f"{config.critic.gumbel_tau} and {config.critic.gumbel_scale}"
            )

    def _counts(self) -> tuple[int, int]:
        return self.candidates.num_rows, self.partition.items.num_rows

    def _capacity(self) -> None:
        return None

    # ---- batches -----------------------------------------------------------------------------

    def _draw(self) -> StepInput:
        batch = self._draw_triples()
        edges, here, count = self._edges_of(batch.user)
        if self.critic is None:
            return StepInput(batch, edges, None, None)
        rows = len(self.model.modalities) * self.batch_size
        uniform = self._rand((count if self.form == "sparse" else 0,))
        if self.form == "sparse":
            uniform = uniform[here]
        return StepInput(batch, edges, uniform, self._rand((rows, 1)))

    def _draw_triples(self) -> Triples:
        """Return what ``ops.sample_bpr`` draws from the whole graph, in every process."""
        graph, device = self.interactions, self.interactions.device
        draw = torch.rand(
            3, self.batch_size, generator=self.generator, device=device, dtype=torch.float64
        )
        position = shuffled_head(draw[0], self.candidates.num_rows)
        own = self.candidates.of(self.shards.rank)
        mine = within(position, own).nonzero().squeeze(1)
        user = graph.trainable_users[position[mine] - own.start]
        user, *items = triples_of_users(graph, user, draw[1:, mine])
        batch = torch.zeros(3, self.batch_size, dtype=torch.int64, device=device)
        batch[:, mine] = torch.stack([user + self.partition.own_users.start, *items])
        return Triples(*self.shards.sum(batch).unbind())

    def _edges_of(self, users: Tensor) -> tuple[BatchEdges, Tensor, int]:
        """Return the edges of a batch to own items.

        Args:
            users: (B,) int64, the same in every process.

        Returns:
            The edges, their positions among all edges of the batch, and n, the number of these.
        """
        index, own = self.interactions.index, self.partition.own_users
        mine = within(users, own).nonzero().squeeze(1)
        row, item, pointer = row_edges(index.rowptr, index.col, users[mine] - own.start)
        degree = torch.zeros_like(users)
        degree[mine] = pointer.diff()
        ends = self.shards.sum(degree).cumsum(0)
        count = int(ends[-1])
        offset = torch.arange(row.numel(), device=row.device) - pointer[row]
        items = torch.zeros(count, dtype=torch.int32, device=row.device)
        items[(ends - degree)[mine][row] + offset] = item.int()
        self.shards.sum(items)
        first = self.partition.own_items
        here = within(items, first).nonzero().squeeze(1)
        position = rows_of(torch.cat([ends.new_zeros(1), ends]), count)[here]
        edges = edges_of_rows(
            pointers(position, users.numel()),
            items[here] - first.start,
            first.stop - first.start,
            torch.arange(users.numel(), device=row.device),
        )
        return BatchEdges.of(edges, self.shards.sum), here, count

    # ---- embeddings and losses ---------------------------------------------------------------

    def _views(self, embeddings: MultiModalEmbeddings, batch: Triples) -> BatchViews:
        """Replace the user tables that are read by rows of the batch, which all processes get."""
        user, *features = gathered_together(
            self.shards,
            [embeddings.user, *embeddings.user_feature],
            self.partition.own_users,
            batch.user,
        )
        rows = embeddings._replace(user=user, user_feature=torch.stack(features))
        return BatchViews(rows, torch.arange(batch.user.numel(), device=user.device))

    def _learn_structure(self, views: BatchViews, inputs: StepInput, step_of_epoch: int) -> None:
        self.structure.collect(inputs.batch.user, views.embeddings, inputs.edges)

    def _losses(
        self,
        embeddings: MultiModalEmbeddings,
        views: BatchViews,
        batch: Triples,
        fake_score: Tensor | None,
    ) -> tuple[Tensor, LossTerms]:
        """Compute the loss of the whole batch, and its terms."""
        config, (rows, place) = self.config.loss, views
        items = gathered(
            self.shards,
            embeddings.item,
            self.partition.own_items,
            torch.cat([batch.pos_item, batch.neg_item]),
        )
        bpr, squares = ops.bpr_loss(
            rows.user, items, place, place, place + place.numel(), with_l2=True
        )
        parts = [feature_squares(embeddings)]
        if config.cl_weight > 0:
            own = self.partition.own_users
            mine = batch.user[within(batch.user, own)] - own.start
            pair = embeddings.user_modality[:, mine], embeddings.user[mine]
            parts.append(ring_info_nce(self.shards, *pair, config.temperature, config.cl_eps))
        features, *contrast = summed(self.shards, torch.stack(parts)).unbind()
        return weighted(
            *(bpr, squares, features, contrast[0] if contrast else None, fake_score, config),
            batch_size=self.batch_size,
            num_items=self.partition.items.num_rows,
        )

    # ---- gradients ---------------------------------------------------------------------------

    def _sum_gradients(self, module: nn.Module) -> None:
        """Add the gradients of what the rows of every process go through.

        Those of the critic are complete: every process computes them of the whole batch.
        """
        if module is self.model:
            self.shards.sum_gradients(self._split(module)[1])

    def _norm(self, module: nn.Module) -> Tensor:
        divided, common = self._split(module)
        square = self.shards.sum(norm_of(divided).square())
        return (square + norm_of(common).square()).sqrt()

    def _split(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters with rows of this process only, and those that all hold."""
        tables = [self.model.user_embedding, self.model.item_embedding]
        if isinstance(self.critic, ShardedCritic):
            tables.append(self.critic.weight)
        ids = {id(table) for table in tables}
        divided: list[Tensor] = [p for p in module.parameters() if id(p) in ids]
        return divided, [p for p in module.parameters() if id(p) not in ids]


class ShardedMMSSLTask(MMSSLTask, ShardedTask):
    """:class:`mmssl.models.mmssl.task.MMSSLTask` with divided users and items.

    Raises:
        InputError: ``structure.schedule`` is "released", whose graphs repeat edges.
    """

    def build_step(self, dataset: InteractionDataset) -> ShardedStep:
        """See the base class."""
        config, group, partition = self.config, self.shards, self.partition
        if config.structure.schedule != "latest":
            raise InputError(
                "structure.schedule: expected 'latest' with --parallel sharded, whose graphs have "
                f"every edge once, got {config.structure.schedule!r}"
            )
        assert isinstance(dataset, DatasetPart)
        modalities_of(dataset, f"variant {config.variant}")  # at least one
        features = {name: torch.from_numpy(dataset.item_rows(name)) for name in dataset.features}
        model = ShardedMMSSL(self.sharded, features, config.model).to(self.device)
        critic = None
        if config.loss.g_weight > 0:
            critic = ShardedCritic(group, partition.items, config.critic).to(self.device)
        structure = ShardedStructure(group, self.sharded, len(features), config.structure)
        generator = torch.Generator(self.device).manual_seed(config.training.seed)
        return ShardedStep(group, self.graph, model, critic, structure, config, generator)

    def layout(self, name: str) -> Ranges | None:
        """See the base class."""
        found = _ROWS.fullmatch(name)
        if found is None:
            return super().layout(name)
        return self.partition.items if found["item"] else self.partition.users
