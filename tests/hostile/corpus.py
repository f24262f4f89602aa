"""All malformed files, by the name of their case."""

from __future__ import annotations

from tests.hostile import configs, features, runs, splits, tables
from tests.hostile.world import Case

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *splits.CASES,
        *features.CASES,
        *tables.CASES,
        *configs.CASES,
        *runs.CASES,
    )
}
