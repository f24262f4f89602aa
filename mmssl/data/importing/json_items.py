"""The table of items as JSON lines, such as Amazon's metadata: nested cells become text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.importing.jsonl import blocks, objects
from mmssl.data.importing.roles import KNOWN, plain
from mmssl.data.importing.sources import open_stream
from mmssl.data.importing.table import Column, RawTable
from mmssl.errors import InputError


class JsonItems:
    """The objects of some items, see :class:`~mmssl.data.importing.table.TableFile`.

    Lists of texts are joined by blanks. Fields that hold objects are left out.

    Attributes:
        left_out: Names of the fields that are left out.
    """

    unit = "line"
    is_text = False
    first: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        item_ids: Sequence[str],
        *,
        like: str = "",
        encoding: str = "utf-8",
        all_items: bool = False,
    ) -> None:
        """Read the file.

        Args:
            path: JSON lines, see :func:`~mmssl.data.importing.sources.open_stream`.
            item_ids: Items whose objects are kept.
            like: Name of the log's item column.
            encoding: Encoding of the text.
            all_items: Whether to keep the objects of other items as well.

        Raises:
            InputError: It can't be read, has no field of item ids or none of these items.
        """
        self.path = path
        wanted = set(item_ids)
        key, example = "", ""
        fields: dict[str, None] = {}
        left_out: set[str] = set()
        self._rows: list[dict[str, str]] = []
        self._lines: list[int] = []
        with open_stream(path) as stream:
            for line, row in _rows(stream, path, encoding):
                key = key or _id_field(path, row, like)
                item = as_text(row.get(key)) or ""
                example = example or item
                if not all_items and item.strip() not in wanted:
                    continue
                cells = {key: item.strip()}
                for name, value in row.items():
                    text = as_text(value)
                    if text is None:
                        left_out.add(name)
                    elif name != key:
                        cells[name] = text
                fields.update(dict.fromkeys(cells))
                self._rows.append(cells)
                self._lines.append(line)
            self.sha256 = stream.sha256()
        if not self._rows:
            raise InputError(
                f"{path}: expected items of the log in field {key!r}, got none of them: the log "
                f"has {next(iter(item_ids), '')!r:.40}, the table {example!r:.40}"
            )
        self.left_out = tuple(sorted(left_out))
        kept = [name for name in fields if name != key and name not in left_out]
        self.names: tuple[str, ...] | None = (key, *kept)
        self.width = len(self.names)

    def read(self, positions: Sequence[int]) -> RawTable:
        """Return the fields at ``positions``."""
        assert self.names is not None
        columns = []
        for position in positions:
            cells = [row.get(self.names[position], "") for row in self._rows]
            columns.append(Column(np.arange(len(cells)), cells))
        return RawTable(tuple(columns), np.array(self._lines, dtype=np.int64))

    def unfit_for_ids(self, position: int) -> str | None:
        """Return None: any text may be an id."""
        return None


def as_text(value: Any) -> str | None:
    """Return a value as one text: lists are joined, null is empty; None for what holds objects."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return None
    if isinstance(value, list):
        parts = [as_text(part) for part in value]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else " ".join(filter(None, map(str.strip, known)))
    text = value if isinstance(value, str) else str(value)
    return text.encode("utf-8", "replace").decode()


def _rows(stream: Any, path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for content, first in blocks(stream, encoding):
        yield from objects(path, content, first)


def _id_field(path: Path, row: dict[str, Any], like: str) -> str:
    """Return the field of item ids: named as in the log, or by a known name."""
    names = {plain(name): name for name in reversed(row)}
    for known in (plain(like), *KNOWN["item"], "id"):
        if known and known in names:
            return names[known]
    raise InputError(
        f"{path}: expected a field of item ids such as {like or 'item_id'!r}, got "
        f"{', '.join(map(repr, list(row)[:12]))}"
    )
