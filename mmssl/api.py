"""Training and loading models from Python, in one call each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmssl.config import Config, ignored_options, load_config, without_effect
from mmssl.data.dataset import InteractionDataset
from mmssl.data.readers import read_dataset
from mmssl.data.writers import write_dataset
from mmssl.device import resolve_device
from mmssl.errors import InputError
from mmssl.evaluation.evaluator import Evaluator, Split
from mmssl.files import quoted
from mmssl.graph import InteractionGraph
from mmssl.locks import DirectoryLock
from mmssl.models.registry import DEFAULT_MODEL, model_spec
from mmssl.serving.recommender import Recommender
from mmssl.training.fit import fit_run
from mmssl.training.run import RunDirectory, default_run_path

Data = str | Path | InteractionDataset


class Run:
    """A finished training run.

    Args:
        path: Its run directory.
        data: The data set if it has moved, or the data set itself; read on demand otherwise.

    Raises:
        InputError: Not a run directory, or an unfinished run.

    Example:
        >>> run = mmssl.Run("runs/mine")
        >>> run.metrics["test"]["recall@20"]
    """

    def __init__(self, path: str | Path, *, data: Data | None = None) -> None:
        self.directory = RunDirectory.open(_path("path", path))
        metrics = self.directory.read_metrics()
        if metrics is None:
            raise InputError(
                f"{path}: expected a finished run, got one without metrics.json; continue it with: "
                f"mmssl train --resume --out {quoted(path)}"
            )
        self.metrics: dict[str, Any] = metrics
        """Content of ``metrics.json``: ``val``, ``test``, ``best_epoch``, ``epochs``, ..."""
        self._data = data

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, model={self.directory.info.model!r})"

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def config(self) -> Config:
        """The complete configuration."""
        return self.directory.config

    def evaluate(self, split: Split = "test", *, device: str = "auto") -> dict[str, float]:
        """Rank all items for the users of a split and return the metrics.

        Args:
            split: "val" or "test".
            device: "auto", "cpu" or "cuda".

        Raises:
            InputError: Another split, or data that is missing or not that of the run.
        """
        device = resolve_device(device)
        dataset = self.directory.read_data(self._data)
        scorer = self.directory.load_scorer(dataset)
        graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
        return Evaluator(dataset, split, graph.to(device)).evaluate(scorer.to(device))

    def recommender(self, **options: Any) -> Recommender:
        """Load the model for recommendations; options are those of :meth:`Recommender.load`."""
        return Recommender.load(self.path, data=self._data, **options)


def train(
    data: Data,
    model: str = DEFAULT_MODEL,
    *,
    preset: str | None = None,
    variant: str | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> Run:
    """Train a model into a new run directory, like ``mmssl train``.

    Args:
        data: Directory of a data set, or the data set itself, of which the run directory then
            holds a copy.
        model: Name of a model, see :func:`mmssl.models.registry.model_names`.
        preset: Hyper-parameters of a data set, for example "tiktok".
        variant: "paper" (the default), "released" or "plus"; the other models have no variants.
        out: The run directory; default: ``runs/DATA-MODEL-SEED``.
        epochs: Maximum number of epochs.
        seed: Seed of initialization and sampling.
        device: "auto", "cpu" or "cuda".
        progress: Draw a progress bar and print a line per epoch.
        settings: Fields of the configuration by name, for example
            ``{"model.embedding_dim": 32}``.
        **sections: Fields by section, for example ``training={"lr": 1e-3}``. Fields of the section
            ``model`` must be given in ``settings``.

    Returns:
        The finished run.

    Warns:
        UserWarning: A field, the variant or the preset has no effect on the model.

    Raises:
        InputError: A wrong argument, data that can't be read or trained on, an existing run, or a
            directory in which another process is training.
        Diverged: Training produced NaN or Inf.

    Example:
        >>> run = mmssl.train("data/ml-100k", preset="ml-100k", training={"lr": 1e-3})
        >>> run.metrics["test"]["recall@20"]
    """
    if not isinstance(model, str):
        raise InputError(
            f"model: expected the name of a model, got {model!r:.60}; fields of the section "
            "'model' go into settings={'model.FIELD': ...}"
        )
    config = load_config(variant, preset=preset)
    schedule = model_spec(model, config.variant).schedule or "training"
    device = resolve_device(device)
    layers: list[Mapping[str, Any]] = [_plain(sections)]
    if not isinstance(settings or {}, Mapping) or any(
        not isinstance(n, str) for n in settings or ()
    ):
        raise InputError(
            f"settings: expected a dict like {{'plus.lr': 1e-3}}, got {settings!r:.60}"
        )
    for name, value in (settings or {}).items():
        section, _, field = name.partition(".")
        if section == "variant":
            raise InputError("settings: expected section.field, got 'variant': use variant=...")
        layers.append(_plain({section: {field: value}} if field else {section: value}))
    given = list(layers)
    if epochs is not None:
        layers.append(_plain({schedule: {"epochs": epochs}}))
    if seed is not None:
        layers.append(_plain({"training": {"seed": seed}}))
    for layer in layers:
        config = config.replace(layer, source="train")
    for line in ignored_options(model, config, variant=variant, preset=preset):
        warnings.warn(line, stacklevel=2)
    for layer in given:
        for name, clause in without_effect(layer, model, config.variant).items():
            warnings.warn(f"{name} {clause}", stacklevel=2)
    if out is not None:
        DirectoryLock(_path("out", out)).check()  # before the data is read
    dataset = data if isinstance(data, InteractionDataset) else read_dataset(_path("data", data))
    path = default_run_path(dataset, model, config) if out is None else _path("out", out)
    source = path / "data" if isinstance(data, InteractionDataset) else Path(data)
    run = RunDirectory.new(path, model, source, dataset, config)

    def keep_data(history: list[dict[str, Any]]) -> None:
        if isinstance(data, InteractionDataset):
            write_dataset(data, source)

    fit_run(run, dataset, device=device, show_progress=progress, on_start=keep_data)
    return Run(path)


def load(
    path: str | Path, *, data: Data | None = None, device: str = "auto", **options: Any
) -> Recommender:
    """Load a trained model for recommendations.

    Args:
        path: A run directory, or a directory written by ``mmssl export``.
        data: The data set of a run if it has moved, or the data set itself.
        device: "auto", "cpu" or "cuda".
        **options: Further options of :meth:`mmssl.serving.Recommender.load`.

    Raises:
        InputError: One line on what is missing, damaged or doesn't match.

    Example:
        >>> mmssl.load("runs/mine").recommend(["42"], k=10)
    """
    return Recommender.load(
        _path("path", path), data=data, device=resolve_device(device), **options
    )


def _plain(value: Any) -> Any:
    """Return a layer of the configuration with scalars of NumPy and torch as Python numbers."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _path(name: str, value: object) -> Path:
    if not isinstance(value, (str, Path)):
        raise InputError(f"{name}: expected a path, got {type(value).__name__}")
    return Path(value)
