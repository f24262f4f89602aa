"""MMSSL as the trainer runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.models.mmssl.loss import LossTerms
from mmssl.models.mmssl.step import TrainingStep, build_step
from mmssl.models.mmssl.structure import LatestStructure
from mmssl.models.modalities import modalities_of
from mmssl.training.recorded import StepPlan
from mmssl.training.state import (
    optimizer_state,
    prefixed,
    restore_optimizer,
    section,
    set_learning_rate,
)
from mmssl.training.task import Task

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class MMSSLTask(Task):
    """Recommender, critic and modality graphs; an epoch has as many users as there are train edges.

    Args:
        dataset: Data with at least one modality.
        config: The complete configuration.
        device: "cpu" or a CUDA device.
        group: The processes that divide every batch.

    Raises:
        InputError: No modality, or fewer than two users that can be sampled.
    """

    objective = LossTerms._fields
    phases: ClassVar[tuple[str, ...]] = (
        *("sample", "forward", "critic_forward", "critic_backward", "critic_optimizer"),
        *("recommender_loss", "backward", "structure", "optimizer"),
    )

    def build_graph(self, dataset: InteractionDataset) -> InteractionGraph:
        """See the base class."""
        self.normalization = self.config.model.normalization
        return super().build_graph(dataset)

    def prepare(self, dataset: InteractionDataset) -> None:
        """See the base class."""
        config = self.config
        self.training_step = self.build_step(dataset)
        self.model = self.training_step.model
        self.critic = self.training_step.critic
        self.structure = self.training_step.structure
        optional = self.training_step.critic_optimizer
        self.optimizers = (self.training_step.optimizer, *([optional] if optional else []))
        self.generators = (self.training_step.generator,)
        self.epochs, self.patience = config.training.epochs, config.training.patience
        self.steps_per_epoch = dataset.num_train_edges // self.training_step.batch_size + 1
        self.terms = tuple(self.training_step.loss_names())

    def build_step(self, dataset: InteractionDataset) -> TrainingStep:
        """Create model, critic, structure learner and optimizers."""
        check_trainable(self.graph.trainable_users.numel())
        modalities_of(dataset, f"variant {self.config.variant}")  # at least one
        features = {name: torch.from_numpy(rows) for name, rows in dataset.features.items()}
        return build_step(self.graph, features, self.config, self.group)

    def start_epoch(self, epoch: int, step: int) -> None:
        """See the base class."""
        training = self.config.training
        rate = training.lr * training.lr_decay ** (epoch / 50)
        set_learning_rate(self.training_step.optimizer, rate)

    def step(self, number: int) -> Tensor:
        """See the base class."""
        return self.training_step(self.training_step.draw(), number).to_vector()

    def plan(self, number: int) -> StepPlan:
        """See the base class; a step draws everything it needs on the device."""
        assert isinstance(self.structure, LatestStructure)
        penalty = number % self.config.critic.penalty_interval == 0
        return StepPlan(
            kind=(penalty, self.structure.is_due()),
            inputs=(),
            compute=lambda inputs: self.step(number),
            replayed=self.structure.count_recorded,
        )

    @property
    def unrecorded(self) -> str:
        """See the base class."""
        if self.group.size > 1:
            return "several processes train the model"
        if not isinstance(self.structure, LatestStructure):
            return "structure.schedule = released merges repeated edges into graphs of other sizes"
        return "" if self.structure.padded else "there are no kernels for the device"

    @property
    def learning_rate(self) -> float:
        """See the base class."""
        return float(self.training_step.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def embed(self) -> Embeddings:
        """See the base class."""
        self.model.eval()
        embeddings = self.model()
        return Embeddings(embeddings.user, embeddings.item)

    def parameters(self) -> dict[str, Tensor]:
        """See the base class."""
        return dict(self.model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """See the base class."""
        step = self.training_step
        tensors = prefixed("model", self.model.state_dict())
        tensors.update(prefixed("structure", self.structure.state_dict()))
        tensors.update(optimizer_state("optimizer", step.optimizer))
        if self.critic is not None and step.critic_optimizer is not None:
            tensors.update(prefixed("critic", self.critic.state_dict()))
            tensors.update(optimizer_state("critic_optimizer", step.critic_optimizer))
        tensors["rng.generator"] = step.generator.get_state()
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        step = self.training_step
        self.model.load_state_dict(section(tensors, "model"))
        self.structure.load_state_dict(section(tensors, "structure"))
        self.model.modality_graphs = self.structure.graphs
        restore_optimizer("optimizer", step.optimizer, tensors)
        if self.critic is not None and step.critic_optimizer is not None:
            self.critic.load_state_dict(section(tensors, "critic"))
            restore_optimizer("critic_optimizer", step.critic_optimizer, tensors)
        step.generator.set_state(tensors["rng.generator"])


def check_trainable(num_users: int) -> None:
    """Refuse data on which InfoNCE and batch normalization have nothing to compare.

    Raises:
        InputError: Fewer than two users can be sampled.
    """
    if num_users < 2:
        raise InputError(
            "train: expected at least two users with both a train item and a missing one, "
            f"got {num_users}"
        )
