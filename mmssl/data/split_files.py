"""The files of the three splits: JSON lists, or records that a process can read a part of.

``train.json`` holds ``{"user": [item, ...], ...}``. ``train.npy`` holds the same as records
``(user, item)`` of two little-endian int32, sorted by user, then item; plain NumPy reads it. Data
sets of more than :data:`RECORDS_FROM` interactions are written as records.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from mmssl.data.blocks import ascending, blocks
from mmssl.data.dataset import MAX_ID, Interactions
from mmssl.data.npy import open_records, save_records
from mmssl.errors import InputError
from mmssl.files import quoted, read_bytes

SPLITS = ("train", "val", "test")
RECORDS_FROM = 10_000_000
"""Interactions of a data set from which its splits are written as records, not as JSON."""

_KINDS = [("user", "<i4"), ("item", "<i4")]


def split_path(folder: Path, split: str) -> Path:
    """Return the file of a split, or the name of the JSON file if it has none.

    Raises:
        InputError: There are two.
    """
    json_file, records = folder / f"{split}.json", folder / f"{split}.npy"
    if not os.path.lexists(records):
        return json_file
    if os.path.lexists(json_file):
        raise InputError(f"{folder}: expected {split}.json or {split}.npy, got both")
    return records


def write_records(path: Path, edges: Interactions) -> None:
    """Write the records of a split."""
    save_records(path, edges._asdict(), _KINDS)


class RecordSplit:
    """A split in records, of which a range of users can be read without the rest.

    Raises:
        InputError: The header of the file is malformed.
    """

    def __init__(self, path: Path) -> None:
        kinds = {name: (kind,) for name, kind in _KINDS}
        self._file = open_records(path, kinds, required=("user", "item"))
        self.num_edges = self._file.size

    def read(self, users: range | None = None) -> Interactions:
        """Read the interactions of a range of users, None for all.

        Raises:
            InputError: As :meth:`blocks`.
        """
        first, last = self._places(users)
        edges = Interactions(np.empty(last - first, np.int64), np.empty(last - first, np.int64))
        for part, found in zip(blocks(last - first), self._blocks(first, last), strict=True):
            edges.user[part], edges.item[part] = found
        return edges

    def map(self, users: range) -> Interactions:
        """Map the interactions of a range of users into memory: int32, read-only, not checked.

        A file that is cut while it is mapped ends the process.
        """
        records, (first, last) = self._file.map(), self._places(users)
        return Interactions(records["user"][first:last], records["item"][first:last])

    def blocks(self, users: range | None = None) -> Iterator[Interactions]:
        """Yield the interactions of a range of users, None for all, in blocks.

        Raises:
            InputError: The file was cut, or is not sorted, unique and in range.
        """
        return self._blocks(*self._places(users))

    def _blocks(self, first: int, last: int) -> Iterator[Interactions]:
        before = np.full(1, -1, dtype=np.int64)
        before_ids = before, before
        for records in self._file.read(first, last):
            edges = Interactions(records["user"].astype(np.int64), records["item"].astype(np.int64))
            joint = [np.concatenate(pair) for pair in zip(before_ids, edges, strict=True)]
            for what, ids in zip(("user", "item"), edges, strict=True):
                if ids.min() < 0 or ids.max() >= MAX_ID:
                    wrong = ids.min() if ids.min() < 0 else ids.max()
                    raise InputError(
                        f"{self._file.path}: expected {what} ids in 0 .. {MAX_ID - 1}, got {wrong}"
                    )
            if not ascending(*joint):
                raise InputError(
                    f"{self._file.path}: expected unique records sorted by user, then item"
                )
            before_ids = edges.user[-1:], edges.item[-1:]
            yield edges

    def _places(self, users: range | None) -> tuple[int, int]:
        """Return the positions of the interactions of a range of users."""
        if users is None:
            return 0, self.num_edges

        def user_at(position: int) -> int:
            (record,) = self._file.read(position, position + 1)
            return int(record["user"][0])

        every = range(self.num_edges)
        first = bisect_left(every, users.start, key=user_at)
        return first, max(bisect_left(every, users.stop, key=user_at), first)


class ListedSplit:
    """A split that was parsed as a whole, with the methods of :class:`RecordSplit`."""

    def __init__(self, edges: Interactions) -> None:
        self._edges = edges
        self.num_edges = edges.num_edges

    def read(self, users: range | None = None) -> Interactions:
        """Return the interactions of a range of users, as a copy; None for all."""
        if users is None:
            return self._edges
        first, last = self._places(users)
        return Interactions(*(ids[first:last].copy() for ids in self._edges))

    def map(self, users: range) -> Interactions:
        """Return a copy in memory: there are no records to map."""
        return self.read(users)

    def blocks(self, users: range | None = None) -> Iterator[Interactions]:
        """Yield the interactions of a range of users, None for all, in blocks."""
        first, last = (0, self.num_edges) if users is None else self._places(users)
        for part in blocks(last - first):
            yield Interactions(
                *(ids[first + part.start : first + part.stop] for ids in self._edges)
            )

    def _places(self, users: range) -> tuple[int, int]:
        first, last = np.searchsorted(self._edges.user, (users.start, users.stop)).tolist()
        return first, max(first, last)


def _read_json(path: Path) -> dict[str, object]:
    """Parse a JSON object; reject duplicate keys, NaN and infinity, which json accepts."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise InputError(f"{path}: expected unique keys, got duplicate key {key!r}")
                seen.add(key)
        return table

    def no_constant(constant: str) -> object:
        raise InputError(f"{path}: expected JSON numbers, got {constant}")

    content = read_bytes(path)
    try:
        table = json.loads(content, object_pairs_hook=unique, parse_constant=no_constant)
    except InputError:
        raise
    except MemoryError:
        raise InputError(
            f"{path}: expected JSON that fits in memory, got {len(content)} bytes"
        ) from None
    except (ValueError, RecursionError) as error:  # bad UTF-8 and huge ints are ValueErrors
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: expected JSON, got invalid JSON: {reason}") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: expected a JSON object, got {_kind(table)}")
    return table


