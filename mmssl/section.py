"""The base of every section of the configuration, which validates its values on construction.

Importing this module requires the standard library only.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from mmssl.errors import InputError

VARIANTS = ("paper", "released", "plus")

_MAX_INT = 2**63 - 1  # the largest integer that torch accepts
_RANGES: dict[str, Callable[[Any], bool]] = {
    ">= 0": lambda x: x >= 0,
    ">= 1": lambda x: x >= 1,
    "> 0": lambda x: x > 0,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in [0, 1]": lambda x: 0 <= x <= 1,
    "two rates in [0, 1)": lambda x: len(x) == 2 and all(0 <= rate < 1 for rate in x),
    '>= 2 or "paper"': lambda x: x == "paper" or x >= 2,
    '>= 1 or "all"': lambda x: x == "all" or x >= 1,
    '> 0 or "validation"': lambda x: x == "validation" or x > 0,
    '> 0 or "density"': lambda x: x == "density" or x > 0,
    '>= 0 or "validation"': lambda x: x == "validation" or x >= 0,
    "weights >= 0 by modality": lambda x: all(0 <= weight < math.inf for weight in x.values()),
    "paper, released or plus": lambda x: x in VARIANTS,
}


@dataclass(frozen=True, kw_only=True)
class Tune:
    """The values that ``mmssl tune`` searches by default for a field: metadata of its annotation.

    Either ``low`` and ``high``, as in an entry of a search space's file, or ``choices``.
    """

    low: float | None = None
    high: float | None = None
    log: bool | None = None
    choices: list[Any] | None = None

    def entry(self) -> dict[str, Any]:
        """Return the entry of a search space's file."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def searched(section: type[Section]) -> dict[str, dict[str, Any]]:
    """Return the entries of the fields of a section that are searched by default, by name."""
    return {
        name: mark.entry()
        for name, hint in typing.get_type_hints(section, include_extras=True).items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, Tune)
    }


def check(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise InputError ``name: expected ..., got ...`` unless the condition holds."""
    if not condition:
        try:
            shown = f"{got!r:.60}"
        except ValueError:  # repr() of a very large integer is refused
            shown = "a number with too many digits"
        raise InputError(f"{name}: expected {expected}, got {shown}")


class Section:
    """Base of a configuration's dataclasses: validates the values on construction.

    Numbers must be finite and within int64. The range of a field, one of `_RANGES`, is metadata of
    its annotation, as is a :class:`Tune`.
    """

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value, where = getattr(self, name), f"{section}.{name}".lstrip(".")
            if isinstance(value, float):
                check(math.isfinite(value), where, "a finite number", value)
            elif isinstance(value, int):
                check(abs(value) <= _MAX_INT, where, "an integer below 2^63", value)
            for expected in getattr(hint, "__metadata__", ()):
                if isinstance(expected, str):
                    check(_RANGES[expected](value), where, expected, value)
