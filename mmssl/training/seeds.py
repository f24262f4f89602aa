"""Training with several seeds: ``OUT/seed-2022``, ``OUT/seed-2023``, ..., and a summary."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmssl.config import Config
from mmssl.data.dataset import InteractionDataset
from mmssl.data.staging import staged
from mmssl.errors import Diverged, InputError
from mmssl.files import atomic_write
from mmssl.locks import DirectoryLock
from mmssl.models.registry import model_spec
from mmssl.training.run import RunDirectory, check_new


def new_seeds(
    out: Path, model: str, data: Path, dataset: InteractionDataset, config: Config, count: int
) -> list[RunDirectory]:
    """Create the run directories of ``count`` consecutive seeds, starting at ``training.seed``.

    They appear all at once, each with its ``config.toml``: whenever the process is killed, a resume
    finds all of them or none.

    Raises:
        InputError: Fewer than two seeds, ``out`` exists and is not empty, or a process is training
            in it.
    """
    if count < 2:
        raise InputError(f"--seeds: expected at least 2, got {count} (for one run, --seed)")
    with DirectoryLock(out):  # refuses a directory in use and removes the lock of a killed process
        check_new(out)
    with staged(out) as draft:
        for seed in range(config.training.seed, config.training.seed + count):
            _seed_run(draft, model, data, dataset, config, seed).initialize()
    return open_seeds(out)


def is_seeds_directory(path: Path) -> bool:
    """Whether ``path`` holds the runs of several seeds."""
    return not (path / "config.toml").exists() and any(path.glob("seed-*/config.toml"))


def open_seeds(out: Path) -> list[RunDirectory]:
    """Open the runs in ``out``, sorted by seed."""
    runs = [RunDirectory.open(file.parent) for file in out.glob("seed-*/config.toml")]
    return sorted(runs, key=lambda run: run.config.training.seed)


def add_seeds(runs: list[RunDirectory], dataset: InteractionDataset, count: int) -> None:
    """Extend the runs to ``count`` seeds.

    Raises:
        InputError: More seeds exist already.
    """
    if count < len(runs):
        raise InputError(f"--seeds: expected at least {len(runs)}, the existing seeds, got {count}")
    first = runs[0]
    for seed in range(runs[-1].config.training.seed + 1, runs[0].config.training.seed + count):
        info = first.info
        run = _seed_run(first.path.parent, info.model, Path(info.data), dataset, first.config, seed)
        run.initialize()
        runs.append(run)


def fit_seeds(
    runs: Sequence[RunDirectory], fit: Callable[[RunDirectory], dict[str, Any]]
) -> dict[str, Any]:
    """Run ``fit`` for every seed that is not finished yet; write and return the summary.

    If the first seed fails before its first epoch is complete, the directories are removed again.

    Raises:
        InputError: Raised by ``fit``.
        Diverged: Raised by ``fit``.
    """
    out = runs[0].path.parent
    try:
        for run in runs:
            if not is_finished(run):
                fit(run)
    except (InputError, Diverged):
        if all(file.name == "config.toml" for run in runs for file in run.path.iterdir()):
            shutil.rmtree(out)
        raise
    summary = summarize([run.read_metrics() or {} for run in runs])
    text = json.dumps(summary, indent=1) + "\n"
    atomic_write(out / "summary.json", text.encode())
    return summary


def is_finished(run: RunDirectory) -> bool:
    """Whether the run has metrics and its configuration requests no further epochs."""
    metrics = run.read_metrics()
    if metrics is None:
        return False
    section = model_spec(run.info.model, run.config.variant).schedule
    if section is None:
        return True
    training = getattr(run.config, section)
    done = len(metrics["epochs"])
    return done >= training.epochs or done - metrics["best_epoch"] >= training.patience


def summarize(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and sample standard deviation (n - 1) of every metric over the seeds.

    Returns:
        ``{"model", "variant", "seeds", "data", "val": {"recall@20": {"mean", "std", "values"}},
        "test": {...}}``; ``values`` are in the order of ``seeds``.
    """
    summary: dict[str, Any] = {
        "model": metrics[0]["model"],
        "variant": metrics[0].get("variant"),
        "seeds": [m["seed"] for m in metrics],
        "data": metrics[0]["data"],
    }
    for split in ("val", "test"):
        summary[split] = {}
        for name in metrics[0][split]:
            values = [m[split][name] for m in metrics]
            summary[split][name] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values),
                "values": values,
            }
    return summary


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Format the summary as a table."""
    seeds = summary["seeds"]
    lines = [
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), mean +- standard deviation:",
        f"  {'':14s} {'validation':>18s}  {'test':>18s}",
    ]
    for name, test in summary["test"].items():
        cells = [f"{s['mean']:.4f} +- {s['std']:.4f}" for s in (summary["val"][name], test)]
        lines.append(f"  {name:14s} {cells[0]:>18s}  {cells[1]:>18s}")
    return lines


def _seed_run(
    out: Path, model: str, data: Path, dataset: InteractionDataset, config: Config, seed: int
) -> RunDirectory:
    layer = {"training": {"seed": seed}}
    seeded = config.replace(layer, source="--seeds")
    return RunDirectory.new(out / f"seed-{seed}", model, data, dataset, seeded)
