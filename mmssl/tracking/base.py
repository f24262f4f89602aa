"""What a tracker is, and how a run is told to it.

``log.jsonl`` and ``metrics.json`` of the run directory stay the truth; whatever a tracker shows is
derived from them and can be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker learns about a run when it starts, or when it is resumed."""

    id: str
    """Letters and digits, the same after every resume and unlike any other run's."""
    path: Path
    """The run directory; exists."""
    config: Mapping[str, str | int | float | bool]
    """Every hyper-parameter as ``section.field``, and the ``run.`` fields: model, data, hash."""
    epoch: int
    """Finished epochs of the run, 0 for a new one."""
    sent: int
    """Epochs that the tracker confirmed before the run was resumed; it may hold one more."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the tracker wants to find here again after a resume; kept after each call to it."""


class Tracker(Protocol):
    """One tracker of one run. Any exception it raises is caught, reported once, and ends it."""

    def start(self, run: TrackedRun) -> int:
        """Begins or continues the tracker's own run.

        Returns:
            Up to which epoch it is complete: 0 for a new run. Later epochs of the run's history are
            sent again, earlier ones never.
        """

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Takes the values of an epoch, e.g. ``loss/bpr``, ``val/recall@20``, ``lr``, ``seconds``.

        Epochs come once each, in ascending order.
        """

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Ends the run with its final metrics (``test/recall@20``, ``best_epoch``), if any."""


def flatten(values: Mapping[str, Any], prefix: str = "", separator: str = "/") -> dict[str, Any]:
    """``{"val": {"recall@20": 0.1}}`` -> ``{"val/recall@20": 0.1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}{separator}", separator))
        else:
            flat[key] = value
    return flat


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested record, flat, without its ``epoch``."""
    return {
        name: float(value)
        for name, value in flatten(values).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "epoch"
    }
