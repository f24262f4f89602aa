"""A table of items beside a log: ids, titles, whatever else is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmssl.data.importing.roles import column_name, find_role, plain
from mmssl.data.importing.table import TableFile
from mmssl.errors import InputError

_RESERVED = ("item", "id", "title")


class ItemTable(NamedTuple):
    """One row per item of the log, in its order."""

    titles: tuple[str, ...] | None
    columns: dict[str, tuple[str, ...]]
    found: list[int | None]
    """Row of the table of each item, from 0."""

    @property
    def missing(self) -> int:
        """Number of items that the table doesn't have: their cells are empty."""
        return self.found.count(None)


def read_items(
    file: TableFile,
    item_ids: tuple[str, ...],
    *,
    like: str = "",
    title: str | None = None,
    leave_out: Sequence[int] = (),
) -> ItemTable:
    """Reads what a table says of some items.

    The ids are in the column that is called like the log's, else in one with a known name, else in
    the first. Tabs and line ends in cells become spaces.

    Args:
        file: With a header.
        item_ids: Of the log, in its order.
        like: What the log calls its item column.
        title: Name or number of the column of titles; found by a known name when None.
        leave_out: Columns that aren't wanted.

    Raises:
        InputError: An id twice, rows of another width, or none of the items is in the table.
    """
    names = [column_name(file, place).split(":")[0] for place in range(file.width)]
    bare = [plain(name) for name in names]
    same = plain(like) in bare and like
    at = bare.index(plain(like)) if same else find_role(file, "item", None) or 0
    title_at = find_role(file, "title", title)
    places = [at] + [p for p in range(file.width) if p != at and p not in leave_out]
    table = file.read(places, exact=True)
    if table.faults:
        fault = table.faults[0]
        raise InputError(f"{file.path}: {file.unit} {fault.place}: {fault.message}")
    ids = table.columns[0]
    row_of: dict[str, int] = {}
    for row, code in enumerate(ids.codes.tolist()):
        first = row_of.setdefault(ids.values[code], row)
        if first != row:
            assert table.places is not None
            raise InputError(
                f"{file.path}: {file.unit} {table.places[row]}: expected each item once, got "
                f"{ids.values[code]!r:.60} again (first in {file.unit} {table.places[first]})"
            )
    found = [row_of.get(item) for item in item_ids]
    if found.count(None) == len(item_ids):
        raise InputError(
            f"{file.path}: expected items of the log in column {names[at]!r}, got none of them: "
            f"the log has {item_ids[0]!r:.40}, the table {next(iter(row_of), '')!r:.40}"
        )
    titles: tuple[str, ...] | None = None
    columns: dict[str, tuple[str, ...]] = {}
    for place, column in zip(places[1:], table.columns[1:], strict=True):
        clean = [one_line(value) for value in column.values]
        codes = column.codes.tolist()
        cells = tuple("" if row is None else clean[codes[row]] for row in found)
        if place == title_at:
            titles = cells
        else:
            columns[_free_name(one_line(names[place]) or f"column{place + 1}", columns)] = cells
    return ItemTable(titles, columns, found)


def one_line(text: str) -> str:
    """Tabs and line ends as spaces: what a tab-separated file can hold."""
    plain_text = "\t" not in text and "\n" not in text and "\r" not in text
    return text if plain_text else " ".join(text.split())


def _free_name(name: str, taken: dict[str, tuple[str, ...]]) -> str:
    number, free = 2, name
    while free in taken or free in _RESERVED:
        number, free = number + 1, f"{name}_{number}"
    return free
