"""Code shared by commands: options, the device, a run with its data, tables of metrics."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmssl.config import VARIANTS
from mmssl.errors import InputError
from mmssl.models.registry import DEFAULT_MODEL, DEFAULT_VARIANT, model_spec

# What `parser.add_subparsers()` returns; argparse has no public name for it.
Commands = Any


class Parser(argparse.ArgumentParser):
    """Reports usage errors in one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage and exiting."""
        raise InputError(f"{message} (see {self.prog} --help)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add ``RUN`` and ``--data``."""
    parser.add_argument("run_directory", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data set, if it has moved")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--ops``."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--ops", default=None, choices=["auto", "native", "reference"], help="backend of the ops"
    )


def add_config_options(parser: argparse.ArgumentParser, models: Sequence[str]) -> None:
    """Add the data, the model and its configuration."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set (see `mmssl data`)")
    parser.add_argument("--model", type=_model, choices=models)
    parser.add_argument("--variant", choices=VARIANTS, help=f"default: {DEFAULT_VARIANT}")
    parser.add_argument("--preset", help="hyper-parameters of a data set, e.g. tiktok")
    parser.add_argument("--config", type=Path, metavar="F.toml", help="any fields of the config")
    parser.add_argument(
        "--set", action="append", metavar="A.B=C", dest="settings", help="one field; repeatable"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="maximum number of epochs")


def _model(name: str) -> str:
    if name in VARIANTS:
        raise argparse.ArgumentTypeError(f"{name!r} is a variant of mmssl: --variant {name}")
    return name


def epochs_section(model: str, variant: str) -> str:
    """Return the section whose ``epochs`` is ``--epochs``; a model in closed form ignores it."""
    return model_spec(model, variant).schedule or "training"


def build_config(arguments: argparse.Namespace) -> Any:
    """Build the configuration from the options of :func:`add_config_options` and ``--seed``."""
    from mmssl.config import load_config

    config = load_config(
        arguments.variant,
        preset=arguments.preset,
        file=arguments.config,
        settings=arguments.settings or (),
    )
    if arguments.seed is not None:
        config = config.replace({"training": {"seed": arguments.seed}}, source="--seed")
    if arguments.epochs is None:
        return config
    section = epochs_section(arguments.model or DEFAULT_MODEL, config.variant)
    return config.replace({section: {"epochs": arguments.epochs}}, source="--epochs")


def warn_without_effect(arguments: argparse.Namespace, config: Any, model: str) -> None:
    """Print one line for each option that the chosen model does not read."""
    from mmssl.config import ignored_options, parse_setting, without_effect

    for line in ignored_options(
        model,
        config,
        variant=arguments.variant,
        preset=arguments.preset,
        file=arguments.config,
    ):
        print(f"warning: --{line}", file=sys.stderr)
    for setting in arguments.settings or ():
        for name, clause in without_effect(parse_setting(setting), model, config.variant).items():
            print(f"warning: --set {name} {clause}", file=sys.stderr)


def resolve_device(arguments: argparse.Namespace) -> str:
    """Apply ``--ops`` and resolve ``--device``."""
    from mmssl.device import resolve_device as resolve

    if arguments.ops is not None:
        from mmssl import ops

        ops.set_backend(arguments.ops)
    return resolve(arguments.device)


def warn_unfinished(path: Path) -> None:
    """Print one line if the directory is that of a run whose training has not ended."""
    if (path / "config.toml").exists() and not (path / "metrics.json").exists():
        print(
            f"warning: {path}: training has not ended; this is the best epoch so far",
            file=sys.stderr,
        )


def load_run(arguments: argparse.Namespace, device: str) -> tuple[Any, Any, Any, Any]:
    """Open a trained run: the run, its data set, its train graph, and what ranks items."""
    from mmssl.graph import InteractionGraph
    from mmssl.training.run import RunDirectory

    run = RunDirectory.open(arguments.run_directory)
    dataset = run.read_data(arguments.data)
    scorer = run.load_scorer(dataset)
    warn_unfinished(run.path)
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    return run, dataset, graph.to(device), scorer.to(device)


def printable(text: str) -> str:
    """Return untrusted text for one line of a terminal, with control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_metrics(metrics: dict[str, float]) -> None:
    """Print one line per metric."""
    for name, value in metrics.items():
        print(f"  {name:14s} {value:.4f}")
