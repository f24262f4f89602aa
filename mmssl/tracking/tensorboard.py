"""TensorBoard: event files in ``RUN/tensorboard``; ``tensorboard --logdir runs`` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from mmssl.tracking.base import Status, TrackedRun


class TensorBoardTracker:
    """Scalars by epoch, the configuration as hyper-parameters and text.

    A resumed run writes a new event file that begins with "forget everything from epoch n on"
    (``purge_step``), which TensorBoard's readers obey, and sends the epochs from n on again. So it
    shows every epoch once, however the run was cut off.
    """

    def start(self, run: TrackedRun) -> int:
        """Opens an event file."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # The newest epoch is sent again too: the test metrics stand at its step.
        complete = max(0, min(run.sent, run.epoch) - 1)
        resumed = (run.path / "tensorboard").exists()
        writer = SummaryWriter(
            run.path / "tensorboard", purge_step=complete + 1 if resumed else None
        )
        self._writer = cast(Any, writer)  # torch's annotations call its file_writer None
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
        """Written to the file before this returns, so that a killed run loses nothing."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=epoch)
        self._writer.flush()
        self._epoch = epoch

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Final metrics at the step of the last epoch."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=self._epoch)
        if status == "finished":
            self._writer.file_writer.add_summary(self._session_end)
        self._writer.close()
