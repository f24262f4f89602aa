"""``dataset.toml``: what a data set directory says of itself.

::

    format = 1
    name = "shop"
    num_users = 943
    num_items = 1349

    [files]                       # the id maps that are there
    users = "users.tsv"
    items = "items.tsv"

    [split]                       # of a directory that can be trained on
    protocol = "random"
    seed = 2022
    hash = "..."                  # SHA-256 over the interactions of the three splits
    train = 80000
    val = 10000
    test = 10000
    parameters = { ratio = "8:1:1" }
    dropped = { "not in the k-core" = 17 }

    [log]                         # instead of [split]: interactions.npy, not split yet
    rows = 100000
    hash = "..."

    [source]                      # where it came from
    format = "csv"
    rows_read = 100012
    rows_kept = 100000
    columns = { user = "userId", item = "movieId" }
    dropped = { "repeated, the last one kept" = 12 }
    files = { "ratings.csv" = "SHA-256 of the file" }

Fields that this version doesn't know are left alone, so a newer one may add some.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from mmssl.config import read_toml
from mmssl.errors import InputError

FILE = "dataset.toml"
FORMAT = 1
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class SplitInfo:
    """How train, validation and test came about."""

    protocol: str = "given"
    """``given`` for splits that were read as they are, else one of :mod:`mmssl.data.splits`."""
    seed: int | None = None
    """Of the draw; None when nothing was drawn."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else decided it, as TOML values."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> interactions that were left out on the way."""

    def label(self) -> str:
        """One phrase for people: ``random (ratio 8:1:1, k_core 5, seed 2022)``."""
        facts = [f"{name} {value}" for name, value in self.parameters.items()]
        if self.seed is not None:
            facts.append(f"seed {self.seed}")
        return f"{self.protocol} ({', '.join(facts)})" if facts else self.protocol

    def record(self) -> dict[str, Any]:
        """What a run notes beside the hash."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"protocol": self.protocol, **seed, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class Source:
    """Where the interactions came from, and what became of the rows."""

    format: str
    files: Mapping[str, str] = field(default_factory=dict)
    """File name -> SHA-256 (hex)."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role (user, item, rating, time) -> the column it was read from."""
    rows_read: int | None = None
    rows_kept: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    recipe: str | None = None
    """Of a data set in the catalogue: changes with everything that changes the data."""

    def to_dict(self) -> dict[str, Any]:
        """Without what is unknown or empty."""
        return {name: value for name, value in vars(self).items() if value not in (None, {})}


@dataclass(frozen=True)
class Manifest:
    """The file, its known fields checked; everything is optional when there is no file."""

    path: Path
    exists: bool
    name: str | None = None
    num_users: int | None = None
    num_items: int | None = None
    split: SplitInfo = SplitInfo()
    split_hash: str | None = None
    log_hash: str | None = None
    source: Source | None = None


def read_manifest(folder: Path) -> Manifest:
    """``dataset.toml`` of a folder; an empty one when there is no such file.

    Raises:
        InputError: It can't be read, isn't TOML, is of a later format or holds another kind of
            value than it should.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return Manifest(path, False)
    table = _Section(path, "", _parse(path))
    version = table.get("format", int, FORMAT)
    if version != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT}, got {version}: a newer mmssl wrote it")
    counts = {}
    for key in ("num_users", "num_items"):
        count = counts[key] = table.get(key, int, None)
        if count is not None and not 0 < count <= _MAX_COUNT:
            raise InputError(f"{path}: expected {key} to be an integer above 0, got {count}")
    name = table.get("name", str, None)
    if name is not None and not name.strip():
        raise InputError(f"{path}: expected name to be a non-empty string, got {name!r}")
    split, log = table.section("split"), table.section("log")
    return Manifest(
        path=path,
        exists=True,
        name=name,
        **counts,
        split=SplitInfo(
            protocol=split.get("protocol", str, "given"),
            seed=split.get("seed", int, None),
            parameters=split.get("parameters", dict, {}),
            dropped=split.section("dropped").all_of(int),
        ),
        split_hash=split.get("hash", str, None),
        log_hash=log.get("hash", str, None),
        source=_source(table),
    )


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes ``dataset.toml``; sections that are empty are left out."""
    kept = {key: value for key, value in content.items() if value is not None and value != {}}
    text = tomli_w.dumps({"format": FORMAT, **kept})
    (folder / FILE).write_text(text, encoding="utf-8", newline="\n")


def _source(table: _Section) -> Source | None:
    source = table.section("source")
    if not source.values:
        return None
    return Source(
        format=source.get("format", str, "unknown"),
        files=source.section("files").all_of(str),
        columns=source.section("columns").all_of(str),
        rows_read=source.get("rows_read", int, None),
        rows_kept=source.get("rows_kept", int, None),
        dropped=source.section("dropped").all_of(int),
        recipe=source.get("recipe", str, None),
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except RecursionError:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from None


@dataclass(frozen=True)
class _Section:
    """A table of the file, and where it is."""

    path: Path
    prefix: str
    values: dict[str, Any]

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is not default and type(value) is not kind:  # a bool is no int here
            words = {int: "an integer", str: "a string", dict: "a table"}[kind]
            raise InputError(
                f"{self.path}: expected {self.prefix}{key} to be {words}, got {value!r:.60}"
            )
        return value

    def section(self, key: str) -> _Section:
        return _Section(self.path, f"{self.prefix}{key}.", self.get(key, dict, {}))

    def all_of(self, kind: type) -> dict[str, Any]:
        return {key: self.get(key, kind, None) for key in self.values}
