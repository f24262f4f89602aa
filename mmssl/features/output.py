"""Writes ``NAME_feat.npy``, its mask and how it was made, all of it or nothing.

Rows come in blocks, in any order, straight into a memory-mapped file in a hidden folder inside
the data set; what is left to do to them is done block by block; then the files are renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tomli_w

import mmssl
from mmssl.data.dataset import MODALITY_NAME, FloatArray, IntArray
from mmssl.data.readers import FEATURE_SUFFIX, MASK_SUFFIX
from mmssl.errors import InputError
from mmssl.features.reduce import (
    BLOCK,
    NORMALIZATIONS,
    check_dim,
    principal_components,
    standardization,
    unit_rows,
)

RECORD_SUFFIX = "_feat.toml"
DTYPES = ("float16", "float32")

Blocks = Iterable[tuple[IntArray, FloatArray]]
"""(n,) items and (n, d) their rows; every item at most once."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What becomes of the rows, and where they go; checked on construction.

    Raises:
        InputError: A value out of range, or a file that is there and may not be replaced.
    """

    folder: Path
    """The data set."""
    name: str
    """The modality."""
    pca: int | None = None
    """Number of principal components, before the normalisation; None keeps all dimensions."""
    normalize: str = "none"
    """"l2": rows of length 1; "zscore": columns of mean 0 and variance 1."""
    dtype: str = "float16"
    """Of the file; models compute in float32 all the same."""
    force: bool = False
    """Replace features of this name."""

    def __post_init__(self) -> None:
        if not MODALITY_NAME.fullmatch(self.name):
            raise InputError(
                f"--name must be made of letters, digits, '_' and '-', got {self.name!r:.60}"
            )
        for what, value, allowed in (
            ("--normalize", self.normalize, NORMALIZATIONS),
            ("--dtype", self.dtype, DTYPES),
        ):
            if value not in allowed:
                raise InputError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")
        if self.pca is not None and self.pca < 1:
            raise InputError(f"--pca must be at least 1, got {self.pca}")
        if not self.force and os.path.lexists(self.features):
            raise InputError(f"{self.features}: is there already; --force replaces it")

    @property
    def needs_passes(self) -> bool:
        """Whether all rows must be there before one is final."""
        return self.pca is not None or self.normalize == "zscore"

    @property
    def features(self) -> Path:
        """The matrix."""
        return self.folder / f"{self.name}{FEATURE_SUFFIX}"

    @property
    def mask(self) -> Path:
        """Which items have content; written when one has none."""
        return self.folder / f"{self.name}{MASK_SUFFIX}"

    @property
    def record(self) -> Path:
        """How the matrix was made."""
        return self.folder / f"{self.name}{RECORD_SUFFIX}"


class Written(NamedTuple):
    """What :func:`write_features` wrote."""

    path: Path
    shape: tuple[int, int]
    missing: IntArray
    """Items without content: zero rows, False in the mask."""
    record: dict[str, Any]


def write_features(
    output: Output, blocks: Blocks, num_items: int, record: dict[str, Any], source: str
) -> Written:
    """Writes the rows; items that no block has are missing.

    Args:
        output: what becomes of the rows.
        blocks: (items, rows); read once.
        num_items: I.
        record: what made the rows; it is read after the last block and written beside the file.
        source: where the content came from, for the record.

    Raises:
        InputError: No rows, rows that are not finite or don't fit the dtype, a full disk. The
            data set is as it was.
    """
    try:
        with _staging(output.folder) as folder:
            raw, present = _store(folder / "raw.npy", output, blocks, num_items)
            notes = _finish(folder / "feat.npy", output, raw, present)
            missing = np.flatnonzero(~present)
            full = {
                "modality": output.name,
                "source": source,
                "items": num_items,
                "missing": len(missing),
                "dimensions": raw.shape[1] if output.pca is None else output.pca,
                "dtype": output.dtype,
                "normalize": output.normalize,
                **notes,
                "mmssl": mmssl.__version__,
                "sha256": _sha256(folder / "feat.npy"),
                "encoder": record,
            }
            (folder / "feat.toml").write_text(tomli_w.dumps(full), encoding="utf-8")
            if len(missing):
                np.save(folder / "mask.npy", present, allow_pickle=False)
            _publish(folder, output, bool(len(missing)))
    except OSError as error:
        raise InputError(f"{output.features}: can't be written: {error.strerror}") from None
    return Written(output.features, (num_items, int(full["dimensions"])), missing, full)


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A hidden folder on the same file system, gone at the end whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix=".features-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _store(
    path: Path, output: Output, blocks: Blocks, num_items: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The rows on disk as they come (I, d), and (I,) which there are.

    They are float32 where a later pass needs them exact, else of the dtype asked for.
    """
    dtype = np.dtype("float32" if output.needs_passes else output.dtype)
    unit = output.normalize == "l2" and not output.needs_passes
    matrix: npt.NDArray[Any] | None = None
    present = np.zeros(num_items, dtype=np.bool_)
    for items, rows in blocks:
        if matrix is None:
            if output.pca is not None:  # before the hours that an encoder may take
                check_dim(output.pca, rows.shape[1], num_items)
            matrix = _create(path, dtype, (num_items, rows.shape[1]))
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if wrong.size:
            raise InputError(f"features of item {items[wrong[0]]} must be finite, got others")
        matrix[items] = _cast(unit_rows(rows) if unit else rows, dtype, items)
        present[items] = True
    if matrix is None:
        raise InputError(f"{output.features}: expected content of at least one item, got none")
    return matrix, present


