"""JSON lines: one object per line, as Amazon's and Yelp's reviews are distributed.

Pyarrow parses blocks of lines, so that a file may be larger than memory. A block that it can't read
(ids that are numbers in some rows and strings in others) is read by Python's json, which also names
the line of what is malformed.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.dataset import IntArray
from mmssl.data.importing.arrow import require_pyarrow
from mmssl.data.importing.encode import CellColumn
from mmssl.data.importing.sources import Stream, open_stream
from mmssl.data.importing.table import RawTable
from mmssl.errors import InputError

_BLOCK = 1 << 25  # bytes of whole lines that are parsed at a time
_PARSED = 1 << 21  # bytes that a thread parses at a time
_SAMPLE = 1000  # rows whose fields are known before the file is read
_MAX_ARRAY = 1 << 28  # bytes of an array of objects, which is parsed as a whole


class _Block(NamedTuple):
    """Columns of some lines: texts as an array of pyarrow, or numbers."""

    columns: list[Any]
    lines: IntArray


class JsonLinesFile:
    """A file of JSON lines, see :class:`~mmssl.data.importing.table.TableFile`."""

    unit = "line"
    is_text = False
    first: tuple[str, ...] = ()

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        """Read the first rows, whose fields are the columns.

        Raises:
            InputError: The file can't be read, or holds no JSON objects.
        """
        require_pyarrow(path)
        self.path, self.encoding, self.sha256 = path, encoding, ""
        fields: dict[str, set[type]] = {}
        with open_stream(path) as stream:
            block, number = next(blocks(stream, encoding, 1 << 22), (b"", 1))
        for count, (_, row) in enumerate(objects(path, block, number)):
            if count == _SAMPLE:
                break
            for name, value in row.items():
                fields.setdefault(name, set()).add(type(value))
        if not fields:
            raise InputError(f"{path}: expected rows, got an empty file")
        self._kinds = {name: kinds - {type(None)} for name, kinds in fields.items()}
        self.names: tuple[str, ...] | None = tuple(fields)
        self.width = len(fields)

    def read(self, positions: Sequence[int]) -> RawTable:
        """Read the fields at ``positions``."""
        names = [list(self._kinds)[position] for position in positions]
        types = [_arrow_type(self._kinds[name]) for name in names]
        columns = [CellColumn() for _ in names]
        lines: list[IntArray] = []
        with open_stream(self.path) as stream:
            for content, first in blocks(stream, self.encoding):
                part = None if None in types else _parsed(content, names, types, first)
                part = part or _loaded(self.path, content, names, first)
                for column, cells in zip(columns, part.columns, strict=True):
                    add = column.add_numbers if isinstance(cells, np.ndarray) else column.add_texts
                    add(cells)
                lines.append(part.lines)
            self.sha256 = stream.sha256()
        try:
            found = tuple(column.column() for column in columns)
        except UnicodeDecodeError as error:
            got = error.object[error.start]
            raise InputError(
                f"{self.path}: expected utf-8, got byte 0x{got:02x}: name the encoding of the "
                "file, e.g. --encoding latin-1"
            ) from None
        return RawTable(found, np.concatenate(lines))

    def unfit_for_ids(self, position: int) -> str | None:
        """Return the kind of a field that can't hold ids, such as lists."""
        kinds = list(self._kinds.values())[position]
        if kinds <= {str, int}:
            return None
        words = {list: "lists", dict: "objects", bool: "true and false", float: "fractions"}
        return next(word for kind, word in words.items() if kind in kinds)


def objects(path: Path, content: bytes, first: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of JSON lines.

    Args:
        path: For messages.
        content: Whole lines of UTF-8.
        first: Number of the first line.

    Raises:
        InputError: A line is no JSON object.
    """
    for line, text in enumerate(content.split(b"\n"), start=first):
        if text.strip():
            yield line, _object(path, line, text)


def seems_json(start: bytes) -> bool:
    """Return whether a text starts like JSON lines, or an array of objects."""
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    return text[:1] == b"{" or (text[:1] == b"[" and text[1:].lstrip()[:1] == b"{")


def blocks(stream: Stream, encoding: str, size: int = _BLOCK) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines of UTF-8 and the number of the first of them."""
    rest, number, start = b"", 1, True
    decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
    while data := stream.read(size):
        try:
            data = data if decoder is None else decoder.decode(data).encode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{stream.path}: expected {encoding}, got something else: {error}"
            ) from None
        data = rest + data
        if start:
            data = data.removeprefix(codecs.BOM_UTF8)
            if data.lstrip()[:1] == b"[":
                yield _of_array(stream, data), 1
                return
            start = False
        end = data.rfind(b"\n") + 1
        if end:
            yield data[:end], number
            number += data.count(b"\n", 0, end)
        rest = data[end:]
    if rest.strip():
        yield rest, number


