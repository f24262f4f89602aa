"""What several commands share: options, the device, a run with its data, tables of metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmssl.errors import InputError
from mmssl.models.registry import DEFAULT_MODEL, model_spec

# What `parser.add_subparsers()` returns; argparse has no public name for it.
Commands = Any


class Parser(argparse.ArgumentParser):
    """Usage errors are one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raised instead of printing the usage and leaving."""
        raise InputError(f"{message} (see {self.prog} --help)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """``RUN`` and ``--data``."""
    parser.add_argument("run_directory", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data set, if it has moved")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--ops``."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--ops", default=None, choices=["auto", "native", "reference"], help="backend of the ops"
    )


def add_config_options(parser: argparse.ArgumentParser, models: Sequence[str]) -> None:
    """The data, the model and its configuration."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set (see `mmssl data`)")
    parser.add_argument("--model", choices=models)
    parser.add_argument("--variant", choices=["paper", "released"], help="default: paper")
    parser.add_argument("--preset", help="hyper-parameters of a data set, e.g. tiktok")
    parser.add_argument("--config", type=Path, metavar="F.toml", help="any fields of the config")
    parser.add_argument(
        "--set", action="append", metavar="A.B=C", dest="settings", help="one field; repeatable"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="at most so many")


def epochs_setting(model: str, epochs: int) -> str:
    """What ``--epochs`` stands for, as a ``--set``; a model in closed form ignores it."""
    section = model_spec(model).schedule or "training"
    return f"{section}.epochs={epochs}"


def build_config(arguments: argparse.Namespace) -> Any:
    """The configuration that :func:`add_config_options` and ``--seed`` ask for."""
    from mmssl.config import load_config

    settings = list(arguments.settings or ())
    if arguments.epochs is not None:
        settings.append(epochs_setting(arguments.model or DEFAULT_MODEL, arguments.epochs))
    if arguments.seed is not None:
        settings.append(f"training.seed={arguments.seed}")
    return load_config(
        arguments.variant or "paper",
        preset=arguments.preset,
        file=arguments.config,
        settings=settings,
    )


def resolve_device(arguments: argparse.Namespace) -> str:
    """Applies ``--ops`` and resolves ``--device``."""
    import torch

    if arguments.ops is not None:
        from mmssl import ops

        ops.set_backend(arguments.ops)
    available = torch.cuda.is_available()
    if arguments.device == "cuda" and not available:
        raise InputError(f"--device cuda: no CUDA device is usable by torch {torch.__version__}")
    if arguments.device == "auto":
        return "cuda" if available else "cpu"
    return str(arguments.device)


def load_run(arguments: argparse.Namespace, device: str) -> tuple[Any, Any, Any, Any, Any]:
    """Run, data set, train graph and embeddings of a trained run."""
    from mmssl.graph import InteractionGraph
    from mmssl.training.run import RunDirectory

    run = RunDirectory.open(arguments.run_directory)
    user, item = run.load_embeddings()
    dataset = run.read_data(arguments.data)
    for name, table, rows in (("user", user, dataset.num_users), ("item", item, dataset.num_items)):
        if table.shape[0] != rows:
            raise InputError(
                f"{run.path / 'model.safetensors'}: expected {rows} rows in embedding.{name}, as "
                f"many as the data set has, got {table.shape[0]}"
            )
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    return run, dataset, graph.to(device), user.to(device), item.to(device)


def printable(text: str) -> str:
    """Text of strangers on one line of a terminal: what would control it is shown escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_metrics(metrics: dict[str, float]) -> None:
    """One line per metric."""
    for name, value in metrics.items():
        print(f"  {name:14s} {value:.4f}")
