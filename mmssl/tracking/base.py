"""Interface of trackers.

``log.jsonl`` and ``metrics.json`` in the run directory are authoritative; everything that a tracker
shows is derived from them and can be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """Description of a new or resumed run for a tracker."""

    id: str
    """Unique id of letters and digits, which does not change when the run is resumed."""
    path: Path
    """Path of the existing run directory."""
    config: Mapping[str, str | int | float | bool]
    """All hyperparameters as ``section.field``, and the ``run.`` fields: model, data, hash."""
    epoch: int
    """Number of finished epochs, 0 for a new run."""
    sent: int
    """Last epoch that is recorded as sent; the tracker may have received one more."""
    memory: dict[str, Any] = field(default_factory=dict)
    """State of the tracker, which is saved after each call and restored after a resume."""


class Tracker(Protocol):
    """Interface of a tracker; any exception is caught, reported once and disables the tracker."""

    def start(self, run: TrackedRun) -> int:
        """Start or continue the tracker's own run.

        Returns:
            Last epoch that the tracker's run contains, 0 for a new run. Only later epochs of the
            history are sent again.
        """

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log the values of an epoch, such as ``loss/bpr``, ``val/recall@20`` and ``seconds``.

        Each epoch is logged once, in ascending order.
        """

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """End the run with its final metrics, such as ``test/recall@20``, which may be empty."""


def flatten(values: Mapping[str, Any], prefix: str = "", separator: str = "/") -> dict[str, Any]:
    """Flatten nested mappings: ``{"val": {"recall@20": 0.1}}`` -> ``{"val/recall@20": 0.1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}{separator}", separator))
        else:
            flat[key] = value
    return flat


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a nested record as a flat mapping, without its ``epoch``."""
    return {
        name: float(value)
        for name, value in flatten(values).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "epoch"
    }
