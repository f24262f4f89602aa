"""Structure learning: the modality graphs, rebuilt from the generator's highest scores.

Wei et al., WWW 2023, section 3.1.

Legend: U users, I items, B batch, M modalities, k edges per user.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.mmssl.config import StructureConfig
from mmssl.models.mmssl.model import MultiModalEmbeddings
from mmssl.ops.dispatch import runs_on_gpu
from mmssl.ops.masked_similarity import masked_similarity_reference


class StructureLearner(ABC):
    """Collects edges in every step; ``graphs`` are the M modality graphs in use."""

    def __init__(
        self, graph: InteractionGraph, num_modalities: int, config: StructureConfig
    ) -> None:
        self.graph = graph
        self.k = config.edges_per_user(self._count_items())
        self.interval = config.refresh_interval
        self.graphs: list[InteractionGraph] = [graph] * num_modalities

    @abstractmethod
    def step(self, users: Tensor, embeddings: MultiModalEmbeddings, step_of_epoch: int) -> None:
        """Collect the batch's highest scores, and rebuild the graphs every ``interval`` steps.

        Args:
            users: (B,) int64.
            embeddings: Detached; their features score the items.
            step_of_epoch: Counted from 0.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors from which :meth:`load_state_dict` continues."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the collected edges and the graphs in use."""

    def _count_items(self) -> int:
        return self.graph.num_items


