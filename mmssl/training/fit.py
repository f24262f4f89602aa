"""One call for a run of any model: new or resumed, tracked, stopped on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmssl.data.dataset import InteractionDataset
from mmssl.tracking import Status, Tracking
from mmssl.training.baseline_run import fit_baseline
from mmssl.training.run import RunDirectory
from mmssl.training.trainer import Interrupted, Trainer


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
) -> dict[str, Any]:
    """Trains the model that ``run.info.model`` names and returns its metrics.

    Args:
        run: where everything is written; a new one is initialised here.
        dataset: the data of the run.
        device: "cpu" or a CUDA device.
        show_progress: a bar and one line per epoch.
        resume: continue from the newest whole checkpoint if there is one.
        should_stop: polled; once it returns True the state is saved and `Interrupted` raised.
        on_start: called with the records of the epochs that a resumed run has behind it.
        on_epoch: called with every finished epoch's record; whatever it raises ends the training.
        tracking: trackers to tell.
        test: False leaves the test split unread.

    Raises:
        Interrupted: on request.
        Diverged: the loss or the embeddings are no longer finite.
        InputError: data that can't be trained on, or a file that can't be written.
    """
    tracking = tracking or Tracking(run)

    def finish_epoch(record: dict[str, Any]) -> None:
        tracking.on_epoch(record)
        on_epoch(record)

    def start(history: list[dict[str, Any]]) -> None:
        tracking.start(history)
        on_start(history)

    trainer = None
    if run.info.model == "mmssl":
        trainer = Trainer(
            dataset,
            run.config,
            run,
            device=device,
            show_progress=show_progress,
            should_stop=should_stop,
            on_epoch=finish_epoch,
        )
        if resume:
            trainer.resume()
    run.initialize()
    status: Status = "failed"
    try:
        if trainer is not None:
            start(trainer.progress.history)
            metrics = trainer.fit(test=test)
        else:
            metrics = fit_baseline(
                dataset,
                run,
                device=device,
                show_progress=show_progress,
                on_start=start,
                on_epoch=finish_epoch,
                test=test,
                resume=resume,
                should_stop=should_stop,
            )
        status = "finished"
    except (Interrupted, KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    finally:
        tracking.finish(status, metrics if status == "finished" else None)
    return metrics
