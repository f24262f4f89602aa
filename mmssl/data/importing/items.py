"""The table of items that accompanies a log: ids, titles and other columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmssl.data.importing.cells import NULLS, natural_order
from mmssl.data.importing.roles import column_name, find_role, plain
from mmssl.data.importing.table import Column, RawTable, TableFile
from mmssl.errors import InputError

REPEATED = ("stop", "first", "last")
_RESERVED = ("item", "id", "title")


class ItemTable(NamedTuple):
    """What a table says of the items of a log, in their order."""

    titles: tuple[str, ...] | None
    columns: dict[str, tuple[str, ...]]
    found: list[int | None]
    """Row of each item in the table, from 0; None for an item that it lacks."""
    further: tuple[str, ...] = ()
    """Ids of the items that the table adds to the log; the last ones of each column."""
    notes: tuple[str, ...] = ()
    """What was left out, or may be wrong."""
    others: int = 0
    """Number of items of the table that the log lacks; they are left out."""

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
    repeated: str = "stop",
    all_items: bool = False,
) -> ItemTable:
    """Read the rows of some items, or of all, from a table.

    The ids are in the column that has the name of the log's item column, else in one with a known
    name, else in the first. Tabs and line ends in cells become spaces.

    Args:
        file: A table; without a header, its first column holds the ids.
        item_ids: Ids of the items, in the order of the log.
        like: Name of the log's item column.
        title: Name or number of the column of titles; found by a known name when None.
        leave_out: Positions of columns to skip.
        repeated: What to do with different rows of an item, one of :data:`REPEATED`.
        all_items: Whether to add the items that the log lacks, in the order of their ids.

    Raises:
        InputError: An item has two different rows, a row has another width, the header is a row
            of an item, or the table has none of the items.
    """
    names = [column_name(file, position).split(":")[0] for position in range(file.width)]
    bare = [plain(name) for name in names]
    same = plain(like) in bare and like
    at = bare.index(plain(like)) if same else find_role(file, "item", None) or 0
    title_at = find_role(file, "title", title)
    if file.names is not None and names[at] in set(item_ids):
        raise InputError(
            f"{file.path}: {file.unit} 1: expected names of columns, got {names[at]!r:.40}, an "
            "item of the log: --no-items-header reads a table without names (--title-col N)"
        )
    positions = [at] + [p for p in range(file.width) if p != at and p not in leave_out]
    table = file.read(positions)
    if table.faults:
        fault = table.faults[0]
        raise InputError(f"{file.path}: {file.unit} {fault.location}: {fault.message}")
    ids = table.columns[0]
    keys = [value.strip() for value in ids.values]
    row_of, repeats = _rows_of(file, table, keys, repeated)
    found = [row_of.get(item) for item in item_ids]
    if found.count(None) == len(item_ids):
        raise InputError(
            f"{file.path}: expected items of the log in column {names[at]!r}, got none of them: "
            f"the log has {item_ids[0]!r:.40}, the table {next(iter(row_of), '')!r:.40}"
        )
    further: tuple[str, ...] = ()
    if all_items:
        known = set(item_ids)
        rest = [item for item in row_of if item not in known and item.lower() not in NULLS]
        further = tuple(rest[at] for at in natural_order(rest).tolist())
        found += [row_of[item] for item in further]
    notes = [f"rows of {file.path.name} that repeat an item: {repeats:,}"] if repeats else []
    if left_out := getattr(file, "left_out", ()):
        notes.append(f"fields of {file.path.name} that hold objects: {', '.join(left_out)[:200]}")
    titles: tuple[str, ...] | None = None
    columns: dict[str, tuple[str, ...]] = {}
    for position, column in zip(positions[1:], table.columns[1:], strict=True):
        cells = _cells(column, found)
        if position == title_at:
            titles = cells
            if null := sum(cell.strip().lower() in NULLS for cell in cells):
                notes.append(f"titles that may stand for a missing one, such as 'nan': {null:,}")
        else:
            name = one_line(names[position]) or f"column{position + 1}"
            name = f"column{name}" if file.names is None else name
            columns[_free_name(name, columns)] = cells
    others = len(row_of) - (len(found) - found.count(None))
    return ItemTable(titles, columns, found, further, tuple(notes), others)


def one_line(text: str) -> str:
    """Replace tabs and line ends, which a tab-separated file can't hold, by spaces."""
    plain_text = "\t" not in text and "\n" not in text and "\r" not in text
    return text if plain_text else " ".join(text.split())


def _cells(column: Column, found: Sequence[int | None]) -> tuple[str, ...]:
    clean = [one_line(value) for value in column.values]
    codes = column.codes.tolist()
    return tuple("" if row is None else clean[codes[row]] for row in found)


def _rows_of(
    file: TableFile, table: RawTable, keys: Sequence[str], repeated: str
) -> tuple[dict[str, int], int]:
    """Return the row of each item, and the number of rows that repeat one."""
    row_of: dict[str, int] = {}
    repeats = 0
    others = [(column.codes, column.values) for column in table.columns[1:]]
    for row, code in enumerate(table.columns[0].codes.tolist()):
        first = row_of.setdefault(keys[code], row)
        if first == row:
            continue
        repeats += 1
        if repeated == "last":
            row_of[keys[code]] = row
        elif repeated == "stop" and any(
            values[codes[row]] != values[codes[first]] for codes, values in others
        ):
            raise InputError(
                f"{file.path}: {file.unit} {table.locations[row]}: expected each item once, got "
                f"{keys[code]!r:.60} again (first in {file.unit} {table.locations[first]}) with "
                "other cells: --items-keep first or last decides"
            )
    return row_of, repeats


def _free_name(name: str, taken: dict[str, tuple[str, ...]]) -> str:
    number, free = 2, name
    while free in taken or free in _RESERVED:
        number, free = number + 1, f"{name}_{number}"
    return free