def _finish(
    path: Path, output: Output, raw: npt.NDArray[Any], present: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """The file of the final rows; what the record says of them."""
    source = path.with_name("raw.npy")
    if not output.needs_passes:
        _flush(raw, source)
        source.rename(path)
        return {}
    items = np.flatnonzero(present)
    notes: dict[str, Any] = {}
    steps: list[Callable[[FloatArray], FloatArray]] = []

    def read(numbers: IntArray) -> FloatArray:
        rows = np.asarray(raw[numbers])
        for step in steps:
            rows = step(rows)
        return rows

    if output.pca is not None:
        projection = principal_components(read, items, output.pca)
        notes = {"pca": output.pca, "pca_explained": round(projection.explained, 6)}
        steps.append(projection.apply)
    if output.normalize == "zscore":
        steps.append(standardization(read, items))
    if output.normalize == "l2":
        steps.append(unit_rows)
    width = raw.shape[1] if output.pca is None else output.pca
    final = _create(path, np.dtype(output.dtype), (len(present), width))
    for start in range(0, len(items), BLOCK):
        numbers = items[start : start + BLOCK]
        final[numbers] = _cast(read(numbers), final.dtype, numbers)
    _flush(final, path)
    return notes


def _create(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """A matrix of zeros in a ``.npy`` file."""
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # Without its blocks on disk, a full disk would be a SIGBUS in the middle of an assignment.
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return matrix


def _cast(rows: FloatArray, dtype: np.dtype[Any], items: IntArray) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):  # reported below
        cast = rows.astype(dtype)
    wrong = np.flatnonzero(~np.isfinite(cast).all(axis=1))
    if wrong.size:
        raise InputError(
            f"--dtype {dtype}: expected values up to {np.finfo(dtype).max:g}, got "
            f"{np.abs(rows[wrong[0]]).max():g} for item {items[wrong[0]]}: take float32 or l2"
        )
    return cast


def _flush(matrix: npt.NDArray[Any], path: Path) -> None:
    assert isinstance(matrix, np.memmap)
    matrix.flush()
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _publish(folder: Path, output: Output, has_mask: bool) -> None:
    """Renames; whichever step is the last to happen, what is there can be read."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)
    # A mask belongs to one matrix: the old one goes before, the new one comes after.
    output.mask.unlink(missing_ok=True)
    output.record.unlink(missing_ok=True)
    os.replace(folder / "feat.npy", output.features)
    if has_mask:
        os.replace(folder / "mask.npy", output.mask)
    os.replace(folder / "feat.toml", output.record)
