"""``mmssl data import``: picks the reader of a layout and writes the new directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mmssl.data.importing.logs import import_csv, import_parquet, import_tsv
from mmssl.data.importing.mmrec import import_mmrec
from mmssl.data.importing.mmssl import import_mmssl
from mmssl.data.importing.options import Imported, ImportOptions
from mmssl.data.importing.recbole import import_recbole
from mmssl.data.log import InteractionLog, write_log
from mmssl.data.npy import save_array
from mmssl.data.staging import check_writable, staged
from mmssl.data.writers import write_files
from mmssl.errors import InputError

_READERS: dict[str, Callable[[Path, ImportOptions], Imported]] = {
    "mmssl": import_mmssl,
    "mmrec": import_mmrec,
    "recbole": import_recbole,
    "csv": import_csv,
    "tsv": import_tsv,
    "parquet": import_parquet,
}


class ImportReport(NamedTuple):
    """What :func:`import_data` read and wrote."""

    directory: Path
    imported: Imported

    @property
    def lines(self) -> list[str]:
        """The report in words."""
        data, source, features, items = self.imported
        columns = ", ".join(f"{role} = {name}" for role, name in source.columns.items())
        where = f" ({columns})" if columns else ""
        lines = [f"read {source.rows_read:,} rows of {', '.join(source.files)}{where}"]
        lines += [f"left out {count:,}: {reason}" for reason, count in source.dropped.items()]
        lines.append(
            f"kept {source.rows_kept:,} interactions of {data.num_users:,} users with "
            f"{data.num_items:,} items"
        )
        if items is not None:
            names = ["title"] if items.titles is not None else []
            held = ", ".join([*names, *items.columns]) or "no further column"
            lines.append(f"item table: {held}; items that are not in it: {items.missing:,}")
        if features:
            lines.append(f"features: {', '.join(features)}")
        if isinstance(data, InteractionLog):
            lines.append(
                f"{self.directory} is not split yet; next: "
                f"mmssl data split {self.directory} --out {self.directory}-split"
            )
        else:
            lines.append(f"{self.directory} has the splits that it came with: train on it")
        return lines


def import_data(source: str | Path, out: str | Path, options: ImportOptions) -> ImportReport:
    """Import ``source`` into the new directory ``out``, all of it or nothing.

    Raises:
        InputError: The source can't be used; the message names the file and the line.
    """
    path, target = Path(source), Path(out)
    check_writable(target)
    if not os.path.exists(path):
        raise InputError(f"{path}: expected a file or directory to import, got none")
    kind = _detect(path) if options.format == "auto" else options.format
    imported = _READERS[kind](path, options)
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


def _detect(path: Path) -> str:
    """Return the layout of a source, by file names and, for ``.inter`` files, by the header."""
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        if "train.json" in names:
            return "mmssl"
        inter = [path / name for name in names if name.endswith(".inter")]
        if not inter:
            raise InputError(
                f"{path}: expected train.json (mmssl) or a .inter file (mmrec, recbole) in it, got "
                "neither; a log in one file is imported by the path of the file"
            )
        path = inter[0]
    if path.suffix == ".inter":
        with open(path, "rb") as file:
            return "recbole" if b":token" in file.readline(1 << 16) else "mmrec"
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return {".parquet": "parquet", ".pq": "parquet", ".tsv": "tsv"}.get(suffix.lower(), "csv")
