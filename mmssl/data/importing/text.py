"""CSV, TSV and similar text: one row per line, cells between separators.

The text is decoded and checked here, its rows are found by ``lines.py``, its cells are read by
pyarrow (``arrow.py``).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmssl.data.importing.arrow import read_cells, read_row, require_pyarrow
from mmssl.data.importing.lines import RowIndex, UnclosedQuote, index_rows
from mmssl.data.importing.sources import read_source
from mmssl.data.importing.table import Fault, RawTable
from mmssl.errors import InputError

SEPARATORS = ("\t", "::", ";", "|", ",")
_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "space": " "}
_BLANKS = re.compile(rb" {2,}")
_AT_THE_ENDS = re.compile(rb"(?m)^ +| +$")
_UNIT_SEPARATOR = "\x1f"  # stands in for a separator of several characters


@dataclass(frozen=True)
class Dialect:
    """How a text file is written."""

    separator: str | None = None
    """One or more characters; found in the first line when None. A blank stands for one or more,
    and those around a line don't count."""
    quoted: bool | None = None
    """Whether ``"`` quotes; when None, unless the separator is a tab or has several characters."""
    encoding: str = "utf-8"


class TextFile:
    """A text file, see :class:`~mmssl.data.importing.table.TableFile`."""

    unit = "line"

    def __init__(self, path: Path, dialect: Dialect, *, header: bool = True) -> None:
        """Read the file and its header.

        Args:
            path: The file, see :func:`~mmssl.data.importing.sources.open_stream`.
            dialect: How it is written.
            header: Whether the first row holds names.

        Raises:
            InputError: It can't be read, is not text, holds nothing or has an unclosed quote; or
                pyarrow is missing.
        """
        require_pyarrow(path)
        self.path, self.encoding = path, dialect.encoding
        content, self.sha256, _ = read_source(path)
        content = decoded(path, content, dialect.encoding)
        if not content.strip(b"\n"):
            raise InputError(f"{path}: expected rows, got an empty file")
        separator = dialect.separator or _guess_separator(path, content)
        separator = _NAMES.get(separator, separator)
        quoted = separator != "\t" if dialect.quoted is None else dialect.quoted
        if len(separator) > 1:
            content = content.replace(separator.encode(), _UNIT_SEPARATOR.encode())
            separator, quoted = _UNIT_SEPARATOR, False
        if separator == " ":
            content = _BLANKS.sub(b" ", _AT_THE_ENDS.sub(b"", content))
        if separator in '"\r\n' or not separator.isascii():
            raise InputError(
                f"separator must be ASCII and neither a quote nor a line end, got {separator!r}"
            )
        self._content, self._separator, self._header = content, separator, header
        self._quoted = quoted and b'"' in content
        self._rows = self._index_rows()
        cells = read_row(content[: self._rows.end[0] + 1], separator, quoted=self._quoted)
        self.width = len(cells)
        self.names = tuple(name.strip() for name in cells) if header else None
        self.first = () if header else tuple(cells)

    def read(self, positions: Sequence[int]) -> RawTable:
        """Read the columns at ``positions``."""
        columns, bad = read_cells(
            self._content,
            self._separator,
            self.width,
            positions,
            quoted=self._quoted,
            skip_first=self._header,
            longest=int((self._rows.end - self._rows.start).max()),
        )
        lines = self._rows.line
        faults = []
        for number, width in bad:
            message = f"expected {self.width} cells, got {width}"
            if len(bad) * 10 > lines.size and self.names is None:
                message += ": lines of a user and its items are read with --format lists"
            faults.append(Fault(int(lines[number]), "another number of cells", message))
        good = np.delete(lines, [number for number, _ in bad])[1 if self._header else 0 :]
        assert good.size == columns[0].size  # pyarrow finds the rows of the index
        return RawTable(columns, good, faults)

    def unfit_for_ids(self, position: int) -> str | None:
        """Return None: any text may be an id."""
        return None

    def _index_rows(self) -> RowIndex:
        try:
            return index_rows(self._content, self._separator if self._quoted else None)
        except UnclosedQuote as error:
            line = self._content.count(b"\n", 0, error.position) + 1
            rest = self._content[error.position : error.position + 60].partition(b"\n")[0]
            raise InputError(
                f"{self.path}: line {line}: expected cells with closed quotes, got "
                f"{rest.decode(errors='replace')!r} (--no-quotes reads quotes as they are)"
            ) from None


def decoded(path: Path, content: bytes, name: str) -> bytes:
    r"""Return valid UTF-8 without a byte order mark, in lines that all end in ``\n``."""
    try:
        encoding = codecs.lookup(name).name
    except LookupError:
        raise InputError(f"encoding must be one Python knows, got {name!r}") from None
    if encoding == "utf-8":
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(f"{path}: expected UTF-8, got UTF-16: --encoding utf-16")
        content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode(encoding)
    except (UnicodeDecodeError, UnicodeError) as error:
        raise InputError(f"{path}: {_where(error, content, encoding)}") from None
    if encoding != "utf-8":
        content = text.removeprefix("\ufeff").encode()
    del text
    zero = content.find(b"\0")
    if zero >= 0:
        line = content.count(b"\n", 0, zero) + 1
        raise InputError(f"{path}: line {line}: expected text, got a zero byte")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content if content.endswith(b"\n") else content + b"\n"


def _guess_separator(path: Path, content: bytes) -> str:
    """Return the most frequent one of the first line; a tab or ``::`` is never there by chance."""
    lines = content[: 1 << 20].lstrip(b"\n").splitlines()[:1] or [b""]
    first = lines[0].decode(errors="replace")
    for separator in SEPARATORS[:2]:
        if separator in first:
            return separator
    found = max(SEPARATORS[2:], key=lambda separator: (first.count(separator), separator == ","))
    if not first.count(found):
        raise InputError(
            f"{path}: line 1: expected cells separated by a comma, tab, ;, | or ::, got "
            f"{first!r:.60}: name the separator with --sep (space, for one or more blanks), or "
            "read lines of a user and its items with --format lists"
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
