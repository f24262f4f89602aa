"""Where a training step spends its time: a table of its phases and a trace for chrome://tracing."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from mmssl.errors import InputError
from mmssl.training.task import Task

_WARM_UP_STEPS = 3


class StepProfile(NamedTuple):
    """Times in milliseconds per step."""

    step_ms: float  # without the profiler
    phase_ms: dict[str, float]  # with it

    def lines(self) -> list[str]:
        """Return a table of the phases and the whole step."""
        total = sum(self.phase_ms.values())
        rows = [
            f"{name:18s} {spent:9.1f} ms {100 * spent / total:5.1f} %"
            for name, spent in self.phase_ms.items()
        ]
        return [*rows, f"{'step, unprofiled':18s} {self.step_ms:9.1f} ms"]


@contextlib.contextmanager
def quiet_kineto() -> Iterator[None]:
    """Keep Kineto, the tracer under `torch.profiler`, from writing its own lines to stderr.

    Kineto writes "USDT: ... profiler_start" for every trace, at its highest level, 5, and reads the
    level from the environment when the process profiles for the first time. A level that the user
    has set stays, so ``KINETO_LOG_LEVEL=1`` brings its messages back.
    """
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "6"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def profile_task(task: Task, trace: Path, *, steps: int = 5) -> StepProfile:
    """Run some steps, which train the model, and write a trace of the last ones.

    Args:
        task: A task that is trained in epochs.
        trace: JSON file to write, for chrome://tracing or ui.perfetto.dev.
        steps: Number of steps that are timed, and number of steps that are then traced.

    Raises:
        InputError: The trace can't be written.
    """
    on_gpu = task.device.type == "cuda"

    def run(first: int, count: int) -> float:
        start = time.perf_counter()
        for number in range(first, first + count):
            task.step(number % task.steps_per_epoch)
        if on_gpu:
            torch.cuda.synchronize(task.device)
        return (time.perf_counter() - start) / count

    task.start_epoch(0, 0)
    run(0, _WARM_UP_STEPS)
    seconds = run(_WARM_UP_STEPS, steps)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with quiet_kineto(), profile(activities=activities) as profiler:
        run(_WARM_UP_STEPS + steps, steps)
    _export(profiler, trace)
    averages = {event.key: event for event in profiler.key_averages()}
    spent = {}
    for name in task.phases:
        event = averages.get(f"mmssl::{name}")
        if event is not None:
            total = event.device_time_total if on_gpu else event.cpu_time_total
            spent[name] = total / steps / 1e3
    return StepProfile(1e3 * seconds, spent)


def _export(profiler: profile, trace: Path) -> None:
    """Write the trace; the profiler itself does not report a full disk and leaves a part."""
    with tempfile.TemporaryDirectory(prefix=".trace-", dir=trace.parent) as folder:
        part = Path(folder, trace.name)
        profiler.export_chrome_trace(str(part))
        try:
            json.loads(part.read_bytes())
            os.replace(part, trace)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{trace}: expected a complete trace, got a file that was cut short or none; the "
                "disk may be full"
            ) from error
