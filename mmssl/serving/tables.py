"""Serving tables of a trained model: scores, ids, interactions of users and the feature map.

They are read from a run directory and its data set, or from an export.
"""

from __future__ import annotations

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

from mmssl.data.dataset import InteractionDataset
from mmssl.data.tables import read_table
from mmssl.errors import InputError
from mmssl.files import file_sha256
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.models.item_weights import stored_weights
from mmssl.models.scorer import Scorer, check_values
from mmssl.plain import plain_tensors
from mmssl.serving.cold import FeatureMap, fit_feature_map
from mmssl.training.run import RunDirectory

Seen = Literal["train", "all"]
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
NPZ, SAFETENSORS, SEEN = "embeddings.npz", "embeddings.safetensors", "seen.npz"
WEIGHTS_NPZ, WEIGHTS_SAFETENSORS = "weights.npz", "weights.safetensors"
HISTORY = "history.npz"
DOT_PRODUCT, ITEM_WEIGHTS = "dot product", "item weights"
FEATURE_MAP, USERS, ITEMS = "feature_map.safetensors", "users.tsv", "items.tsv"
FAISS, TORCH_EXPORT, ONNX = "items.faiss", "scorer.pt2", "scorer.onnx"


@dataclass(frozen=True, kw_only=True, eq=False)
class ServingTables:
    """Scores and lookup tables of a trained model; they are never modified in place."""

    name: str
    """Name of the data set."""
    model: str
    """Name of the model."""
    data_hash: str
    """Hash of the data set that the model was trained on."""
    scorer: Scorer
    """What ranks items: float32 vectors of users and items, or item weights."""
    graph: InteractionGraph
    """Interactions that are excluded from recommendations."""
    seen: Seen
    """Whether `graph` contains the train interactions or those of all splits."""
    train_degree: Tensor
    """(I,) int64 number of train interactions per item."""
    user_ids: tuple[str, ...] | None = None
    """External id of each user."""
    item_ids: tuple[str, ...] | None = None
    """External id of each item."""
    item_titles: tuple[str, ...] | None = None
    """Display title of each item."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Modality -> (I, d_m) features of a run; an export has `stored` instead."""
    stored: tuple[FeatureMap, Tensor] | None = None
    """`feature_map` and `cold_vectors` of an export."""

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return self.scorer.num_users

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return self.scorer.num_items

    @property
    def vectors(self) -> Embeddings:
        """The vectors of users and items.

        Raises:
            InputError: The model has item weights.
        """
        if not isinstance(self.scorer, Embeddings):
            raise InputError(
                f"model {self.model}: expected user and item vectors, got item weights"
            )
        return self.scorer

    @property
    def cold_items(self) -> Tensor:
        """(n,) int64 indices of the items without a train interaction, ascending."""
        return (self.train_degree == 0).nonzero().squeeze(1)

    @cached_property
    @plain_tensors()
    def feature_map(self) -> FeatureMap | None:
        """Map from features to item vectors, fitted on first access; None without one of both."""
        if self.features and isinstance(self.scorer, Embeddings):
            return fit_feature_map(self.features, self.scorer.item, self.train_degree > 0)
        return None if self.stored is None else self.stored[0]

    @cached_property
    @plain_tensors()
    def cold_vectors(self) -> Tensor | None:
        """(n, D) predicted vectors of `cold_items`; None without features."""
        if self.features and self.feature_map is not None:
            cold = self.cold_items
            return self.feature_map({name: rows[cold] for name, rows in self.features.items()})
        return None if self.stored is None else self.stored[1]


