"""A run directory: what a training run leaves behind, and how it is read back.

``config.toml`` (complete), ``metrics.json``, ``model.safetensors``, ``checkpoint/``, ``log.jsonl``,
``report.html``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import torch
from torch import Tensor

import mmssl
from mmssl import ops
from mmssl.config import Config, apply_settings, read_toml
from mmssl.data.dataset import InteractionDataset
from mmssl.data.readers import read_dataset
from mmssl.errors import InputError
from mmssl.files import read_text
from mmssl.models.registry import model_spec
from mmssl.training.checkpoint import Checkpoint, atomic_write, load_checkpoint, save_checkpoint

# What a run may change when it goes on: nothing that its weights' shapes or its data depend on.
CHANGEABLE = (
    *("training.epochs", "training.patience", "training.lr", "training.lr_decay"),
    *("training.clip_norm", "training.checkpoint_interval", "training.keep_checkpoints"),
    *("critic.lr", "critic.clip_norm", "lightgcn.epochs", "lightgcn.patience", "lightgcn.lr"),
)


class RunInfo(NamedTuple):
    """The ``[run]`` section of ``config.toml``."""

    model: str
    """A name in :mod:`mmssl.models.registry`."""
    data: str
    """The data set's directory, absolute."""
    data_hash: str
    """Its content hash: a run is never continued or evaluated on other data."""
    split: dict[str, Any]
    """Protocol, seed and parameters of the split, and the hash of its interactions."""
    version: str
    """Of this package."""

    def data_record(self, name: str) -> dict[str, Any]:
        """What ``metrics.json`` says of the data: two splits of one name are told apart here."""
        return {"name": name, "hash": self.data_hash, "split": self.split}