def _of_array(stream: Stream, content: bytes) -> bytes:
    """Return the lines of an array of objects."""
    content += stream.read(_MAX_ARRAY)
    if len(content) > _MAX_ARRAY:
        raise InputError(
            f"{stream.path}: expected JSON lines, one object per line, got an array of more than "
            f"{_MAX_ARRAY} bytes: jq -c '.[]' converts it"
        )
    try:
        rows = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{stream.path}: expected JSON, got invalid JSON: {error}") from None
    return b"\n".join(json.dumps(row).encode() for row in rows) + b"\n"


def _object(path: Path, line: int, text: bytes) -> dict[str, Any]:
    try:
        row = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        what = python_literal(path, text) or f"invalid JSON: {str(error)[:120]}"
        raise InputError(f"{path}: line {line}: expected a JSON object, got {what}") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}: line {line}: expected a JSON object, got another value")
    return row


def python_literal(path: Path, text: bytes) -> str | None:
    """Return how to convert lines as Amazon's metadata of 2014 has them, None for other text."""
    try:
        literal = isinstance(ast.literal_eval(text[: 1 << 20].decode()), dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not literal:
        return None
    # The command runs in a shell: it holds no name that means more to one than a file.
    name = path.name if re.fullmatch(r"[\w.-]+", path.name) else "FILE"
    module, out = ("gzip" if name.endswith(".gz") else "io"), name.removesuffix(".gz")
    return (
        "a Python literal, as in Amazon's metadata of 2014; this converts it: python -c "
        f"\"import ast, json, {module}; out = open('{out}.jsonl', 'w'); "
        "[print(json.dumps(ast.literal_eval(x)), file=out) "
        f"for x in {module}.open('{name}', 'rt')]\""
    )


def _no_constant(constant: str) -> object:
    raise ValueError(f"expected numbers, got {constant}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a field occurs twice")
    return row


def _arrow_type(kinds: set[type]) -> Any:
    """Return the type to parse a field as; None if Python must read it."""
    import pyarrow as pa

    if kinds <= {str}:
        return pa.string()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else None


def _parsed(content: bytes, names: list[str], types: list[Any], first: int) -> _Block | None:
    """Return a block as pyarrow reads it, None if it can't."""
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import json as arrow_json

    schema = pa.schema(list(zip(names, types, strict=True)))
    parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    table = None
    for size in (min(_PARSED, len(content)), len(content) + 1):  # the second for long lines
        try:
            options = arrow_json.ReadOptions(block_size=size)
            table = arrow_json.read_json(pa.BufferReader(content), options, parse)
            break
        except (pa.ArrowException, ValueError, OSError):
            continue
    if table is None:
        return None
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    if table.num_rows == lines:
        numbers = np.arange(first, first + lines)
    else:
        filled = [at for at, line in enumerate(content.split(b"\n")) if line.strip()]
        if len(filled) != table.num_rows:
            return None  # several objects on a line, or one on several
        numbers = np.array(filled, dtype=np.int64) + first
    columns: list[Any] = []
    for name, kind in zip(names, types, strict=True):
        column = table.column(name)
        if kind == pa.string():
            texts = compute.fill_null(column, "").combine_chunks().dictionary_encode()
            columns.append(pa.chunked_array([texts]))
        elif column.null_count:
            return None
        else:
            columns.append(column.to_numpy())
    return _Block(columns, numbers)


def _loaded(path: Path, content: bytes, names: list[str], first: int) -> _Block:
    """Return a block as Python's json reads it; numbers keep their texts."""
    import pyarrow as pa

    cells: list[list[str]] = [[] for _ in names]
    lines = []
    for line, row in objects(path, content, first):
        lines.append(line)
        for name, column in zip(names, cells, strict=True):
            column.append(_text(path, line, name, row.get(name)))
    columns = [pa.chunked_array([column], pa.string()).dictionary_encode() for column in cells]
    return _Block(columns, np.array(lines, dtype=np.int64))


def _text(path: Path, line: int, name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        kind = {bool: "a boolean", list: "a list", dict: "an object"}[type(value)]
        raise InputError(
            f"{path}: line {line}: field {name!r}: expected a text or number, got {kind}"
        )
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()
