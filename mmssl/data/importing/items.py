"""The table of items that accompanies a log: ids, titles and other columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmssl.data.importing.roles import column_name, find_role, plain
from mmssl.data.importing.table import TableFile
from mmssl.errors import InputError

_RESERVED = ("item", "id", "title")


class ItemTable(NamedTuple):
    """What a table says of the items of a log, in their order."""

    titles: tuple[str, ...] | None
    columns: dict[str, tuple[str, ...]]
    found: list[int | None]
    """Row of each item in the table, from 0; None for an item that it lacks."""

    @property
    def missing(self) -> int:
        """Number of items that the table lacks; their cells are empty."""
        return self.found.count(None)


def read_items(
    file: TableFile,
    item_ids: tuple[str, ...],
    *,
    like: str = "",
    title: str | None = None,
    leave_out: Sequence[int] = (),
) -> ItemTable:
    """Read the rows of some items from a table.

    The ids are in the column that has the name of the log's item column, else in one with a known
    name, else in the first. Tabs and line ends in cells become spaces.

    Args:
        file: A table with a header.
        item_ids: Ids of the items, in the order of the log.
        like: Name of the log's item column.
        title: Name or number of the column of titles; found by a known name when None.
        leave_out: Positions of columns to skip.

    Raises:
        InputError: An id occurs twice, a row has another width, or the table has none of the
            items.
    """
    names = [column_name(file, position).split(":")[0] for position in range(file.width)]
    bare = [plain(name) for name in names]
    same = plain(like) in bare and like
    at = bare.index(plain(like)) if same else find_role(file, "item", None) or 0
    title_at = find_role(file, "title", title)
    positions = [at] + [p for p in range(file.width) if p != at and p not in leave_out]
    table = file.read(positions)
    if table.faults:
        fault = table.faults[0]
        raise InputError(f"{file.path}: {file.unit} {fault.location}: {fault.message}")
    ids = table.columns[0]
    row_of: dict[str, int] = {}
    for row, code in enumerate(ids.codes.tolist()):
        first = row_of.setdefault(ids.values[code], row)
        if first != row:
            raise InputError(
                f"{file.path}: {file.unit} {table.locations[row]}: expected each item once, got "
                f"{ids.values[code]!r:.60} again (first in {file.unit} {table.locations[first]})"
            )
    found = [row_of.get(item) for item in item_ids]
    if found.count(None) == len(item_ids):
        raise InputError(
            f"{file.path}: expected items of the log in column {names[at]!r}, got none of them: "
            f"the log has {item_ids[0]!r:.40}, the table {next(iter(row_of), '')!r:.40}"
        )
    titles: tuple[str, ...] | None = None
    columns: dict[str, tuple[str, ...]] = {}
    for position, column in zip(positions[1:], table.columns[1:], strict=True):
        clean = [one_line(value) for value in column.values]
        codes = column.codes.tolist()
        cells = tuple("" if row is None else clean[codes[row]] for row in found)
        if position == title_at:
            titles = cells
        else:
            name = one_line(names[position]) or f"column{position + 1}"
            columns[_free_name(name, columns)] = cells
    return ItemTable(titles, columns, found)


def one_line(text: str) -> str:
    """Replace tabs and line ends, which a tab-separated file can't hold, by spaces."""
    plain_text = "\t" not in text and "\n" not in text and "\r" not in text
    return text if plain_text else " ".join(text.split())


def _free_name(name: str, taken: dict[str, tuple[str, ...]]) -> str:
    number, free = 2, name
    while free in taken or free in _RESERVED:
        number, free = number + 1, f"{name}_{number}"
    return free
