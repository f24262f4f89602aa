"""The run directory: the artifacts of a training run, and how they are read back.

``config.toml`` (complete), ``metrics.json``, ``model.safetensors``, ``checkpoint/``, ``log.jsonl``,
``report.html``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mmssl
from mmssl import ops
from mmssl.config import Config, apply_settings, read_toml
from mmssl.data.dataset import InteractionDataset
from mmssl.data.readers import read_dataset
from mmssl.errors import InputError
from mmssl.files import atomic_write, read_text
from mmssl.graph import InteractionGraph
from mmssl.locks import DirectoryLock
from mmssl.models.embeddings import Embeddings, stored_embeddings
from mmssl.models.item_weights import stored_weights
from mmssl.models.registry import changeable_fields, model_spec
from mmssl.models.scorer import Scorer
from mmssl.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

_CHANGEABLE = ("training.checkpoint_interval", "training.keep_checkpoints")
"""Fields of the trainer itself that a resumed run may change, whatever the model."""


class RunInfo(NamedTuple):
    """The ``[run]`` section of ``config.toml``."""

    model: str
    """A name in :mod:`mmssl.models.registry`."""
    data: str
    """The data set's directory, absolute."""
    data_hash: str
    """Content hash of the data: a run is never continued or evaluated on other data."""
    split: dict[str, Any]
    """Protocol, seed and parameters of the split, and the hash of its interactions."""
    version: str
    """Version of this package."""

    def data_record(self, name: str) -> dict[str, Any]:
        """Return what ``metrics.json`` records of the data; it distinguishes splits of one name."""
        return {"name": name, "hash": self.data_hash, "split": self.split}


