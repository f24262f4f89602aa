"""Malformed users.tsv and items.tsv."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile.world import NUM_ITEMS, NUM_USERS, Case, World, cases, naming, no_file_cases

READ = ("data",)
BOTH = ("inspect", "train")
ON_THE_COMMAND_LINE = ("an id twice", "half a character")
FILE = "users.tsv"


def _table(first: str = "user", rows: int = NUM_USERS, end: str = "\n", **cells: str) -> str:
    """``rows`` rows of index and id, with the cells of some rows replaced: ``r3="3\\tx"``."""
    lines = [f"{first}\tid"]
    lines += [cells.get(f"r{row}", f"{row}\tu{row}") for row in range(rows)]
    return end.join(lines) + end


def _bytes(content: str | bytes) -> Callable[[World], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda w: (w.data / FILE).write_bytes(data)


def _titles(title: str) -> Callable[[World], object]:
    rows = "".join(f"{item}\t{title}\n" for item in range(NUM_ITEMS))
    return lambda w: (w.data / "items.tsv").write_bytes(f"item\ttitle\n{rows}".encode())


_REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "first column"),
    "another header": (_table("person"), "first column 'user'"),
    "commas": (_table().replace("\t", ","), "first column"),
    "too few rows": (_table(rows=NUM_USERS - 1), f"expected {NUM_USERS} rows"),
    "too many rows": (_table(rows=NUM_USERS + 1), f"expected {NUM_USERS} rows"),
    "an empty line at the end": (_table() + "\n", f"expected {NUM_USERS} rows"),
    "a cell too many": (_table(r3="3\tu3\tmore"), "line 5"),
    "a cell too few": (_table(r3="3"), "line 5"),
    "an index twice": (_table(r3="2\tu3"), "line 5"),
    "an index that is not a number": (_table(r3="three\tu3"), "line 5"),
    "a negative index": (_table(r3="-3\tu3"), "line 5"),
    "a float index": (_table(r3="3.0\tu3"), "line 5"),
    "index 2^40": (_table(r3="1099511627776\tu3"), "line 5"),
    "an index of 5000 digits": (_table(r3="3" * 5000 + "\tu3"), "line 5"),
    "an index in other digits": (_table(r3="\u0663\tu3"), "line 5"),
    "an id twice": (_table(r3="3\tu2"), "unique"),
    "an empty id": (_table(r3="3\t"), "empty"),
    "Latin-1": (_table(r3="3\tJos\u00e9").encode("latin-1"), "UTF-8"),
    "UTF-16": (_table().encode("utf-16"), "UTF-8"),
    "half a character": (_table().encode() + b"\xf0\x9f", "UTF-8"),
    "only line ends": ("\n" * 50, "first column"),
    "old Mac line ends": (_table(end="\r"), "users.tsv"),
}
_RIGHT = {
    "byte order mark": b"\xef\xbb\xbf" + _table().encode(),
    "CRLF": _table(end="\r\n").encode(),
    "no end of line": _table().removesuffix("\n").encode(),
    "emoji": _table(r3="3\t\U0001f600").encode(),
}

CASES = [
    *cases(
        FILE,
        naming(FILE, _REFUSED),
        _bytes,
        reader="data",
        commands=BOTH,
        on_command_line=ON_THE_COMMAND_LINE,
    ),
    *(Case(f"{FILE}: {name}", _bytes(data), READ, None) for name, data in _RIGHT.items()),
    *(
        case
        for case in no_file_cases(FILE, "data", lambda w: w.data / FILE)
        if not case.name.endswith(": unreadable")  # the file does not exist
    ),
    # Titles are printed: control characters must not reach the terminal (checked by run.py).
    Case("items.tsv: escapes in titles", _titles("\x1b[2J\x07\u202e"), ("recommend",), None),
    Case("items.tsv: other line ends", _titles("a\x0b\x0c\x85\u2028b"), ("recommend",), None),
]
