"""``dataset.toml``: the metadata of a data set directory.

::

    format = 1
    name = "shop"
    num_users = 943
    num_items = 1349

    [files]                       # the id maps in the directory
    users = "users.tsv"
    items = "items.tsv"

    [split]                       # only in a data set with splits
    protocol = "random"
    seed = 2022
    hash = "..."                  # SHA-256 over the interactions of the three splits
    train = 80000
    val = 10000
    test = 10000
    parameters = { ratio = "8:1:1" }
    dropped = { "not in the k-core" = 17 }

    [log]                         # instead of [split], if interactions.npy is not split yet
    rows = 100000
    hash = "..."

    [source]                      # the imported files
    format = "csv"
    rows_read = 100012
    rows_kept = 100000
    columns = { user = "userId", item = "movieId" }
    dropped = { "repeated, the last one kept" = 12 }
    files = { "ratings.csv" = "SHA-256 of the file" }

Unknown fields are ignored, so that newer versions can add some.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmssl.config import read_toml
from mmssl.errors import InputError

FILE = "dataset.toml"
FORMAT = 1
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class SplitInfo:
    """How train, validation and test were made."""

    protocol: str = "given"
    """``given`` for splits that were read as is, else a protocol of :mod:`mmssl.data.splits`."""
    seed: int | None = None
    """Random seed; None for a deterministic protocol."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """All other parameters of the split, as TOML values."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of interactions that were excluded."""

    def label(self) -> str:
        """Return a short description such as ``random (ratio 8:1:1, k_core 5, seed 2022)``."""
        facts = [f"{name} {value}" for name, value in self.parameters.items()]
        if self.seed is not None:
            facts.append(f"seed {self.seed}")
        return f"{self.protocol} ({', '.join(facts)})" if facts else self.protocol

    def record(self) -> dict[str, Any]:
        """Return the fields that identify the split, for run directories and summaries."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"protocol": self.protocol, **seed, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class Source:
    """Source files of the interactions, and how many of their rows were kept."""

    format: str
    """Format of the imported files."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name -> SHA-256 (hex)."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role (user, item, rating, time) -> name of the column in the file."""
    rows_read: int | None = None
    """Number of rows in the files."""
    rows_kept: int | None = None
    """Number of rows that became interactions."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of rows that were excluded."""
    recipe: str | None = None
    """Build recipe of a catalog data set; changes whenever the resulting data changes."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as TOML values, without unknown and empty ones."""
        return {name: value for name, value in vars(self).items() if value not in (None, {})}


@dataclass(frozen=True)
class Manifest:
    """Validated content of ``dataset.toml``; absent fields are None."""

    path: Path
    """Path of the file."""
    exists: bool
    """Whether the file exists."""
    name: str | None = None
    """Name of the data set."""
    num_users: int | None = None
    """Number of users U."""
    num_items: int | None = None
    """Number of items I."""
    split: SplitInfo = SplitInfo()
    """How the splits were made."""
    split_hash: str | None = None
    """Expected hash of the interactions in the three splits."""
    log_hash: str | None = None
    """Expected hash of ``interactions.npy``."""
    source: Source | None = None
    """Source of the interactions."""


def read_manifest(folder: Path) -> Manifest:
    """Read ``dataset.toml`` of a folder, or return an empty manifest if it does not exist.

    Raises:
        InputError: The file can't be read, is not TOML, has a newer format version or a field of
            the wrong type.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return Manifest(path, False)
    table = _Section(path, "", _parse(path))
    version = table.get("format", int, FORMAT)
    if version != FORMAT:
        raise InputError(
            f"{path}: expected format {FORMAT}, got {version}, written by a newer version of mmssl"
        )
    counts = {}
    for key in ("num_users", "num_items"):
        count = counts[key] = table.get(key, int, None)
        if count is not None and not 0 < count <= _MAX_COUNT:
            raise InputError(
                f"{path}: expected {key} to be an integer in 1 .. {_MAX_COUNT}, got {count}"
            )
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
    """Write ``dataset.toml``, without fields that are None or empty."""
    import tomli_w

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
    """One table of the file, with the prefix of its keys for error messages."""

    path: Path
    prefix: str
    values: dict[str, Any]

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is not default and type(value) is not kind:  # isinstance would accept True as int
            words = {int: "an integer", str: "a string", dict: "a table"}[kind]
            raise InputError(
                f"{self.path}: expected {self.prefix}{key} to be {words}, got {value!r:.60}"
            )
        return value

    def section(self, key: str) -> _Section:
        return _Section(self.path, f"{self.prefix}{key}.", self.get(key, dict, {}))

    def all_of(self, kind: type) -> dict[str, Any]:
        return {key: self.get(key, kind, None) for key in self.values}
