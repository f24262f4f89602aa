"""The files of the leaderboard: ``DATA/data.json`` and ``DATA/MODEL/{trial,seed}-N.json``.

Every file is written atomically, when its run has finished, and says what it was measured with:
configuration, commit, data and machine.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
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
    }


def pack(values: npt.NDArray[np.float64]) -> str:
    """Return numbers as text: float32, compressed."""
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes(), 9)).decode()


def unpack(text: str) -> npt.NDArray[np.float64]:
    """Return the numbers of :func:`pack`, to the precision of float32."""
    content = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(content, dtype="<f4").astype(np.float64)
