"""One training step of MMSSL: critic, recommender, structure; nothing waits for the device.

Legend: I items, B batch, M modalities, d_m raw feature dim of modality m.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmssl import ops
from mmssl.config import Config
from mmssl.distributed.group import SINGLE, Group
from mmssl.errors import InputError
from mmssl.graph import GraphView, InteractionGraph
from mmssl.models.mmssl.critic import Critic, CriticLoss, critic_loss
from mmssl.models.mmssl.loss import LossTerms, constant, recommender_loss
from mmssl.models.mmssl.model import MMSSL, MultiModalEmbeddings
from mmssl.models.mmssl.rows import (
    FactoredRows,
    Rows,
    gumbel_form,
    joint_similarity_rows,
    real_rows,
    similarity_rows,
    soften,
    uniform_shape,
)
from mmssl.models.mmssl.structure import StructureLearner, structure_learner
from mmssl.ops import Triples
from mmssl.ops._similarity import MOST_BLOCKS, takes_fused
from mmssl.ops.masked_similarity import BatchEdges, batch_edges, edge_capacity


class StepInput(NamedTuple):
    """The random input of a step, dropout excepted."""

    batch: Triples  # (B,)
    edges: BatchEdges  # of the batch's users
    uniform: Tensor | None  # Gumbel noise of shape rows.uniform_shape; None without a critic
    alpha: Tensor | None  # (M B, 1) shares of the mixed rows

    def part(self, rows: slice, interactions: GraphView) -> StepInput:
        """Return the input of some of the B users.

        Args:
            rows: Positions in the batch, one after the other.
            interactions: (U, I) view.
        """
        batch = Triples(*(ids[rows] for ids in self.batch))
        edges = batch_edges(interactions, batch.user)
        if self.uniform is None or self.alpha is None:
            return StepInput(batch, edges, None, None)
        uniform = self.uniform
        if uniform.dim() == 2:
            uniform = uniform[rows]
        elif uniform.numel():
            first, last = self.edges.view.rowptr[[rows.start, rows.stop]].tolist()
            uniform = uniform[first:last]
        alpha = self.alpha.view(-1, self.batch.user.numel())[:, rows].reshape(-1, 1)
        return StepInput(batch, edges, uniform, alpha)


class BatchViews(NamedTuple):
    """Embeddings, and the rows of their user tables that belong to a batch."""

    embeddings: MultiModalEmbeddings
    users: Tensor  # (B,) int64

    def detach(self) -> BatchViews:
        """Return the same without gradient history."""
        return BatchViews(self.embeddings.detach(), self.users)


class StepLosses(NamedTuple):
    """Scalars on the device, detached."""

    recommender: LossTerms
    critic: CriticLoss | None
    grad_norms: tuple[Tensor, ...] = ()  # before clipping, one per optimizer that clips

    def to_vector(self) -> Tensor:
        """Stack all terms, in the order of :meth:`TrainingStep.loss_names`."""
        return torch.stack([*self.recommender, *(self.critic or ()), *self.grad_norms])


class TrainingStep:
    """Owns the optimizers and runs the step of either variant.

    Args:
        model: The recommender.
        critic: None if its weight in the loss is 0.
        structure: The modality graphs.
        config: The complete configuration.
        generator: Source of batches and noise, on the model's device.
        group: The processes that divide every batch.

    Raises:
        InputError: Fewer users in a batch than processes.
    """

    def __init__(
        self,
        model: MMSSL,
        critic: Critic | None,
        structure: StructureLearner,
        config: Config,
        generator: torch.Generator,
        group: Group = SINGLE,
    ) -> None:
        self.model = model
        self.group = group
        self.critic = critic
        self.structure = structure
        self.config = config
        self.generator = generator
        num_users, num_items = self._counts()
        self.form = gumbel_form(config.critic, num_items)
        self.batch_size = min(config.training.batch_size, num_users)
        if self.batch_size < group.size:
            raise InputError(
                "training.batch_size: expected at least one user of a batch per process, got "
                f"{self.batch_size} users for {group.size} processes"
            )
        if critic is not None:
            critic.divide(group, self.batch_size)
        self.edge_capacity = self._capacity()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.lr, fused=True)
        self.critic_optimizer = (
            None
            if critic is None
            else torch.optim.Adam(
                critic.parameters(), lr=config.critic.lr, betas=(0.5, 0.9), fused=True
            )
        )

    def _counts(self) -> tuple[int, int]:
        """Return the number of users that can be sampled, and that of items."""
        return self.model.graph.trainable_users.numel(), self.model.graph.num_items

    def _capacity(self) -> int | None:
        return edge_capacity(self.model.graph.ui, self.batch_size)

    def loss_names(self) -> list[str]:
        """Return the names of a step's terms; those of gradient norms end in "grad_norm"."""
        names = list(LossTerms._fields)
        if self.critic is not None:
            names += [f"critic_{name}" for name in CriticLoss._fields]
            names += ["critic_grad_norm"] if self.config.critic.clip_norm else []
        return names + (["grad_norm"] if self.config.training.clip_norm else [])

    def draw(self) -> StepInput:
        """Draw the random input of one step."""
        with record_function("mmssl::sample"):
            return self._draw()

    def _draw(self) -> StepInput:
        graph = self.model.graph
        batch = ops.sample_bpr(graph, self.batch_size, self.generator)
        edges = batch_edges(graph.ui, batch.user, self.edge_capacity)
        if self.critic is None:
            return StepInput(batch, edges, None, None)
        rows = len(self.model.modalities) * self.batch_size
        shape = uniform_shape(self.form, edges)
        uniform, alpha = self._rand((math.prod(shape) + rows,)).split([math.prod(shape), rows])
        return StepInput(batch, edges, uniform.view(shape), alpha[:, None])

    def _rand(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.model.graph.device)

    def __call__(self, inputs: StepInput, step_of_epoch: int) -> StepLosses:
        """Update critic, modality graphs and recommender once.

        In a group of processes, every process gets the whole input and returns the same losses.
        """
        self.model.train()
        whole = inputs
        if self.group.size > 1:
            inputs = inputs.part(self.group.part(self.batch_size), self.model.graph.ui)
        critic_terms: CriticLoss | None = None
        norms: list[Tensor] = []
        fake: FactoredRows | None = None
        joint: FactoredRows | None = None
        if self.critic is not None and not self.config.training.shared_forward:
            with torch.no_grad(), record_function("mmssl::forward"):
                views = self._views(self.model(), inputs.batch)
                fake = _generated_rows(views, inputs.edges)
            critic_terms = self._critic_step(views, fake, inputs, step_of_epoch, norms)
        with record_function("mmssl::forward"):
            embeddings = self.model()
            views = self._views(embeddings, inputs.batch)
            if self._takes_joint_rows(embeddings, inputs.edges):
                tables = embeddings.features, embeddings[:2]
                fake, joint = joint_similarity_rows(*tables, inputs.batch.user, inputs.edges)
            elif self.critic is not None:
                fake = _generated_rows(views, inputs.edges)
        if fake is not None and self.config.training.shared_forward:
            detached = views.detach(), fake.detach()
            critic_terms = self._critic_step(*detached, inputs, step_of_epoch, norms, joint)
        with record_function("mmssl::recommender_loss"):
            fake_score = None
            if self.critic is not None and fake is not None:
                with _frozen(self.critic):
                    fake_score = self.critic.mean_score([fake])
            loss, terms = self._losses(embeddings, views, whole.batch, fake_score)
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("mmssl::backward"):
            loss.backward(constant((1.0,), loss.dtype, loss.device)[0])
            self._sum_gradients(self.model)
        # Not earlier: where graphs are overwritten in place, the backward pass needs the old ones.
        with record_function("mmssl::structure"):
            self._learn_structure(views.detach(), whole, step_of_epoch)
            self.model.modality_graphs = self.structure.graphs  # from the next forward on
        with record_function("mmssl::optimizer"):
            norms += self._clip(self.model, self.config.training.clip_norm)
            self.optimizer.step()
        summed = LossTerms(*self._summed(terms))
        return StepLosses(summed, critic_terms, tuple(norms))

    def _takes_joint_rows(self, embeddings: MultiModalEmbeddings, edges: BatchEdges) -> bool:
        """Whether all similarity rows of a step can be computed together."""
        return (
            self.critic is not None
            and self.config.training.shared_forward
            and self.form == "sparse"
            and edges.whole
            and takes_fused(embeddings.user)
            and len(self.model.modalities) < MOST_BLOCKS
        )

    def _views(self, embeddings: MultiModalEmbeddings, batch: Triples) -> BatchViews:
        """Return what the critic and the structure learner read of the embeddings."""
        return BatchViews(embeddings, batch.user)

    def _learn_structure(self, views: BatchViews, inputs: StepInput, step_of_epoch: int) -> None:
        """Show the whole batch, detached, to the structure learner."""
        self.structure.step(inputs.batch.user, views.embeddings, step_of_epoch)

    def _losses(
        self,
        embeddings: MultiModalEmbeddings,
        views: BatchViews,
        batch: Triples,
        fake_score: Tensor | None,
    ) -> tuple[Tensor, LossTerms]:
        """Compute this process's summand of the loss, and of its terms, on the whole batch."""
        return recommender_loss(
            embeddings,
            batch,
            fake_score,
            self.config.loss,
            batch_size=self.batch_size,
            group=self.group,
        )

    def _critic_step(
        self,
        views: BatchViews,
        fake: FactoredRows,
        inputs: StepInput,
        step_of_epoch: int,
        norms: list[Tensor],
        joint: FactoredRows | None = None,
    ) -> CriticLoss:
        """Train the critic on detached embeddings and generated rows.

        The norm of its gradient is appended to ``norms``. ``joint`` are these rows with those of
        the final embeddings behind them, if they were computed together.
        """
        assert self.critic is not None and self.critic_optimizer is not None
        assert inputs.uniform is not None and inputs.alpha is not None
        self.critic.train()
        (embeddings, users), config = views, self.config.critic
        with record_function("mmssl::critic_forward"):
            real: Rows | None = None
            with torch.no_grad():
                if joint is None:
                    tables = embeddings.user[None], embeddings.item[None]
                    own = similarity_rows(*tables, users, inputs.edges)
                    real = real_rows(own, inputs.uniform, config, self.form)
                else:
                    soften(joint, inputs.uniform, config)
            loss, terms = critic_loss(
                self.critic,
                [joint or fake],
                real,
                inputs.alpha,
                config.gp_weight * config.penalty_interval,
                with_penalty=step_of_epoch % config.penalty_interval == 0,
            )
            if self.group.size > 1:
                share = users.numel() / self.batch_size
                loss, terms = share * loss, CriticLoss(*(share * term for term in terms))
        self.critic_optimizer.zero_grad(set_to_none=True)
        with record_function("mmssl::critic_backward"):
            loss.backward(constant((1.0,), loss.dtype, loss.device)[0])
            self._sum_gradients(self.critic)
        with record_function("mmssl::critic_optimizer"):
            norms += self._clip(self.critic, config.clip_norm)
            self.critic_optimizer.step()
        return CriticLoss(*self._summed(terms))

    def _sum_gradients(self, module: nn.Module) -> None:
        self.group.sum_gradients(module.parameters())

    def _clip(self, module: nn.Module, limit: float) -> list[Tensor]:
        """Scale the gradient down to the limit; return its norm before, nothing without a limit."""
        if not limit:
            return []
        norm = self._norm(module)
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
        return [norm]

    def _norm(self, module: nn.Module) -> Tensor:
        """Return the norm of the gradient over all parameters."""
        return norm_of(module.parameters())

    def _summed(self, terms: Sequence[Tensor]) -> list[Tensor]:
        """Return the terms of the whole batch."""
        if self.group.size == 1:
            return list(terms)
        return list(self.group.sum(torch.stack(list(terms))).unbind())


