"""The options of an import, and what the reader of a layout returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mmssl.data.dataset import FloatArray, InteractionDataset
from mmssl.data.importing.arrow import ParquetFile
from mmssl.data.importing.assemble import KEEP, with_items
from mmssl.data.importing.cells import NULL_IDS, Rules
from mmssl.data.importing.items import REPEATED, ItemTable, read_items
from mmssl.data.importing.json_items import JsonItems
from mmssl.data.importing.jsonl import seems_json
from mmssl.data.importing.sources import first_bytes, inner_name
from mmssl.data.importing.table import TableFile
from mmssl.data.importing.text import Dialect, TextFile
from mmssl.data.importing.times import DATES, UNITS
from mmssl.data.log import InteractionLog
from mmssl.data.manifest import Source
from mmssl.errors import InputError

FORMATS = ("mmssl", "mmrec", "recbole", "csv", "tsv", "jsonl", "lists", "parquet", "npz")
BAD_ROWS = ("stop", "skip")
VALIDATION = ("given", "from-train")
SPLITS = ("given", "join")
SEED = 2022


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of ``mmssl data import``; the defaults fit most files."""

    format: str = "auto"
    """One of :data:`FORMATS`, or ``auto``: by content and suffix."""
    name: str | None = None
    """Name of the data set; the name of the source when None."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Role (user, item, rating, time, title) -> name or number of its column."""
    header: bool | None = None
    """Whether the first row holds names; when None, unless columns are given by number."""
    dialect: Dialect = Dialect()
    items: Path | None = None
    """A table of items: text, JSON lines or Parquet."""
    items_header: bool = True
    """Whether the first row of the table of items holds names."""
    items_keep: str = "stop"
    """What to do with different rows of an item: ``stop``, or keep the ``first`` or ``last``."""
    all_items: bool = False
    """Keep the items of the table that have no interactions."""
    min_rating: float | None = None
    """Lowest rating of an interaction."""
    keep: str = "last"
    """Which of the rows with the same user and item counts: ``last`` or ``first``."""
    bad_rows: str = "stop"
    """``stop`` at the first row that can't be used, or ``skip`` such rows and count them."""
    null_ids: str = "stop"
    """``stop`` at ids such as ``NULL`` and ``nan``, ``skip`` such rows, or ``keep`` them as ids."""
    decimal: str = "."
    """Decimal mark of ratings and times."""
    dates: str | None = None
    """Order of dates like 07/04/2017: ``dmy`` or ``mdy``; found when None."""
    time_unit: str | None = None
    """Times of which some look like seconds, others like milliseconds: read by size if ``mixed``,
    as they are if ``same``; refused when None."""
    ordered: bool = False
    """Rows, or the items of a list, are in order of time: their positions become the times."""
    validation: str = "given"
    """Validation of a source with splits: ``given``, or drawn ``from-train``. A source that has
    none is treated as ``from-train``."""
    splits: str = "given"
    """Keep the splits of a source as ``given``, or ``join`` them to a log that is split later."""
    seed: int = SEED
    """Random seed of a validation split that is drawn from train."""

    def __post_init__(self) -> None:
        for what, value, known in (
            ("format", self.format, ("auto", *FORMATS)),
            ("keep", self.keep, KEEP),
            ("bad_rows", self.bad_rows, BAD_ROWS),
            ("null_ids", self.null_ids, NULL_IDS),
            ("decimal", self.decimal, (".", ",")),
            ("dates", self.dates, (None, *DATES)),
            ("time_unit", self.time_unit, (None, *UNITS)),
            ("items_keep", self.items_keep, REPEATED),
            ("validation", self.validation, VALIDATION),
            ("splits", self.splits, SPLITS),
        ):
            if value not in known:
                names = ", ".join(name for name in known if name is not None)
                raise InputError(f"{what} must be one of {names}, got {value!r}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be in 0 .. 2^63 - 1, got {self.seed}")

    @property
    def rules(self) -> Rules:
        """How cells are read."""
        return Rules(
            skip_bad=self.bad_rows == "skip",
            null_ids=self.null_ids,
            decimal=self.decimal,
            dates=self.dates,
            time_unit=self.time_unit,
            lists_are_ids=self.format != "auto",
        )

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
    notes: tuple[str, ...] = ()
    """What was changed, left out or may be wrong."""


def open_items(
    options: ImportOptions, path: Path, item_ids: tuple[str, ...], like: str
) -> TableFile:
    """Open a table of items, by its suffix and content.

    Raises:
        InputError: It can't be read.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return ParquetFile(path)
    if seems_json(first_bytes(path)):
        return JsonItems(
            path,
            item_ids,
            like=like,
            encoding=options.dialect.encoding,
            all_items=options.all_items,
        )
    # Both files probably come from one exporter, so quotes and encoding are the same; the
    # separator of the log may differ.
    separator = "\t" if Path(inner_name(path)).suffix.lower() == ".tsv" else None
    dialect = replace(options.dialect, separator=separator)
    return TextFile(path, dialect, header=options.items_header)


def with_item_table(
    options: ImportOptions, log: InteractionLog, like: str
) -> tuple[InteractionLog, ItemTable | None, dict[str, str]]:
    """Add the columns of the table ``--items`` to a log.

    Returns:
        The log, the table, and its SHA-256 by file name.
    """
    if options.items is None:
        if options.all_items:
            raise InputError("--all-items: expected --items, a table of all items, got none")
        return log, None, {}
    ids = log.item_ids or tuple(map(str, range(log.num_items)))
    file = open_items(options, options.items, ids, like)
    title = options.columns.get("title")
    items = read_items(
        file,
        ids,
        like=like,
        title=title,
        repeated=options.items_keep,
        all_items=options.all_items,
    )
    log = with_items(log, items.titles, items.columns, (*ids, *items.further))
    return log, items, {file.path.name: file.sha256}
