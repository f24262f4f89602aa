"""Which column of a log is the user, the item, the rating, the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmssl.data.importing.table import TableFile
from mmssl.errors import InputError

NONE = "none"
"""What to call a column that shall not be used."""

# Compared in lower case without "_", "-" and spaces; the first that is there is taken.
KNOWN = {
    "user": (
        "user", "userid", "uid", "reviewerid", "customerid", "customer", "visitorid", "memberid",
        "username", "sessionid",
    ),
    "item": (
        "item", "itemid", "iid", "parentasin", "asin", "productid", "product", "movieid", "movie",
        "bookid", "isbn", "trackid", "songid", "artistid", "businessid", "newsid", "articleid",
        "gameid", "videoid", "sku",
    ),
    "rating": ("rating", "ratings", "score", "stars", "overall", "bookrating"),
    "time": ("timestamp", "time", "unixreviewtime", "datetime", "date", "ts", "createdat"),
    "title": ("title", "movietitle", "name", "productname", "booktitle", "itemname", "trackname"),
}  # fmt: skip


class Roles(NamedTuple):
    """Place of each column, from 0; None where there is none."""

    user: int
    item: int
    rating: int | None
    time: int | None


def find_roles(file: TableFile, told: Mapping[str, str | None]) -> Roles:
    """Columns of a log.

    Args:
        file: With or without a header.
        told: Role -> name, number from 1, ``none`` (rating and time only) or None to find it.

    Raises:
        InputError: No such column, or none that can be told to be the user or the item.
    """
    places = {role: find_role(file, role, told.get(role)) for role in Roles._fields}
    for role in ("user", "item"):
        place = places[role]
        if place is None:
            raise InputError(
                f"{file.path}: expected a column of {role} ids, got {_shown(file)}: name it with "
                f"--{role}-col, or number the columns of a file without a header "
                "(--user-col 1 --item-col 2)"
            )
        unfit = file.unfit_for_ids(place)
        if unfit is not None:
            raise InputError(
                f"{file.path}: column {column_name(file, place)!r}: expected text or integers as "
                f"{role} ids, got {unfit}"
            )
    taken: dict[int, str] = {}
    for role, place in places.items():
        if place is not None and taken.setdefault(place, role) != role:
            raise InputError(
                f"{file.path}: expected different columns, got {column_name(file, place)!r} as "
                f"{taken[place]} and {role}"
            )
    return Roles(**places)  # type: ignore[arg-type]


def find_role(file: TableFile, role: str, told: str | None) -> int | None:
    """Place of one column; None when it isn't told and no known name is there."""
    if told is not None:
        return _told(file, role, told)
    if file.names is None:
        return None
    names = [plain(name) for name in file.names]
    return next((names.index(known) for known in KNOWN[role] if known in names), None)


def is_numbered(told: Mapping[str, str | None]) -> bool:
    """Whether the columns are told by number, which means that the file has no header."""
    return any(name is not None and name.isdecimal() for name in told.values())


def refuse_hidden_header(file: TableFile, roles: Roles) -> None:
    """A file that is said to have no header must not have one."""
    if file.names is not None or not file.first:
        return
    user, item = (plain(file.first[place]) for place in (roles.user, roles.item))
    if user in KNOWN["user"] or item in KNOWN["item"]:
        raise InputError(
            f"{file.path}: line 1: expected ids, got what looks like a header: name the columns "
            f"(--user-col {file.first[roles.user]}) instead of numbering them, or add --header"
        )


def column_name(file: TableFile, place: int) -> str:
    """The column's name, or its number from 1."""
    return str(place + 1) if file.names is None else file.names[place]


def plain(name: str) -> str:
    """For comparing: ``User_ID`` and ``userId`` are the same; RecBole's types are left out."""
    return name.split(":")[0].lower().translate(str.maketrans("", "", "_- ."))


def _told(file: TableFile, role: str, told: str) -> int | None:
    if told == NONE and role not in ("user", "item"):
        return None
    names = [] if file.names is None else list(file.names)
    bare = [name.split(":")[0] for name in names]
    if told in names or told in bare:
        found = names if told in names else bare
        if found.count(told) > 1:
            raise InputError(f"{file.path}: expected one column {told!r}, got {found.count(told)}")
        return found.index(told)
    if told.isdecimal() and len(told) < 6 and 1 <= int(told) <= file.width:
        return int(told) - 1
    raise InputError(f"{file.path}: expected a column {told!r} as {role}, got {_shown(file)}")


def _shown(file: TableFile) -> str:
    cells: Sequence[str] = file.first if file.names is None else file.names
    kind = "a first row" if file.names is None else "columns"
    return f"{kind} {', '.join(repr(cell[:40]) for cell in cells[:12])}"
