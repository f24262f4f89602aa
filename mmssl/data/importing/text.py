"""CSV, TSV and their kin: one row a line, cells between separators.

Two readers give the same table. The reference is Python's ``csv``, which is always there, knows
every quote and the line of every row. pyarrow's is faster (``benchmarks/bench_import.py``) and
takes over where a file is so plain that the two can't differ: no quote character, every row of one
width. Whatever it stumbles on is read again by the reference, so every error message comes from
there.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmssl.data.importing import arrow
from mmssl.data.importing.table import Encoder, Fault, RawTable, read_bytes
from mmssl.errors import InputError

SEPARATORS = ("\t", "::", ";", "|", ",")
_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "space": " "}
_UNIT_SEPARATOR = "\x1f"  # stands in for a separator of several characters
_CHUNK = 1 << 16  # rows that are lists of Python strings at one time


@dataclass(frozen=True)
class Dialect:
    """How a text file is written."""

    separator: str | None = None
    """One or more characters; found in the first line when None."""
    quoted: bool | None = None
    """Whether ``"`` quotes; when None, unless the separator is a tab or has several characters."""
    encoding: str = "utf-8"


class TextFile:
    """A text file, see :class:`~mmssl.data.importing.table.TableFile`."""

    unit = "line"

    def __init__(self, path: Path, dialect: Dialect, *, header: bool = True) -> None:
        """Reads the file and its header.

        Args:
            path: The file; may be compressed by gzip.
            dialect: How it is written.
            header: Whether the first row holds names.

        Raises:
            InputError: It can't be read, is no text or holds nothing.
        """
        self.path, self.encoding = path, dialect.encoding
        content, self.sha256 = read_bytes(path)
        self._content = self._text(_inflated(path, content), dialect)
        if not self._content.strip(b"\r\n"):
            raise InputError(f"{path}: expected rows, got an empty file")
        separator = dialect.separator or self._guess_separator()
        separator = _NAMES.get(separator, separator)
        self._quoted = separator not in "\t" if dialect.quoted is None else dialect.quoted
        if len(separator) > 1:
            self._content = self._content.replace(separator.encode(), _UNIT_SEPARATOR.encode())
            separator, self._quoted = _UNIT_SEPARATOR, False
        if separator in '"\r\n' or not separator.isascii():
            raise InputError(f"separator must be ASCII and no quote or line end, got {separator!r}")
        self._separator = separator
        self._quoted = self._quoted and b'"' in self._content
        self._header = header
        rows = self._first_rows(2)
        names = rows.pop(0) if header else None
        self.names = None if names is None else tuple(name.strip() for name in names)
        self.first = tuple(rows[0]) if rows else ()
        self.width = len(names if names is not None else self.first)

    def read(self, places: Sequence[int], *, exact: bool = False) -> RawTable:
        """The columns at ``places``."""
        if not exact and not self._quoted and arrow.available():
            columns = arrow.read_plain_text(
                self._content, self._separator, self.width, places, skip_first=self._header
            )
            if columns is not None:
                return RawTable(columns, len(columns[0].codes), None)
        return self._read_reference(places)

    def unfit_for_ids(self, place: int) -> str | None:
        """Any text may be an id."""
        return None

    def _read_reference(self, places: Sequence[int]) -> RawTable:
        encoders = [Encoder() for _ in places]
        lines: list[int] = []
        faults: list[Fault] = []
        chunk: list[list[str]] = []

        def flush() -> None:
            cells = list(zip(*chunk, strict=True))
            for encoder, place in zip(encoders, places, strict=True):
                encoder.add(cells[place])
            chunk.clear()

        for number, (line, row) in enumerate(self._rows()):
            if number == 0 and self._header:
                continue
            if len(row) != self.width:
                message = f"expected {self.width} cells, got {len(row)}"
                faults.append(Fault(line, "another number of cells", message))
                continue
            lines.append(line)
            chunk.append(row)
            if len(chunk) == _CHUNK:
                flush()
        if chunk:
            flush()
        columns = tuple(encoder.column() for encoder in encoders)
        return RawTable(columns, len(lines), np.array(lines, dtype=np.int64), faults)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line where it starts, cells) of every row that isn't an empty line."""
        stream = io.TextIOWrapper(io.BytesIO(self._content), encoding="utf-8", newline="")
        reader = csv.reader(
            stream,
            delimiter=self._separator,
            quoting=csv.QUOTE_MINIMAL if self._quoted else csv.QUOTE_NONE,
            strict=True,
        )
        end = 0
        with _any_cell_size():
            try:
                for row in reader:
                    start, end = end + 1, reader.line_num
                    if row:
                        yield start, row
            except csv.Error as error:
                raise InputError(
                    f"{self.path}: line {end + 1}: expected cells with closed quotes, got one "
                    f"that isn't: {error} (--no-quotes takes quotes as they are)"
                ) from None

    def _first_rows(self, count: int) -> list[list[str]]:
        rows = []
        for _, row in self._rows():
            rows.append(row)
            if len(rows) == count:
                break
        return rows

    def _text(self, content: bytes, dialect: Dialect) -> bytes:
        """As UTF-8 without a byte order mark, and valid."""
        try:
            encoding = codecs.lookup(dialect.encoding).name
        except LookupError:
            raise InputError(
                f"encoding must be one Python knows, got {dialect.encoding!r}"
            ) from None
        if encoding == "utf-8":
            if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError(f"{self.path}: expected UTF-8, got UTF-16: --encoding utf-16")
            content = content.removeprefix(codecs.BOM_UTF8)
        try:
            text = content.decode(encoding)
        except (UnicodeDecodeError, UnicodeError) as error:
            raise InputError(f"{self.path}: {_where(error, content, encoding)}") from None
        if encoding != "utf-8":
            content = text.removeprefix("\ufeff").encode()
        zero = content.find(b"\0")
        if zero >= 0:
            line = content.count(b"\n", 0, zero) + 1
            raise InputError(f"{self.path}: line {line}: expected text, got a zero byte")
        return content

    def _guess_separator(self) -> str:
        """The one most often in the first line; a tab or ``::`` is never there by chance."""
        lines = self._content[: 1 << 20].lstrip(b"\r\n").splitlines()[:1] or [b""]
        first = lines[0].decode(errors="replace")
        for separator in SEPARATORS[:2]:
            if separator in first:
                return separator
        found = max(
            SEPARATORS[2:], key=lambda separator: (first.count(separator), separator == ",")
        )
        if not first.count(found):
            raise InputError(
                f"{self.path}: line 1: expected cells separated by a comma, tab, ;, | or ::, got "
                f"{first!r:.60}: name the separator with --sep"
            )
        return found


def _where(error: UnicodeError, content: bytes, encoding: str) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return f"expected {encoding}, got something else: {error}"
    line = content.count(b"\n", 0, error.start) + 1
    return (
        f"line {line}: expected {encoding}, got byte 0x{content[error.start]:02x}: name the "
        "encoding of the file, e.g. --encoding latin-1"
    )


def _inflated(path: Path, content: bytes) -> bytes:
    """Content without gzip; a word about what is no text at all."""
    if content.startswith(b"PAR1"):
        raise InputError(f"{path}: expected text, got a Parquet file: --format parquet")
    if content.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: expected text, got a zip archive: unpack it first")
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: expected a whole gzip file, got a damaged one: {error}"
        ) from None


@contextmanager
def _any_cell_size() -> Iterator[None]:
    """Descriptions may be longer than csv's 128 KB, a limit of the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
