"""The files of the leaderboard: ``DATA/data.json`` and ``DATA/MODEL/{trial,seed}-N.json``.

Every file is written atomically, when its run has finished, and says what it was measured with:
configuration, commit, data and machine.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import environment
from mmssl.data.dataset import InteractionDataset
from mmssl.errors import InputError
from mmssl.files import atomic_write, read_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "leaderboard"
SCHEMA = 1
_MACHINE = (
    "name", "device", "threads", "simd", "busy", "load_at_start", "mmssl", "torch", "python",
    "commit",
)  # fmt: skip

Record = dict[str, Any]


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n").encode())


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        InputError: Not a record of this schema.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON object, got {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path}: expected schema {SCHEMA}, got {schema!r:.40}")
    found: Record = content
    return found


def numbered(folder: Path, kind: str) -> dict[int, Record]:
    """Return the records ``KIND-N.json`` of a folder by N, ascending; empty if it has none."""
    files = {
        int(path.stem.removeprefix(f"{kind}-")): path for path in folder.glob(f"{kind}-*.json")
    }
    return {number: read(files[number]) for number in sorted(files)}


def machine() -> dict[str, Any]:
    """Return what is recorded of machine and versions."""
    found = environment.environment()
    return {name: found[name] for name in _MACHINE}


def describe(dataset: InteractionDataset) -> Record:
    """Return the content of ``data.json``."""
    return {
        "name": dataset.name,
        "hash": dataset.content_hash(),
        "split": dataset.split.record(),
        "users": dataset.num_users,
        "items": dataset.num_items,
        **{name: edges.num_edges for name, edges in dataset.splits()},
        "features": {name: rows.shape[1] for name, rows in dataset.features.items()},
        "neighbors": sorted(dataset.neighbors),
        "splits_and_item_graphs": replace(dataset, features={}).content_hash(),
        "sketch": {name: sketch(rows) for name, rows in sorted(dataset.features.items())},
    }


def difference(known: Record, found: Record) -> str | None:
    """Return what differs first between two records of :func:`describe`; None if nothing does.

    Features that are computed (TF-IDF, neural encoders) differ in their last bits between machines
    and numbers of threads, and then so does the hash of the data set: they are compared to
    rounding.
    """
    for name, value in found.items():
        if name not in ("hash", "sketch") and known.get(name) != value:
            return name.replace("_", " ")
    for name, numbers in known["sketch"].items():
        if not np.allclose(numbers, found["sketch"][name], rtol=0, atol=1e-5 * numbers[0]):
            return f"features {name!r}"
    return None


def sketch(rows: npt.NDArray[Any]) -> list[float]:
    """Return the Frobenius norm of features (I, d) and three sums of signed entries.

    The sums are ``a_k . X b_k`` with cosines in a_k and b_k, so that they change with the order of
    the rows and columns too.
    """
    items, width = rows.shape
    k = np.arange(1, 4)[:, None]
    left, right = np.cos(k * np.arange(items)), np.cos(k * np.arange(width))
    square, sums = 0.0, np.zeros((3, width))
    for begin in range(0, items, 4096):  # a copy in float64 of some rows at a time
        part = np.asarray(rows[begin : begin + 4096], dtype=np.float64)
        square += float((part * part).sum())
        sums += left[:, begin : begin + 4096] @ part
    return [square**0.5, *(sums * right).sum(1).tolist()]


def pack(values: npt.NDArray[np.float64]) -> str:
    """Return numbers as text: float32, compressed."""
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes(), 9)).decode()


def unpack(text: str) -> npt.NDArray[np.float64]:
    """Return the numbers of :func:`pack`, to the precision of float32."""
    content = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(content, dtype="<f4").astype(np.float64)
