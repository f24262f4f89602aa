"""Mapping between the external ids and the indices of users or items."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice

from mmssl.errors import InputError

# Suggestions for a mistyped id compare strings one by one; this many take a fraction of a second.
_MAX_COMPARED_IDS = 20_000


class Ids:
    """External ids of the users or items of a data set.

    Args:
        what: "user" or "item", for error messages.
        count: Number of users or items.
        ids: (count,) external ids; None if the indices 0 .. count - 1 are the ids.
    """

    def __init__(self, what: str, count: int, ids: Sequence[str] | None) -> None:
        self.what = what
        self.count = count
        self.ids = ids

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {known: index for index, known in enumerate(self.ids or ())}

    def index(self, wanted: str | int) -> int:
        """Return the index of an id; an int is converted to its decimal digits.

        Raises:
            InputError: The id is unknown; the message suggests similar ones.
        """
        text = str(wanted)
        if self.ids is None:
            if _is_number(text) and int(text) < self.count:
                return int(text)
            raise InputError(
                f"{self.what}: expected a number in 0 .. {self.count - 1}, got {text!r}"
            )
        found = self._index.get(text)
        if found is None:
            raise InputError(
                f"{self.what}: expected one of the data set's {self.count} {self.what} ids, "
                f"such as {', '.join(map(repr, similar_ids(self.ids, text)))}, got {text!r}"
            )
        return found

    def indices(self, wanted: Iterable[str | int]) -> list[int]:
        """Return the index of each id.

        Raises:
            InputError: An id is unknown, or ``wanted`` is a single id instead of several.
        """
        if isinstance(wanted, (str, int)):
            raise InputError(f"{self.what}s: expected a list of ids, got {wanted!r}")
        return [self.index(one) for one in wanted]

    def id(self, index: int) -> str:
        """Return the external id of an index."""
        return str(index) if self.ids is None else self.ids[index]


def similar_ids(ids: Sequence[str], wanted: str, count: int = 3) -> list[str]:
    """Return the ids most similar to an unknown one: by value if all are numbers, else by text.

    An id that differs only by case or by blanks around the unknown one comes first.
    """
    if _is_number(wanted) and all(map(_is_number, ids)):
        return sorted(ids, key=lambda known: abs(int(known) - int(wanted)))[:count]
    folded = wanted.strip().casefold()
    same = [known for known in islice(ids, _MAX_COMPARED_IDS) if known.casefold() == folded]
    close = difflib.get_close_matches(wanted, islice(ids, _MAX_COMPARED_IDS), count)
    return list(dict.fromkeys(same + close))[:count] or list(ids[:count])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19  # 18 digits fit an int64
