"""The schema of the files in ``benchmarks/results``, read and written as a whole.

``{"schema": 1, "suite": ..., "environment": {...}, "cases": [...]}``. A case is one job on one
workload (an op on a graph, a training step on a data set) with a row per implementation. Times are
milliseconds, memory is MiB.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmssl.errors import InputError
from mmssl.files import atomic_write

SCHEMA = 1


class Timing(NamedTuple):
    """Median and quartiles of single calls."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Return median and quartiles; those of a single call are that call."""
        return cls(*(1e3 * s for s in _quartiles(seconds)), len(seconds))

    def divided(self, count: int) -> Timing:
        """Return the timing of one of ``count`` equal parts of a call."""
        return Timing(self.median_ms / count, self.q1_ms / count, self.q3_ms / count, self.calls)


class Spread(NamedTuple):
    """Median and quartiles over rounds of a ratio taken within each round."""

    median: float
    q1: float
    q3: float
    turns: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Spread:
        """Return median and quartiles; those of a single round are that round."""
        return cls(*_quartiles(ratios), len(ratios))


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


class Limit(NamedTuple):
    """The minimum time that the work allows on this machine, measured in the same rounds."""

    ms: float
    kind: str  # e.g. "multiply-adds", "gathers + writes"
    parts_ms: dict[str, float]
    flop: float | None = None  # of the work, for the roofline
    bytes: float | None = None


@dataclasses.dataclass
class Row:
    """One implementation on one case."""

    full: Timing  # forward and backward; forward alone without gradients
    forward: Timing | None = None  # with what backward needs
    backward: Timing | None = None
    relative: Spread | None = None  # ratio to the baseline's full time, by round
    of_limit: float | None = None
    peak_mb: float | None = None
    error: float | None = None  # worst deviation from what was expected, relative to the largest
    note: str | None = None  # e.g. what the implementation leaves out
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Case:
    """One job on one workload."""

    op: str
    workload: str
    dtype: str
    sizes: dict[str, int]
    baseline: str
    rows: dict[str, Row]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    limit: Limit | None = None
    commit: str = "unknown"  # cases of one file may have different commits, not machines

    @property
    def key(self) -> tuple[object, ...]:
        """Return what identifies a case across files."""
        return (self.op, self.workload, self.dtype, tuple(sorted(self.sizes.items())))


@dataclasses.dataclass
class Results:
    """The content of a file."""

    suite: str
    environment: dict[str, Any]
    cases: list[Case]


NOT_INSTALLED = "not installed"  # in place of a version
# If these differ, two files are of different machines or set-ups and are never merged.
IDENTITY = ("device", "name", "threads", "simd", "torch", "smoke")


def write(path: Path, results: Results) -> None:
    """Write a file, keeping cases of the same machine that were not measured again."""
    if path.exists():
        old = read(path)
        if all(old.environment.get(k) == results.environment.get(k) for k in IDENTITY):
            new = {case.key for case in results.cases}
            results.cases = [c for c in old.cases if c.key not in new] + results.cases
            # The versions of peers that only the kept cases have.
            versions = dict(old.environment.get("versions", {}))
            for package, version in results.environment.get("versions", {}).items():
                if version != NOT_INSTALLED or package not in versions:
                    versions[package] = version
            results.environment["versions"] = versions
    content = {
        "schema": SCHEMA,
        "suite": results.suite,
        "environment": results.environment,
        "cases": [_without_none(dataclasses.asdict(case)) for case in results.cases],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(_rounded(content), indent=1) + "\n").encode())


def read(path: Path) -> Results:
    """Read a file.

    Raises:
        InputError: it is not one of this schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got {error}") from None
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise InputError(f"{path}: expected benchmark results of schema {SCHEMA}, got {found}")
    try:
        cases = [_case(dict(case)) for case in content["cases"]]
        return Results(str(content["suite"]), dict(content["environment"]), cases)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected benchmark results, got {error!r}") from None


def read_all(paths: Iterable[Path]) -> list[Results]:
    """Read several files or folders; returns the results by suite."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    return sorted((read(path) for path in files), key=lambda found: _order(found.suite))


def _order(suite: str) -> int:
    order = ("ops", "step", "evaluate", "scale", "models")
    return order.index(suite) if suite in order else len(order)


def _case(content: dict[str, Any]) -> Case:
    content["rows"] = {name: _row(dict(row)) for name, row in content["rows"].items()}
    if content.get("limit"):
        content["limit"] = Limit(**content["limit"])
    return Case(**content)


def _row(content: dict[str, Any]) -> Row:
    for name in ("full", "forward", "backward"):
        if name in content:
            content[name] = Timing(**content[name])
    if "relative" in content:
        content["relative"] = Spread(**content["relative"])
    return Row(**content)


def _without_none(value: Any) -> Any:
    """Convert named tuples to objects, without None and empty values (``missing`` stays)."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        dropped = (None, {})
        return {
            k: _without_none(v)
            for k, v in value.items()
            if k in ("rows", "sizes") or v not in dropped
        }
    return value


def _rounded(value: Any) -> Any:
    """Round to six significant digits; more would be noise in diffs."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
