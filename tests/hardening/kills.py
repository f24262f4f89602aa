"""SIGKILL at random moments of training processes; a resumed run must end with the same bits.

    python -m tests.hardening.kills --count 100

Processes are forked from one that has imported everything; every tenth is a fresh interpreter. A
checkpoint is written after every step, and every second kill waits for a write to begin, so that
many kills hit a save. A killed run is resumed and killed again until it finishes; then its model,
its last checkpoint, its metrics and its log are compared with those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny; and a forked process has one thread

import torch

from mmssl.cli import main as mmssl
from mmssl.data.writers import write_dataset
from mmssl.errors import InputError
from mmssl.models import lightgcn  # noqa: F401  (imported once, before the forks)
from mmssl.models.mmssl import task  # noqa: F401
from mmssl.training import fit  # noqa: F401
from mmssl.training.checkpoint import checkpoint_paths, load_checkpoint
from mmssl.training.run import RunDirectory
from tests.conftest import make_dataset

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("model.embedding_dim=16", "training.batch_size=16", "training.checkpoint_interval=1")
# Every counter that a run carries from step to step is used by one of them.
WORLDS = {
    "paper": (
        *("--epochs=3", "--seed=3", "--set=structure.top_k_rate=0.06"),
        *("--set=structure.refresh_interval=2", "--set=critic.penalty_interval=3"),
        *("--set=training.clip_norm=0.5", "--set=critic.clip_norm=10"),
    ),
    "released": ("--variant=released", "--epochs=2", "--set=structure.top_k_rate=0.06"),
    "lightgcn": ("--model=lightgcn", "--epochs=20", "--set=lightgcn.batch_size=64"),
}


class Counts(NamedTuple):
    """Numbers of kills, of kills inside a save, and of finished runs."""

    kills: int
    in_save: int
    runs: int


def options(world: str) -> list[str]:
    """Return the options of a new run."""
    return [*WORLDS[world], *(f"--set={setting}" for setting in SMALL)]


class Process:
    """``mmssl train`` in a forked process or a fresh interpreter; its output goes to a file.

    Args:
        arguments: Arguments of ``mmssl train``.
        output: File for stdout and stderr.
        fresh: Start an interpreter instead of forking this one.
    """

    def __init__(self, arguments: list[str], output: Path, *, fresh: bool) -> None:
        command = ["train", "--device=cpu", "--quiet", *arguments]
        self.output = output
        with open(output, "wb") as file:
            if fresh:
                program = [sys.executable, "-m", "mmssl", *command]
                self.process = subprocess.Popen(program, stdout=file, stderr=file, cwd=ROOT)
                self.pid = self.process.pid
                return
            self.pid = os.fork()
            if self.pid == 0:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                code = 70
                try:
                    code = mmssl(command)
                    sys.stdout.flush()
                finally:
                    os._exit(code)

    def ended(self) -> bool:
        """Return whether it has ended, without reaping it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> bool:
        """Send SIGKILL; return False if it had already ended, which must be without an error."""
        os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"exit code {code}: {self.output.read_text()[-2000:]}")
        return code != 0

    def finish(self) -> None:
        """Wait for the end, which must be without an error."""
        while not self.ended():
            time.sleep(0.002)
        assert not self.kill()


def results(run: Path) -> dict[str, object]:
    """Return everything of a finished run that must not depend on kills."""
    directory = RunDirectory.open(run)
    last = load_checkpoint(directory.checkpoint_path)
    # Sizes of the log's lines vary with the digits of the seconds in them.
    state = {key: value for key, value in last.state.items() if key != "log_size"}
    log = [json.loads(line) for line in directory.log_path.read_text().splitlines()]
    return _without_clocks(
        {
            "model": (run / "model.safetensors").read_bytes(),
            "tensors": {
                k: (str(v.dtype), tuple(v.shape), bytes(v.reshape(-1).view(torch.uint8).numpy()))
                for k, v in last.tensors.items()
                if v.numel()
            },
            "state": state,
            "metrics": directory.read_metrics(),
            "log": log,
        }
    )