class LatestStructure(StructureLearner):
    """The latest top-k items of every user; the interactions of a user not sampled yet."""

    def __init__(
        self, graph: InteractionGraph, num_modalities: int, config: StructureConfig
    ) -> None:
        super().__init__(graph, num_modalities, config)
        shape = (num_modalities, graph.num_users, self.k)
        self.latest = torch.full(shape, -1, dtype=torch.int32, device=graph.device)
        self.built = self.latest  # the lists that the graphs in use were built from
        self.steps = 0
        # The kernels of a GPU follow the row pointers, so that their end need not be read. The
        # graphs then stay where they are, so that steps can be recorded.
        whole = isinstance(graph, InteractionGraph)
        self.padded = whole and runs_on_gpu("spmm", graph.index.rowptr)
        if self.padded:
            self.built = self.latest if self.interval == 1 else self.latest.clone()
            self.graphs, self._overwrite = graph.with_changing_lists(self.latest)

    def step(self, users: Tensor, embeddings: MultiModalEmbeddings, step_of_epoch: int) -> None:
        """See the base class; steps are counted over the whole training, not within an epoch."""
        pairs = zip(embeddings.user_feature, embeddings.item_feature, strict=True)
        options: dict[str, Any] = {"users": users, "exclude": self.graph.ui}
        tops = [ops.masked_topk(user, item, self.k, **options)[1] for user, item in pairs]
        if self.padded:
            torch.ops.mmssl.store_lists(self.latest, users, tops)
        else:
            for table, top in zip(self.latest, tops, strict=True):
                table[users] = top.int()
        self.count_step()

    def count_step(self) -> None:
        """Count a step that has put its lists into ``latest``, and rebuild if it is time."""
        due = self.is_due()
        self.count_recorded()
        if due:
            self.built = self._kept()
            self._rebuild(self.built)

    def is_due(self) -> bool:
        """Whether the next step rebuilds the graphs."""
        return (self.steps + 1) % self.interval == 0

    def count_recorded(self) -> None:
        """Count a step whose recording has done the rest of :meth:`count_step`."""
        self.steps += 1

    def _kept(self) -> Tensor:
        """Return the lists as they are now, which later steps don't change."""
        if self.interval == 1:
            return self.latest
        return self.built.copy_(self.latest) if self.padded else self.latest.clone()

    def _rebuild(self, lists: Tensor) -> None:
        """Use the graphs of other (M, U, k) lists, in the arrays of those in use if padded."""
        if self.padded:
            self._overwrite(lists)
        else:
            self.graphs = self._build(lists)

    def _build(self, lists: Tensor) -> list[InteractionGraph]:
        """Build the graphs of (M, U, k) lists."""
        return self.graph.with_lists(lists)

    def state_dict(self) -> dict[str, Tensor]:
        """See the base class; tensors with a row per user."""
        state = {"steps": torch.tensor(self.steps)}
        state.update({f"latest.{m}": table for m, table in enumerate(self.latest)})
        if self.built is not self.latest:
            state.update({f"built.{m}": table for m, table in enumerate(self.built)})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See the base class."""
        device, count = self.graph.device, len(self.graphs)
        self.latest, self.built = (
            torch.stack([state.get(f"{name}.{m}", state[f"latest.{m}"]) for m in range(count)])
            for name in ("latest", "built")
        )
        self.latest, self.built = self.latest.to(device), self.built.to(device)
        self.steps = int(state["steps"])
        if self.interval == 1:
            self.built = self.latest
        learned = self.steps >= self.interval
        if self.padded:
            self._rebuild(self.built if learned else torch.full_like(self.latest, -1))
        elif learned:
            self._rebuild(self.built)
        else:
            self.graphs = [self.graph] * count


class ReleasedStructure(StructureLearner):
    """The schedule of the released code, for parity.

    A step collects edges, unless its number within the epoch is a positive multiple of the
    interval: then the graphs are rebuilt from the collected edges, repeated edges adding up, and
    the list is cleared. With an interval of 1 the graphs are therefore empty from the third step of
    the first epoch on. Items are listed user by user but the users are tiled, which pairs them
    wrongly for k > 1.
    """

    def __init__(
        self, graph: InteractionGraph, num_modalities: int, config: StructureConfig
    ) -> None:
        super().__init__(graph, num_modalities, config)
        self._clear()

    def _clear(self) -> None:
        empty = torch.empty(0, dtype=torch.int64, device=self.graph.device)
        self.user = empty  # (n,)
        self.items = empty.expand(len(self.graphs), 0)  # (M, n)

    def step(self, users: Tensor, embeddings: MultiModalEmbeddings, step_of_epoch: int) -> None:
        """See the base class."""
        if step_of_epoch == 0 or step_of_epoch % self.interval:
            if self.k > 0:
                self._collect(users, embeddings)
            return
        if runs_on_gpu("spmm", self.graph.index.rowptr):
            self.graphs = [self.graph.of_counts(self.user, item) for item in self.items]
        else:
            weight = torch.ones(self.user.numel(), device=self.graph.device)
            self.graphs = [self._build(self.user, item, weight) for item in self.items]
        self._clear()

    def _build(self, user: Tensor, item: Tensor, value: Tensor) -> InteractionGraph:
        graph = self.graph
        return InteractionGraph.from_edges(
            user,
            item,
            graph.num_users,
            graph.num_items,
            normalization=graph.normalization,
            value=value,
        )

    def _collect(self, users: Tensor, embeddings: MultiModalEmbeddings) -> None:
        pairs = zip(embeddings.user_feature, embeddings.item_feature, strict=True)
        top = [self._best(user, item, users) for user, item in pairs]
        self.user = torch.cat([self.user, users.repeat(self.k)])
        self.items = torch.cat([self.items, torch.stack(top).flatten(1)], 1)

    def _best(self, user: Tensor, item: Tensor, users: Tensor) -> Tensor:
        """Return the (B, k) positions of the largest values of the ``ops.masked_similarity`` rows.

        Train items are 0 in those rows, so they can be among the best only where the k-th other
        item scores no higher than 0; only such rows are formed.
        """
        score, best = ops.masked_topk(user, item, self.k, users=users, exclude=self.graph.ui)
        doubtful = (score[:, -1] <= 0).nonzero().squeeze(1)
        if doubtful.numel():
            # No kernel: the rows are formed, which backend "native" refuses.
            rows = masked_similarity_reference(user, item, users[doubtful], self.graph.ui)
            best[doubtful] = rows.topk(self.k, dim=1).indices
        return best

    def state_dict(self) -> dict[str, Tensor]:
        """See the base class."""
        state = {"user": self.user, "items": self.items.contiguous()}
        for position, graph in enumerate(self.graphs):
            if graph is not self.graph:
                assert graph.value is not None
                degree = graph.index.rowptr.diff()
                user = torch.arange(graph.num_users, device=graph.device).repeat_interleave(degree)
                state[f"graph.{position}.user"] = user.int()
                state[f"graph.{position}.item"] = graph.index.col[: user.numel()]
                state[f"graph.{position}.value"] = graph.value[: user.numel()]
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See the base class."""
        device = self.graph.device
        self.user, self.items = state["user"].to(device), state["items"].to(device)
        for position in range(len(self.graphs)):
            self.graphs[position] = self.graph
            if f"graph.{position}.user" in state:
                names = (f"graph.{position}.{name}" for name in ("user", "item", "value"))
                self.graphs[position] = self._build(*(state[name].to(device) for name in names))


def structure_learner(
    graph: InteractionGraph, num_modalities: int, config: StructureConfig
) -> StructureLearner:
    """Create the learner that ``config.schedule`` names."""
    kind = LatestStructure if config.schedule == "latest" else ReleasedStructure
    return kind(graph, num_modalities, config)
