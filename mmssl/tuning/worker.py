"""A worker process of a study: trains the trials it is sent and answers after every epoch.

It never touches the study's storage; all it knows comes through the pipe. Messages are tuples:
``("trial", directory, config)`` in; ``("epoch", number, value)`` out, answered by ``"go on"``,
``"prune"`` or ``"stop"``, the last of which may also come unasked; then one of ``("done", value)``,
``("pruned",)``, ``("diverged", reason)``, ``("stopped",)``, ``("refused", reason)``,
``("crashed", traceback)``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmssl.config import Config
from mmssl.errors import Diverged, InputError

SELECTION_METRIC = "recall@20"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Pruned(Exception):  # noqa: N818
    """The study has seen enough of the trial."""


def work(
    connection: Connection,
    parent: int,
    data: str,
    data_hash: str,
    model: str,
    device: str,
    threads: int,
    trackers: tuple[str, ...],
) -> None:
    """Serves one connection until it closes.

    Args:
        connection: to the study.
        parent: its process id.
        data: the data set's directory.
        data_hash: its content hash.
        model: a trained model.
        device: "cpu" or "cuda".
        threads: this process's share of the CPU.
        trackers: of every trial.
    """
    # Ctrl-C, `timeout` and schedulers signal the whole process group; the study decides what
    # becomes of it, and ends its workers by SIGKILL where it must.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Two studies must never write into one trial, so a worker does not outlive its study.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    import torch

    from mmssl.data.readers import read_dataset
    from mmssl.training.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    dataset = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message == "stop":  # it crossed the end of the last trial
            return
        _, directory, values = message
        try:
            if dataset is None:
                dataset = read_dataset(Path(data))
                if dataset.content_hash() != data_hash:
                    raise InputError(f"{data}: has changed since the study began")
            config = Config().replace(values, source="trial")
            result = _train(
                connection, Path(directory), model, Path(data), dataset, config, device, trackers
            )
        except Diverged as error:
            result = ("diverged", str(error))
        except InputError as error:
            result = ("refused", str(error))
        except (EOFError, BrokenPipeError):
            return
        except Exception:
            result = ("crashed", traceback.format_exc())
        connection.send(result)


def _train(
    connection: Connection,
    directory: Path,
    model: str,
    data: Path,
    dataset: Any,
    config: Config,
    device: str,
    trackers: tuple[str, ...],
) -> tuple[Any, ...]:
    from mmssl.tracking import Tracking
    from mmssl.training.fit import fit_run
    from mmssl.training.run import RunDirectory
    from mmssl.training.trainer import Interrupted

    # A trial that was under way when its study stopped continues from its checkpoint.
    resume = (directory / "config.toml").exists()
    if resume:
        run = RunDirectory.open(directory)
    else:
        run = RunDirectory.new(directory, model, data, dataset, config)

    def report(record: dict[str, Any]) -> None:
        connection.send(("epoch", record["epoch"], record["val"][SELECTION_METRIC]))
        answer = connection.recv()
        if answer == "prune":
            raise _Pruned
        if answer == "stop":
            raise Interrupted

    def report_again(history: list[dict[str, Any]]) -> None:
        for record in history:  # the study may have stopped before it heard of the last one
            report(record)

    try:
        metrics = fit_run(
            run,
            dataset,
            device=device,
            show_progress=False,
            resume=resume,
            should_stop=connection.poll,  # the study says nothing unasked but "stop"
            on_start=report_again,
            on_epoch=report,
            tracking=Tracking(run, trackers),
            test=False,
        )
        return ("done", metrics["val"][SELECTION_METRIC])
    except _Pruned:
        return ("pruned",)
    except Interrupted:
        if connection.poll():
            connection.recv()  # "stop"
        return ("stopped",)