def _without_clocks(value):  # noqa: ANN001, ANN202
    if isinstance(value, dict):
        return {
            k: _without_clocks(v)
            for k, v in value.items()
            if not k.endswith("seconds") and k != "timing"
        }
    return [_without_clocks(v) for v in value] if isinstance(value, list) else value


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Return the names of what differs; empty if everything is the same, bit for bit."""
    got, expected = results(run), results(undisturbed)
    return [name for name in expected if got[name] != expected[name]]


def temporary_files(run: Path) -> set[tuple[str, int, int]]:
    """Return the temporary files that an interrupted write left behind."""
    files = [p for p in run.rglob(".*") if p.suffix in (".tmp", ".link")] if run.exists() else []
    return {(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def kill_somewhere(
    process: Process, run: Path, rng: random.Random, seconds: float, *, aim: bool
) -> tuple[bool, bool]:
    """Kill after a random time; with ``aim``, once the next write has begun.

    Returns:
        Whether the process was still alive, and whether it was inside a save.
    """
    before = temporary_files(run)
    time.sleep(rng.uniform(0, seconds))
    deadline = time.monotonic() + 1
    names = [run / "checkpoint" / ".last.safetensors.tmp", run / ".model.safetensors.tmp"]
    while aim and time.monotonic() < deadline and not any(name.exists() for name in names):
        pass  # a save is over in a few milliseconds
    killed = process.kill()
    return killed, killed and bool(temporary_files(run) - before)


def run(count: int, folder: Path, *, seed: int = 0, fresh_every: int = 10) -> Counts:
    """Kill ``count`` processes; raises SystemExit at the first run that ends differently.

    Args:
        count: Number of kills.
        folder: Empty folder on the file system to test.
        seed: Seed of the random moments.
        fresh_every: Every process with this number is a fresh interpreter.
    """
    rng = random.Random(seed)
    torch.set_num_threads(1)
    write_dataset(make_dataset(), folder / "data")
    undisturbed: dict[str, tuple[Path, float]] = {}
    kills = in_save = runs = processes = 0
    while kills < count:
        world = list(WORLDS)[runs % len(WORLDS)]
        new = ["--data", str(folder / "data"), *options(world)]
        if world not in undisturbed:
            path, start = folder / f"undisturbed-{world}", time.monotonic()
            Process([*new, "--out", str(path)], folder / "output", fresh=False).finish()
            undisturbed[world] = path, time.monotonic() - start
        whole, seconds = undisturbed[world]
        path = folder / f"run-{runs}"
        while True:
            # A run that was killed before it had a configuration is started again.
            begun = (path / "config.toml").exists()
            arguments = ["--resume"] if begun else new
            processes += 1
            fresh = processes % fresh_every == 0
            process = Process([*arguments, "--out", str(path)], folder / "output", fresh=fresh)
            if kills == count:
                process.finish()
                break
            # About three kills per run; the imports of a fresh interpreter take two seconds.
            wait = 0.5 * seconds + (2.0 if fresh else 0.0)
            killed, saving = kill_somewhere(process, path, rng, wait, aim=kills % 2 == 0)
            if not killed:
                break
            kills += 1
            in_save += saving
            for file in checkpoint_paths(path / "checkpoint" / "last.safetensors"):
                try:
                    load_checkpoint(file)
                except InputError as error:
                    raise SystemExit(f"kills: after kill {kills}: {error}") from None
        differing = differences(path, whole)
        if differing:
            raise SystemExit(f"kills: a {world} run ended with other {', '.join(differing)}")
        runs += 1
    return Counts(kills, in_save, runs)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, in_save, runs = run(arguments.count, Path(folder), seed=arguments.seed)
    print(
        f"kills: {kills} processes killed, {in_save} of them inside a save; {runs} runs came to "
        "their end, every one with the bits of an undisturbed run"
    )


if __name__ == "__main__":
    main()
