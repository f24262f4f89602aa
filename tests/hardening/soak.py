"""A long training run, during which memory, open files and threads must not grow.

    python -m tests.hardening.soak --steps 10000

``mmssl train`` runs on a small data set with a checkpoint every ten steps and after every epoch.
Its process is observed from outside. The slope of its memory is that of a least-squares line
through the samples after the warm-up, which is a fifth of the run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmssl.data.writers import write_dataset
from mmssl.training.checkpoint import checkpoint_paths, load_checkpoint
from tests.conftest import make_dataset

ROOT = Path(__file__).resolve().parents[2]
MAX_MB_PER_1K_STEPS = 1.0
_WARM_UP = 0.2
_SECONDS_PER_SAMPLE = 0.1


class Sample(NamedTuple):
    """One observation of the process."""

    seconds: float
    rss_mb: float
    files: int
    threads: int


class Soak(NamedTuple):
    """The measurements of a run."""

    steps: int
    seconds: float
    slope_mb: float  # of RSS, per 1,000 steps
    rss_mb: tuple[float, float]  # after the warm-up, at the end
    files: tuple[int, int]  # smallest and largest number after the warm-up
    threads: tuple[int, int]
    checkpoints: list[str]  # left at the end

    def faults(self) -> list[str]:
        """Return what grew, one line each."""
        found = []
        if self.slope_mb >= MAX_MB_PER_1K_STEPS:
            found.append(f"RSS grows by {self.slope_mb:.2f} MB per 1,000 steps")
        # A file being written, its folder and the log are open for a moment.
        if self.files[1] - self.files[0] > 3:
            found.append(f"open files go from {self.files[0]} to {self.files[1]}")
        if self.threads[0] != self.threads[1]:
            found.append(f"threads go from {self.threads[0]} to {self.threads[1]}")
        if self.checkpoints != ["last.1.safetensors", "last.safetensors"]:
            found.append(f"checkpoints left: {', '.join(self.checkpoints)}")
        return found

    def line(self) -> str:
        """Return the measurements in one line."""
        return (
            f"soak: {self.steps} steps in {self.seconds:.0f} s, RSS {self.rss_mb[0]:.1f} to "
            f"{self.rss_mb[1]:.1f} MB, slope {self.slope_mb:+.3f} MB per 1,000 steps, files "
            f"{self.files[0]} to {self.files[1]}, threads {self.threads[0]} to {self.threads[1]}, "
            f"{len(self.checkpoints)} checkpoints kept"
        )


def observe(pid: int, start: float) -> Sample | None:
    """Read /proc; None once the process has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except (OSError, IndexError):
        return None
    if pages == 0:  # a zombie
        return None
    mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Sample(time.monotonic() - start, mb, files, threads)


def run(steps: int, folder: Path) -> Soak:
    """Train for ``steps`` steps or slightly more, up to the end of an epoch."""
    dataset = make_dataset()
    write_dataset(dataset, folder / "data")
    batch = 16
    steps_per_epoch = dataset.train.num_edges // batch + 1
    epochs = -(-steps // steps_per_epoch)
    settings = [
        *("model.embedding_dim=16", f"training.batch_size={batch}", f"training.patience={epochs}"),
        *("training.checkpoint_interval=10", "structure.top_k_rate=0.05"),
    ]
    command = [sys.executable, "-m", "mmssl", "train", "--data", str(folder / "data"), "--quiet"]
    command += ["--out", str(folder / "run"), "--device=cpu", f"--epochs={epochs}"]
    command += [f"--set={setting}" for setting in settings]
    start = time.monotonic()
    # One thread: the model is tiny, and on a busy machine spinning threads wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    log, metrics = folder / "run" / "log.jsonl", folder / "run" / "metrics.json"
    samples: list[Sample] = []
    while process.poll() is None:
        # Only training counts, without set-up and what follows the last step.
        if (
            log.exists()
            and not metrics.exists()
            and (sample := observe(process.pid, start)) is not None
        ):
            samples.append(sample)
        time.sleep(_SECONDS_PER_SAMPLE)
    if process.returncode:
        raise SystemExit(f"soak: training ended with exit code {process.returncode}")
    last = folder / "run" / "checkpoint" / "last.safetensors"
    assert load_checkpoint(last).state["epoch"] == epochs
    first = samples[0].seconds
    length = samples[-1].seconds - first
    flat = [s for s in samples if s.seconds - first >= _WARM_UP * length]
    done = epochs * steps_per_epoch
    # Steps take equal time, so the position of a sample in time is its position in steps.
    position = [(s.seconds - first) / length * done / 1000 for s in flat]
    slope = float(np.polyfit(position, [s.rss_mb for s in flat], 1)[0])
    files, tasks = [s.files for s in flat], [s.threads for s in flat]
    return Soak(
        done,
        samples[-1].seconds,
        slope,
        (flat[0].rss_mb, flat[-1].rss_mb),
        (min(files), max(files)),
        (min(tasks), max(tasks)),
        sorted(path.name for path in checkpoint_paths(last)),
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = run(arguments.steps, Path(folder))
    print(soak.line())
    if soak.faults():
        raise SystemExit(f"soak: {'; '.join(soak.faults())}")


if __name__ == "__main__":
    main()
