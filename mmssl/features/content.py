"""Texts or picture paths of the items, from ``items.tsv`` or a separate table.

A table is CSV, TSV (no quoting) or JSON lines, compressed or not. Each row contains an item id:
one of the data set's ``item_ids`` or, without these, the item's number.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmssl.data.importing.jsonl import python_literal
from mmssl.data.importing.roles import KNOWN, plain
from mmssl.data.importing.sources import Stream, inner_name, open_stream
from mmssl.data.log import FILE as LOG_FILE
from mmssl.data.manifest import FILE as MANIFEST
from mmssl.data.readers import read_dataset
from mmssl.data.tables import read_table
from mmssl.errors import InputError

JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (".csv", ".tsv", *JSON_LINES)
ON_DUPLICATE = ("error", "first", "join")
MAX_CELL = 2**24  # characters; long item descriptions exceed the csv module's default of 2^17


class Content(NamedTuple):
    """Texts or paths, one cell per item."""

    cells: tuple[str, ...]
    """Content of each item; "" for an item without content."""
    source: str
    """Name of the file and its columns."""
    unknown_rows: int = 0
    """Number of rows whose item is not in the data set."""
    repeated_rows: int = 0
    """Number of rows whose item occurred in an earlier row."""


class Items(NamedTuple):
    """The items that features are computed for."""

    num_items: int
    """Number of items I."""
    ids: tuple[str, ...]
    """(I,) external ids or, without these, numbers."""
    is_new: bool = False
    """Whether these are new items, which are no part of a data set."""


def read_items(folder: Path) -> Items:
    """Return the items of a data set, or the new items of a folder with an ``items.tsv`` only.

    Raises:
        InputError: It is neither of these, or malformed.
    """
    table = folder / "items.tsv"
    kept = ("train.json", "train.npy", MANIFEST, LOG_FILE)
    if not table.is_file() or any(os.path.lexists(folder / name) for name in kept):
        dataset = read_dataset(folder, modalities=[])
        ids, count = dataset.item_ids, dataset.num_items
        return Items(count, ids or tuple(map(str, range(count))))
    found = read_table(table, "item")
    assert found is not None
    ids = found.column("id")
    if ids is None or len(set(ids)) < len(ids):
        got = "no such column" if ids is None else "an id twice"
        raise InputError(f"{table}: expected a column 'id' with the id of each new item, got {got}")
    return Items(len(ids), ids, is_new=True)


def read_item_table(folder: Path, num_items: int, columns: Sequence[str]) -> Content:
    """Read columns of the data set's ``items.tsv``, joined by a space.

    Args:
        folder: Directory of the data set.
        num_items: Number of items I.
        columns: Names of the columns; ``title`` if empty.

    Raises:
        InputError: The file or a column does not exist, or the file is malformed.
    """
    path = folder / "items.tsv"
    table = read_table(path, "item", num_items)
    if table is None:
        raise InputError(f"{path}: expected a table with item texts, got no file; or use --from")
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
    """Read one cell per item from a table: the selected columns, joined by a space.

    Args:
        path: File named ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` (JSON lines too), perhaps
            followed by the suffix of a compression.
        ids: Unique id of each item.
        columns: Names of the columns to read; if empty, the first of ``defaults`` in the table.
        defaults: Column names to try if ``columns`` is empty.
        id_column: Name of the column with the item id; None selects the first column or, if it
            holds no id of the data set, the first one with a usual name (``asin``, ``movieId``).
        encoding: Text encoding in which a line feed is a single byte.
        on_duplicate: Handling of different rows for the same item: "error" raises, "first" keeps
            the first row, "join" joins them by a space.

    Raises:
        InputError: An argument is invalid or the table is malformed; the message names the line.
    """
    if on_duplicate not in ON_DUPLICATE:
        raise InputError(f"on_duplicate must be one of {ON_DUPLICATE}, got {on_duplicate!r}")
    position = {name: index for index, name in enumerate(ids)}
    cells = [""] * len(ids)
    line_of: dict[int, int] = {}
    unknown = repeated = 0
    chosen = list(columns)
    example = ""
    optional = _is_json(path)  # JSON objects may omit fields
    other: str | None = None
    for line, row in _rows(path, encoding):
        if id_column is None:
            other = _usual_id(row)
        key = next(iter(row), "") if id_column is None else id_column
        if key not in row:
            raise InputError(
                f"{path}: line {line}: expected an id in column {key!r}, got columns {_some(row)}"
            )
        id_column = key  # the order of keys may differ between JSON objects
        if not chosen:
            chosen = [name for name in defaults if name in row][:1]
            if not chosen:
                raise InputError(
                    f"{path}: expected a column {' or '.join(defaults)}, got {_some(row)}; "
                    "select one with --column"
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
                f"{path}: line {line}: expected one row per item, got different content for item "
                f"{name!r:.60} on line {line_of[item]}; use --on-duplicate first or join"
            )
        cells[item] = _joined((cells[item], cell))
    if not line_of and other is not None:
        return read_content(
            path,
            ids,
            columns,
            defaults=defaults,
            id_column=other,
            encoding=encoding,
            on_duplicate=on_duplicate,
        )
    if not line_of:
        got = f"only unknown ids such as {example!r:.60}" if unknown else "no row"
        raise InputError(f"{path}: expected item ids such as {ids[0]!r:.60}, got {got}")
    return Content(tuple(cells), f"{path.name}: {', '.join(chosen)}", unknown, repeated)


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield (line number, column name -> cell) of every row."""
    name = inner_name(path).lower()
    if not name.endswith(FORMATS):
        raise InputError(
            f"{path}: expected a file name ending in {', '.join(FORMATS)}, perhaps followed by the "
            "suffix of a compression"
        )
    try:
        if "\n".encode(encoding) != b"\n":
            raise LookupError
    except LookupError:
        raise InputError(
            "--encoding: expected a text encoding with single-byte line feeds, got "
            f"{encoding!r:.60}"
        ) from None
    with open_stream(path) as stream:
        lines = _decoded(path, _lines(stream), encoding)
        if _is_json(path):
            yield from _json_rows(path, lines)
        elif name.endswith(".tsv"):
            yield from _cells(path, _split(lines))
        else:
            yield from _cells(path, _csv(path, lines))


def _is_json(path: Path) -> bool:
    return inner_name(path).lower().endswith(JSON_LINES)


def _usual_id(row: Mapping[str, object]) -> str | None:
    """Return the first column after the first one that has a usual name of item ids."""
    names = {plain(name): name for name in reversed(list(row)[1:])}
    return next((names[known] for known in KNOWN["item"] if known in names), None)


def _lines(stream: Stream) -> Iterator[bytes]:
    """Yield lines with their ends."""
    rest = b""
    while block := stream.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _decoded(path: Path, file: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Decode lines, keeping line breaks and removing a byte order mark."""
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: line {number}: expected {encoding} text, got byte "
                f"0x{line[error.start]:02x}; try another --encoding, such as latin-1"
            ) from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            got = python_literal(path, line.encode("utf-8", "replace")) or "invalid JSON"
            raise InputError(f"{path}: line {number}: expected a JSON object, got {got}") from None
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
    """Label cells with the column names of the header; empty lines are skipped."""
    header = next(rows, (0, []))[1]
    names = [name.split(":")[0].strip() for name in header]  # RecBole: item_id:token
    if len(set(names)) != len(names):
        raise InputError(f"{path}: expected unique column names, got {_some(names)}")
    for line, row in rows:
        if row in ([], [""]):
            continue
        if len(row) != len(names):
            raise InputError(f"{path}: line {line}: expected {len(names)} cells, got {len(row)}")
        yield line, dict(zip(names, row, strict=True))


def _text(value: object) -> str:
    """Convert a cell to text: lists are joined, null is "", lone surrogates are replaced."""
    if value is None:
        return ""
    if isinstance(value, list):
        return _joined(map(_text, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


def _joined(cells: Iterable[str]) -> str:
    return " ".join(cell for cell in (cell.strip() for cell in cells) if cell)


def _some(names: Mapping[str, object] | Sequence[str]) -> str:
    """Format the first names for a one-line message."""
    return ", ".join(ascii(name)[1:-1] for name in list(names)[:8])[:200] or "none"
