"""What serving needs of a trained model: vectors, ids, what each user has, the feature map.

Read from a run directory (with its data set) or from an exported directory (on its own).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmssl.data.tables import read_table
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.serving.cold import FeatureMap, fit_feature_map
from mmssl.training.run import RunDirectory

Seen = Literal["train", "all"]
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
NPZ, SAFETENSORS, SEEN = "embeddings.npz", "embeddings.safetensors", "seen.npz"
FEATURE_MAP, USERS, ITEMS = "feature_map.safetensors", "users.tsv", "items.tsv"
FAISS, TORCH_EXPORT, ONNX = "items.faiss", "scorer.pt2", "scorer.onnx"


@dataclass(frozen=True, kw_only=True, eq=False)
class ServingTables:
    """A trained model without its training; nothing here is ever changed in place."""

    name: str
    """Of the data set."""
    model: str
    data_hash: str
    user: Tensor  # (U, D) float32
    item: Tensor  # (I, D) float32
    graph: InteractionGraph
    """What users have: the interactions that lists leave out."""
    seen: Seen
    """Whether those are the train interactions or all that the data set holds."""
    train_degree: Tensor  # (I,) int64
    user_ids: tuple[str, ...] | None = None
    item_ids: tuple[str, ...] | None = None
    item_titles: tuple[str, ...] | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    """Modality -> (I, d_m) of a run; an export has `stored` instead."""
    stored: tuple[FeatureMap, Tensor] | None = None
    """`feature_map` and `cold_vectors` of an export."""

    @property
    def num_users(self) -> int:
        """U."""
        return self.user.shape[0]

    @property
    def num_items(self) -> int:
        """I."""
        return self.item.shape[0]

    @property
    def cold_items(self) -> Tensor:
        """(n,) int64: the items without a train interaction."""
        return (self.train_degree == 0).nonzero().squeeze(1)

    @cached_property
    def feature_map(self) -> FeatureMap | None:
        """From features to item vectors, fitted when first asked for; None without features."""
        if self.features:
            return fit_feature_map(self.features, self.item, self.train_degree)
        return None if self.stored is None else self.stored[0]

    @cached_property
    def cold_vectors(self) -> Tensor | None:
        """(items without a train interaction, D), in order of index: their vectors by features."""
        if self.features and self.feature_map is not None:
            cold = self.cold_items
            return self.feature_map({name: rows[cold] for name, rows in self.features.items()})
        return None if self.stored is None else self.stored[1]


def tables_of_run(path: Path, data: Path | None = None, *, seen: Seen = "train") -> ServingTables:
    """The tables of a run directory and its data set.

    Args:
        path: The run.
        data: The data set, if it has moved.
        seen: What lists leave out: the train interactions, or validation and test as well.

    Raises:
        InputError: not a run, unfinished, or other data than it was trained on.
    """
    run = RunDirectory.open(path)
    user, item = run.load_embeddings()
    for name, table in (("user", user), ("item", item)):
        if not bool(torch.isfinite(table).all()):
            raise InputError(f"{path}: expected finite {name} vectors, got NaN or infinity")
    dataset = run.read_data(data)
    edges = [dataset.train] if seen == "train" else [edges for _, edges in dataset.splits()]
    graph = InteractionGraph.from_edges(
        np.concatenate([part.user for part in edges]),
        np.concatenate([part.item for part in edges]),
        dataset.num_users,
        dataset.num_items,
    )
    degree = torch.from_numpy(np.bincount(dataset.train.item, minlength=dataset.num_items))
    return ServingTables(
        name=dataset.name,
        model=run.info.model,
        data_hash=run.info.data_hash,
        user=user.float().contiguous(),
        item=item.float().contiguous(),
        graph=graph,
        seen=seen,
        train_degree=degree,
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids,
        item_titles=dataset.item_titles,
        features={name: torch.from_numpy(rows) for name, rows in dataset.features.items()},
    )


def read_export(path: Path) -> ServingTables:
    """The tables of a directory that ``mmssl export`` wrote; every file is held to its hash.

    Raises:
        InputError: not an export, one of a newer version, a missing or damaged file.
    """
    manifest = read_manifest(path)
    names = [name for name in (SAFETENSORS, NPZ) if name in manifest["files"]]
    if not names:
        raise InputError(
            f"{path}: expected {NPZ} or {SAFETENSORS} to load from, got an export without either; "
            "export again with --formats npz"
        )
    vectors = _read_tensors(path, names[0], manifest, ("user", "item"))
    seen = _read_tensors(path, SEEN, manifest, ("rowptr", "col", "train_degree"))
    num_users, num_items = vectors["user"].shape[0], vectors["item"].shape[0]
    users = torch.arange(num_users).repeat_interleave(seen["rowptr"].diff())
    stored = None
    if manifest["feature_map"] is not None:
        entry, wanted = manifest["feature_map"], ("weight", "bias", "cold_vectors")
        parts = _read_tensors(path, FEATURE_MAP, manifest, wanted)
        cold = parts.pop("cold_vectors")
        fitted = FeatureMap(
            modalities=tuple(entry["modalities"]),
            widths=tuple(entry["widths"]),
            penalty=entry["penalty"],
            explained=entry["explained"],
            **parts,
        )
        stored = fitted, cold
    for name in (USERS, ITEMS):
        _checked(path, name, manifest)
    user_table = read_table(path / USERS, "user", num_users)
    item_table = read_table(path / ITEMS, "item", num_items)
    return ServingTables(
        name=manifest["data"]["name"],
        model=manifest["model"],
        data_hash=manifest["data"]["hash"],
        user=vectors["user"],
        item=vectors["item"],
        graph=InteractionGraph.from_edges(users, seen["col"].long(), num_users, num_items),
        seen=manifest["seen"],
        train_degree=seen["train_degree"],
        user_ids=None if user_table is None else user_table.column("id"),
        item_ids=None if item_table is None else item_table.column("id"),
        item_titles=None if item_table is None else item_table.column("title"),
        stored=stored,
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """``manifest.json`` of an exported directory.

    Raises:
        InputError: none there, not one, or of a version this package doesn't know.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version, fields = manifest["format"], set(manifest)
    except OSError as error:
        raise InputError(f"{file}: can't read the file: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{file}: expected the manifest of an export, got something else"
        ) from None
    if version != FORMAT_VERSION:
        raise InputError(f"{file}: expected format {FORMAT_VERSION}, got {version!r}")
    if missing := {"model", "data", "seen", "feature_map", "files"} - fields:
        raise InputError(f"{file}: expected {', '.join(sorted(missing))}, got none")
    return dict(manifest)


def _read_tensors(
    path: Path, name: str, manifest: dict[str, Any], wanted: tuple[str, ...]
) -> dict[str, Tensor]:
    file = _checked(path, name, manifest)
    try:
        if name.endswith(".safetensors"):
            found = load_file(file)
        else:
            with np.load(file, allow_pickle=False) as arrays:
                found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        return {key: found[key] for key in wanted}
    except KeyError as error:
        raise InputError(f"{file}: expected {', '.join(wanted)}, got no {error}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{file}: can't be read: {error}") from error


def _checked(path: Path, name: str, manifest: dict[str, Any]) -> Path:
    file = path / name
    try:
        digest = file_hash(file)
        expected = manifest["files"][name]["sha256"]
    except OSError as error:
        raise InputError(f"{file}: can't read the file: {error.strerror}") from error
    except (KeyError, TypeError):
        raise InputError(f"{path / MANIFEST}: expected a hash of {name}, got none") from None
    if digest != expected:
        raise InputError(f"{file}: the content does not match its hash in {MANIFEST}; damaged?")
    return file


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
