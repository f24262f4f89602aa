"""Export of a trained model to a directory that serves without its run and data set."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import mmssl
from mmssl.data.staging import staged
from mmssl.data.tables import table_text
from mmssl.errors import InputError
from mmssl.extras import require
from mmssl.files import file_sha256
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.models.item_weights import ItemWeights
from mmssl.models.scorer import Scorer
from mmssl.serving import tables as T
from mmssl.serving.cold import MIN_ITEMS
from mmssl.serving.scorer import DotProducts, onnx_bytes, torch_export_bytes
from mmssl.serving.tables import ServingTables

DEFAULT_FORMATS = ("npz", "safetensors")
SCORER_K = 100
"""Default length of the lists that exported scorers return."""


def export(
    tables: ServingTables,
    target: str | Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    top_k: int = SCORER_K,
) -> dict[str, Any]:
    """Write an export atomically.

    Every export contains ``users.tsv``, ``items.tsv`` (index, id, title), ``seen.npz`` (the items
    to exclude from each user's list, as CSR) and ``manifest.json`` with the hash of each file; that
    of a model with item weights also ``history.npz`` (the train items of each user, as CSR).

    Args:
        tables: Model to export, see `mmssl.serving.tables.tables_of_run`.
        target: Directory that does not exist or is empty.
        formats: Names of the formats to write, keys of `FORMATS`.
        top_k: Length of the lists of the scorers ``torch-export`` and ``onnx``; at most the number
            of items is used.

    Returns:
        The content of ``manifest.json``.

    Warns:
        UserWarning: Too few items have train interactions to fit a map from features.

    Raises:
        InputError: A format is unknown, its library is missing or it needs vectors that the model
            lacks; ``top_k`` is invalid; or ``target`` is not empty or can't be written.
    """
    wanted = tuple(dict.fromkeys(formats))
    for name in wanted:
        if name not in FORMATS:
            raise InputError(f"formats: expected names among {', '.join(FORMATS)}, got {name!r}")
    if not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"top_k: expected an integer of at least 1, got {top_k!r}")
    warm = tables.num_items - tables.cold_items.numel()
    if tables.features and isinstance(tables.scorer, Embeddings) and warm < MIN_ITEMS:
        warnings.warn(
            f"the export has no map from features to vectors, for new items: {warm} items have "
            f"train interactions, and {MIN_ITEMS} are needed",
            stacklevel=2,
        )
        tables = dataclasses.replace(tables, features={})
    with staged(target) as folder:
        _write_ids(tables, folder)
        _write_rows(tables.graph, folder / T.SEEN, train_degree=tables.train_degree.numpy())
        if isinstance(tables.scorer, ItemWeights):
            _write_rows(tables.scorer.history, folder / T.HISTORY)
        if tables.feature_map is not None:
            _write_feature_map(tables, folder)
        for name in wanted:
            FORMATS[name](tables, folder, min(top_k, tables.num_items))
        manifest = _manifest(tables, wanted, folder)
        (folder / T.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _write_ids(tables: ServingTables, folder: Path) -> None:
    users = tables.user_ids or tuple(map(str, range(tables.num_users)))
    items = tables.item_ids or tuple(map(str, range(tables.num_items)))
    titles = tables.item_titles or ("",) * tables.num_items
    for name, text in (
        (T.USERS, table_text(("user", "id"), ((one,) for one in users))),
        (T.ITEMS, table_text(("item", "id", "title"), zip(items, titles, strict=True))),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _write_rows(graph: InteractionGraph, file: Path, **more: Any) -> None:
    rowptr, col = graph.index.rowptr.cpu().numpy(), graph.index.col.cpu().numpy()
    np.savez(file, rowptr=rowptr, col=col, **more)


def _write_feature_map(tables: ServingTables, folder: Path) -> None:
    fitted = tables.feature_map
    assert fitted is not None and tables.cold_vectors is not None
    tensors = {
        "weight": fitted.weight,
        "bias": fitted.bias,
        "cold_vectors": tables.cold_vectors,
    }
    _save_tensors({k: v.contiguous() for k, v in tensors.items()}, folder / T.FEATURE_MAP)


def _write_npz(tables: ServingTables, folder: Path, _: int) -> None:
    arrays = {name: tensor.numpy() for name, tensor in _tensors(tables.scorer).items()}
    vectors = isinstance(tables.scorer, Embeddings)
    np.savez(folder / (T.NPZ if vectors else T.WEIGHTS_NPZ), **arrays)  # type: ignore[arg-type]


def _write_safetensors(tables: ServingTables, folder: Path, _: int) -> None:
    vectors = isinstance(tables.scorer, Embeddings)
    file = folder / (T.SAFETENSORS if vectors else T.WEIGHTS_SAFETENSORS)
    _save_tensors(_tensors(tables.scorer), file)


def _tensors(scorer: Scorer) -> dict[str, Tensor]:
    return scorer._asdict() if isinstance(scorer, Embeddings) else scorer.tensors()


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
        path.chmod(mode)  # the library makes a file that only its owner may read
    except SafetensorError as error:  # what the library raises on a full disk
        raise OSError(str(error)) from error


def _write_faiss(tables: ServingTables, folder: Path, _: int) -> None:
    require("faiss", "ann", "format faiss needs faiss")
    import faiss

    item = tables.vectors.item
    index = faiss.IndexFlatIP(item.shape[1])
    index.add(item.numpy())
    # faiss.write_index only prints a message if the disk is full when it closes the file.
    (folder / T.FAISS).write_bytes(faiss.serialize_index(index).data)


def _write_torch_export(tables: ServingTables, folder: Path, k: int) -> None:
    (folder / T.TORCH_EXPORT).write_bytes(torch_export_bytes(DotProducts(*tables.vectors, k)))


def _write_onnx(tables: ServingTables, folder: Path, k: int) -> None:
    (folder / T.ONNX).write_bytes(onnx_bytes(DotProducts(*tables.vectors, k)))


FORMATS: dict[str, Callable[[ServingTables, Path, int], None]] = {
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "faiss": _write_faiss,
    "torch-export": _write_torch_export,
    "onnx": _write_onnx,
}
"""Format name -> function that writes it."""


def _manifest(tables: ServingTables, formats: Sequence[str], folder: Path) -> dict[str, Any]:
    fitted = tables.feature_map
    vectors = tables.scorer if isinstance(tables.scorer, Embeddings) else None
    return {
        "format": T.FORMAT_VERSION,
        "mmssl": mmssl.__version__,
        "model": tables.model,
        "data": {"name": tables.name, "hash": tables.data_hash},
        "num_users": tables.num_users,
        "num_items": tables.num_items,
        **({} if vectors is None else {"embedding_dim": vectors.user.shape[1]}),
        "dtype": "float32",
        "score": T.ITEM_WEIGHTS if vectors is None else T.DOT_PRODUCT,
        "seen": tables.seen,
        "num_seen": tables.graph.nnz,
        "num_cold_items": tables.cold_items.numel(),
        "feature_map": None
        if fitted is None
        else {
            "modalities": list(fitted.modalities),
            "widths": list(fitted.widths),
            "penalty": fitted.penalty,
            "explained": fitted.explained,
        },
        "formats": list(formats),
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
            for file in sorted(folder.iterdir())
        },
    }
