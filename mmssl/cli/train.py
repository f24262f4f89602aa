"""`mmssl train`: a new run, a resumed one, or the profile of a step."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmssl.cli.common import Commands, add_device_options, print_metrics, resolve_device
from mmssl.cli.stop import StopOnSignal
from mmssl.errors import InputError


def add(commands: Commands) -> None:
    """Registers the command."""
    train = commands.add_parser("train", help="train a model into a run directory")
    train.add_argument("--data", type=Path, metavar="DIR", help="data set (see `mmssl data`)")
    train.add_argument("--model", choices=["mmssl", "lightgcn", "popularity"])
    train.add_argument("--variant", choices=["paper", "released"], help="default: paper")
    train.add_argument("--preset", help="hyper-parameters of a data set, e.g. tiktok")
    train.add_argument("--config", type=Path, metavar="F.toml", help="any fields of the config")
    train.add_argument(
        "--set", action="append", metavar="A.B=C", dest="settings", help="one field; repeatable"
    )
    train.add_argument("--epochs", type=int, metavar="N", help="at most so many")
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument("--out", type=Path, metavar="RUN", help="default: runs/DATA-MODEL-SEED")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    add_device_options(train)
    train.add_argument("--quiet", action="store_true", help="no progress")
    train.add_argument(
        "--profile",
        action="store_true",
        help="only run a few steps, print where their time goes and write RUN/trace.json",
    )
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    with StopOnSignal() as stop:
        return _train_until(stop, arguments)


def _train_until(stop: StopOnSignal, arguments: argparse.Namespace) -> int:
    from mmssl.training.baseline_run import fit_baseline
    from mmssl.training.memory import keep_freed_memory
    from mmssl.training.trainer import Interrupted, Trainer

    keep_freed_memory()
    device = resolve_device(arguments)
    run, dataset = (_resumed_run if arguments.resume else _new_run)(arguments)
    show_progress = not arguments.quiet
    if arguments.profile and (arguments.resume or run.info.model != "mmssl"):
        raise InputError("train: --profile needs a new run of the model mmssl")
    try:
        if run.info.model != "mmssl":
            run.initialize()
            metrics = fit_baseline(
                dataset,
                run,
                device=device,
                show_progress=show_progress,
                resume=arguments.resume,
                should_stop=stop.requested,
            )
        else:
            trainer = Trainer(
                dataset,
                run.config,
                run,
                device=device,
                show_progress=show_progress,
                should_stop=stop.requested,
            )
            if arguments.resume:
                trainer.resume()
            run.initialize()
            if arguments.profile:
                return _profile(trainer)
            metrics = trainer.fit()
    except Interrupted:
        print(f"stopped; continue with: mmssl train --resume --out {run.path}")
        return stop.exit_code
    print(f"test of epoch {metrics['best_epoch']}:" if metrics.get("best_epoch") else "test:")
    print_metrics(metrics["test"])
    print(f"run directory: {run.path}")
    return 0


def _profile(trainer: Any) -> int:
    from mmssl.training.profile import profile_step

    trace = trainer.run.path / "trace.json"
    print("\n".join(profile_step(trainer.step, trace).lines()))
    print(f"trace: {trace} (chrome://tracing or ui.perfetto.dev)")
    return 0


def _new_run(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from mmssl.config import load_config
    from mmssl.data.readers import read_dataset
    from mmssl.training.run import RunDirectory

    if arguments.data is None:
        raise InputError("train: --data DIR is required")
    settings = list(arguments.settings or ())
    variant, model = arguments.variant or "paper", arguments.model or "mmssl"
    if arguments.epochs is not None:
        section = "lightgcn" if model == "lightgcn" else "training"
        settings.append(f"{section}.epochs={arguments.epochs}")
    if arguments.seed is not None:
        settings.append(f"training.seed={arguments.seed}")
    config = load_config(variant, preset=arguments.preset, file=arguments.config, settings=settings)
    dataset = read_dataset(arguments.data)
    label = config.variant if model == "mmssl" else model
    default = Path("runs") / f"{dataset.name}-{label}-{config.training.seed}"
    run = RunDirectory.new(arguments.out or default, model, arguments.data, dataset, config)
    return run, dataset


def _resumed_run(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from mmssl.training.run import RunDirectory

    if arguments.out is None:
        raise InputError("train: --resume needs --out RUN, the run to continue")
    for option in ("model", "variant", "preset", "config", "seed"):
        if getattr(arguments, option) is not None:
            raise InputError(
                f"train: --{option} can't be changed by --resume, only --epochs and some --set can"
            )
    run = RunDirectory.open(arguments.out)
    settings = list(arguments.settings or ())
    if arguments.epochs is not None:
        section = "lightgcn" if run.info.model == "lightgcn" else "training"
        settings.append(f"{section}.epochs={arguments.epochs}")
    run.change(settings)
    return run, run.read_data(arguments.data)
