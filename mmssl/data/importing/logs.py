"""Logs that are one table: CSV, TSV, Parquet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmssl.data.importing.arrow import ParquetFile
from mmssl.data.importing.assemble import describe_source, number_rows
from mmssl.data.importing.options import Imported, ImportOptions, with_item_table
from mmssl.data.importing.roles import (
    column_name,
    find_roles,
    is_numbered,
    refuse_hidden_header,
)
from mmssl.data.importing.rows import usable_rows
from mmssl.data.importing.table import TableFile
from mmssl.data.importing.text import TextFile


def import_csv(path: Path, options: ImportOptions) -> Imported:
    """Import a text with any separator."""
    return _import_table(_text_file(path, options), options, "csv")


def import_tsv(path: Path, options: ImportOptions) -> Imported:
    """Import a text whose separator is a tab unless the dialect has another."""
    dialect = replace(options.dialect, separator=options.dialect.separator or "\t")
    return _import_table(_text_file(path, replace(options, dialect=dialect)), options, "tsv")


def import_parquet(path: Path, options: ImportOptions) -> Imported:
    """Import a Parquet file."""
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
    positions = roles._asdict()
    rows = usable_rows(file, positions, skip_bad=options.skip_bad)
    stem = file.path.name.removesuffix(".gz").rsplit(".", 1)[0]
    numbered = number_rows(
        options.name or stem, rows, keep=options.keep, min_rating=options.min_rating
    )
    log, items, files = with_item_table(options, numbered.log, column_name(file, roles.item))
    source = describe_source(kind, file, positions, rows, numbered, files)
    return Imported(log, source, items=items)