def build_step(
    graph: InteractionGraph,
    features: Mapping[str, Tensor],
    config: Config,
    group: Group = SINGLE,
) -> TrainingStep:
    """Create model, critic, modality graphs and optimizers, ready to train.

    Initial values are drawn from torch's default generator, on the CPU, so that a seed means the
    same start on every device; batches and noise from a generator seeded by ``training.seed``.

    Args:
        graph: The train graph, on the device to train on.
        features: Modality name -> (I, d_m) raw features.
        config: The complete configuration.
        group: The processes that divide every batch.
    """
    device = graph.device
    model = MMSSL(graph, features, config.model).to(device)
    critic = None
    if config.loss.g_weight > 0:
        critic = Critic(graph.num_items, config.critic).to(device)
    structure = structure_learner(graph, len(features), config.structure)
    generator = torch.Generator(device).manual_seed(config.training.seed)
    return TrainingStep(model, critic, structure, config, generator, group)


def _generated_rows(views: BatchViews, edges: BatchEdges) -> FactoredRows:
    """Return the generator's row of every user of the batch, one block per modality."""
    embeddings, users = views
    user, item, for_product = embeddings.features
    return similarity_rows(user, item, users, edges)._replace(item_emb=for_product)


def norm_of(parameters: Iterable[Tensor]) -> Tensor:
    """Return the norm of the gradient over some parameters."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Skip weight gradients: the recommender's step needs the critic's input gradient only."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
