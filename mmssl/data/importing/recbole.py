"""RecBole's atomic files: ``NAME.inter`` and ``NAME.item``, or ``NAME.train.inter`` and so on.

Tab-separated without quotes, header cells like ``user_id:token``. Columns of type ``float_seq`` in
the item file are features: ``text_emb:float_seq`` becomes ``text_emb_feat.npy``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmssl.data.dataset import MODALITY_NAME, FloatArray
from mmssl.data.importing.assemble import (
    describe_source,
    joined,
    number_rows,
    with_items,
)
from mmssl.data.importing.cells import numbers
from mmssl.data.importing.given import checked_splits, with_splits
from mmssl.data.importing.items import ItemTable, read_items
from mmssl.data.importing.mmrec import one_inter_file
from mmssl.data.importing.options import Imported, ImportOptions, with_item_table
from mmssl.data.importing.roles import column_name, find_roles, unused_columns, without_times
from mmssl.data.importing.rows import Rows, usable_rows
from mmssl.data.importing.text import Dialect, TextFile
from mmssl.data.log import InteractionLog
from mmssl.data.readers import FEATURE_SUFFIX
from mmssl.errors import InputError

PARTS = (("train",), ("valid", "validation", "val"), ("test",))
VECTOR = "float_seq"


def import_recbole(path: Path, options: ImportOptions) -> Imported:
    """Import a directory, or a ``.inter`` file in it.

    Raises:
        InputError: A file is missing, or a file or row is malformed.
    """
    options.refuse("recbole", "all_items", "header", "ordered")
    dialect = Dialect("\t", False, options.dialect.encoding)
    stem, paths = _inter_files(path)
    files = [_open(found, dialect) for found in paths.values()]
    roles = [find_roles(file, options.columns) for file in files]
    parts = [
        _labelled(
            usable_rows(file, found._asdict(), options.rules), label if len(files) > 1 else None
        )
        for label, file, found in zip(paths, files, roles, strict=True)
    ]
    rows = joined(parts)
    names = [str(paths[label]) if label in paths else "" for label in range(3)]
    rows = checked_splits(rows, names, options)
    numbered = number_rows(
        options.name or stem.name, rows, keep=options.keep, min_rating=options.min_rating
    )
    like = column_name(files[0], roles[0].item).split(":")[0]
    log, items, hashes = with_item_table(options, numbered.log, like)
    features: dict[str, Path | FloatArray] = {}
    item_path = stem.with_name(f"{stem.name}.item")
    if options.items is None and item_path.exists():
        table = _open(item_path, dialect)
        log, items, features = _with_item_file(log, table, like, options)
        hashes = {item_path.name: table.sha256}
    others = {**{file.path.name: file.sha256 for file in files[1:]}, **hashes}
    source = describe_source("recbole", files[0], roles[0]._asdict(), rows, numbered, others)
    data, told = with_splits(log, numbered.label, options)
    notes = [*unused_columns(files[0], roles[0]), *rows.notes]
    notes += without_times(roles[0], options.columns) if rows.label is None else []
    notes += [] if items is None else items.notes
    return Imported(data, source, features, items, (*notes, *told))


def _inter_files(path: Path) -> tuple[Path, dict[int, Path]]:
    """Return the path of the data set without suffix, and its one file or its parts by label."""
    known = {part for names in PARTS for part in names}
    folder = path if path.is_dir() else path.parent
    parts = [f for f in sorted(folder.glob("*.*.inter")) if f.stem.rsplit(".", 1)[-1] in known]
    if path.is_dir() and not parts:
        path = one_inter_file(path)
    if not path.is_dir() and path not in parts:
        return path.with_suffix(""), {0: path}
    stems = sorted({file.stem.rsplit(".", 1)[0] for file in parts})
    if not path.is_dir():
        stems = [path.stem.rsplit(".", 1)[0]]
    if len(stems) > 1:
        raise InputError(f"{path}: expected the parts of one data set, got {', '.join(stems[:4])}")
    found = {}
    for label, names in enumerate(PARTS):
        choices = [folder / f"{stems[0]}.{name}.inter" for name in names]
        file = next((choice for choice in choices if choice.exists()), None)
        if file is None and names[0] == "valid":
            continue  # drawn from train
        if file is None:
            raise InputError(f"{choices[0]}: expected a file next to the other parts, got none")
        found[label] = file
    return folder / stems[0], found


def _open(path: Path, dialect: Dialect) -> TextFile:
    file = TextFile(path, dialect)
    names = file.names or ()
    if not any(":" in name for name in names):
        raise InputError(
            f"{path}: line 1: expected names with types like user_id:token, got "
            f"{', '.join(map(repr, names))[:80]}"
        )
    return file


def _labelled(rows: Rows, label: int | None) -> Rows:
    if label is None:
        return rows
    return rows._replace(label=np.full(rows.user.size, label, dtype=np.int64))


def _with_item_file(
    log: InteractionLog, table: TextFile, like: str, options: ImportOptions
) -> tuple[InteractionLog, ItemTable, dict[str, Path | FloatArray]]:
    names = table.names or ()
    vectors = [at for at, name in enumerate(names) if name.endswith(f":{VECTOR}")]
    items = read_items(
        table,
        log.item_ids or (),
        like=like,
        title=options.columns.get("title"),
        leave_out=vectors,
        repeated=options.items_keep,
    )
    features: dict[str, Path | FloatArray] = {}
    for position in vectors:
        name = names[position].removesuffix(f":{VECTOR}")
        if not MODALITY_NAME.fullmatch(name):
            raise InputError(
                f"{table.path}: expected a modality of letters, digits, '_' and '-', got {name!r}"
            )
        features[f"{name}{FEATURE_SUFFIX}"] = _vectors(table, position, items)
    return with_items(log, items.titles, items.columns), items, features


def _vectors(table: TextFile, position: int, items: ItemTable) -> FloatArray:
    """Return the (I, d) features of the items, zeros for one without a row or a vector."""
    content = table.read([position])
    (column,) = content.columns
    parsed = [numbers(value.split()).astype(np.float32) for value in column.values]
    width = max((vector.size for vector in parsed), default=0)
    rows = np.zeros((len(items.found), width), dtype=np.float32)
    codes = column.codes
    for item, row in enumerate(items.found):
        vector = np.empty(0) if row is None else parsed[codes[row]]
        if row is not None and (vector.size not in (0, width) or not np.isfinite(vector).all()):
            name = column_name(table, position)
            raise InputError(
                f"{table.path}: line {content.locations[row]}: expected {width} finite numbers in "
                f"{name!r}, got {column.values[codes[row]]!r:.60}"
            )
        if vector.size:
            rows[item] = vector
    if not width:
        raise InputError(
            f"{table.path}: expected vectors in {column_name(table, position)!r}, got none"
        )
    return rows
