"""The records of a folder of results, as rows of seeds with means, deviations and tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.leaderboard import records
from benchmarks.leaderboard.records import Record

SELECTED = "recall@20"
"""The metric that orders the rows and is tested."""


class Value(NamedTuple):
    """A mean over seeds, and the sample standard deviation (n - 1) unless there is one seed."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """A paired comparison of two rows on Recall@20."""

    mean: float
    p_users: float
    """Paired t-test over the test users, each with the mean over the seeds."""
    p_seeds: float | None
    """Welch's t-test over the seeds; None with fewer than two on a side."""


@dataclass(frozen=True)
class Row:
    """The seeds of a model on a data set."""

    label: str
    base: str | None
    seeds: tuple[Record, ...]
    """Those that are complete."""
    diverged: int

    def value(self, *path: str) -> Value | None:
        """Return the mean of a number in the records; None if it is in none of them."""
        found = [_at(record, path) for record in self.seeds]
        numbers = [number for number in found if number is not None]
        if not numbers:
            return None
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
        return Value(statistics.fmean(numbers), deviation)

    def users(self) -> np.ndarray:
        """Recall@20 of every test user (T,), the mean over the seeds."""
        return np.mean([records.unpack(record["users"]) for record in self.seeds], axis=0)

    def minus(self, other: Row) -> Difference:
        """Compare with another row of the same data set."""
        from scipy import stats

        difference = self.users() - other.users()
        p_users = 1.0
        if difference.any():  # equal lists have no variance
            p_users = float(stats.ttest_1samp(difference, 0.0).pvalue)
        ours, theirs = ([record["test"][SELECTED] for record in row.seeds] for row in (self, other))
        p_seeds = None
        if min(len(ours), len(theirs)) > 1 and len({*ours, *theirs}) > 1:
            p_seeds = float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
        return Difference(statistics.fmean(ours) - statistics.fmean(theirs), p_users, p_seeds)


@dataclass(frozen=True)
class Results:
    """A data set and its rows, the highest Recall@20 first."""

    data: Record
    rows: tuple[Row, ...]

    @property
    def is_leave_one_out(self) -> bool:
        """Whether every user has one test item by the protocol of the split."""
        return str(self.data["split"]["protocol"]).startswith("leave-one-out")

    def models(self) -> tuple[Row, ...]:
        """Rows that are no ablations."""
        return tuple(row for row in self.rows if row.base is None)

    def ablations(self, base: Row) -> tuple[Row, ...]:
        """Rows of the ablations of a row, by label."""
        found = [row for row in self.rows if row.base == base.label]
        return tuple(sorted(found, key=lambda row: row.label))


def load(folder: Path) -> list[Results]:
    """Read every data set below a folder of results, by name."""
    found = []
    for file in sorted(folder.glob("*/data.json")):
        data = records.read(file)
        rows = []
        for model in sorted(path for path in file.parent.iterdir() if path.is_dir()):
            seeds = list(records.numbered(model, "seed").values())
            complete = [record for record in seeds if record["state"] == "complete"]
            if complete:
                label, base = complete[0]["label"], complete[0]["base"]
                rows.append(Row(label, base, tuple(complete), len(seeds) - len(complete)))
        rows.sort(key=lambda row: (-_mean(row), row.label))
        found.append(Results(data, tuple(rows)))
    return found


def _mean(row: Row) -> float:
    value = row.value("test", SELECTED)
    return -math.inf if value is None else value.mean


def _at(record: Record, path: Sequence[str]) -> float | None:
    found = record
    for name in path:
        if name not in found:
            return None
        found = found[name]
    return None if found is None else float(found)  # type: ignore[arg-type]
