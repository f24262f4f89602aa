"""Weights & Biases tracker: a run of the project ``WANDB_PROJECT`` (default ``mmssl``).

W&B's environment variables apply (``WANDB_MODE=offline``, ``WANDB_ENTITY``, ``WANDB_API_KEY``,
...). Its files are in ``RUN/wandb``; ``wandb sync RUN/wandb/offline-run-*`` uploads an offline run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmssl.tracking.base import Status, TrackedRun

# Maximum time that an unreachable server delays the start and the end of training.
_START_SECONDS, _FINISH_SECONDS = 30.0, 60.0


class WandbTracker:
    """Tracker that logs one W&B step per epoch.

    A resumed run continues the W&B run with the same id. W&B can't overwrite steps, so epochs that
    it has are not sent again; resuming is exact, so their values would be the same. Online, W&B
    reports its last step. Offline, each part of a run has its own directory, which is only reliable
    once it is closed: a part that was killed is renamed and its epochs are logged again.
    """

    def start(self, run: TrackedRun) -> int:
        """Start or continue the W&B run."""
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
        """Queue the values; W&B writes them in a separate process."""
        self._run.log(dict(values), step=epoch, commit=True)
        self._epoch = epoch

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Write final metrics to the summary of the W&B run."""
        self._run.summary.update(dict(metrics))
        self._run.finish(exit_code=0 if status == "finished" else 1)
        self._memory["closed"].append(Path(self._run.dir).parent.name)
        self._memory["complete"] = self._epoch


def _set_aside(folder: Path, closed: set[str]) -> None:
    """Rename offline parts that were not closed, so that `wandb sync` does not upload them."""
    for part in folder.glob("offline-run-*"):
        if part.name not in closed:
            part.rename(part.with_name(f"cut-off-{part.name}"))
