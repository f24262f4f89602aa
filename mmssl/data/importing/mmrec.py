"""MMRec's layout: ``NAME.inter`` with ``x_label``, ``*_feat.npy`` and the id mappings.

Its users and items are numbered, and the rows of the features follow the numbers of the items, so
the numbering is kept. ``x_label`` is 0 for training, 1 for validation, 2 for test.
"""

from __future__ import annotations

from pathlib import Path

from mmssl.data.dataset import FloatArray
from mmssl.data.importing.assemble import IdMap, describe_source, number_rows
from mmssl.data.importing.cells import is_plain_integer
from mmssl.data.importing.given import checked_splits, with_splits
from mmssl.data.importing.options import Imported, ImportOptions, with_item_table
from mmssl.data.importing.roles import find_roles, plain
from mmssl.data.importing.rows import usable_rows
from mmssl.data.importing.tensors import left_out, tensor_features
from mmssl.data.importing.text import Dialect, TextFile
from mmssl.data.npy import read_features
from mmssl.data.readers import feature_paths
from mmssl.data.split_files import SPLITS
from mmssl.errors import InputError

MAPPINGS = {"user": "u_id_mapping.csv", "item": "i_id_mapping.csv"}


def import_mmrec(path: Path, options: ImportOptions) -> Imported:
    """Import a directory, or the ``.inter`` file in it.

    Raises:
        InputError: A file, row or number does not fit the others.
    """
    options.refuse("mmrec", "all_items", "header", "ordered")
    file = TextFile(one_inter_file(path), Dialect("\t", False, options.dialect.encoding))
    roles = find_roles(file, options.columns)
    assert file.names is not None  # it was opened with a header
    names = [plain(name) for name in file.names]
    label = names.index("xlabel") if "xlabel" in names else None
    positions = {**roles._asdict(), "label": label}
    rows = usable_rows(file, positions, options.rules, numbered=True)
    rows = checked_splits(rows, [f"{file.path} ({part})" for part in SPLITS], options)

    folder = file.path.parent
    paths = feature_paths(folder)
    features: dict[str, Path | FloatArray] = {found.name: found for found in paths.values()}
    lengths = {found.name: read_features(found).shape[0] for found in paths.values()}
    tensors, notes = tensor_features(folder)
    features.update(tensors)
    lengths.update({name: values.shape[0] for name, values in tensors.items()})
    files: dict[str, str] = {}
    maps = {}
    for role, column in (("user", rows.user), ("item", rows.item)):
        needed = int(max(map(int, column.values))) + 1
        counts = lengths if role == "item" else {}
        maps[role], found_files = _id_map(folder, role, needed, counts, file)
        files.update(found_files)
    numbered = number_rows(
        options.name or file.path.stem,
        rows,
        keep=options.keep,
        min_rating=options.min_rating,
        users=maps["user"],
        items=maps["item"],
    )
    log, items, item_files = with_item_table(options, numbered.log, "")
    others = {**files, **item_files}
    source = describe_source("mmrec", file, positions, rows, numbered, others)
    data, told = with_splits(log, numbered.label, options)
    read = {*features, *files, *item_files, file.path.name}
    if unread := [name for name in left_out(folder, read) if not _is_tensor(name)]:
        notes.append(f"files that are not read: {', '.join(unread[:10])}")
    table_notes = items.notes if items is not None else ()
    return Imported(data, source, features, items, (*notes, *rows.notes, *table_notes, *told))


def _is_tensor(name: str) -> bool:
    return name.endswith(("_feat.pt", "_feat.pth"))  # these have a note of their own


def one_inter_file(path: Path) -> Path:
    """Return the ``.inter`` file of a path: itself, the only one in it, or the one of its name."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.inter"))
    like = path / f"{path.resolve().name}.inter"
    if len(found) == 1:
        return found[0]
    if like in found:
        return like
    shown = ", ".join(file.name for file in found[:4]) or "none"
    raise InputError(f"{path}: expected one .inter file in it, got {shown}")


def _id_map(
    folder: Path, role: str, needed: int, counts: dict[str, int], inter: TextFile
) -> tuple[IdMap, dict[str, str]]:
    """Return the number of users or items, and their ids where a mapping names them."""
    path = folder / MAPPINGS[role]
    names, files = None, {}
    if path.exists():
        mapping = TextFile(path, Dialect(encoding=inter.encoding))
        names, files = _read_mapping(mapping, role), {path.name: mapping.sha256}
        counts = {path.name: len(names), **counts}
    for name, count in counts.items():
        first = next(iter(counts))
        if count != counts[first]:
            raise InputError(
                f"{folder / name}: expected {counts[first]} {role}s, the number in {first}, "
                f"got {count}"
            )
        if count < needed:
            raise InputError(
                f"{inter.path}: expected {role}s in 0 .. {count - 1}, as {name} has {count}, "
                f"got {needed - 1}"
            )
    return IdMap(max(needed, *counts.values(), 0), names), files


def _read_mapping(file: TextFile, role: str) -> tuple[str, ...]:
    """Return the ids in the order of their numbers, column ``userID`` or ``itemID``, from 0."""
    names = file.names or ()
    bare = [plain(name) for name in names]
    number = f"{role}id"
    exact = [position for position, name in enumerate(names) if name == f"{role}ID"]
    at = exact[0] if exact else bare.index(number) if number in bare else None
    if at is None or len(names) != 2:
        raise InputError(
            f"{file.path}: expected a column {role}ID and one of ids, got {', '.join(names)}"
        )
    table = file.read([at, 1 - at])
    for fault in table.faults[:1]:
        raise InputError(f"{file.path}: line {fault.location}: {fault.message}")
    numbers, ids = table.columns
    found: list[str | None] = [None] * table.locations.size
    for row, (code, value) in enumerate(zip(numbers.codes, ids.codes, strict=True)):
        text = numbers.values[code]
        if not is_plain_integer(text) or int(text) >= len(found) or found[int(text)] is not None:
            raise InputError(
                f"{file.path}: line {table.locations[row]}: expected each number of 0 .. "
                f"{len(found) - 1} once, got {text!r:.60}"
            )
        found[int(text)] = ids.values[value]
    return tuple(name or "" for name in found)
