"""The training that most recommenders share: BPR triples, one pass over the train edges per epoch.

Rendle, Freudenthaler, Gantner, Schmidt-Thieme: "BPR: Bayesian personalized ranking from implicit
feedback", UAI 2009.

Legend: U users, I items, D embedding dim, n train edges, B batch, K loss terms.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.ops import Triples
from mmssl.training.recorded import StepPlan
from mmssl.training.state import optimizer_state, prefixed, restore_optimizer, section
from mmssl.training.task import Task

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


# Few enough that the intermediate arrays stay in the cache.
NEGATIVES_AT_ONCE = 1 << 15
# Steps whose triples are looked up together, while the arrays of the edges are in the cache.
STEPS_AT_ONCE = 32


class PairwiseConfig(Protocol):
    """The fields that a model's section of the configuration must have."""

    @property
    def lr(self) -> float:
        """Learning rate of Adam."""

    @property
    def batch_size(self) -> int:
        """Edges per step, B."""

    @property
    def epochs(self) -> int:
        """Maximum number of epochs."""

    @property
    def patience(self) -> int:
        """Validations without improvement before training stops."""


Model = TypeVar("Model", bound=nn.Module)
Settings = TypeVar("Settings", bound=PairwiseConfig)


class PairwiseTask(Task, Generic[Model, Settings]):
    """A module trained by Adam on (user, train item, other item) triples.

    An epoch goes once through all train edges in random order; each gets one negative, drawn
    uniformly from the items to which its user has no train edge. A subclass of
    ``PairwiseTask[Module, Section]`` sets ``section`` and ``terms``, builds its module in
    :meth:`build` and returns the loss terms of a batch in :meth:`losses`. It may extend
    :meth:`draw_epoch`, for example to drop edges of the graph, and :meth:`start_epoch`, for example
    to change the learning rate.

    Args:
        dataset: The data.
        config: The complete configuration.
        device: "cpu" or a CUDA device.
        group: The processes that share the batches.

    Raises:
        InputError: No train edge whose user lacks an item.
    """

    phases: ClassVar[tuple[str, ...]] = ("sample", "forward", "backward", "optimizer")
    section: ClassVar[str]
    """Name of the model's section of the configuration."""
    varies: ClassVar[str] = "the model has no plan of a step"
    """What :meth:`losses` reads that is not the same tensor in every step; empty if nothing."""
    settings: Settings
    """The model's section of the configuration."""
    model: Model

    def prepare(self, dataset: InteractionDataset) -> None:
        """See the base class."""
        settings: Settings = getattr(self.config, self.section)
        self.settings = settings
        self.objective = self.terms
        self.epochs, self.patience = settings.epochs, settings.patience
        self.batch_size = settings.batch_size
        self.edge_user, self.edge_item = trainable_edges(self.graph)
        self.steps_per_epoch = -(-self.count_edges() // self.batch_size)
        # Built on the CPU, so that a seed means the same initial values on every device.
        self.model = self.build(dataset).to(self.device)
        self.optimizer = self.build_optimizer()
        self.optimizers = (self.optimizer,)
        self.generator = torch.Generator(self.device).manual_seed(self.config.training.seed)
        self.generators = (self.generator,)
        self._epoch_start = self.generator.get_state()
        self._order = torch.empty(0, dtype=torch.int64, device=self.device)  # (n,)
        self._negative = self._order  # (n,), of the edges in their own order
        self._ahead = -1, Triples(self._order, self._order, self._order)

    @abstractmethod
    def build(self, dataset: InteractionDataset) -> Model:
        """Create the module; ``forward()`` returns :class:`mmssl.models.embeddings.Embeddings`."""

    def count_edges(self) -> int:
        """Return n, the number of edges of an epoch.

        Raises:
            InputError: It is 0.
        """
        return some_edges(self.edge_user.numel())

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Create the optimizer of ``model``, by default Adam."""
        return torch.optim.Adam(self.model.parameters(), lr=self.settings.lr, fused=True)

    @abstractmethod
    def losses(self, batch: Triples) -> Mapping[str, Tensor]:
        """Compute the weighted scalar terms of a batch, by the names in ``terms``.

        In a group of processes, every process gets the whole batch and returns its summand of each
        term, for which it takes its :meth:`part`.

        Args:
            batch: (B,) triples.
        """

    def user_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return rows (B, D) of a table of users, by (B,) int64 ids."""
        return table[ids]

    def item_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return rows (B, D) of a table of items, by (B,) int64 ids."""
        return table[ids]

    def part(self, batch: Triples) -> tuple[Triples, float]:
        """Return this process's part of a batch and its share of it, the weight of its mean.

        Args:
            batch: (B,) triples.
        """
        count = batch.user.numel()
        rows = self.group.part(count)
        share = (rows.stop - rows.start) / count
        if share == 0:  # fewer triples than processes; an empty batch has no mean
            rows = slice(1)
        return Triples(*(ids[rows] for ids in batch)), share

    def start_epoch(self, epoch: int, step: int) -> None:
        """See the base class."""
        if step == 0:  # otherwise load_state has drawn it
            self._epoch_start = self.generator.get_state()
            self.draw_epoch()

    def draw_epoch(self) -> None:
        """Draw from ``generator`` the random numbers that hold for a whole epoch.

        A run that is resumed within an epoch calls this again with the generator as it was at the
        start of the epoch, so the numbers need not be stored.
        """
        count = self.edge_user.numel()
        self._order = torch.randperm(count, generator=self.generator, device=self.device)
        self._negative = self._draw_negatives()
        self._ahead = -1, self._ahead[1]

    def step(self, number: int) -> Tensor:
        """See the base class."""
        plan = self.plan(number)
        return plan.compute(plan.inputs)

    def plan(self, number: int) -> StepPlan:
        """See the base class; the batch is the input."""
        self.model.train()
        with record_function("mmssl::sample"):
            batch = self._draw(number)
        return StepPlan("triples", tuple(batch), lambda inputs: self.train_on(Triples(*inputs)))

    @property
    def unrecorded(self) -> str:
        """See the base class."""
        if self.group.size > 1 or self.shards.size > 1:
            return "several processes train the model"
        return self.varies

    def train_on(self, batch: Triples) -> Tensor:
        """Take one step of the optimizer on the given (B,) triples.

        Returns:
            (K,) values of ``terms`` before the step, detached.
        """
        # Before the forward pass, which can then use the memory of the gradients.
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("mmssl::forward"):
            losses = self.losses(batch)
            terms = torch.stack([losses[name] for name in self.terms])
        with record_function("mmssl::backward"):
            terms.sum().backward()
            self.group.sum_gradients(self.model.parameters())
        with record_function("mmssl::optimizer"):
            self.optimizer.step()
        return self.group.sum(terms.detach())

    @property
    def learning_rate(self) -> float:
        """See the base class."""
        return float(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def embed(self) -> Embeddings:
        """See the base class."""
        self.model.eval()
        embeddings: Embeddings = self.model()
        return embeddings

    def state(self) -> dict[str, Tensor]:
        """Return module, optimizer and generator, also the generator as it began the epoch."""
        tensors = prefixed("model", self.model.state_dict())
        tensors.update(optimizer_state("optimizer", self.optimizer))
        tensors["rng.epoch"] = self._epoch_start
        tensors["rng.generator"] = self.generator.get_state()
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        self.model.load_state_dict(section(tensors, "model"))
        restore_optimizer("optimizer", self.optimizer, tensors)
        self._epoch_start = tensors["rng.epoch"]
        self.generator.set_state(self._epoch_start)
        self.draw_epoch()
        self.generator.set_state(tensors["rng.generator"])

    def _draw(self, number: int) -> Triples:
        if not 0 <= number < self.steps_per_epoch:
            expected = f"a number in 0 .. {self.steps_per_epoch - 1}, the steps of an epoch"
            raise InputError(f"step: expected {expected}, got {number}")
        group, place = divmod(number, STEPS_AT_ONCE)
        if self._ahead[0] != group:
            size = STEPS_AT_ONCE * self.batch_size
            index = self._order[group * size : (group + 1) * size]
            arrays = self.edge_user, self.edge_item, self._negative
            self._ahead = group, Triples(*(ids[index] for ids in arrays))
        batch = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return Triples(*(ids[batch] for ids in self._ahead[1]))

    def _draw_negatives(self) -> Tensor:
        """Return an item that its user lacks for every train edge, (n,) int64.

        All at once, because the searches are several times faster in the order of the users.
        """
        found = []
        for user in self.edge_user.split(NEGATIVES_AT_ONCE):
            draw = torch.rand(
                user.numel(), generator=self.generator, device=self.device, dtype=torch.float64
            )
            found.append(self.graph.missing_item(user, draw))
        return torch.cat(found)


def trainable_edges(graph: InteractionGraph) -> tuple[Tensor, Tensor]:
    """Return users and items (n,) int64 of the edges whose user lacks at least one item."""
    user, item = graph.ui.row_of_edge(), graph.index.col.long()
    keep = graph.index.rowptr.diff()[user] < graph.num_items
    return user[keep], item[keep]


def some_edges(count: int) -> int:
    """Return the number of edges of an epoch.

    Raises:
        InputError: It is 0.
    """
    if count == 0:
        raise InputError("train split: expected an edge of a user who lacks an item, got none")
    return count
