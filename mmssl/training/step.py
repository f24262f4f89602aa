"""One training step of MMSSL: critic, structure, recommender. Nothing here leaves the device.

Legend: I items, B batch, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmssl import ops
from mmssl.config import Config
from mmssl.losses import LossTerms, recommender_loss
from mmssl.models.critic import Critic, CriticLoss, critic_loss, real_rows
from mmssl.models.embeddings import Embeddings
from mmssl.models.mmssl import MMSSL
from mmssl.models.structure import StructureLearner
from mmssl.ops.reference import Triples


class StepInput(NamedTuple):
    """Everything random about a step besides dropout."""

    batch: Triples  # (B,)
    uniform: Tensor | None  # (B, I) for the Gumbel noise; None without a critic
    alpha: Tensor | None  # (M B, 1) shares of the mixed rows


class StepLosses(NamedTuple):
    """Scalars on the device, detached."""

    recommender: LossTerms
    critic: CriticLoss | None

    def to_vector(self) -> Tensor:
        """All terms, in the order of :meth:`TrainingStep.loss_names`."""
        return torch.stack([*self.recommender, *(self.critic or ())])


class TrainingStep:
    """Owns the optimisers and runs the step of either variant.

    Args:
        model: the recommender.
        critic: None if its weight in the loss is 0.
        structure: the modality graphs.
        config: the complete configuration.
        generator: draws batches and noise, on the model's device.
    """

    def __init__(
        self,
        model: MMSSL,
        critic: Critic | None,
        structure: StructureLearner,
        config: Config,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.critic = critic
        self.structure = structure
        self.config = config
        self.generator = generator
        self.batch_size = min(config.training.batch_size, model.graph.trainable_users.numel())
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.lr, fused=True)
        self.critic_optimizer = (
            None
            if critic is None
            else torch.optim.Adam(
                critic.parameters(), lr=config.critic.lr, betas=(0.5, 0.9), fused=True
            )
        )

    def loss_names(self) -> list[str]:
        """Names of the terms of a step's losses."""
        critic = () if self.critic is None else CriticLoss._fields
        return [*LossTerms._fields, *(f"critic_{name}" for name in critic)]

    def draw(self) -> StepInput:
        """The random input of one step."""
        graph = self.model.graph
        batch = ops.sample_bpr(graph, self.batch_size, self.generator)
        if self.critic is None:
            return StepInput(batch, None, None)
        rows = len(self.model.modalities) * self.batch_size
        rand = {"generator": self.generator, "device": graph.device}
        uniform = torch.rand(self.batch_size, graph.num_items, **rand)
        return StepInput(batch, uniform, torch.rand(rows, 1, **rand))

    def __call__(self, inputs: StepInput, step_of_epoch: int) -> StepLosses:
        """Updates critic, modality graphs and recommender once."""
        self.model.train()
        users = inputs.batch.user
        critic_terms = None
        if self.critic is not None and not self.config.training.shared_forward:
            with torch.no_grad():
                embeddings = self.model()
                rows = self._similarity_rows(embeddings, users)
            critic_terms = self._critic_step(embeddings, rows, inputs)
        embeddings = self.model()
        with torch.set_grad_enabled(self.critic is not None):
            rows = self._similarity_rows(embeddings, users)  # (M, B, I)
        if self.critic is not None and self.config.training.shared_forward:
            critic_terms = self._critic_step(embeddings.detach(), rows.detach(), inputs)
        self.structure.step(users, rows.detach(), step_of_epoch)
        self.model.modality_graphs = self.structure.graphs  # from the next forward on
        fake_score = None
        if self.critic is not None:
            with _frozen(self.critic):
                fake_score = self.critic(rows.flatten(0, 1))
        terms = recommender_loss(
            embeddings, inputs.batch, fake_score, self.config.loss, batch_size=self.batch_size
        )
        self.optimizer.zero_grad(set_to_none=True)
        terms.total().backward()
        self.optimizer.step()
        detached = LossTerms(*(term.detach() for term in terms))
        return StepLosses(detached, critic_terms)

    def _similarity_rows(self, embeddings: Embeddings, users: Tensor) -> Tensor:
        """(M, B, I): the generated row of every user of the batch in every modality."""
        seen = self.model.graph.ui
        pairs = zip(embeddings.user_feature, embeddings.item_feature, strict=True)
        return torch.stack([ops.masked_similarity(u, i, users, seen) for u, i in pairs])

    def _critic_step(self, embeddings: Embeddings, rows: Tensor, inputs: StepInput) -> CriticLoss:
        """Trains the critic on detached embeddings and (M, B, I) rows."""
        assert self.critic is not None and self.critic_optimizer is not None
        assert inputs.uniform is not None and inputs.alpha is not None
        self.critic.train()
        seen, users = self.model.graph.ui, inputs.batch.user
        with torch.no_grad():
            own = ops.masked_similarity(embeddings.user, embeddings.item, users, seen)
            real = real_rows(seen, users, own, inputs.uniform, self.config.critic)
        terms = critic_loss(self.critic, rows, real, inputs.alpha, self.config.critic.gp_weight)
        self.critic_optimizer.zero_grad(set_to_none=True)
        terms.total().backward()
        self.critic_optimizer.step()
        return CriticLoss(*(term.detach() for term in terms))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """The recommender's step needs the critic's input gradient, not those of its weights."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
