"""The loop of a study: hands trials to worker processes and listens to them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from mmssl.errors import InputError
from mmssl.tuning.study import Study
from mmssl.tuning.worker import work

if TYPE_CHECKING:
    from optuna.trial import Trial

# So often is a request to stop looked for; workers are heard at once.
_POLL_SECONDS = 0.2
# Trials that fail in a row are no accident any more.
_MOST_FAILURES = 3


class _Worker:
    """One process and the trial that it has."""

    def __init__(self, study: Study, device: str, threads: int) -> None:
        self._arguments = (
            study.spec.data,
            study.spec.data_hash,
            study.spec.model,
            device,
            threads,
            study.spec.trackers,
        )
        self._threads = threads
        self.trial: Trial | None = None
        self.process: Any = None
        self.connection: Connection
        self.stopping = False

    def begin(self, trial: Trial, directory: str, config: dict[str, Any]) -> None:
        if self.process is None:
            self._start()
        self.trial = trial
        self.send(("trial", directory, config))

    def stop(self) -> None:
        if self.trial is not None and not self.stopping:
            self.stopping = True
            self.send("stop")

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died; its sentinel says so too

    def close(self, kill: bool) -> None:
        if self.process is None:
            return
        if kill:
            self.process.kill()
        self.connection.close()
        self.process.join()
        self.process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=work, args=(other, os.getpid(), *self._arguments), daemon=True
        )
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self._threads)  # read when its libraries load
        try:
            self.process.start()
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        other.close()


def run_study(
    study: Study,
    *,
    jobs: int,
    threads: int,
    device: str = "cpu",
    timeout: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_trial: Callable[[int, str], None] = lambda number, text: None,
) -> bool:
    """Runs trials until the study has as many as it shall have.

    Args:
        study: open.
        jobs: worker processes.
        threads: of each worker.
        device: "cpu" or "cuda"; all workers share it.
        timeout: seconds after which running trials are saved and stopped.
        should_stop: polled; the same happens once it returns True.
        on_trial: called with a trial's number and what became of it.

    Returns:
        False if it stopped before; a resume continues the trials under way.

    Raises:
        InputError: a trial could not be trained for a reason that is not its parameters, or several
            workers failed in a row.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    workers = [_Worker(study, device, threads) for _ in range(jobs)]
    queue = study.unfinished()
    failures = 0
    problem: str | None = None
    stopping = False
    clean = False
    try:
        while True:
            late = deadline is not None and time.monotonic() > deadline
            stopping = stopping or problem is not None or should_stop() or late
            for worker in workers:
                if stopping:
                    worker.stop()
                elif worker.trial is None:
                    _begin_next(study, worker, queue, on_trial)
            busy = [worker for worker in workers if worker.trial is not None]
            if not busy:
                break
            ready = wait(
                [x for w in busy for x in (w.connection, w.process.sentinel)], _POLL_SECONDS
            )
            for worker in busy:
                if not {worker.connection, worker.process.sentinel}.intersection(ready):
                    continue
                outcome, reason = _hear(study, worker, on_trial)
                if outcome == "failed":
                    failures += 1
                    if failures >= _MOST_FAILURES:
                        problem = f"{failures} trials failed in a row, the last one: {reason}"
                elif outcome == "refused":
                    problem = reason
                elif outcome == "ended":
                    failures = 0
        clean = True
    finally:
        for worker in workers:
            worker.close(kill=not clean)
    if problem is not None:
        raise InputError(problem)
    return study.is_complete()


def _begin_next(
    study: Study, worker: _Worker, queue: list[Trial], on_trial: Callable[[int, str], None]
) -> None:
    while True:
        trial = queue.pop(0) if queue else study.next_trial()
        if trial is None:
            return
        try:
            config = study.config_of(trial)
        except InputError as error:
            study.tell(trial, "pruned", reason=str(error))
            on_trial(trial.number, f"not possible: {error}")
            continue
        worker.begin(trial, str(study.trial_path(trial.number)), config.to_dict())
        return


def _hear(study: Study, worker: _Worker, on_trial: Callable[[int, str], None]) -> tuple[str, str]:
    """Takes one message, or the death, of a worker; whether its trial is going, ended, failed."""
    trial = worker.trial
    assert trial is not None
    try:
        message = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode
        message = ("died", f"its process ended with {code}" + (" (killed)" if code == -9 else ""))
        worker.close(kill=True)
    kind, *rest = message
    if kind == "epoch":
        prune = study.report(trial, *rest)
        if not worker.stopping:  # else "stop" was the answer
            worker.send("prune" if prune else "go on")
        return "going", ""
    worker.trial = None
    if kind == "done":
        study.tell(trial, "complete", rest[0])
        on_trial(trial.number, f"val recall@20 {rest[0]:.4f}")
    elif kind == "pruned":
        study.tell(trial, "pruned")
        on_trial(trial.number, "pruned")
    elif kind == "diverged":
        study.tell(trial, "pruned", reason=rest[0])
        on_trial(trial.number, rest[0])
    elif kind == "stopped":
        return "stopped", ""
    elif kind == "refused":
        return "refused", rest[0]
    else:
        if kind == "crashed":
            path = study.trial_path(trial.number)
            path.mkdir(exist_ok=True)
            (path / "error.txt").write_text(rest[0], encoding="utf-8")
            rest = [f"{rest[0].strip().splitlines()[-1]} ({path / 'error.txt'})"]
        study.tell(trial, "fail", reason=rest[0])
        on_trial(trial.number, f"failed: {rest[0]}")
        return "failed", rest[0]
    return "ended", ""
