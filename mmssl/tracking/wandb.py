"""Weights & Biases: a run of the project in ``WANDB_PROJECT`` (default ``mmssl``).

All of W&B's own variables count (``WANDB_MODE=offline``, ``WANDB_ENTITY``, ``WANDB_API_KEY``, ...).
Its files are in ``RUN/wandb``; ``wandb sync RUN/wandb/offline-run-*`` uploads an offline run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmssl.tracking.base import Status, TrackedRun

# Neither an unreachable server at the start nor one at the end holds up training for longer.
_START_SECONDS, _FINISH_SECONDS = 30.0, 60.0


class WandbTracker:
    """One W&B step per epoch.

    A resumed run continues the W&B run of the same id. W&B can't take steps back, so what it has is
    not sent again; resuming is exact, it would be the same. Online, W&B says at which step it goes
    on. Offline, each stretch of the run is a directory that holds nothing reliable until it is
    closed: one that a kill cut off is set aside and its epochs are sent again.
    """

    def start(self, run: TrackedRun) -> int:
        """Begins or continues the W&B run."""
        import wandb

        self._memory = run.memory
        _set_aside(run.path / "wandb", set(run.memory.setdefault("closed", [])))
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mmssl"),
            id=run.id,
            name=run.path.name,
            group=run.path.resolve().parent.name,
            dir=run.path,
            config=dict(run.config),
            resume="allow",
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_START_SECONDS,
                finish_timeout=_FINISH_SECONDS,
            ),
        )
        self._epoch = int(run.memory.get("complete", 0))
        if self._run.settings.mode != "offline":
            self._epoch = max(0, self._run.step - 1)
        return self._epoch

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Queued; W&B writes in a process of its own."""
        self._run.log(dict(values), step=epoch, commit=True)
        self._epoch = epoch

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Final metrics go into the summary."""
        self._run.summary.update(dict(metrics))
        self._run.finish(exit_code=0 if status == "finished" else 1)
        self._memory["closed"].append(Path(self._run.dir).parent.name)
        self._memory["complete"] = self._epoch


def _set_aside(folder: Path, closed: set[str]) -> None:
    """Renames offline stretches that were not closed, so that `wandb sync` does not meet them."""
    for part in folder.glob("offline-run-*"):
        if part.name not in closed:
            part.rename(part.with_name(f"cut-off-{part.name}"))
