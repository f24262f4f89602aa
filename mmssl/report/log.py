"""Reads the records of a run: metrics.json and, where they exist, log.jsonl and config.toml."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.errors import InputError
from mmssl.files import read_text


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch line of log.jsonl."""

    number: int
    loss: dict[str, float]
    val: dict[str, float]
    """Validation metrics, empty if the epoch was not validated."""
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The records of a run."""

    name: str
    metrics: dict[str, Any]
    """Content of metrics.json."""
    val: dict[str, float]
    test: dict[str, float]
    epochs: list[Epoch]
    """By number; if an epoch was repeated after a resume, its last line counts."""
    config: str | None
    """Text of config.toml."""


def read_run(directory: Path) -> RunRecord:
    """Read a run directory.

    The last line of log.jsonl is ignored if it is incomplete, as after a kill.

    Raises:
        InputError: metrics.json is missing, or a file is malformed; the message names the file
            and the line.
    """
    path = directory / "metrics.json"
    metrics = _parse_object(read_text(path), str(path))
    val, test = (_numbers(metrics.get(split, {}), f"{path}: {split}") for split in ("val", "test"))
    config = directory / "config.toml"
    return RunRecord(
        name=directory.resolve().name,
        metrics=metrics,
        val=val,
        test=test,
        epochs=_read_epochs(directory / "log.jsonl"),
        config=read_text(config) if config.is_file() else None,
    )


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _numbers(value: object, where: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected names with numbers, got {value!r:.60}")
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise InputError(f"{where}: {name}: expected a number, got {number!r:.60}")
    try:
        return {str(name): float(number) for name, number in value.items()}
    except OverflowError as error:
        raise InputError(f"{where}: expected numbers within float64: {error}") from error


def _read_epochs(path: Path) -> list[Epoch]:
    if not os.path.lexists(path):  # popularity has no epochs to log
        return []
    lines = read_text(path).split("\n")
    epochs: dict[int, Epoch] = {}
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{position}"
        try:
            event = _parse_object(line, where)
        except InputError:
            # Without a newline behind it, the line was still being written when the run ended.
            if position == len(lines):
                break
            raise
        if event.get("event") != "epoch":
            continue
        number = event.get("epoch")
        if type(number) is not int or not 0 <= number < 2**53:
            raise InputError(f"{where}: epoch: expected an integer >= 0, got {number!r:.60}")
        seconds = _numbers({"seconds": event.get("seconds", 0.0)}, where)["seconds"]
        epochs[number] = Epoch(
            number=number,
            loss=_numbers(event.get("loss") or {}, f"{where}: loss"),
            val=_numbers(event.get("val") or {}, f"{where}: val"),
            seconds=seconds if "seconds" in event else None,
        )
    return [epochs[number] for number in sorted(epochs)]
