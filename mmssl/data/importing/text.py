"""CSV, TSV and similar text: one row per line, cells between separators.

The text is decoded in blocks by ``decode.py``, the rows of a block are found by ``lines.py``, its
cells are read by pyarrow (``arrow.py``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.importing.arrow import read_cells, read_row, require_pyarrow
from mmssl.data.importing.decode import BLOCK, MAX_ROW, whole_lines
from mmssl.data.importing.encode import TextColumn
from mmssl.data.importing.lines import RowIndex, UnclosedQuote, index_rows
from mmssl.data.importing.sources import open_stream
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


class _Block(NamedTuple):
    """Whole rows of a text."""

    content: bytes
    rows: RowIndex
    lines_before: int
    """Lines of the file before the content."""
    quoted: bool
    """Whether ``"`` quotes cells in it."""


class TextFile:
    """A text file, see :class:`~mmssl.data.importing.table.TableFile`; larger than memory."""

    unit = "line"
    is_text = True

    def __init__(self, path: Path, dialect: Dialect, *, header: bool = True) -> None:
        """Read the first row.

        Args:
            path: The file, see :func:`~mmssl.data.importing.sources.open_stream`.
            dialect: How it is written.
            header: Whether the first row holds names.

        Raises:
            InputError: It can't be read, is not text, holds nothing or its first row has an
                unclosed quote; or pyarrow is missing.
        """
        require_pyarrow(path)
        self.path, self.encoding, self.sha256 = path, dialect.encoding, ""
        self._header = header
        with open_stream(path) as stream:
            lines = whole_lines(stream, dialect.encoding)
            start = next((block for block in lines if block.strip(b"\n")), b"")
            if not start:
                raise InputError(f"{path}: expected rows, got an empty file")
            separator = dialect.separator or _guess_separator(path, start)
            self._given = _NAMES.get(separator, separator)
            several = len(self._given) > 1
            self._separator = _UNIT_SEPARATOR if several else self._given
            if self._separator in '"\r\n' or not self._separator.isascii():
                raise InputError(
                    f"separator must be ASCII and neither a quote nor a line end, got {separator!r}"
                )
            quoted = self._separator != "\t" if dialect.quoted is None else dialect.quoted
            self._quoted = quoted and not several
            block = next(self._blocks(itertools.chain([start], lines)))
        row = block.content[block.rows.start[0] : block.rows.end[0] + 1]
        cells = read_row(row, self._separator, quoted=block.quoted)
        self.width = len(cells)
        self.names = tuple(name.strip() for name in cells) if header else None
        self.first = () if header else tuple(cells)

    def read(self, positions: Sequence[int]) -> RawTable:
        """Read the columns at ``positions``.

        Raises:
            InputError: The file is not text, or has an unclosed quote.
        """
        columns = [TextColumn() for _ in positions]
        locations: list[npt.NDArray[Any]] = []
        bad: list[tuple[int, int]] = []
        header = self._header
        with open_stream(self.path) as stream:
            for block in self._blocks(whole_lines(stream, self.encoding)):
                rows = block.rows
                cells, others = read_cells(
                    block.content,
                    self._separator,
                    self.width,
                    positions,
                    quoted=block.quoted,
                    skip_first=header,
                    longest=int((rows.end - rows.start).max()),
                )
                for column, these in zip(columns, cells, strict=True):
                    column.add(these)
                lines = rows.line + block.lines_before
                bad += [(int(lines[number]), width) for number, width in others]
                good = np.delete(lines, [number for number, _ in others])[header:]
                assert all(len(these) == good.size for these in cells)  # pyarrow has our rows
                small = block.lines_before < 2**31 - BLOCK - MAX_ROW
                locations.append(good.astype(np.int32) if small else good)
                header = False
            self.sha256 = stream.sha256()
        return RawTable(
            tuple(column.column() for column in columns),
            np.concatenate(locations),
            self._faults(bad, sum(part.size for part in locations)),
        )

    def unfit_for_ids(self, position: int) -> str | None:
        """Return None: any text may be an id."""
        return None

    def _faults(self, bad: Sequence[tuple[int, int]], good: int) -> list[Fault]:
        """Describe rows with another number of cells, given as (line, number of cells)."""
        advice = ""
        if len(bad) * 10 > len(bad) + good and self.names is None:
            advice = ": lines of a user and its items are read with --format lists"
        return [
            Fault(
                line,
                "another number of cells",
                f"expected {self.width} cells, got {width}{advice}",
            )
            for line, width in bad
        ]

    def _blocks(self, lines: Iterable[bytes]) -> Iterator[_Block]:
        """Yield blocks of whole rows, at least one in each."""
        rest, before, rows = b"", 0, None
        for text in lines:
            content = rest + self._separated(text)
            quoted = self._quoted and b'"' in content
            try:
                rows = index_rows(content, self._separator if quoted else None)
            except UnclosedQuote as error:
                raise self._unclosed(content, error.position, before) from None
            rest = content[rows.size :]
            if rows.unclosed is not None and len(rest) > MAX_ROW:
                break
            content = content[: rows.size]
            if rows.start.size:
                yield _Block(content, rows, before, quoted)
            before += content.count(b"\n")
        if rows is not None and rows.unclosed is not None:
            raise self._unclosed(rest, rows.unclosed - rows.size, before)

    def _separated(self, text: bytes) -> bytes:
        """Return lines whose cells one character separates."""
        if self._separator != self._given:
            return text.replace(self._given.encode(), self._separator.encode())
        return _BLANKS.sub(b" ", _AT_THE_ENDS.sub(b"", text)) if self._given == " " else text

    def _unclosed(self, content: bytes, position: int, before: int) -> InputError:
        line = before + content.count(b"\n", 0, position) + 1
        rest = content[position : position + 60].partition(b"\n")[0]
        return InputError(
            f"{self.path}: line {line}: expected cells with closed quotes, got "
            f"{rest.decode(errors='replace')!r} (--no-quotes reads quotes as they are)"
        )


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
