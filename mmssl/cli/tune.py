"""`mmssl tune`: hyper-parameter search."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from mmssl.cli.common import Commands, add_config_options, add_device_options, resolve_device
from mmssl.cli.stop import StopOnSignal
from mmssl.errors import InputError
from mmssl.models.registry import DEFAULT_MODEL, model_names

_DEFAULT_TRIALS = 20


def add(commands: Commands) -> None:
    """Registers the command."""
    tune = commands.add_parser("tune", help="search hyper-parameters (see docs/tuning.md)")
    add_config_options(tune, models=model_names(trained=True))
    tune.add_argument("--space", type=Path, metavar="F.toml", help="which fields, and their ranges")
    tune.add_argument("--out", type=Path, metavar="STUDY", required=True)
    tune.add_argument("--trials", type=int, metavar="N", help=f"default: {_DEFAULT_TRIALS}")
    tune.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes, which share the threads"
    )
    tune.add_argument(
        "--timeout", type=float, metavar="S", help="stop after so many seconds, resumable"
    )
    tune.add_argument("--seed", type=int, metavar="N", help="of the search and of every trial")
    tune.add_argument("--resume", action="store_true", help="continue the study in --out")
    tune.add_argument(
        "--track", nargs="+", metavar="TRACKER", help="tensorboard, wandb, mlflow; of every trial"
    )
    add_device_options(tune)
    tune.add_argument("--quiet", action="store_true", help="no line per trial")
    tune.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise InputError(
            'tune: the package optuna is missing; install it with: pip install "mmssl[tune]"'
        )
    if arguments.jobs < 1:
        raise InputError(f"--jobs: expected at least 1, got {arguments.jobs}")
    if arguments.trials is not None and arguments.trials < 1:
        raise InputError(f"--trials: expected at least 1, got {arguments.trials}")
    if arguments.timeout is not None and not arguments.timeout > 0:
        raise InputError(f"--timeout: expected a positive number, got {arguments.timeout}")
    import torch

    from mmssl.tuning.pool import run_study
    from mmssl.tuning.result import result_lines, write_result

    device = resolve_device(arguments)
    study, dataset = (_resumed if arguments.resume else _new)(arguments)

    def on_trial(number: int, text: str) -> None:
        if not arguments.quiet:
            print(f"trial {number:4d}: {text}", flush=True)

    try:
        with StopOnSignal() as stop:
            try:
                complete = run_study(
                    study,
                    jobs=arguments.jobs,
                    threads=max(1, torch.get_num_threads() // arguments.jobs),
                    device=device,
                    timeout=arguments.timeout,
                    should_stop=stop.requested,
                    on_trial=on_trial,
                )
            except InputError:
                if not arguments.resume and study.has_no_result():
                    shutil.rmtree(study.path)  # a study that can't begin leaves nothing
                raise
        more = f"continue with: mmssl tune --resume --out {study.path}"
        if stop.requested():
            print(f"stopped; {more}")
            return stop.exit_code
        print("\n".join(result_lines(study, write_result(study, dataset))))
        print(f"study: {study.path}" + ("" if complete else f" (time is up; {more})"))
    finally:
        study.close()
    return 0


def _new(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from mmssl.cli.common import build_config
    from mmssl.config import read_toml
    from mmssl.data.readers import read_dataset
    from mmssl.tracking import check_installed
    from mmssl.tuning.space import parse_space
    from mmssl.tuning.study import Study, StudySpec

    for option in ("data", "space"):
        if getattr(arguments, option) is None:
            raise InputError(f"tune: --{option} is required")
    model = arguments.model or DEFAULT_MODEL
    check_installed(arguments.track or ())
    config = build_config(arguments)
    space = read_toml(arguments.space)
    parse_space(space, config, model, str(arguments.space))
    dataset = read_dataset(arguments.data)
    spec = StudySpec(
        model=model,
        data=str(arguments.data.resolve()),
        data_hash=dataset.content_hash(),
        config=config,
        space=space,
        seed=config.training.seed,
        trials=arguments.trials or _DEFAULT_TRIALS,
        trackers=tuple(arguments.track or ()),
    )
    return Study.create(arguments.out, spec), dataset


def _resumed(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from mmssl.data.readers import read_dataset
    from mmssl.tuning.study import Study, StudySpec

    fixed = ("data", "model", "variant", "preset", "config", "settings", "epochs", "seed", "space")
    for option in (*fixed, "track"):
        if getattr(arguments, option) is not None:
            flag = "set" if option == "settings" else option
            raise InputError(f"tune: --{flag} can't be changed by --resume")
    spec = StudySpec.read(arguments.out / "study.toml")
    dataset = read_dataset(Path(spec.data))
    if dataset.content_hash() != spec.data_hash:
        raise InputError(f"{spec.data}: not the data of {arguments.out}: it has changed since")
    study = Study(arguments.out, spec)
    if arguments.trials is not None:
        study.set_trials(arguments.trials)
    study.retry_failed()
    return study, dataset
