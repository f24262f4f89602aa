"""One call for a run of any model: new or resumed, tracked, stopped on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmssl.data.dataset import InteractionDataset
from mmssl.distributed.group import SINGLE, Group
from mmssl.tracking import Status, Tracking
from mmssl.training.guards import Interrupted
from mmssl.training.run import RunDirectory
from mmssl.training.task import create_task
from mmssl.training.trainer import Trainer


def fit_run(
    run: RunDirectory,
    dataset: InteractionDataset,
    *,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_start: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    tracking: Tracking | None = None,
    test: bool = True,
    group: Group = SINGLE,
) -> dict[str, Any]:
    """Train the model that ``run.info.model`` names and return its metrics.

    The run directory is locked meanwhile, and torch's default generators are left as they were
    found.

    Args:
        run: The run; the directory of a new one is created here.
        dataset: The data of the run.
        device: "cpu" or a CUDA device.
        show_progress: Draw a progress bar and print a line per epoch.
        resume: Continue from the newest whole checkpoint if one exists.
        should_stop: Polled; once it returns True the state is saved and `Interrupted` raised.
        on_start: Called with the records of the epochs that a resumed run has finished.
        on_epoch: Called with every finished epoch's record; an exception that it raises ends the
            training.
        tracking: Experiment trackers of the run.
        test: False leaves the test split unread.
        group: The processes that train the model together.

    Raises:
        Interrupted: Requested by ``should_stop``.
        Diverged: Training produced NaN or Inf.
        LostProcess: Another process of the group has ended.
        InputError: Data that can't be trained on, a file that can't be written, or another process
            that is training in the directory.
    """
    tracking = tracking or Tracking(run)

    def finish_epoch(record: dict[str, Any]) -> None:
        tracking.on_epoch(record)
        on_epoch(record)

    device = torch.device(device)
    generators = [device] if device.type == "cuda" else []
    with run.lock, torch.random.fork_rng(devices=generators):
        if not resume:
            run.check_free()
        trainer = Trainer(
            create_task(run.info.model, dataset, run.config, device, group),
            dataset,
            run,
            show_progress=show_progress and group.leads,
            should_stop=should_stop,
            on_epoch=finish_epoch,
            group=group,
        )
        if resume:
            trainer.resume()
        run.initialize()
        status: Status = "failed"
        try:
            if group.leads:
                tracking.start(trainer.progress.history)
            on_start(trainer.progress.history)
            metrics = trainer.fit(test=test)
            status = "finished"
        except (Interrupted, KeyboardInterrupt, SystemExit):
            status = "interrupted"
            raise
        finally:
            tracking.finish(status, metrics if status == "finished" else None)
    return metrics
