"""Malformed .npy files, and unusual .npy files that are valid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.world import NUM_ITEMS, Case, World, cases, naming, no_file_cases

READ = ("data",)
BOTH = ("inspect", "train")
ON_THE_COMMAND_LINE = ("objects", "2^40 rows in 100 bytes", "NaN")
FILE = "image_feat.npy"
ROWS = np.arange(NUM_ITEMS * 3, dtype=np.float32).reshape(NUM_ITEMS, 3)


def header(text: str, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    width = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + version + size.to_bytes(width, "little") + text.encode()


def describing(shape: str, descr: str = "'<f4'", order: str = "False") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n")


def _bytes(content: bytes) -> Callable[[World], object]:
    return lambda w: (w.data / FILE).write_bytes(content)


def _array(rows: np.ndarray[Any, Any]) -> Callable[[World], object]:
    return lambda w: np.save(w.data / FILE, rows, allow_pickle=False)


def _spoiled(value: float, dtype: str = "f4") -> np.ndarray[Any, Any]:
    rows = ROWS.astype(dtype)
    rows[5, 1] = value
    return rows


def _npz(w: World) -> None:
    with (w.data / FILE).open("wb") as file:
        np.savez(file, rows=ROWS)


def _cut(count: int) -> Callable[[World], object]:
    def spoil(w: World) -> None:
        content = (w.data / FILE).read_bytes()
        (w.data / FILE).write_bytes(content[:count] if count < 0 else content + b"\0" * count)

    return spoil


def _named(name: str) -> Callable[[World], object]:
    return lambda w: np.save(w.data / name, ROWS)


def _terabyte(path: Path) -> None:
    """The right header of a sparse file of a terabyte."""
    start = describing(f"({NUM_ITEMS}, {2**34})")
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + NUM_ITEMS * 2**34 * 4)


_RECORDS = np.zeros((NUM_ITEMS, 3), dtype=[("x", "f4"), ("y", "i4")])
_REFUSED: dict[str, tuple[Callable[[World], object], str]] = {
    "empty": (_bytes(b""), "an empty file"),
    "text": (_bytes(b"0.1,0.2\n"), "something else"),
    "only the magic": (_bytes(b"\x93NUMPY"), ".npy header"),
    "truncated": (_cut(-1), "truncated"),
    "bytes behind the data": (_cut(7), "bytes of data"),
    "a pickle": (lambda w: (w.data / FILE).write_bytes(w.pickle()), "a pickle"),
    "objects": (lambda w: w.object_array(w.data / FILE), "Python objects"),
    "an archive": (_npz, "a zip archive"),
    "2^40 rows in 100 bytes": (_bytes(describing(f"({2**40}, 64)")), "truncated"),
    "2^62 rows": (_bytes(describing(f"({2**62}, {2**62})")), "truncated"),
    "10^4000 rows": (_bytes(describing(f"({'9' * 4000}, 3)")), ".npy"),
    "a negative shape": (_bytes(describing("(-16, 3)")), "at least one row"),
    "a float shape": (_bytes(describing("(16.0, 3)")), ".npy header"),
    "a shape of text": (_bytes(describing("('16', 3)")), ".npy header"),
    "no shape": (_bytes(header("{'descr': '<f4', 'fortran_order': False}\n")), ".npy header"),
    "code for a header": (_bytes(header("__import__('os').system('true')\n")), ".npy header"),
    "code for a dtype": (_bytes(describing("(16, 3)", "__import__('os')")), ".npy header"),
    "a dtype of objects in records": (_bytes(describing("(16, 3)", "[('a', '|O')]")), "objects"),
    "a thousand open brackets": (_bytes(header("(" * 1000)), ".npy header"),
    "deep lists for a dtype": (_bytes(describing("(16, 3)", "[" * 90 + "]" * 90)), ".npy header"),
    "a header longer than the file": (_bytes(header("{}", length=65535)), ".npy header"),
    "a header of 4 GiB": (_bytes(header("{}", b"\x02\x00", 2**32 - 1)), ".npy header"),
    "a header that is not text": (_bytes(b"\x93NUMPY\x01\x00\x04\x00\xff\xfe\xfd\xfc"), ".npy"),
    "format 3.0": (_bytes(header("{}", b"\x03\x00")), "format 1.0 or 2.0"),
    "format 9.9": (_bytes(header("{}", b"\x09\x09")), "format 1.0 or 2.0"),
    "NaN": (_array(_spoiled(np.nan)), "row 5, column 1"),
    "infinity": (_array(_spoiled(np.inf)), "row 5, column 1"),
    "-infinity in float16": (_array(_spoiled(-np.inf, "f2")), "row 5, column 1"),
    "beyond float32": (_array(_spoiled(1e300, "f8")), "row 5, column 1"),
    "complex": (_array(ROWS.astype(np.complex64)), "real numbers"),
    "text cells": (_array(ROWS.astype("U4")), "real numbers"),
    "bytes cells": (_array(ROWS.astype("S4")), "real numbers"),
    "dates": (_array(ROWS.astype("M8[s]")), "real numbers"),
    "records": (_array(_RECORDS), "real numbers"),
    "one dimension": (_array(ROWS[:, 0]), "shape (items, d)"),
    "three dimensions": (_array(ROWS[:, :, None]), "shape (items, d)"),
    "no dimension": (_array(np.float32(1)), "shape (items, d)"),
    "no rows": (_array(ROWS[:0]), "at least one row"),
    "no columns": (_array(ROWS[:, :0]), "at least one row"),
}
_RIGHT = {
    "Fortran order": np.asfortranarray(ROWS),
    "big-endian": ROWS.astype(">f8"),
    "float16": ROWS.astype(np.float16),
    "long double": ROWS.astype(np.longdouble),
    "uint8": ROWS.astype(np.uint8),
    "big-endian int64": ROWS.astype(">i8"),
    "booleans": ROWS > 3,
    "subnormal": ROWS * np.float32(1e-45),
}

CASES = [
    *cases(
        FILE,
        naming(FILE, _REFUSED),
        lambda spoil: spoil,
        reader="data",
        commands=BOTH,
        on_command_line=ON_THE_COMMAND_LINE,
    ),
    *(Case(f"{FILE}: {name}", _array(rows), READ, None) for name, rows in _RIGHT.items()),
    *no_file_cases(FILE, "data", lambda w: w.data / FILE),
    Case(f"{FILE}: too few rows", _array(ROWS[1:]), READ, ("_feat.npy", "rows")),
    Case(
        f"{FILE}: a sparse terabyte",
        lambda w: _terabyte(w.data / FILE),
        BOTH,
        (FILE, "fits in memory"),
        isolated=True,
    ),
    Case("a modality without a name", _named("_feat.npy"), READ, ("_feat.npy", "modality")),
    Case("a modality with a dot", _named(".._feat.npy"), READ, (".._feat.npy", "modality")),
    Case("a modality with a line end", _named("a\nb_feat.npy"), BOTH, ("modality",)),
    Case("a modality with an escape", _named("\x1b[2J_feat.npy"), BOTH, ("modality",)),
    Case("a modality outside ASCII", _named("\u00e9_feat.npy"), READ, ("modality",)),
]
