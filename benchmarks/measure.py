"""How the benchmarks of whole steps measure: turns, phases, peak memory, and what they ran on."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mmssl.training.run import environment

ROOT = Path(__file__).resolve().parents[1]
RANGE = "mmssl::"
Job = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of one job."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """From single runs; quartiles of one run are that run."""
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(middle, low, high, len(seconds))

    def divided(self, count: int) -> Timing:
        """Of one of ``count`` equal parts of a run."""
        return Timing(self.median / count, self.low / count, self.high / count, self.runs)


def take_turns(jobs: dict[str, Job], rounds: int, *, warmup: int = 0) -> dict[str, Timing]:
    """Times every job once a round, one after the other, so that a slow minute hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(warmup + rounds):
        gc.collect()
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(runs) for name, runs in seconds.items()}


class Named(NamedTuple):
    """A function to be seen by the profiler: ``getattr(owner, attribute)`` under a phase's name."""

    owner: Any
    attribute: str
    phase: str


@contextlib.contextmanager
def annotated(functions: Iterable[Named]) -> Iterator[None]:
    """Gives functions of the package a profiler range for a while; unknown ones are passed over."""
    with contextlib.ExitStack() as stack:
        for owner, attribute, phase in functions:
            original = getattr(owner, attribute, None)
            if original is not None:
                wrapped = _ranged(original, RANGE + phase)
                stack.enter_context(mock.patch.object(owner, attribute, wrapped))
        yield


def _ranged(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return call


def phases(job: Job, repeats: int = 1) -> dict[str, float]:
    """Milliseconds spent in each ``mmssl::`` range, without those inside it; mean of the runs.

    What lies in no range is ``other``, so the phases add up to the job.
    """
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        start = time.perf_counter()
        for _ in range(repeats):
            job()
        total = 1e3 * (time.perf_counter() - start)
    spans = sorted(
        (event.time_range.start, -event.time_range.end, event.name.removeprefix(RANGE))
        for event in profiler.events()
        if event.name.startswith(RANGE) and event.is_user_annotation  # ops are named alike
    )
    spent: dict[str, float] = {}
    open_spans: list[tuple[float, str]] = []  # (end, name)
    for start_us, negative_end, name in spans:
        while open_spans and open_spans[-1][0] <= start_us:
            open_spans.pop()
        length = (-negative_end - start_us) / 1e3
        if open_spans:
            spent[open_spans[-1][1]] -= length
        spent[name] = spent.get(name, 0.0) + length
        open_spans.append((-negative_end, name))
    spent["other"] = total - sum(spent.values())
    return {name: value / repeats for name, value in spent.items()}


def reset_peak() -> None:
    """Forgets the peak so far where the kernel can (Linux); elsewhere it stays the process's."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Largest resident set since :func:`reset_peak`, MB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Runs a benchmark script and reads the JSON object on its last line."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def write_json(path: Path | None, **content: Any) -> None:
    """Writes results with the environment they come from; nothing without a path."""
    if path is not None:
        text = json.dumps({"environment": environment(), **content}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


def heading() -> str:
    """One line on what is measured with."""
    found = environment()
    return (
        f"torch {torch.__version__}, {found['threads']} threads, {found['cpu_capability']}, "
        f"{found['device']}"
    )
