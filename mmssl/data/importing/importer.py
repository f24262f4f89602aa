"""``mmssl data import``: picks the reader of a layout and writes the new directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from mmssl.data.importing.layouts import file_kind, find_layout
from mmssl.data.importing.logs import KINDS, Part, import_tables
from mmssl.data.importing.matrices import import_matrices
from mmssl.data.importing.mmrec import import_mmrec
from mmssl.data.importing.mmssl import import_mmssl
from mmssl.data.importing.options import Imported, ImportOptions
from mmssl.data.importing.recbole import import_recbole
from mmssl.data.importing.roles import is_numbered
from mmssl.data.importing.sources import first_bytes, inner_name, stored
from mmssl.data.log import InteractionLog, write_log
from mmssl.data.npy import save_array
from mmssl.data.staging import check_writable, staged
from mmssl.data.writers import write_files
from mmssl.errors import InputError
from mmssl.files import quoted


class ImportReport(NamedTuple):
    """What :func:`import_data` read and wrote."""

    directory: Path
    imported: Imported

    @property
    def lines(self) -> list[str]:
        """The report in words."""
        data, source, features, items, notes = self.imported
        columns = ", ".join(f"{role} = {name}" for role, name in source.columns.items())
        where = f" ({columns})" if columns else ""
        files = list(source.files)
        shown = ", ".join(files) if len(files) < 7 else f"{', '.join(files[:5])}, ..., {files[-1]}"
        lines = [f"read {source.rows_read:,} rows of {shown}{where}"]
        lines += [f"note: {note}" for note in notes]
        lines += [f"left out {count:,}: {reason}" for reason, count in source.dropped.items()]
        lines.append(
            f"kept {source.rows_kept:,} interactions of {data.num_users:,} users with "
            f"{data.num_items:,} items"
        )
        if items is not None:
            names = ["title"] if items.titles is not None else []
            held = ", ".join([*names, *items.columns]) or "no further column"
            line = f"item table: {held}; items that are not in it: {items.missing:,}"
            if items.further:
                line += f"; items without interactions, kept: {len(items.further):,}"
            elif items.others:
                line += f"; items without interactions, left out: {items.others:,}"
                line += " (--all-items keeps them)"
            lines.append(line)
        if features:
            lines.append(f"features: {', '.join(features)}")
        if isinstance(data, InteractionLog):
            if data.rating is not None and data.rating.min() < data.rating.max():
                lines.append(
                    f"ratings from {data.rating.min():g} to {data.rating.max():g} all count as "
                    "interactions; mmssl data split --min-rating X leaves out lower ones"
                )
            split = f"mmssl data split {quoted(self.directory)} --out"
            lines.append(
                f"{self.directory} is not split yet; next: "
                f"{split} {quoted(f'{self.directory}-split')}"
            )
        else:
            lines.append(f"{self.directory} has the splits that it came with: train on it")
        return lines


def import_data(source: str | Path, out: str | Path, options: ImportOptions) -> ImportReport:
    """Import ``source`` into the new directory ``out``, all of it or nothing.

    Args:
        source: A file, compressed or not, a directory, or ``-`` for the standard input.
        out: A new or empty directory.
        options: Options of the import.

    Raises:
        InputError: The source can't be used; the message names the file and the line.
    """
    target = Path(out)
    check_writable(target)
    with stored(source) as path:
        imported = read_any(path, options)
        with staged(target) as folder:
            if isinstance(imported.data, InteractionLog):
                write_log(imported.data, folder, imported.source)
            else:
                write_files(imported.data, folder, imported.source)
            for name, rows in imported.features.items():
                if isinstance(rows, Path):
                    shutil.copyfile(rows, folder / name)
                else:
                    save_array(folder / name, rows)
    return ImportReport(target, imported)


def read_any(path: Path, options: ImportOptions) -> Imported:
    """Read a file or directory, by its layout.

    Raises:
        InputError: As :func:`import_data`.
    """
    if os.path.isdir(path):
        return _directory(path, options)
    name = Path(inner_name(path)).stem
    if options.format in ("mmssl", "mmrec", "recbole") or path.suffix == ".inter":
        return _inter(path, options)
    kind = options.format if options.format != "auto" else _kind(path, options)
    if kind == "npz":
        return import_matrices([(path, None)], options, name=name)
    return import_tables([Part(path, kind)], options, name=name, layout=kind)


def _directory(path: Path, options: ImportOptions) -> Imported:
    name = path.resolve().name or "dataset"
    if options.format == "mmssl":
        return import_mmssl(path, options)
    if options.format in ("mmrec", "recbole"):
        return _inter(path, options)
    try:
        layout = find_layout(path, options.format if options.format != "auto" else None)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    if options.format in (*KINDS, "npz") and layout.kind not in ("tables", "npz"):
        raise InputError(
            f"{path}: expected files of the format {options.format}, got a directory of the "
            f"layout {layout.kind}"
        )
    if layout.kind == "mmssl":
        return import_mmssl(path, options)
    if layout.kind == "inter":
        return _inter(path, options)
    splits = layout.parts[0].label is not None
    notes = [] if splits else [f"part files read: {len(layout.parts):,}"]
    unread = [name for name in layout.unread if not (layout.kind == "npz" and "_feat." in name)]
    if unread:
        shown = ", ".join(unread[:10]) + (", ..." if len(unread) > 10 else "")
        notes.append(f"files that are not read: {shown}")
    if layout.kind == "npz":
        paths = [(part.path, part.label) for part in layout.parts]
        return import_matrices(paths, options, name=name, folder=path, notes=notes)
    parts = layout.parts
    return import_tables(parts, options, name=name, layout=parts[0].kind, notes=notes)


def _inter(path: Path, options: ImportOptions) -> Imported:
    if options.format == "mmssl":
        return import_mmssl(path, options)
    if options.format == "mmrec":
        return import_mmrec(path, options)
    if options.format == "recbole":
        return import_recbole(path, options)
    file = path
    if os.path.isdir(path):
        file = next(path / name for name in sorted(os.listdir(path)) if name.endswith(".inter"))
    typed = b":token" in first_bytes(file).split(b"\n")[0]
    return import_recbole(path, options) if typed else import_mmrec(path, options)


def _kind(path: Path, options: ImportOptions) -> str:
    try:
        kind = file_kind(path, numbered=is_numbered(options.columns))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    if kind == "lists" and (is_numbered(options.columns) or options.dialect.separator):
        raise InputError(
            f"{path}: expected rows of a table, as --sep or --user-col say, got what looks like "
            "lines of a user and its items: --format lists reads all items, --format csv reads "
            "the columns that are named"
        )
    return kind
