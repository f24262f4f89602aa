"""The loop of one process of a study: claims trials and trains them, one after the other."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState

from mmssl.data.dataset import InteractionDataset
from mmssl.errors import Diverged, InputError
from mmssl.tracking import Tracking
from mmssl.training import SELECTION_METRIC
from mmssl.training.fit import fit_run
from mmssl.training.guards import Interrupted
from mmssl.training.run import RunDirectory
from mmssl.tuning.study import Study

# Seconds between two checks for a trial that a killed process left behind.
_POLL_SECONDS = 0.5
# Trials that crash in a row have a common cause, which ends the study.
_MAX_FAILURES = 3


class _Pruned(Exception):  # noqa: N818
    """Raised inside the training of a trial that the study prunes."""


def run_trials(
    study: Study,
    dataset: InteractionDataset,
    *,
    device: str = "cpu",
    should_stop: Callable[[], bool],
    on_trial: Callable[[int, str], None] = lambda number, text: None,
    wait: bool = True,
) -> bool:
    """Train trials until the study has all of them.

    Args:
        study: The study.
        dataset: Its data.
        device: "cpu" or "cuda".
        should_stop: Polled; once it returns True the trial is saved and given back.
        on_trial: Called with the number of a trial and its outcome.
        wait: Wait for the trials of other processes, and take over those of processes that die.

    Returns:
        Whether the study has all its trials and none is running.

    Raises:
        InputError: A trial could not be trained for a reason other than its parameters, or several
            trials in a row crashed, here or in another process.
    """
    failures = 0
    while not should_stop() and not study.problem:
        trial = study.claim(on_trial)
        if trial is None:
            if not wait or study.is_complete():
                break
            time.sleep(_POLL_SECONDS)
            continue
        value, reason = None, ""
        try:
            value = _train(study, trial, dataset, device, should_stop)
            state, text = TrialState.COMPLETE, f"val {SELECTION_METRIC} {value:.4f}"
        except Interrupted:
            study.release(trial)
            break
        except Diverged as error:
            state, text, reason = TrialState.PRUNED, str(error), str(error)
        except InputError as error:
            study.release(trial)
            study.problem = str(error)
            break
        except _Pruned:
            state, text = TrialState.PRUNED, "pruned"
        except OSError as error:  # the journal can't be written; the trial stays to be continued
            raise InputError(f"{study.path}: {error.strerror or error}") from error
        except Exception as error:
            reason = _write_traceback(study.trial_path(trial.number), error)
            state, text = TrialState.FAIL, f"failed: {reason}"
        study.finish(trial, state, value, reason)
        on_trial(trial.number, text)
        failures = failures + 1 if state == TrialState.FAIL else 0
        if failures == _MAX_FAILURES:
            study.problem = f"{failures} trials failed in a row, the last one: {reason}"
    if study.problem:
        raise InputError(study.problem)
    return study.is_complete()


def _train(
    study: Study,
    trial: Trial,
    dataset: InteractionDataset,
    device: str,
    should_stop: Callable[[], bool],
) -> float:
    """Train a trial, from its checkpoint if it has one, and return its best validation metric."""
    directory, spec = study.trial_path(trial.number), study.spec
    lock = study.trial_lock(trial)
    resume = (directory / "config.toml").exists()
    if resume:
        run = RunDirectory.open(directory, lock=lock)
    else:
        config = study.config_of(trial)
        run = RunDirectory.new(directory, spec.model, Path(spec.data), dataset, config, lock=lock)

    def report(record: dict[str, Any]) -> None:
        if study.report(trial, record["epoch"], record["val"][SELECTION_METRIC]):
            raise _Pruned

    def report_again(history: list[dict[str, Any]]) -> None:
        for record in history:  # the process may have died before it reported the last one
            report(record)

    metrics = fit_run(
        run,
        dataset,
        device=device,
        show_progress=False,
        resume=resume,
        should_stop=should_stop,
        on_start=report_again,
        on_epoch=report,
        tracking=Tracking(run, spec.trackers),
        test=False,
    )
    return float(metrics["val"][SELECTION_METRIC])


def _write_traceback(directory: Path, error: Exception) -> str:
    """Write the traceback of a crash to the trial's directory and return its last line."""
    text = "".join(traceback.format_exception(error))
    file = directory / "error.txt"
    file.write_text(text, encoding="utf-8")
    return f"{text.strip().splitlines()[-1]} ({file})"