def tables_of_run(
    path: Path, data: str | Path | InteractionDataset | None = None, *, seen: Seen = "train"
) -> ServingTables:
    """Read the tables of a run directory and its data set.

    Args:
        path: Run directory.
        data: Directory of the data set if it was moved, or the data set itself.
        seen: Interactions to exclude from lists: those of "train" or of "all" splits.

    Raises:
        InputError: ``path`` is not a finished run, or the data set is not the one it was trained
            on.
    """
    run = RunDirectory.open(path)
    dataset = run.read_data(data)
    scorer = run.load_scorer(dataset)
    try:
        check_values(scorer.tensors(), torch.device("cpu"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if isinstance(scorer, Embeddings):
        scorer = Embeddings(*(table.float().contiguous() for table in scorer))
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
        scorer=scorer,
        graph=graph,
        seen=seen,
        train_degree=degree,
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids,
        item_titles=dataset.item_titles,
        features={name: torch.from_numpy(rows) for name, rows in dataset.features.items()},
    )


def read_export(path: Path) -> ServingTables:
    """Read the tables of an export, verifying the hash of every file.

    Raises:
        InputError: ``path`` is not an export, has a newer format, or a file is missing or damaged.
    """
    manifest = read_manifest(path)
    scorer = _read_scorer(path, manifest)
    seen = _read_tensors(path, SEEN, manifest, ("rowptr", "col", "train_degree"))
    num_users, num_items = scorer.num_users, scorer.num_items
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
        scorer=scorer,
        graph=_graph(seen, num_users, num_items),
        seen=manifest["seen"],
        train_degree=seen["train_degree"],
        user_ids=None if user_table is None else user_table.column("id"),
        item_ids=None if item_table is None else item_table.column("id"),
        item_titles=None if item_table is None else item_table.column("title"),
        stored=stored,
    )


def _read_scorer(path: Path, manifest: dict[str, Any]) -> Scorer:
    weighted = manifest["score"] == ITEM_WEIGHTS
    files = (WEIGHTS_SAFETENSORS, WEIGHTS_NPZ) if weighted else (SAFETENSORS, NPZ)
    names = [name for name in files if name in manifest["files"]]
    if not names:
        raise InputError(
            f"{path}: expected {files[1]} or {files[0]}, got an export with neither; export again "
            "with --formats npz"
        )
    if not weighted:
        return Embeddings(**_read_tensors(path, names[0], manifest, ("user", "item")))
    history = _read_tensors(path, HISTORY, manifest, ("rowptr", "col"))
    graph = _graph(history, manifest["num_users"], manifest["num_items"])
    weights = stored_weights(_read_tensors(path, names[0], manifest), path / names[0], graph)
    if weights is None:
        raise InputError(f"{path / names[0]}: expected item weights, got none")
    return weights


def _graph(rows: dict[str, Tensor], num_users: int, num_items: int) -> InteractionGraph:
    """Return the graph of a file with the arrays ``rowptr`` and ``col``."""
    user = torch.arange(num_users).repeat_interleave(rows["rowptr"].diff())
    return InteractionGraph.from_edges(user, rows["col"].long(), num_users, num_items)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read ``manifest.json`` of an export.

    Raises:
        InputError: The file can't be read, is not a manifest, or has an unknown format version.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version, fields = manifest["format"], set(manifest)
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{file}: expected the manifest of an export, got another kind of file"
        ) from None
    if version != FORMAT_VERSION:
        raise InputError(f"{file}: expected format {FORMAT_VERSION}, got {version!r}")
    if missing := {"model", "data", "score", "seen", "feature_map", "files"} - fields:
        raise InputError(f"{file}: expected the fields {', '.join(sorted(missing))}, got none")
    return dict(manifest)


def _read_tensors(
    path: Path, name: str, manifest: dict[str, Any], wanted: tuple[str, ...] | None = None
) -> dict[str, Tensor]:
    """Read the wanted arrays of a file, or all of them."""
    file = _checked(path, name, manifest)
    try:
        if name.endswith(".safetensors"):
            found = load_file(file)
        else:
            with np.load(file, allow_pickle=False) as arrays:
                found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        return found if wanted is None else {key: found[key] for key in wanted}
    except KeyError as error:
        expected = ", ".join(wanted or ())
        raise InputError(f"{file}: expected the arrays {expected}, got no {error}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{file}: can't be read: {error}") from error


def _checked(path: Path, name: str, manifest: dict[str, Any]) -> Path:
    file = path / name
    try:
        digest = file_sha256(file)
        expected = manifest["files"][name]["sha256"]
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror}") from error
    except (KeyError, TypeError):
        raise InputError(f"{path / MANIFEST}: expected a hash of {name}, got none") from None
    if digest != expected:
        raise InputError(
            f"{file}: expected content with the hash in {MANIFEST}, got other content; the file is "
            "damaged"
        )
    return file
