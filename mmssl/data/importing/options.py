"""What a user can say of an import, and what the reader of a layout gives back."""

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
    """What the command line offers; every field has a default that fits most files."""

    format: str = "auto"
    """One of :data:`FORMATS`, or ``auto``: by suffix and content."""
    name: str | None = None
    """Of the data set; that of the source when None."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Role (user, item, rating, time, title) -> name or number of its column."""
    header: bool | None = None
    """Whether the first row holds names; when None, unless columns are told by number."""
    dialect: Dialect = Dialect()
    items: Path | None = None
    """A table of items, text or Parquet."""
    min_rating: float | None = None
    keep: str = "last"
    """Which of the rows with one user and one item counts."""
    bad_rows: str = "stop"
    """``stop`` at the first row that can't be used, or ``skip`` and count them."""

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
        """Whether bad rows are counted instead of fatal."""
        return self.bad_rows == "skip"

    def refuse(self, kind: str, *names: str) -> None:
        """Raises InputError when a field was set that a layout has no use for."""
        defaults = ImportOptions()
        for name in names:
            if getattr(self, name) != getattr(defaults, name):
                raise InputError(f"{name.replace('_', '-')} does nothing for the format {kind}")


class Imported(NamedTuple):
    """What the reader of a layout gives."""

    data: InteractionLog | InteractionDataset
    """A log to be split, or a data set whose splits were given; without its features."""
    source: Source
    features: Mapping[str, Path | FloatArray] = {}
    """File name in the new directory -> file to copy, or rows to write."""
    items: ItemTable | None = None


def open_table(path: Path, dialect: Dialect, *, header: bool = True) -> TableFile:
    """A table of any kind, by its suffix.

    Raises:
        InputError: It can't be read.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return ParquetFile(path)
    return TextFile(path, dialect, header=header)


def told_items(
    options: ImportOptions, log: InteractionLog, like: str
) -> tuple[InteractionLog, ItemTable | None, dict[str, str]]:
    """The log with what ``--items`` says of its items; the table and its hash by file name."""
    if options.items is None:
        return log, None, {}
    # The log's separator is its own; quotes and encoding are likely those of one exporter.
    file = open_table(options.items, replace(options.dialect, separator=None))
    ids = log.item_ids or tuple(map(str, range(log.num_items)))
    items = read_items(file, ids, like=like, title=options.columns.get("title"))
    return with_items(log, items.titles, items.columns), items, {file.path.name: file.sha256}
