"""What each item has: texts or paths, from ``items.tsv`` or a table of the user's own.

A table is CSV, TSV (no quoting) or JSON lines, gzipped or not, with an item id in each row: the id
where the items came from (``item_ids`` of the data set), else the item's number.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from mmssl.data.dataset import InteractionDataset
from mmssl.data.tables import read_table
from mmssl.errors import InputError

FORMATS = (".csv", ".tsv", ".jsonl")
ON_DUPLICATE = ("error", "first", "join")
MAX_CELL = 2**24  # characters; the csv module stops at 2^17, which a book's description exceeds


class Content(NamedTuple):
    """One cell per item."""

    cells: tuple[str, ...]
    """"" where an item has none."""
    source: str
    """The file's name and its columns."""
    unknown_rows: int = 0
    """Rows of items that the data set doesn't have."""
    repeated_rows: int = 0
    """Rows of an item that had one before."""


def item_ids(dataset: InteractionDataset) -> tuple[str, ...]:
    """The items' ids where they came from, else their numbers."""
    return dataset.item_ids or tuple(map(str, range(dataset.num_items)))


def read_item_table(folder: Path, num_items: int, columns: Sequence[str]) -> Content:
    """Columns of the data set's own ``items.tsv``, joined by a space.

    Raises:
        InputError: No such file or column.
    """
    path = folder / "items.tsv"
    table = read_table(path, "item", num_items)
    if table is None:
        raise InputError(f"{path}: expected a table with the items' texts, got none (or --from)")
    names, chosen = columns or ("title",), []
    for name in names:
        column = table.column(name)
        if column is None:
            raise InputError(
                f"{path}: expected columns among {', '.join(table.names)}, got {name!r}"
            )
        chosen.append(column)
    cells = tuple(_joined(row) for row in zip(*chosen, strict=True))
    return Content(cells, f"items.tsv: {', '.join(names)}")


def read_content(
    path: Path,
    ids: Sequence[str],
    columns: Sequence[str],
    *,
    defaults: Sequence[str] = ("text", "title"),
    id_column: str | None = None,
    encoding: str = "utf-8",
    on_duplicate: str = "error",
) -> Content:
    """One cell per item of a table: the chosen columns, joined by a space.

    Args:
        path: ``.csv``, ``.tsv`` or ``.jsonl``, also with ``.gz``.
        ids: Unique id of each item.
        columns: What to take; the first of ``defaults`` that the table has when empty.
        defaults: See above.
        id_column: Where the item id is; the first column when None.
        encoding: Of the file; one in which a line feed is one byte.
        on_duplicate: What to do with two rows of one item that differ: "error", keep the "first",
            "join" them by a space.

    Raises:
        InputError: One line that names file and line.
    """
    if on_duplicate not in ON_DUPLICATE:
        raise InputError(f"on_duplicate must be one of {ON_DUPLICATE}, got {on_duplicate!r}")
    position = {name: index for index, name in enumerate(ids)}
    cells = [""] * len(ids)
    line_of: dict[int, int] = {}
    unknown = repeated = 0
    chosen = list(columns)
    example = ""
    optional = ".jsonl" in path.suffixes  # objects leave out what they don't have
    for line, row in _rows(path, encoding):
        key = next(iter(row), "") if id_column is None else id_column
        if key not in row:
            raise InputError(f"{path}: line {line}: expected the id in {key!r}, got {_some(row)}")
        id_column = key  # JSON objects may order their keys as they like
        if not chosen:
            chosen = [name for name in defaults if name in row][:1]
            if not chosen:
                raise InputError(
                    f"{path}: expected a column {' or '.join(defaults)}, got {_some(row)}: "
                    "name yours by --column"
                )
        missing = [name for name in chosen if name not in row]
        if missing and not optional:
            raise InputError(f"{path}: expected columns among {_some(row)}, got {missing[0]!r}")
        name = _text(row[key]).strip()
        cell = _joined(_text(row.get(column)) for column in chosen)
        item = position.get(name)
        if item is None:
            unknown += 1
            example = example or name
            continue
        if item not in line_of:
            line_of[item] = line
            cells[item] = cell
            continue
        repeated += 1
        if cell == cells[item] or on_duplicate == "first":
            continue
        if on_duplicate == "error":
            raise InputError(
                f"{path}: line {line}: expected item {name!r:.60} once, got it before on line "
                f"{line_of[item]} with another content (--on-duplicate first or join)"
            )
        cells[item] = _joined((cells[item], cell))
    if not line_of:
        got = f"only others, as {example!r:.60}" if unknown else "no row"
        raise InputError(f"{path}: expected item ids such as {ids[0]!r:.60}, got {got}")
    return Content(tuple(cells), f"{path.name}: {', '.join(chosen)}", unknown, repeated)


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number, column -> cell) of every row."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith(FORMATS):
        raise InputError(f"{path}: expected a file named {', '.join(FORMATS)} (.gz), got another")
    try:
        if "\n".encode(encoding) != b"\n":
            raise LookupError
    except LookupError:
        raise InputError(
            f"expected an encoding of text in which a line feed is one byte, got {encoding!r:.60}"
        ) from None
    try:
        with _open(path) as file:
            lines = _decoded(path, file, encoding)
            if name.endswith(".jsonl"):
                yield from _json_rows(path, lines)
            elif name.endswith(".tsv"):
                yield from _cells(path, _split(lines))
            else:
                yield from _cells(path, _csv(path, lines))
    except (OSError, EOFError, zlib.error) as error:  # the last two: a damaged .gz
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: can't be read: {reason}") from None


def _open(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _decoded(path: Path, file: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Lines with their ends, a byte order mark left out."""
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: line {number}: expected {encoding} text, got byte "
                f"0x{line[error.start]:02x} (another --encoding, as latin-1?)"
            ) from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}: line {number}: expected a JSON object, got none") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number}: expected a JSON object, got another value")
        yield number, row


def _split(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def _csv(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    before = csv.field_size_limit(MAX_CELL)
    reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: expected CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _cells(
    path: Path, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Rows by the names of the header; empty lines are passed over."""
    header = next(rows, (0, []))[1]
    names = [name.split(":")[0].strip() for name in header]  # RecBole: item_id:token
    if len(set(names)) != len(names):
        raise InputError(f"{path}: expected a header of different names, got {_some(names)}")
    for line, row in rows:
        if row in ([], [""]):
            continue
        if len(row) != len(names):
            raise InputError(f"{path}: line {line}: expected {len(names)} cells, got {len(row)}")
        yield line, dict(zip(names, row, strict=True))


def _text(value: object) -> str:
    """A cell as text: a list's elements joined, "" for null, no lone surrogates."""
    if value is None:
        return ""
    if isinstance(value, list):
        return _joined(map(_text, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


def _joined(cells: Iterable[str]) -> str:
    return " ".join(cell for cell in (cell.strip() for cell in cells) if cell)


def _some(names: Mapping[str, object] | Sequence[str]) -> str:
    """Names to show in a message of one line."""
    return ", ".join(ascii(name)[1:-1] for name in list(names)[:8])[:200] or "none"
