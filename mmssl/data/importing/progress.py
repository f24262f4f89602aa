"""The progress of an import on a terminal; nothing where standard error is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

_SHOWN = 1 << 20  # rows; fewer are read in a moment


def rows_bar(path: Path, total: int) -> Any:
    """Return a progress bar of the rows of a file, a context manager with ``update(rows)``."""
    from tqdm import tqdm

    hidden = total < _SHOWN or not sys.stderr.isatty()
    return tqdm(
        total=total, desc=path.name, unit="row", unit_scale=True, leave=False, disable=hidden
    )
