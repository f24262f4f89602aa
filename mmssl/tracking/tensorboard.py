"""TensorBoard tracker: event files in ``RUN/tensorboard``, for ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from mmssl.tracking.base import Status, TrackedRun


class TensorBoardTracker:
    """Tracker that logs scalars by epoch, and the configuration as hyperparameters and text.

    A resumed run writes a new event file whose ``purge_step`` tells readers to discard everything
    from epoch n on, and logs these epochs again. TensorBoard thus shows every epoch once, no matter
    how the run was interrupted.
    """

    def start(self, run: TrackedRun) -> int:
        """Open an event file."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # The last epoch is logged again too, since the test metrics share its step.
        complete = max(0, min(run.sent, run.epoch) - 1)
        resumed = (run.path / "tensorboard").exists()
        writer = SummaryWriter(
            run.path / "tensorboard", purge_step=complete + 1 if resumed else None
        )
        self._writer = cast(Any, writer)  # torch annotates its file_writer as None
        experiment, session, self._session_end = hparams(
            dict(run.config), {"test/recall@20": 0.0, "best_val/recall@20": 0.0}
        )
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(session)
        text = "".join(f"    {name} = {value!r}\n" for name, value in run.config.items())
        self._writer.add_text("config", text, global_step=0)
        self._writer.flush()
        self._epoch = run.epoch
        return complete

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the values and flush, so that a killed run loses nothing."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=epoch)
        self._writer.flush()
        self._epoch = epoch

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Log final metrics at the step of the last epoch."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=self._epoch)
        if status == "finished":
            self._writer.file_writer.add_summary(self._session_end)
        self._writer.close()
