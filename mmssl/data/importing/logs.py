"""A log in one table: CSV, TSV, Parquet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmssl.data.importing.arrow import ParquetFile
from mmssl.data.importing.assemble import number_rows
from mmssl.data.importing.options import Imported, ImportOptions, told_items
from mmssl.data.importing.roles import (
    column_name,
    find_roles,
    is_numbered,
    refuse_hidden_header,
)
from mmssl.data.importing.rows import usable_rows
from mmssl.data.importing.table import TableFile
from mmssl.data.importing.text import TextFile
from mmssl.data.manifest import Source


def import_csv(path: Path, options: ImportOptions) -> Imported:
    """Text with any separator."""
    return _import_table(_text_file(path, options), options, "csv")


def import_tsv(path: Path, options: ImportOptions) -> Imported:
    """Text whose separator is a tab unless told otherwise."""
    dialect = replace(options.dialect, separator=options.dialect.separator or "\t")
    return _import_table(_text_file(path, replace(options, dialect=dialect)), options, "tsv")


def import_parquet(path: Path, options: ImportOptions) -> Imported:
    """Parquet; needs pyarrow."""
    options.refuse("parquet", "header")
    return _import_table(ParquetFile(path), options, "parquet")


def _text_file(path: Path, options: ImportOptions) -> TextFile:
    header = options.header
    if header is None:
        header = not is_numbered(options.columns)
    return TextFile(path, options.dialect, header=header)


def _import_table(file: TableFile, options: ImportOptions, kind: str) -> Imported:
    roles = find_roles(file, options.columns)
    if options.header is None:
        refuse_hidden_header(file, roles)
    places = roles._asdict()
    rows = usable_rows(file, places, skip_bad=options.skip_bad)
    stem = file.path.name.removesuffix(".gz").rsplit(".", 1)[0]
    numbered = number_rows(
        options.name or stem, rows, keep=options.keep, min_rating=options.min_rating
    )
    log, items, files = told_items(options, numbered.log, column_name(file, roles.item))
    source = Source(
        format=kind,
        files={file.path.name: file.sha256, **files},
        columns={role: column_name(file, at) for role, at in places.items() if at is not None},
        rows_read=rows.rows_read,
        rows_kept=log.num_edges,
        dropped=numbered.dropped,
    )
    return Imported(log, source, items=items)
