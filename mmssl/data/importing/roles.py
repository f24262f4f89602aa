"""Finds the columns of a log: user, item, rating, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmssl.data.importing.table import TableFile
from mmssl.errors import InputError

NONE = "none"
"""Given instead of a name, it says that a column is not used."""

# Compared in lower case without "_", "-", "." and spaces; the first name that a file has counts.
KNOWN = {
    "user": (
        "user", "userid", "uid", "reviewerid", "customerid", "customer", "visitorid", "memberid",
        "clientid", "accountid", "profileid", "buyerid", "playerid", "readerid", "listenerid",
        "studentid", "username", "steamid", "msno", "sessionid",
    ),
    "item": (
        "item", "itemid", "iid", "parentasin", "asin", "productid", "product", "movieid", "movie",
        "bookid", "isbn", "trackid", "songid", "artistid", "businessid", "newsid", "articleid",
        "gameid", "videoid", "sku", "stockcode", "contentid", "itemnbr", "goodsid", "filmid",
        "showid", "animeid", "recipeid", "gmapid", "venueid", "poiid", "locationid", "placeid",
        "postid", "photoid", "docid", "documentid", "courseid", "jobid", "appid", "beerid",
        "listingid", "itemids", "adid",
    ),
    "rating": ("rating", "ratings", "score", "stars", "overall", "bookrating", "reviewscore"),
    "time": (
        "timestamp", "time", "unixreviewtime", "unixtime", "datetime", "date", "ts", "createdat",
        "eventtime", "eventtimestamp", "eventdate", "eventdatetime", "tdat", "reviewtime",
        "reviewdate", "ratingtime", "ratingtimestamp", "ratingdate", "timestampms", "timems",
        "unixtimestamp", "unix", "epoch", "interactiontime", "clicktime", 
        "purchasetime", "purchasedate", "ordertime", "orderdate", "invoicedate", "servertime",
        "logtime", "visittime", "visitdate", "checkintime", "utctime", "localtime", "createdate",
        "createddate", "createdtime", "createtime", "creationdate", "dateadded", "dateadd",
        "submitdate", "ratedat", "updatedat",
    ),
    "title": (
        "title", "movietitle", "name", "productname", "producttitle", "booktitle", "itemname",
        "itemtitle", "trackname", "songtitle",
    ),
}  # fmt: skip


class Roles(NamedTuple):
    """Position of each column, from 0; None for a column that the file lacks."""

    user: int
    item: int
    rating: int | None
    time: int | None


def find_roles(file: TableFile, given: Mapping[str, str | None]) -> Roles:
    """Find the columns of a log.

    Args:
        file: A table with or without a header.
        given: Role -> name, number from 1, ``none`` (rating and time only) or None to find it.

    Raises:
        InputError: A given column does not exist, or no column is known to hold users or items.
    """
    positions = {role: find_role(file, role, given.get(role)) for role in Roles._fields}
    for role in ("user", "item"):
        position = positions[role]
        if position is None:
            number = "number the columns of a file without a header (--user-col 1 --item-col 2)"
            raise InputError(
                f"{file.path}: expected a column of {role} ids, got {_shown(file)}: name it with "
                f"--{role}-col" + (f", or {number}" if file.is_text else "")
            )
        unfit = file.unfit_for_ids(position)
        if unfit is not None:
            raise InputError(
                f"{file.path}: column {column_name(file, position)!r}: expected text or integers "
                f"as {role} ids, got {unfit}"
            )
    taken: dict[int, str] = {}
    for role, position in positions.items():
        if position is not None and taken.setdefault(position, role) != role:
            raise InputError(
                f"{file.path}: expected different columns, got {column_name(file, position)!r} as "
                f"{taken[position]} and {role}"
            )
    return Roles(**positions)  # type: ignore[arg-type]


def find_role(file: TableFile, role: str, given: str | None) -> int | None:
    """Return the position of a column; None if it is not given and no name is known."""
    if given is not None:
        return _given(file, role, given)
    if file.names is None:
        return None
    names = [plain(name) for name in file.names]
    return next((names.index(known) for known in KNOWN[role] if known in names), None)


def is_numbered(given: Mapping[str, str | None]) -> bool:
    """Return whether a log's columns are given by number, which means that it has no header."""
    return any((given.get(role) or "").isdecimal() for role in Roles._fields)


def refuse_hidden_header(file: TableFile, roles: Roles) -> None:
    """Raise InputError if a file that is declared to have no header seems to have one."""
    if file.names is not None or not file.first:
        return
    user, item = (plain(file.first[at]) for at in (roles.user, roles.item))
    if user in KNOWN["user"] or item in KNOWN["item"]:
        raise InputError(
            f"{file.path}: line 1: expected ids, got what looks like a header: name the columns "
            f"(--user-col {file.first[roles.user]}) instead of numbering them, or add --header"
        )


def unused_columns(file: TableFile, roles: Roles) -> list[str]:
    """Say which columns of a log are passed over."""
    notes = []
    taken = {position for position in roles if position is not None}
    rest = [column_name(file, at) for at in range(file.width) if at not in taken]
    if rest:
        shown = ", ".join(repr(name)[:40] for name in rest[:12]) + (
            ", ..." if len(rest) > 12 else ""
        )
        notes.append(f"columns that are not used: {shown}")
    return notes


def without_times(roles: Roles, given: Mapping[str, str | None]) -> list[str]:
    """Say that a log has no times, unless it was told so."""
    if roles.time is None and given.get("time") != NONE:
        return [
            "no column of times is known: splits by time need one (--time-col NAME), or --ordered "
            "if the rows, or the items of a list, are in order of time"
        ]
    return []


def column_name(file: TableFile, position: int) -> str:
    """Return the name of a column, or its number from 1."""
    return str(position + 1) if file.names is None else file.names[position]


def plain(name: str) -> str:
    """Normalize a name: ``User_ID``, ``userId`` and RecBole's ``user_id:token`` are the same."""
    return name.split(":")[0].lower().translate(str.maketrans("", "", "_- ."))


def _given(file: TableFile, role: str, given: str) -> int | None:
    if given == NONE and role not in ("user", "item"):
        return None
    names = [] if file.names is None else list(file.names)
    bare = [name.split(":")[0] for name in names]
    if given in names or given in bare:
        found = names if given in names else bare
        if (count := found.count(given)) > 1:
            raise InputError(f"{file.path}: expected one column {given!r}, got {count}")
        return found.index(given)
    if given.isdecimal() and len(given) < 6 and 1 <= int(given) <= file.width:
        return int(given) - 1
    raise InputError(f"{file.path}: expected a column {given!r} as {role}, got {_shown(file)}")


def _shown(file: TableFile) -> str:
    cells: Sequence[str] = file.first if file.names is None else file.names
    kind = "a first row" if file.names is None else "columns"
    return f"{kind} {', '.join(repr(cell[:40]) for cell in cells[:12])}"
