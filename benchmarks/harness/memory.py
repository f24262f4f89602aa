"""Peak memory: of a fresh process on the CPU, by torch's allocator on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def reset_peak() -> None:
    """Reset the peak if the kernel supports it (Linux); elsewhere it covers the whole process."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Return freed memory to the system, with the C libraries that can (glibc)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_mb() -> float:
    """Return the largest resident set since `reset_peak`, in MiB."""
    found = _status_mb("VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if found is None else found


def available_mb() -> float:
    """Return the memory that is available, in MiB; infinite without /proc."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) / 1024
    return math.inf


def growth_mb(job: Callable[[], object], device: str) -> float | None:
    """Return how much a second call of a job raises the peak; None if the system cannot tell.

    The first call compiles, loads and starts threads. On the CPU this is to be called in a process
    of its own, whose allocator holds no freed memory of others.
    """
    job()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    trim()
    reset_peak()
    resident = _status_mb("VmRSS:")
    if resident is None:
        return None
    job()
    return peak_mb() - resident


def in_fresh_process(module: str, *arguments: str) -> Any:
    """Run a module of the benchmarks and read the JSON value on its last line.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _status_mb(field: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return float(line.split()[1]) / 1024
    return None
