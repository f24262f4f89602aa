"""The run directory as the processes see it that do not lead: they read it and write nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmssl.config import Config
from mmssl.locks import DirectoryLock
from mmssl.training.run import RunDirectory


class FollowedRun(RunDirectory):
    """The run directory that the leading process writes."""

    def __init__(
        self, path: Path, info: Any, config: Config, *, lock: DirectoryLock | None = None
    ) -> None:
        super().__init__(path, info, config, lock=_NoLock(path))

    @staticmethod
    def check_unused(path: Path, lock: DirectoryLock) -> None:
        """Do nothing: the leading process checks."""

    def check_free(self) -> None:
        """Do nothing: the leading process checks."""

    def initialize(self) -> None:
        """Do nothing."""

    def save_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def save_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log(self, event: str, **values: Any) -> int:
        """Do nothing; return 0."""
        return 0

    def truncate_log(self, size: int, history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Do nothing."""

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""


class _NoLock(DirectoryLock):
    """Locks nothing: the leading process holds the lock for all."""

    def check(self) -> None:
        pass

    def acquire(self, *, wait: bool = False) -> bool:
        return True

    def release(self) -> None:
        pass
