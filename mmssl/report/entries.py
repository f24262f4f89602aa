"""The entries of a report: single runs, or the runs of several seeds under one name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmssl.errors import InputError
from mmssl.report.log import RunRecord, read_run
from mmssl.training.run import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the comparison: a run, or the runs of several seeds."""

    name: str
    directories: tuple[RunDirectory, ...]
    """One or more runs."""
    records: tuple[RunRecord, ...]
    """What each run recorded."""

    @property
    def kind(self) -> str:
        """Model and variant."""
        metrics = self.records[0].metrics
        return " ".join(str(metrics[key]) for key in ("model", "variant") if key in metrics)

    @property
    def seeds(self) -> tuple[str, ...]:
        """The seeds as text."""
        return tuple(str(record.metrics.get("seed", "?")) for record in self.records)

    def values(self, split: str, key: str) -> list[float]:
        """Return the finite values that the runs have of a metric."""
        tables = (record.val if split == "val" else record.test for record in self.records)
        return [table[key] for table in tables if key in table and math.isfinite(table[key])]

    def mean(self, split: str, key: str) -> float | None:
        """Return the mean over the seeds, None if no run has the metric."""
        values = self.values(split, key)
        return statistics.fmean(values) if values else None

    def deviation(self, split: str, key: str) -> float | None:
        """Return the standard deviation over the seeds (n - 1), None for fewer than two."""
        values = self.values(split, key)
        return statistics.stdev(values) if len(values) > 1 else None

    def keys(self, split: str) -> list[str]:
        """Return the names of the metrics that any of the runs has."""
        tables = [record.val if split == "val" else record.test for record in self.records]
        return list(dict.fromkeys(key for table in tables for key in table))


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """Read run directories; a directory of seeds (``seed-*/``) is one entry.

    Raises:
        InputError: A path is not a run, or a run is unfinished or was trained on other data than
            the first.
    """
    entries = [_read_entry(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    first = entries[0].directories[0]
    for entry in entries:
        for directory in entry.directories:
            if directory.info.data_hash != first.info.data_hash:
                raise InputError(f"{directory.path}: was trained on other data than {first.path}")
    return entries


def _read_entry(path: Path, name: str) -> Entry:
    runs = [path]
    if path.is_dir() and not (path / "config.toml").exists():
        runs = sorted(path.glob("seed-*/"), key=lambda run: (len(run.name), run.name)) or [path]
    directories = tuple(RunDirectory.open(run) for run in runs)
    for run in runs:
        if not (run / "metrics.json").exists():
            raise InputError(f"{run}: the run is not finished (it has no metrics.json)")
    return Entry(name=name, directories=directories, records=tuple(read_run(run) for run in runs))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, with its parent where several end alike."""
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    return [
        name if names.count(name) == 1 else f"{path.parent.name}/{name}"
        for name, path in zip(names, resolved, strict=True)
    ]
