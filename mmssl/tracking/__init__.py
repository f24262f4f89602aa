"""Experiment trackers behind a common interface: TensorBoard, Weights & Biases and MLflow.

:class:`Tracking` reports a run to any number of trackers. A failing tracker never stops training:
it produces one warning and is disabled, and the next resume sends the epochs that it missed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmssl.errors import InputError
from mmssl.files import atomic_write
from mmssl.tracking.base import Status, TrackedRun, Tracker, flatten, numbers
from mmssl.training.run import RunDirectory

__all__ = ["TRACKERS", "Status", "TrackedRun", "Tracker", "Tracking", "check_installed"]

# Name -> (module in this package, class, packages that must be importable). Each name is also an
# extra of the package.
TRACKERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "tensorboard": ("tensorboard", "TensorBoardTracker", ("tensorboard",)),
    "wandb": ("wandb", "WandbTracker", ("wandb",)),
    "mlflow": ("mlflow", "MlflowTracker", ("mlflow",)),
}


def check_installed(names: Sequence[str]) -> None:
    """Raise InputError for an unknown tracker or one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--track: expected one of {', '.join(TRACKERS)}, got {name!r}")
        for module in TRACKERS[name][2]:
            if importlib.util.find_spec(module) is None:
                raise InputError(
                    f"--track {name}: expected the package {module} to be installed "
                    f'(pip install "mmssl[{name}]"), got none'
                )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Tracking:
    """Trackers of one run.

    ``tracking.json`` in the run directory stores their names and the epochs that each received, so
    that a resumed run continues the same tracker runs.

    Args:
        run: Run directory.
        names: Names of trackers, keys of `TRACKERS`; a resumed run also keeps its earlier ones.
        warn: Function that receives a one-line message when a tracker fails.
    """

    def __init__(
        self, run: RunDirectory, names: Sequence[str] = (), *, warn: Callable[[str], None] = _warn
    ) -> None:
        self._run = run
        self._names = tuple(names)
        self._warn = warn
        self._active: dict[str, Tracker] = {}
        self._memory: dict[str, Any] = {}

    def start(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Start every tracker and send it the finished epochs that it has not received.

        Args:
            history: Records of the finished epochs, as in ``log.jsonl``; empty for a new run.
        """
        remembered = self._read_memory()
        names = dict.fromkeys((*remembered.get("trackers", ()), *self._names))
        if not names:
            return
        self._memory = {"id": remembered.get("id") or secrets.token_hex(8), "trackers": {}}
        for name in names:
            self._memory["trackers"][name] = remembered.get("trackers", {}).get(name, {})
        # Save the id before trackers start; a crash in between would otherwise leave a tracker run
        # that a resume can't find, and create a second one.
        self._write_memory()
        epoch = history[-1]["epoch"] if history else 0
        config = self._config()
        for name in names:
            self._attempt(name, "can't start", self._start, name, epoch, config)
            for record in history:
                self._send(name, record)
        self._write_memory()

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Send a finished epoch; call this after its checkpoint is on disk."""
        for name in tuple(self._active):
            self._send(name, record)
        if self._memory:
            self._write_memory()

    def finish(self, status: Status, metrics: Mapping[str, Any] | None = None) -> None:
        """End the run of every tracker, with the content of ``metrics.json`` if it exists."""
        final: dict[str, Any] = {}
        for split, name in (("test", "test"), ("val", "best_val")):
            final.update(flatten((metrics or {}).get(split, {}), f"{name}/"))
        if metrics is not None:
            final["best_epoch"] = float(metrics.get("best_epoch", 0))
        for name, tracker in tuple(self._active.items()):
            self._attempt(name, "can't finish", tracker.finish, status, final)
        self._active.clear()
        if self._memory:
            self._write_memory()

    def _start(self, name: str, epoch: int, config: dict[str, Any]) -> None:
        check_installed([name])
        module, class_name, _ = TRACKERS[name]
        tracker: Tracker = getattr(
            importlib.import_module(f"mmssl.tracking.{module}"), class_name
        )()
        memory = self._memory["trackers"][name]
        run = TrackedRun(
            id=self._memory["id"],
            path=self._run.path,
            config=config,
            epoch=epoch,
            sent=memory.get("epoch", 0),
            memory=memory,
        )
        memory["epoch"] = tracker.start(run)
        self._active[name] = tracker

    def _send(self, name: str, record: Mapping[str, Any]) -> None:
        memory = self._memory["trackers"][name]
        if name in self._active and record["epoch"] > memory["epoch"]:
            tracker = self._active[name]
            if self._attempt(name, "failed", tracker.log, record["epoch"], numbers(record)):
                memory["epoch"] = record["epoch"]

    def _attempt(self, name: str, what: str, action: Callable[..., object], *args: Any) -> bool:
        try:
            action(*args)
            return True
        except Exception as error:  # no failure of a tracker may stop training
            self._active.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(
                f"tracker {name} {what} and is disabled until the next resume: {reason[:200]}"
            )
            return False

    def _config(self) -> dict[str, Any]:
        flat = flatten({"run": self._run.info._asdict(), **self._run.config.to_dict()}, "", ".")
        return {k: v if isinstance(v, (str, int, float)) else str(v) for k, v in flat.items()}

    def _read_memory(self) -> dict[str, Any]:
        path = self._run.path / "tracking.json"
        try:
            memory: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {"id": str(memory["id"]), "trackers": dict(memory["trackers"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._warn(f"{path}: can't be read, tracking starts over: {error}")
            return {}

    def _write_memory(self) -> None:
        try:
            text = json.dumps(self._memory, indent=1) + "\n"
            atomic_write(self._run.path / "tracking.json", text.encode())
        except InputError as error:
            self._warn(str(error))
