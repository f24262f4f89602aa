"""Atomic writing of ``NAME_feat.npy``, its mask and the record of its encoder.

Blocks of rows, in any order, are written to a memory-mapped file in a hidden folder of the data
set. PCA and normalization then process the file block by block, and finally it is renamed.
"""

from __future__ import annotations

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

import mmssl
from mmssl.data.dataset import MODALITY_NAME, FloatArray, IntArray
from mmssl.data.npy import save_array
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
from mmssl.files import file_sha256

RECORD_SUFFIX = "_feat.toml"
DTYPES = ("float16", "float32")

Blocks = Iterable[tuple[IntArray, FloatArray]]
"""Blocks of (n,) item ids and (n, d) rows; every item occurs at most once."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Destination and postprocessing of features, validated on construction.

    Raises:
        InputError: A value is out of range, or the file exists and ``force`` is False.
    """

    folder: Path
    """Directory of the data set."""
    name: str
    """Name of the modality."""
    pca: int | None = None
    """Number of principal components, applied before normalization; None keeps all dimensions."""
    normalize: str = "none"
    """"l2" scales rows to length 1; "zscore" scales columns to mean 0 and variance 1."""
    dtype: str = "float16"
    """Type of the values in the file; models convert them to float32."""
    force: bool = False
    """Whether to replace existing features of this name."""

    def __post_init__(self) -> None:
        if not MODALITY_NAME.fullmatch(self.name):
            raise InputError(
                f"--name must consist of letters, digits, '_' and '-', got {self.name!r:.60}"
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
            raise InputError(f"{self.features}: file exists; use --force to replace it")

    @property
    def needs_passes(self) -> bool:
        """Whether all rows must be known before any row can be final."""
        return self.pca is not None or self.normalize == "zscore"

    @property
    def features(self) -> Path:
        """Path of the feature matrix."""
        return self.folder / f"{self.name}{FEATURE_SUFFIX}"

    @property
    def mask(self) -> Path:
        """Path of the mask, which is only written if an item has no content."""
        return self.folder / f"{self.name}{MASK_SUFFIX}"

    @property
    def record(self) -> Path:
        """Path of the record that describes the encoder and the postprocessing."""
        return self.folder / f"{self.name}{RECORD_SUFFIX}"


class Written(NamedTuple):
    """Result of :func:`write_features`."""

    path: Path
    """Path of the feature matrix."""
    shape: tuple[int, int]
    """Number of items and dimensions."""
    missing: IntArray
    """Ids of items without content, which have zero rows and False in the mask."""
    record: dict[str, Any]
    """Content of the record."""


def write_features(
    output: Output, blocks: Blocks, num_items: int, record: dict[str, Any], source: str
) -> Written:
    """Write features; items that occur in no block are missing.

    Args:
        output: Destination and postprocessing.
        blocks: Item ids and their rows, consumed once.
        num_items: Number of items I.
        record: Description of the encoder, read after the last block.
        source: Description of where the content comes from.

    Raises:
        InputError: There are no rows, a row is not finite or overflows the dtype, or the files
            can't be written. The data set is left unchanged.
    """
    import tomli_w

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
                "sha256": file_sha256(folder / "feat.npy"),
                "encoder": record,
            }
            (folder / "feat.toml").write_text(tomli_w.dumps(full), encoding="utf-8")
            if len(missing):
                save_array(folder / "mask.npy", present)
            _publish(folder, output, bool(len(missing)))
    except OSError as error:
        raise InputError(f"{output.features}: can't be written: {error.strerror}") from None
    return Written(output.features, (num_items, int(full["dimensions"])), missing, full)


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """Provide a hidden folder on the same file system, which is always removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=".features-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _store(
    path: Path, output: Output, blocks: Blocks, num_items: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Store the raw rows on disk.

    Returns:
        The (I, d) matrix, float32 if later passes need full precision and ``output.dtype``
        otherwise, and an (I,) mask of the items that have a row.
    """
    dtype = np.dtype("float32" if output.needs_passes else output.dtype)
    unit = output.normalize == "l2" and not output.needs_passes
    matrix: npt.NDArray[Any] | None = None
    present = np.zeros(num_items, dtype=np.bool_)
    for items, rows in blocks:
        if matrix is None:
            if output.pca is not None:  # fail at the first block; encoding may take hours
                check_dim(output.pca, rows.shape[1], num_items)
            matrix = _create(path, dtype, (num_items, rows.shape[1]))
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if wrong.size:
            raise InputError(
                f"features of item {items[wrong[0]]} must be finite, got NaN or infinity"
            )
        matrix[items] = _cast(unit_rows(rows) if unit else rows, dtype, items)
        present[items] = True
    if matrix is None:
        raise InputError(f"{output.features}: expected at least one item with content, got none")
    return matrix, present


def _finish(
    path: Path, output: Output, raw: npt.NDArray[Any], present: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Write the final rows to ``path`` and return their additional fields of the record."""
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
    """Create a memory-mapped matrix of zeros in a ``.npy`` file."""
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # Allocate the blocks now: on a full disk, an assignment to a sparse file raises SIGBUS.
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
            f"{np.abs(rows[wrong[0]]).max():g} for item {items[wrong[0]]}; use --dtype float32 or "
            "--normalize l2"
        )
    return cast


def _flush(matrix: npt.NDArray[Any], path: Path) -> None:
    assert isinstance(matrix, np.memmap)
    matrix.flush()
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _publish(folder: Path, output: Output, has_mask: bool) -> None:
    """Rename the files in an order that leaves a readable data set if interrupted at any step."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)
    # A mask is only valid for its matrix: remove the old mask first and add the new one last.
    output.mask.unlink(missing_ok=True)
    output.record.unlink(missing_ok=True)
    os.replace(folder / "feat.npy", output.features)
    if has_mask:
        os.replace(folder / "mask.npy", output.mask)
    os.replace(folder / "feat.toml", output.record)
