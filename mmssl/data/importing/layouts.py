"""Finds out the layout of a source: by content first, then by names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from mmssl.data.importing.jsonl import seems_json
from mmssl.data.importing.lists import is_integers, narrow, seems_lists
from mmssl.data.importing.logs import Part
from mmssl.data.importing.sources import SUFFIXES, first_bytes, inner_name, is_pickle, pickle_advice
from mmssl.data.splits import TEST, TRAIN, VAL
from mmssl.errors import InputError

_SPLIT = re.compile(
    r"(?:.*[._-])?(train(?:ing)?|trn|valid(?:ation)?|val|dev|test|tst)(?:mat)?(?:[._-].*)?",
    re.IGNORECASE,
)
_LABELS = {"tr": TRAIN, "va": VAL, "de": VAL, "te": TEST, "ts": TEST}
_TABLES = (".csv", ".tsv", ".txt", ".dat", ".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".npz")
_PICKLED = (".pkl", ".pickle")
_PARQUET = (".parquet", ".pq")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


class Layout(NamedTuple):
    """How a source is read."""

    kind: str
    """``mmssl``, ``inter`` (MMRec or RecBole), ``tables``, or ``npz``."""
    parts: tuple[Part, ...] = ()
    """The files of ``tables`` and ``npz``."""
    unread: tuple[str, ...] = ()
    """Files of the directory that are not read."""


class _UnclearLists(InputError):
    """Lines of one length, of integers only: lists of items, or a log without a header."""


def file_kind(path: Path, *, numbered: bool = False) -> str:
    """Return the kind of a file that holds a log.

    Args:
        path: The file.
        numbered: Columns were given by number, as those of a file without a header are.

    Raises:
        InputError: It can't be read, is of a kind that is not read, or may be of two kinds.
    """
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    if path.suffix.lower() in _PARQUET or start.startswith(b"PAR1"):
        return "parquet"
    if path.suffix.lower() == ".npz" or (start.startswith(b"PK") and b".npy" in start[:200]):
        return "npz"
    content = first_bytes(path)
    if seems_json(content):
        return "jsonl"
    lists = seems_lists(content)
    if lists is None and not (numbered and narrow(content)):
        width = len(content.lstrip().splitlines()[0].split())
        raise _UnclearLists(
            f"{path}: got lines of {width} integers, which may be a user and its items (--format "
            "lists) or columns (--format csv, with --user-col 1 --item-col 2 and so on)"
        )
    if lists:
        return "lists"
    return "tsv" if Path(inner_name(path)).suffix.lower() == ".tsv" else "csv"


def find_layout(path: Path, kind: str | None = None) -> Layout:
    """Return the layout of a directory.

    Args:
        path: The directory.
        kind: Format of its files; found when None.

    Raises:
        InputError: It holds nothing that is read, or more than one thing.
    """
    names = sorted(os.listdir(path))
    visible = [name for name in names if not name.startswith((".", "_"))]
    if "train.npy" in names or ("train.json" in names and _is_mmssl(path / "train.json")):
        return Layout("mmssl")
    if any(name.endswith(".inter") for name in names):
        return Layout("inter")
    files = [name for name in visible if (path / name).is_file()]
    splits = _splits(path, files, kind)
    if splits is not None:
        return splits
    return _parts(path, files, kind)


def _is_mmssl(path: Path) -> bool:
    """Return False for JSON lines of interactions, whose first line is an object of one."""
    line = first_bytes(path).split(b"\n")[0]
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not isinstance(row, dict) or not row or all(isinstance(v, list) for v in row.values())


def _splits(path: Path, files: list[str], kind: str | None) -> Layout | None:
    """Return the layout of train, validation and test files; None if a directory has no train."""
    found: dict[int, list[str]] = {}
    for name in files:
        stem, suffix = _stem(name)
        if suffix not in (*_TABLES, *_PICKLED, ""):
            continue
        match = _SPLIT.fullmatch(stem)
        if match and (suffix or stem.endswith("_mat")) and "feat" not in stem:
            found.setdefault(_LABELS[match[1][:2].lower()], []).append(name)
    if TRAIN not in found or TEST not in found:
        return None
    for label, candidates in found.items():  # a pickle that was converted counts no more
        found[label] = [n for n in candidates if not _pickled(path / n)] or candidates
    pickles = [name for names in found.values() for name in names if _pickled(path / name)]
    if pickles:
        raise InputError(f"{path}: got {', '.join(pickles)}; {pickle_advice(path, pickles)}")
    twice = next((names for names in found.values() if len(names) > 1), None)
    if twice:
        raise InputError(f"{path}: expected one file of each split, got {', '.join(twice[:4])}")
    chosen = {label: path / names[0] for label, names in sorted(found.items())}
    if kind is not None:
        kinds = dict.fromkeys(chosen, kind)
    else:
        kinds = _kinds(chosen)
    if len(set(kinds.values())) > 1 and set(kinds.values()) - {"csv", "tsv"}:
        shown = ", ".join(f"{chosen[label].name} ({kind})" for label, kind in kinds.items())
        raise InputError(f"{path}: expected splits in one format, got {shown}")
    parts = tuple(Part(file, kinds[label], label) for label, file in chosen.items())
    taken = {file.name for file in chosen.values()}
    layout = "npz" if "npz" in kinds.values() else "tables"
    return Layout(layout, parts, tuple(name for name in files if name not in taken))


def _kinds(files: dict[int, Path]) -> dict[int, str]:
    """Return the kind of each file; what may be lists is lists where another split surely is."""
    kinds: dict[int, str] = {}
    unclear: dict[int, _UnclearLists] = {}
    for label, file in files.items():
        try:
            kinds[label] = file_kind(file)
        except _UnclearLists as error:
            unclear[label] = error
    if unclear and "lists" not in kinds.values():
        raise next(iter(unclear.values()))
    for label, file in files.items():
        text = kinds.get(label) in ("csv", "tsv", None)
        if text and "lists" in kinds.values() and is_integers(first_bytes(file)):
            kinds[label] = "lists"
    return kinds


def _parts(path: Path, files: list[str], kind: str | None) -> Layout:
    """Return the layout of part files, as Spark, Hive and Dask write them."""
    found = list(_walk(path, {}))
    suffixes: dict[str, list[tuple[Path, dict[str, str]]]] = {}
    for file, constants in found:
        suffix = _stem(file.name)[1]
        if suffix in _TABLES or (not suffix and file.name.startswith("part-")):
            suffixes.setdefault(suffix, []).append((file, constants))
    pickles = [name for name in files if _pickled(path / name)]
    if pickles and not suffixes:
        pickles = pickles[:6]
        raise InputError(
            f"{path}: got {', '.join(pickles[:6])}; {pickle_advice(path, pickles[:6])}"
        )
    if len(suffixes) != 1:
        some = ", ".join(files[:8]) or "no file"
        raise InputError(
            f"{path}: expected train.json (mmssl) or a .inter file (mmrec, recbole) in it, files "
            f"of splits (train.csv, test.csv) or part files of one format, got {some}; a log in "
            "one file is imported by the path of the file"
        )
    ((suffix, chosen),) = suffixes.items()
    kind = kind or file_kind(chosen[0][0])
    if kind == "npz":
        raise InputError(
            f"{path}: expected one matrix, or matrices of train and test, got "
            f"{', '.join(file.name for file, _ in chosen[:4])}: import a file by its path"
        )
    taken = {file for file, _ in chosen}
    unread = tuple(str(file.relative_to(path)) for file, _ in found if file not in taken)
    parts = tuple(Part(file, kind, None, constants) for file, constants in chosen)
    return Layout("tables", parts, unread)


def _walk(path: Path, constants: dict[str, str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the files of a directory in order, with the columns that its directories name."""
    for name in sorted(os.listdir(path)):
        entry = path / name
        if name.startswith((".", "_")):
            continue
        if entry.is_file():
            yield entry, constants
        elif entry.is_dir() and not entry.is_symlink():
            key, equals, value = name.partition("=")
            value = "" if value == _HIVE_NULL else unquote(value)
            yield from _walk(entry, {**constants, key: value} if equals else constants)


def _stem(name: str) -> tuple[str, str]:
    """Return the stem and the suffix of a file, without the suffix of a compression."""
    plain = Path(name)
    if plain.suffix.lower() in SUFFIXES:
        plain = plain.with_suffix("")
    suffix = plain.suffix.lower()
    return (plain.name.removesuffix(plain.suffix), suffix) if suffix else (plain.name, "")


def _pickled(path: Path) -> bool:
    with open(path, "rb") as file:
        start: Any = file.read(8)
    return is_pickle(path.name, start)
