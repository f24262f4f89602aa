"""The options of an import, and what the reader of a layout returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mmssl.data.dataset import FloatArray, InteractionDataset
from mmssl.data.importing.arrow import ParquetFile
from mmssl.data.importing.assemble import KEEP, with_items
from mmssl.data.importing.items import ItemTable, read_items
from mmssl.data.importing.table import TableFile
from mmssl.data.importing.text import Dialect, TextFile
from mmssl.data.log import InteractionLog
from mmssl.data.manifest import Source
from mmssl.errors import InputError

FORMATS = ("mmssl", "mmrec", "recbole", "csv", "tsv", "parquet")
BAD_ROWS = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of ``mmssl data import``; the defaults fit most files."""

    format: str = "auto"
    """One of :data:`FORMATS`, or ``auto``: by suffix and content."""
    name: str | None = None
    """Name of the data set; the name of the source when None."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Role (user, item, rating, time, title) -> name or number of its column."""
    header: bool | None = None
    """Whether the first row holds names; when None, unless columns are given by number."""
    dialect: Dialect = Dialect()
    items: Path | None = None
    """A table of items, text or Parquet."""
    min_rating: float | None = None
    """Lowest rating of an interaction."""
    keep: str = "last"
    """Which of the rows with the same user and item counts: ``last`` or ``first``."""
    bad_rows: str = "stop"
    """``stop`` at the first row that can't be used, or ``skip`` such rows and count them."""

    def __post_init__(self) -> None:
        for what, value, known in (
            ("format", self.format, ("auto", *FORMATS)),
            ("keep", self.keep, KEEP),
            ("bad_rows", self.bad_rows, BAD_ROWS),
        ):
            if value not in known:
                raise InputError(f"{what} must be one of {', '.join(known)}, got {value!r}")

    @property
    def skip_bad(self) -> bool:
        """Whether bad rows are left out and counted."""
        return self.bad_rows == "skip"

    def refuse(self, kind: str, *names: str) -> None:
        """Raise InputError if one of these fields, which a layout does not use, was set."""
        defaults = ImportOptions()
        for name in names:
            if getattr(self, name) != getattr(defaults, name):
                raise InputError(f"{name.replace('_', '-')} has no effect for the format {kind}")


class Imported(NamedTuple):
    """What the reader of a layout returns."""

    data: InteractionLog | InteractionDataset
    """A log to be split, or a data set with the splits of the source; without features."""
    source: Source
    features: Mapping[str, Path | FloatArray] = {}
    """File name in the new directory -> file to copy, or rows to write."""
    items: ItemTable | None = None


def open_table(path: Path, dialect: Dialect, *, header: bool = True) -> TableFile:
    """Open a table of any kind, by its suffix.

    Raises:
        InputError: It can't be read.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return ParquetFile(path)
    return TextFile(path, dialect, header=header)


def with_item_table(
    options: ImportOptions, log: InteractionLog, like: str
) -> tuple[InteractionLog, ItemTable | None, dict[str, str]]:
    """Add the columns of the table ``--items`` to a log.

    Returns:
        The log, the table, and its SHA-256 by file name.
    """
    if options.items is None:
        return log, None, {}
    # Both files probably come from one exporter, so quotes and encoding are the same; the
    # separator of the log may differ.
    file = open_table(options.items, replace(options.dialect, separator=None))
    ids = log.item_ids or tuple(map(str, range(log.num_items)))
    items = read_items(file, ids, like=like, title=options.columns.get("title"))
    return with_items(log, items.titles, items.columns), items, {file.path.name: file.sha256}
