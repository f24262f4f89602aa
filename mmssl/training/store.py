"""Where the tensors of a task are kept: the model and the checkpoints of its run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmssl.distributed.group import SINGLE, Group
from mmssl.models.scorer import Scorer
from mmssl.training.checkpoint import Checkpoint, recover_newest

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.training.run import RunDirectory


class Store:
    """The tensors of processes that hold all of them.

    Args:
        run: The run directory; only the leading process of the group writes to it.
        group: The processes.
    """

    def __init__(self, run: RunDirectory, group: Group = SINGLE) -> None:
        self.run = run
        self.group = group

    def save_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Write what ranks items, see :meth:`mmssl.training.run.RunDirectory.save_model`."""
        self.run.save_model(tensors)

    def save_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, see :meth:`mmssl.training.run.RunDirectory.save_state`."""
        self.run.save_state(tensors, state)

    def recover_newest(self) -> tuple[Path, Checkpoint] | None:
        """Read the newest checkpoint that is whole; None without any.

        Raises:
            InputError: All of them are damaged.
        """
        with self.group.leader_first():  # it renames damaged files
            return recover_newest(self.run.checkpoint_path)

    def load_scorer(self, dataset: InteractionDataset) -> Scorer:
        """Read what :meth:`save_model` wrote."""
        return self.run.load_scorer(dataset)