def read_split(folder: Path, split: str, *, may_be_empty: bool = False) -> Interactions:
    """Read the file of train, val or test; item ids are not checked for a maximum.

    Raises:
        InputError: The file is missing, malformed or, unless it may be, without interactions.
    """
    return open_split(folder, split, may_be_empty=may_be_empty).read()


def open_split(
    folder: Path, split: str, *, may_be_empty: bool = False
) -> RecordSplit | ListedSplit:
    """Open the file of train, val or test: records are left on disk, JSON is parsed.

    Raises:
        InputError: The file is missing or without interactions, unless it may be; its header, or
            its JSON, is malformed.
    """
    path = split_path(folder, split)
    if not os.path.lexists(path):
        hint = ""
        if split == "train" and (folder / "train_mat").exists():
            hint = "; train_mat is a pickle, which is never opened: convert it to train.json"
        if split == "val":
            hint = f": mmssl data import {quoted(folder)} --out NEW draws one from train"
        raise InputError(f"{path}: expected a file, got none{hint}")
    if path.suffix == ".npy":
        records = RecordSplit(path)
        if not records.num_edges and not may_be_empty:
            raise InputError(f"{path}: expected at least one interaction, got none")
        return records
    table = _read_json(path)
    users: list[int] = []
    lists: list[list[int]] = []
    for key, items in table.items():
        users.append(_user_id(path, key))
        lists.append(_item_list(path, key, items))
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    total = int(lengths.sum())
    if total == 0 and not may_be_empty:
        hint = f": mmssl data import {quoted(folder)} --out NEW draws some from train"
        hint = hint if split == "val" else ""
        raise InputError(f"{path}: expected at least one interaction, got none{hint}")
    edges = Interactions.from_edges(
        np.repeat(np.array(users, dtype=np.int64), lengths),
        np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=total),
    )
    return ListedSplit(edges)


def _user_id(path: Path, key: str) -> int:
    # Only the canonical spelling: "01" and "1" would be duplicates that no JSON parser detects.
    canonical = key.isascii() and key.isdigit() and (key == "0" or key[0] != "0")
    if not canonical or len(key) > 10 or int(key) >= MAX_ID:
        raise InputError(
            f"{path}: expected user keys to be integers in 0 .. {MAX_ID - 1}, got {key!r:.60}"
        )
    return int(key)


def _item_list(path: Path, user: str, items: object) -> list[int]:
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a list of items for user {user}, got {_kind(items)}")
    if not set(map(type, items)) <= {int}:  # isinstance would accept True
        wrong = next(item for item in items if type(item) is not int)
        raise InputError(
            f"{path}: expected integer items for user {user}, got {_kind(wrong)} {wrong!r:.60}"
        )
    if items and not (min(items) >= 0 and max(items) < MAX_ID):
        wrong = next(item for item in items if not 0 <= item < MAX_ID)
        # str() raises ValueError for integers of more than 4300 digits.
        shown = wrong if abs(wrong) < 10**20 else "a number far out of range"
        raise InputError(
            f"{path}: expected items in 0 .. {MAX_ID - 1} for user {user}, got {shown}"
        )
    if len(set(items)) != len(items):
        seen: set[int] = set()
        for item in items:
            if item in seen:
                raise InputError(
                    f"{path}: expected unique items for user {user}, got item {item} twice"
                )
            seen.add(item)
    return items


def _kind(value: object) -> str:
    """Return the JSON type of a value, for error messages."""
    if value is None:
        return "null"
    words = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return words.get(type(value), "a number")