class RunDirectory:
    """Paths and files of one run.

    Use :meth:`new` for a new run and :meth:`open` for an existing one.
    """

    def __init__(self, path: Path, info: RunInfo, config: Config) -> None:
        self.path = path
        self.info = info
        self.config = config

    @classmethod
    def new(
        cls, path: Path, model: str, data: Path, dataset: InteractionDataset, config: Config
    ) -> RunDirectory:
        """A run to be; nothing is written before :meth:`initialize`.

        Raises:
            InputError: the directory exists and is not empty.
        """
        if path.exists() and not (path.is_dir() and all(_is_hidden(p) for p in path.iterdir())):
            raise InputError(
                f"{path}: exists already; continue it with --resume or choose another --out"
            )
        split = {**dataset.split.record(), "hash": dataset.interactions_hash()}
        info = RunInfo(model, str(data.resolve()), dataset.content_hash(), split, mmssl.__version__)
        return cls(path, info, config)

    def initialize(self) -> None:
        """Makes the directory and writes ``config.toml``.

        Raises:
            InputError: it can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: can't make the directory: {error.strerror}") from error
        text = tomli_w.dumps({"run": self.info._asdict(), **self.config.to_dict()})
        atomic_write(self.path / "config.toml", text.encode())

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Reads ``config.toml``.

        Raises:
            InputError: not a run directory, or a configuration this version can't read.
        """
        file = path / "config.toml"
        if not os.path.lexists(file):
            raise InputError(f"{path}: not a run directory (it has no config.toml)")
        content = read_toml(file)
        section = content.pop("run", None)
        fields = set(RunInfo._fields)
        if not isinstance(section, dict) or set(section) != fields or not _well_typed(section):
            raise InputError(f"{file}: expected a [run] section with {', '.join(sorted(fields))}")
        info = RunInfo(**section)
        try:
            model_spec(info.model)
        except InputError as error:
            raise InputError(f"{file}: run.{error}") from None
        return cls(path, info, Config().replace(content, source=str(file)))

    def change(self, settings: Iterable[str]) -> None:
        """Applies "section.field=value" settings to a run that goes on.

        Raises:
            InputError: not a setting, or of a field that is not in `CHANGEABLE`.
        """
        changed = apply_settings(self.config, settings)
        before = self.config.to_dict()
        for name, section in changed.to_dict().items():
            for field in section if isinstance(section, dict) else ():
                if section[field] != before[name][field] and f"{name}.{field}" not in CHANGEABLE:
                    raise InputError(
                        f"--set {name}.{field}: can't be changed by --resume, only "
                        f"{', '.join(CHANGEABLE)} can"
                    )
        if changed.variant != self.config.variant:
            raise InputError("--set variant: can't be changed by --resume")
        self.config = changed

    def read_data(self, path: Path | None = None) -> InteractionDataset:
        """The data set of the run; ``path`` if it has moved.

        Raises:
            InputError: it can't be read, or is not the one that the run was trained on.
        """
        directory = path or Path(self.info.data)
        dataset = read_dataset(directory)
        if dataset.content_hash() != self.info.data_hash:
            raise InputError(
                f"{directory}: not the data of {self.path}: expected content hash "
                f"{self.info.data_hash[:12]}, got {dataset.content_hash()[:12]}"
            )
        return dataset

    @property
    def checkpoint_path(self) -> Path:
        """The newest resumable state."""
        return self.path / "checkpoint" / "last.safetensors"

    @property
    def log_path(self) -> Path:
        """One JSON object per line."""
        return self.path / "log.jsonl"

    def save_model(self, user: Tensor, item: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Writes ``model.safetensors``: final embeddings and the parameters they came from."""
        tensors = {"embedding.user": user, "embedding.item": item}
        tensors.update((f"parameter.{name}", tensor) for name, tensor in parameters.items())
        save_checkpoint(self.path / "model.safetensors", tensors, {"model": self.info.model})

    def load_model(self) -> Checkpoint:
        """Reads ``model.safetensors``."""
        return load_checkpoint(self.path / "model.safetensors")

    def load_embeddings(self) -> tuple[Tensor, Tensor]:
        """(U, D) and (I, D) of the best epoch."""
        file, tensors = self.path / "model.safetensors", self.load_model().tensors
        tables = []
        for name in ("embedding.user", "embedding.item"):
            table = tensors.get(name)
            if table is None or table.dim() != 2 or not table.dtype.is_floating_point:
                raise InputError(f"{file}: expected a matrix {name} of real numbers, got none")
            tables.append(table)
        user, item = tables
        if user.shape[1] != item.shape[1] or user.dtype != item.dtype:
            raise InputError(
                f"{file}: expected two tables of one width and type, got {tuple(user.shape)} "
                f"{user.dtype} and {tuple(item.shape)} {item.dtype}"
            )
        return user, item

    def save_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes the newest checkpoint and keeps those before it.

        Raises:
            InputError: it can't be written; the run directory itself is never made anew.
        """
        folder = self.checkpoint_path.parent
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: can't make the directory: {error.strerror}") from error
        keep = self.config.training.keep_checkpoints
        save_checkpoint(self.checkpoint_path, tensors, state, keep=keep)

    def log(self, event: str, **values: Any) -> int:
        """Appends one line to ``log.jsonl``, durable when this returns; the log's bytes by then.

        Raises:
            InputError: it can't be written.
        """
        try:
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")
                file.flush()
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise InputError(f"{self.log_path}: can't write the file: {error.strerror}") from error

    def truncate_log(self, size: int, history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Cuts the log; if it is too short (lost or edited), its epochs are written anew."""
        found = self.log_path.stat().st_size if self.log_path.exists() else 0
        if found >= size:
            if found:
                os.truncate(self.log_path, size)
            return
        lines = [json.dumps({"event": "epoch", **record}) + "\n" for record in history]
        atomic_write(self.log_path, "".join(lines).encode())

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes ``metrics.json``, the last thing a run does."""
        text = json.dumps({**metrics, "environment": environment()}, indent=1) + "\n"
        atomic_write(self.path / "metrics.json", text.encode())

    def read_metrics(self) -> dict[str, Any] | None:
        """``metrics.json``, or None while the run is unfinished.

        Raises:
            InputError: the file is not JSON.
        """
        file = self.path / "metrics.json"
        if not os.path.lexists(file):
            return None
        try:
            metrics = json.loads(read_text(file))
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: can't read the metrics: {error}") from error
        metrics = metrics if isinstance(metrics, dict) else {}
        for split in ("val", "test"):
            if split == "test" and split not in metrics:
                continue  # a trial of a study leaves it unread
            values = metrics.get(split)
            if not isinstance(values, dict) or not all(
                isinstance(value, (int, float)) and not abs(value) > sys.float_info.max
                for value in values.values()
            ):
                raise InputError(f"{file}: expected an object with numbers under {split!r}")
        found: dict[str, Any] = metrics
        return found


def _well_typed(section: Mapping[str, Any]) -> bool:
    """Text in every field of a [run] section but ``split``, which is a table."""
    return all(
        isinstance(value, dict if name == "split" else str) for name, value in section.items()
    )


def _is_hidden(path: Path) -> bool:
    """A file that a killed writer left behind."""
    return path.name.startswith(".")


def environment() -> dict[str, Any]:
    """What a result was measured with."""
    return {
        "mmssl": mmssl.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "ops": ops.requested_backend(),
    }
