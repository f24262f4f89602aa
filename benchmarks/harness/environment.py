"""The environment of a measurement, and whether the machine was otherwise idle."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import mmssl
from benchmarks.harness.record import NOT_INSTALLED
from benchmarks.peers.registry import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
BUSY_LOAD = 0.5  # runnable processes
BUSY_CORES = 0.2  # cores in use while this process sleeps


def environment(device: str = "cpu", *, smoke: bool = False) -> dict[str, Any]:
    """Return the record that every file carries."""
    load, used, cuda = load_average(), cores_in_use(), device == "cuda"
    return {
        "device": device,
        "name": gpu("name") if cuda else cpu_name(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        **({"driver": gpu("driver_version"), "cuda": torch.version.cuda} if cuda else {}),
        "load_at_start": load,
        "cores_in_use_at_start": used,
        # The load is a mean over the last minute and still includes what has just ended.
        "busy": used > BUSY_CORES if used is not None else (load or 0.0) > BUSY_LOAD,
        "mmssl": mmssl.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "commit": commit(),
        "smoke": smoke,
        "versions": {name: version(name) for name in PACKAGES},
    }


def warning(found: dict[str, Any]) -> str:
    """Return one line if the machine is busy, else an empty string."""
    if not found["busy"]:
        return ""
    used = found["cores_in_use_at_start"]
    return (
        f"warning: the machine is busy (load {found['load_at_start']:.1f}, "
        f"{'?' if used is None else format(used, '.1f')} of {found['cores']} cores in use): "
        "medians will be too long and quartiles wide; run it alone"
    )


def heading(found: dict[str, Any]) -> str:
    """Return one line that describes the environment."""
    return (
        f"{found['name']}, {found['threads']} threads, {found['simd']}, torch {found['torch']}, "
        f"commit {found['commit']}"
    )


def cores_in_use(seconds: float = 0.5) -> float | None:
    """Return the cores in use while this process sleeps; None if the system does not tell."""

    def ticks() -> tuple[int, int]:
        values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]  # all, idle and waiting for disks

    try:
        before = ticks()
        time.sleep(seconds)
        after = ticks()
    except (OSError, ValueError, IndexError):
        return None
    total, idle = (b - a for a, b in zip(before, after, strict=True))
    return (os.cpu_count() or 1) * (1 - idle / total) if total else None


def load_average() -> float | None:
    """Return the load of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@functools.cache
def cpu_name() -> str:
    """Return the processor model as the kernel names it."""
    with_names = Path("/proc/cpuinfo")
    if with_names.exists():
        for line in with_names.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def clocks_mhz(device: str) -> list[float]:
    """Return the current clocks of the cores or of the GPU, if the system reports them."""
    if device == "cuda":
        found = gpu("clocks.sm").split()  # "1980 MHz", "[N/A]" or nothing
        return [float(found[0])] if found and found[0].isdigit() else []
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]


def gpu(field: str) -> str:
    """Return a field of ``nvidia-smi``, empty without it."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@functools.cache
def commit() -> str:
    """Return the commit, with a + if files were modified; "unknown" outside a checkout."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results"
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def version(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
