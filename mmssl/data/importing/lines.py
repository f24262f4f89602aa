"""Where the rows of a text begin, which line that is, and whether its quotes are well-formed.

Pyarrow reads the cells but tells neither: it numbers rows, not lines, and reads a quote that is
never closed as a cell that takes the rest of the file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import IntArray

_BLOCK = 1 << 22  # bytes whose quotes are examined at a time
_QUOTE, _NEWLINE = ord('"'), ord("\n")


class RowIndex(NamedTuple):
    """The rows of a text, without empty lines."""

    start: IntArray  # (N,) first byte
    end: IntArray  # (N,) byte of the line end
    line: IntArray  # (N,) line of the first byte, from 1
    size: int
    """Bytes of the text before a row that does not end in it."""
    unclosed: int | None
    """Byte of the quote that keeps that row from ending, if there is one."""


class UnclosedQuote(ValueError):
    """A quoted cell with text after its closing quote.

    Args:
        position: Byte of its opening quote.
    """

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


def index_rows(content: bytes, separator: str | None) -> RowIndex:
    r"""Find the rows of a text.

    Args:
        content: Text whose line ends are ``\n``, the last one included; it begins with a row.
        separator: What separates cells where quotes count (RFC 4180: a quote opens a cell at its
            start only, and is doubled inside); None where they are ordinary characters.

    Raises:
        UnclosedQuote: A quoted cell with text after its closing quote.
    """
    data = np.frombuffer(content, dtype=np.uint8)
    newlines = np.flatnonzero(data == _NEWLINE)
    ends, unclosed = newlines, None
    if separator is not None:
        inside, unclosed = _quoted_newlines(data, newlines, ord(separator))
        ends = newlines[~inside]
    starts = np.concatenate(([0], ends + 1))
    size, starts = int(starts[-1]), starts[:-1]
    lines = np.searchsorted(newlines, starts) + 1
    filled = ends > starts
    return RowIndex(starts[filled], ends[filled], lines[filled], size, unclosed)


def _quoted_newlines(
    data: npt.NDArray[np.uint8], newlines: IntArray, separator: int
) -> tuple[npt.NDArray[np.bool_], int | None]:
    """Return which line ends are inside a quoted cell, and the quote of one that has no end.

    Quotes are taken in runs. Outside a cell's quotes, a run counts at the start of a cell only: an
    odd number opens it, an even number is a whole cell (its own quotes and pairs in between).
    Inside, pairs are escaped quotes, so an odd number closes the cell. Hence an odd run at the
    start of a cell swaps inside and outside, any other odd run leads outside, and an even run
    changes nothing: a cumulative sum of the swaps gives the state after every run.
    """
    inside = np.zeros(newlines.size, dtype=np.bool_)
    state, opening = False, -1
    first = 0
    while first < newlines.size:
        # A block ends at a line end, so that none cuts a run of quotes.
        begin = 0 if first == 0 else int(newlines[first - 1]) + 1
        last = min(int(np.searchsorted(newlines, begin + _BLOCK)) + 1, newlines.size)
        block, these = data[begin : newlines[last - 1] + 1], slice(first, last)
        first = last
        quotes = np.flatnonzero(block == _QUOTE) + begin
        if not quotes.size:
            inside[these] = state
            continue
        heads = np.flatnonzero(np.diff(quotes, prepend=-2) > 1)
        runs, length = quotes[heads], np.diff(heads, append=quotes.size)
        odd = length % 2 == 1
        borders = (separator, _NEWLINE)
        opens = np.isin(data[runs - 1], borders)  # the byte before the first is the last line end
        closes = np.isin(data[runs + length], borders)
        swaps = np.cumsum(odd & opens) + state
        after = (swaps - np.maximum.accumulate(np.where(odd & ~opens, swaps, 0))) % 2 == 1
        before = np.concatenate(([state], after[:-1]))
        openings = np.maximum.accumulate(np.where(~before & opens, runs, opening))
        wrong = np.flatnonzero(np.where(before, odd, opens & ~odd) & ~closes)
        if wrong.size:
            raise UnclosedQuote(int(openings[wrong[0]]))
        last_run = np.searchsorted(runs, newlines[these]) - 1
        inside[these] = np.where(last_run < 0, state, after[last_run])
        state, opening = bool(after[-1]), int(openings[-1])
    return inside, opening if state else None
