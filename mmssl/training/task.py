"""What the trainer needs from a model.

Legend: U users, I items, D embedding dim, K loss terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mmssl.distributed.group import SINGLE, Group
from mmssl.evaluation.evaluator import Evaluator, Split
from mmssl.graph import InteractionGraph, Normalization
from mmssl.models.registry import model_spec
from mmssl.models.scorer import Scorer
from mmssl.training.recorded import StepPlan
from mmssl.training.store import Store

if TYPE_CHECKING:
    from mmssl.config import Config
    from mmssl.data.dataset import InteractionDataset
    from mmssl.training.run import RunDirectory


class Task(ABC):
    """A model in training: data, parameters, optimizers and random state.

    In every epoch the trainer calls :meth:`start_epoch`, then :meth:`step` ``steps_per_epoch``
    times, then :meth:`embed`. It owns everything else: history, early stopping, checkpoints,
    guards, the run directory. A model is a subclass in the model's own file, named in
    :mod:`mmssl.models.registry`; models trained on BPR triples derive from
    :class:`mmssl.training.pairwise.PairwiseTask`. A model in closed form is a task with zero
    epochs, which implements :meth:`embed` only.

    Creating a task seeds torch's default generators with ``training.seed``, so that initial values
    depend on the configuration only.

    Args:
        dataset: The data. Parameters are fitted to the train split and the features only; a task
            may select a setting on validation, as the trainer selects the epoch.
        config: The complete configuration.
        device: "cpu" or a CUDA device.
        group: The processes that train the model together. A task that takes it is listed with
            ``parallel`` in the registry; every process runs the same calls, and each holds the
            complete state.
    """

    shards: Group = SINGLE
    """The processes that divide users and items, of which each holds its rows."""
    normalization: Normalization = "sym"
    """How the train graph is scaled."""
    epochs: int = 0
    """Maximum number of epochs."""
    patience: int = 1
    """Validations without improvement before training stops."""
    steps_per_epoch: int = 0
    """Number of calls of :meth:`step` in an epoch."""
    terms: tuple[str, ...] = ()
    """Names of the K values that :meth:`step` returns; those of gradient norms end in
    "grad_norm"."""
    objective: tuple[str, ...] = ()
    """The terms whose sum is the loss that the progress line shows."""
    selected: Mapping[str, float] = MappingProxyType({})
    """Settings whose value the task has chosen, from the train split or, in :meth:`embed`, on
    validation, by name."""
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    """The optimizers that steps use."""
    generators: tuple[torch.Generator, ...] = ()
    """The generators that steps draw from, torch's default ones excepted."""
    phases: ClassVar[tuple[str, ...]] = ()
    """Profiler ranges of a step, without the prefix ``mmssl::``, in order; none inside another."""

    def __init__(
        self,
        dataset: InteractionDataset,
        config: Config,
        device: torch.device | str,
        group: Group = SINGLE,
    ) -> None:
        self.group = group
        self.config = config
        self.device = torch.device(device)
        torch.manual_seed(config.training.seed)
        self.graph = self.build_graph(dataset).to(self.device)
        self.prepare(dataset)

    def prepare(self, dataset: InteractionDataset) -> None:  # noqa: B027
        """Build what the model needs in addition to the train graph; the constructor's last act.

        Raises:
            InputError: Data that the model can't be trained on.
        """

    def build_graph(self, dataset: InteractionDataset) -> InteractionGraph:
        """Build the train graph."""
        return InteractionGraph.from_edges(
            *dataset.train, dataset.num_users, dataset.num_items, normalization=self.normalization
        )

    def evaluator(self, dataset: InteractionDataset, split: Split) -> Evaluator:
        """Create what evaluates the result of :meth:`embed` on "val" or "test"."""
        return Evaluator(dataset, split, self.graph, group=self.group)

    def store(self, run: RunDirectory) -> Store:
        """Create what writes the tensors of this task to a run directory."""
        return Store(run, self.group)

    @abstractmethod
    def embed(self) -> Scorer:
        """Return what ranks items: the current embeddings of users and items, or item weights.

        Its tensors are detached.
        """

    def finish(self, best: Scorer) -> Scorer:
        """Return what is tested and stored, given the scorer of the best epoch: by default itself.

        Called once, after the last epoch, also by a run that was resumed after its end.
        """
        return best

    def start_epoch(self, epoch: int, step: int) -> None:
        """Prepare an epoch: set the learning rate, draw the order of the samples.

        Args:
            epoch: Number of finished epochs.
            step: Number of finished steps of this epoch; positive when a resumed run re-enters it,
                after :meth:`load_state`. No checkpoint lies between this call and the first step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no epochs")

    def step(self, number: int) -> Tensor:
        """Run a training step without waiting for the device.

        Args:
            number: Position in the epoch, from 0.

        Returns:
            (K,) values of ``terms``, detached, on the device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no steps")

    def plan(self, number: int) -> StepPlan:
        """Divide :meth:`step` into what can be recorded and its inputs, unless :attr:`unrecorded`.

        Args:
            number: As in :meth:`step`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no plan of a step")

    @property
    def unrecorded(self) -> str:
        """Why steps can't be recorded as CUDA graphs; empty if they can."""
        return "the model has no plan of a step"

    @property
    def learning_rate(self) -> float:
        """The learning rate of the current epoch."""
        raise NotImplementedError(f"{type(self).__name__} has no epochs")

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that the next step depends on, torch's default generators excepted.

        The trainer stores it in checkpoints together with the state of the default generators.
        """
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Continue from what :meth:`state` returned, bit for bit.

        Raises:
            KeyError: A tensor is missing.
            TypeError: A generator state has the wrong type.
            RuntimeError: A tensor has the wrong shape.
        """

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters to export next to the embeddings; by default none."""
        return {}


def create_task(
    model: str,
    dataset: InteractionDataset,
    config: Config,
    device: torch.device | str = "cpu",
    group: Group = SINGLE,
) -> Task:
    """Create the task of a model by its name and the variant in ``config``.

    Raises:
        InputError: An unknown model, or data that the model can't be trained on.
    """
    kind = model_spec(model, config.variant).load_task(sharded=group.sharded)
    task: Task = (
        kind(dataset, config, device)
        if group is SINGLE
        else kind(dataset, config, device, group=group)
    )
    return task