class RunDirectory:
    """Paths and files of one run.

    Use :meth:`new` for a new run and :meth:`open` for an existing one. Reading needs no lock;
    whatever trains the run holds :attr:`lock`.
    """

    def __init__(
        self, path: Path, info: RunInfo, config: Config, *, lock: DirectoryLock | None = None
    ) -> None:
        self.path = path
        self.info = info
        self.config = config
        self.lock = lock or DirectoryLock(path)
        """Refuses a second process that trains into the directory."""

    @classmethod
    def new(
        cls,
        path: Path,
        model: str,
        data: Path,
        dataset: InteractionDataset,
        config: Config,
        *,
        lock: DirectoryLock | None = None,
    ) -> RunDirectory:
        """Describe a new run; nothing is written before :meth:`initialize`.

        Args:
            path: The run directory; it must not exist or be empty.
            model: A name in :mod:`mmssl.models.registry`.
            data: Directory of the data set.
            dataset: Its content.
            config: The complete configuration.
            lock: The lock of the directory if the caller holds it.

        Raises:
            InputError: The directory exists and is not empty, or a process is training in it.
        """
        lock = lock or DirectoryLock(path)
        cls.check_unused(path, lock)
        split = {**dataset.split.record(), "hash": dataset.interactions_hash()}
        info = RunInfo(model, str(data.resolve()), dataset.content_hash(), split, mmssl.__version__)
        return cls(path, info, config, lock=lock)

    @staticmethod
    def check_unused(path: Path, lock: DirectoryLock) -> None:
        """Refuse a directory for a new run that holds files or is trained in."""
        lock.check()
        check_new(path)

    def check_free(self) -> None:
        """Refuse a directory that another process has used since the run was described.

        Raises:
            InputError: It holds files other than ``config.toml``.
        """
        check_new(self.path, allowed=("config.toml",))

    def initialize(self) -> None:
        """Create the directory and write ``config.toml``.

        Raises:
            InputError: It can't be written.
        """
        import tomli_w

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path}: can't create the directory: {error.strerror}"
            ) from error
        text = tomli_w.dumps({"run": self.info._asdict(), **self.config.to_dict()})
        atomic_write(self.path / "config.toml", text.encode())

    @classmethod
    def open(cls, path: Path, *, lock: DirectoryLock | None = None) -> RunDirectory:
        """Read ``config.toml``.

        Args:
            path: The run directory.
            lock: Its lock if the caller holds it.

        Raises:
            InputError: Not a run directory, or a configuration that this version can't read.
        """
        file = path / "config.toml"
        if not os.path.lexists(file):
            seeds = sorted(path.glob("seed-*/config.toml"))
            why = f"the runs of several seeds, such as {seeds[0].parent}" if seeds else ""
            why = why or "it has no config.toml"
            raise InputError(f"{path}: not a run directory ({why})")
        content = read_toml(file)
        section = content.pop("run", None)
        fields = set(RunInfo._fields)
        if not isinstance(section, dict) or set(section) != fields or not _well_typed(section):
            raise InputError(f"{file}: expected a [run] section with {', '.join(sorted(fields))}")
        info = RunInfo(**section)
        config = Config().replace(content, source=str(file))
        try:
            model_spec(info.model, config.variant)
        except InputError as error:
            raise InputError(f"{file}: run.{error}") from None
        return cls(path, info, config, lock=lock)

    def change(self, settings: Iterable[str]) -> None:
        """Apply "section.field=value" settings to a run that is about to be resumed.

        Raises:
            InputError: Not a setting, or a field that no resumed run may change.
        """
        changed = apply_settings(self.config, settings)
        known = (*changeable_fields(), *_CHANGEABLE)
        before = self.config.to_dict()
        for name, section in changed.to_dict().items():
            for field in section if isinstance(section, dict) else ():
                if section[field] != before[name][field] and f"{name}.{field}" not in known:
                    own = model_spec(self.info.model, self.config.variant).changeable
                    raise InputError(
                        f"--set {name}.{field}: can't be changed by --resume, only "
                        f"{', '.join((*own, *_CHANGEABLE))} can"
                    )
        self.config = changed

    def read_data(
        self,
        data: str | Path | InteractionDataset | None = None,
        read: Callable[[Path], InteractionDataset] = read_dataset,
    ) -> InteractionDataset:
        """Read the data set of the run.

        Args:
            data: Its directory if that has moved, or the data set itself.
            read: What reads a directory.

        Raises:
            InputError: It can't be read, or is not the one that the run was trained on.
        """
        if isinstance(data, InteractionDataset):
            where, dataset = f"data set {data.name!r}", data
        else:
            directory = Path(self.info.data if data is None else data)
            if data is None and not directory.exists():
                raise InputError(
                    f"{directory}: expected the data set of {self.path}, got no directory; if it "
                    "has moved, --data DIR or data=DIR names it"
                )
            where, dataset = str(directory), read(directory)
        if dataset.content_hash() != self.info.data_hash:
            raise InputError(
                f"{where}: not the data of {self.path}, or its splits or features have changed "
                f"since: expected content hash {self.info.data_hash[:12]}, got "
                f"{dataset.content_hash()[:12]}"
            )
        return dataset

    @property
    def checkpoint_path(self) -> Path:
        """Path of the newest resumable state."""
        return self.path / "checkpoint" / "last.safetensors"

    @property
    def log_path(self) -> Path:
        """Path of the log, one JSON object per line."""
        return self.path / "log.jsonl"

    def save_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Write ``model.safetensors``: what ranks items, and the parameters that produced it.

        Args:
            tensors: Those of :meth:`mmssl.models.scorer.Scorer.tensors`, and parameters under the
                names ``parameter.NAME``.
        """
        save_checkpoint(self.path / "model.safetensors", tensors, {"model": self.info.model})

    def load_model(self) -> Checkpoint:
        """Read ``model.safetensors``."""
        return load_checkpoint(self.path / "model.safetensors")

    def load_scorer(self, dataset: InteractionDataset) -> Scorer:
        """Read what ranks items: the embeddings of the best epoch, or item weights.

        Args:
            dataset: The data of the run.

        Raises:
            InputError: Neither is in the file, or not of the data set's users and items.
        """
        file, tensors = self.path / "model.safetensors", self.load_model().tensors
        history = InteractionGraph.from_edges(
            *dataset.train, dataset.num_users, dataset.num_items, normalization="none"
        )
        weights = stored_weights(tensors, file, history)
        return weights or stored_embeddings(tensors, file, dataset)

    def load_embeddings(self, dataset: InteractionDataset | None = None) -> Embeddings:
        """Read the embeddings of the best epoch.

        Args:
            dataset: The data that they must fit, if known.

        Raises:
            InputError: The model has no user and item vectors, or not those of the data set.
        """
        return stored_embeddings(
            self.load_model().tensors, self.path / "model.safetensors", dataset
        )

    def save_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the newest checkpoint and keep ``training.keep_checkpoints - 1`` older ones.

        Raises:
            InputError: It can't be written, for example because the run directory is gone; it is
                not created again.
        """
        folder = self.checkpoint_path.parent
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: can't create the directory: {error.strerror}") from error
        keep = self.config.training.keep_checkpoints
        save_checkpoint(self.checkpoint_path, tensors, state, keep=keep)

    def log(self, event: str, **values: Any) -> int:
        """Append one line to ``log.jsonl``, durable when this returns; return the log's size.

        Raises:
            InputError: It can't be written.
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
        """Truncate the log; if it is too short (lost or edited), rewrite it from the history."""
        found = self.log_path.stat().st_size if self.log_path.exists() else 0
        if found >= size:
            if found:
                os.truncate(self.log_path, size)
            return
        lines = [json.dumps({"event": "epoch", **record}) + "\n" for record in history]
        atomic_write(self.log_path, "".join(lines).encode())

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, the last action of a run."""
        text = json.dumps({**metrics, "environment": environment()}, indent=1) + "\n"
        atomic_write(self.path / "metrics.json", text.encode())

    def read_metrics(self) -> dict[str, Any] | None:
        """Read ``metrics.json``; return None while the run is unfinished.

        Raises:
            InputError: The file does not hold metrics.
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
                continue  # trials of a study are not tested
            values = metrics.get(split)
            if not isinstance(values, dict) or not all(
                isinstance(value, (int, float)) and not abs(value) > sys.float_info.max
                for value in values.values()
            ):
                raise InputError(f"{file}: expected an object with numbers under {split!r}")
        found: dict[str, Any] = metrics
        return found


def check_new(path: Path, allowed: Container[str] = ()) -> None:
    """Refuse a directory that holds files; those that a killed process left behind are hidden.

    Args:
        path: The directory of a new run.
        allowed: Names of files that may exist.

    Raises:
        InputError: ``path`` is a file, or a directory with other files.
    """
    if not path.exists():
        return
    if not path.is_dir() or any(
        not file.name.startswith(".") and file.name not in allowed for file in path.iterdir()
    ):
        raise InputError(
            f"{path}: exists already; continue it with --resume or choose another --out"
        )


def default_run_path(dataset: InteractionDataset, model: str, config: Config) -> Path:
    """Return ``runs/DATA-MODEL-SEED``, with the variant in place of a model that has variants."""
    label = config.variant if model_spec(model, config.variant).variants else model
    return Path("runs") / f"{dataset.name}-{label}-{config.training.seed}"


def _well_typed(section: Mapping[str, Any]) -> bool:
    """Whether every field of a [run] section is text, except ``split``, which is a table."""
    return all(
        isinstance(value, dict if name == "split" else str) for name, value in section.items()
    )


def environment() -> dict[str, Any]:
    """Return versions, device and settings with which a result was measured."""
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
