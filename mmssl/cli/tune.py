"""`mmssl tune`: hyper-parameter search."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from mmssl.cli.common import Commands, add_config_options, add_device_options, resolve_device
from mmssl.errors import InputError
from mmssl.files import quoted
from mmssl.models.registry import DEFAULT_MODEL, model_names
from mmssl.signals import StopOnSignal

_DEFAULT_TRIALS = 20
_FIXED = ("data", "model", "variant", "preset", "config", "settings", "epochs", "seed", "space")


def add(commands: Commands) -> None:
    """Register the command."""
    tune = commands.add_parser("tune", help="search hyper-parameters (see docs/tuning.md)")
    add_config_options(tune, models=model_names())
    tune.add_argument(
        "--space",
        type=Path,
        metavar="F.toml",
        help="searched fields and ranges (default: those of the model)",
    )
    tune.add_argument("--out", type=Path, metavar="STUDY", required=True)
    tune.add_argument("--trials", type=int, metavar="N", help=f"default: {_DEFAULT_TRIALS}")
    tune.add_argument(
        "--jobs", type=int, metavar="N", help="processes that share the threads; default: 1"
    )
    tune.add_argument("--timeout", type=float, metavar="S", help="save and stop after S seconds")
    tune.add_argument("--seed", type=int, metavar="N", help="of the search and of every trial")
    how = tune.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue the study in --out")
    how.add_argument("--join", action="store_true", help="train trials of a study that is running")
    tune.add_argument("--owner", type=int, help=argparse.SUPPRESS)  # see Processes
    tune.add_argument(
        "--track", nargs="+", metavar="TRACKER", help="tensorboard, wandb, mlflow; of every trial"
    )
    add_device_options(tune)
    tune.add_argument("--quiet", action="store_true", help="do not print a line per trial")
    tune.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from mmssl.tuning import require_optuna

    require_optuna()
    for option in ("jobs", "trials"):
        count = getattr(arguments, option)
        if count is not None and count < 1:
            raise InputError(f"--{option}: expected at least 1, got {count}")
    if arguments.timeout is not None and not arguments.timeout > 0:
        raise InputError(f"--timeout: expected a positive number, got {arguments.timeout}")
    with StopOnSignal() as stop:
        if arguments.owner is not None:
            stop.requested()  # from now on the owner's signal is remembered, not reported
        device = resolve_device(arguments)
        if arguments.join:
            study, dataset = _joined(arguments)
        else:
            study, dataset = (_resumed if arguments.resume else _new)(arguments)
        try:
            return _run(arguments, study, dataset, device, stop)
        finally:
            study.close()


def _run(
    arguments: argparse.Namespace, study: Any, dataset: Any, device: str, stop: StopOnSignal
) -> int:
    import torch

    from mmssl.memory import keep_freed_memory
    from mmssl.tuning.processes import HAS_PROBLEM, Processes
    from mmssl.tuning.result import result_lines, write_result
    from mmssl.tuning.worker import run_trials

    keep_freed_memory()
    jobs, before = arguments.jobs or 1, torch.get_num_threads()
    threads = max(1, before // jobs)
    options = [f"--device={device}", *(["--quiet"] if arguments.quiet else [])]
    options += [f"--ops={arguments.ops}"] if arguments.ops else []
    deadline = time.monotonic() + (arguments.timeout or float("inf"))

    def should_stop() -> bool:
        late = time.monotonic() > deadline
        abandoned = arguments.owner not in (None, os.getppid())
        if not (stop.requested() or late or abandoned or HAS_PROBLEM in others.exit_codes()):
            return False
        others.stop()
        return True

    def on_trial(number: int, text: str) -> None:
        if not arguments.quiet:
            print(f"trial {number:4d}: {text}", flush=True)

    torch.set_num_threads(threads)
    try:
        with Processes(study.path, jobs - 1, threads, options) as others:
            complete = run_trials(
                study,
                dataset,
                device=device,
                should_stop=should_stop,
                on_trial=on_trial,
                wait=not arguments.join,
            )
            for code in set(others.exit_codes()) - {0}:
                print(f"warning: a process of the study ended with code {code}", file=sys.stderr)
    except InputError:
        if arguments.owner is not None:
            return HAS_PROBLEM
        if not (arguments.resume or arguments.join) and study.has_no_result():
            shutil.rmtree(study.path)  # a study that cannot begin leaves nothing
        raise
    finally:
        torch.set_num_threads(before)
    more = f"continue with: mmssl tune --resume --out {quoted(study.path)}"
    if stop.requested():
        if arguments.owner is None:
            print(f"stopped; {more}")
        return stop.exit_code
    if not arguments.join:
        print("\n".join(result_lines(study, write_result(study, dataset))))
        print(f"study: {study.path}" + ("" if complete else f" (time is up; {more})"))
    return 0


def _new(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from mmssl.cli.common import build_config, warn_without_effect
    from mmssl.config import read_toml
    from mmssl.data.readers import read_dataset
    from mmssl.tracking import check_installed
    from mmssl.tuning.defaults import default_space
    from mmssl.tuning.space import parse_space
    from mmssl.tuning.study import Study, StudySpec

    if arguments.data is None:
        raise InputError("tune: --data is required")
    model = arguments.model or DEFAULT_MODEL
    check_installed(arguments.track or ())
    config = build_config(arguments)
    warn_without_effect(arguments, config, model)
    if arguments.space is None:
        space = default_space(model, config)
    else:
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
    study, dataset = _opened(arguments, "resume", (*_FIXED, "track"))
    if arguments.trials is not None:
        study.set_trials(arguments.trials)
    study.problem = ""
    study.retry_failed()
    return study, dataset


def _joined(arguments: argparse.Namespace) -> tuple[Any, Any]:
    return _opened(arguments, "join", (*_FIXED, "track", "trials", "jobs"))


def _opened(arguments: argparse.Namespace, how: str, refused: tuple[str, ...]) -> tuple[Any, Any]:
    from mmssl.data.readers import read_dataset
    from mmssl.tuning.study import Study, StudySpec

    for option in refused:
        if getattr(arguments, option) is not None:
            flag = "set" if option == "settings" else option
            raise InputError(f"tune: --{flag} can't be changed by --{how}")
    spec = StudySpec.read(arguments.out / "study.toml")
    dataset = read_dataset(Path(spec.data))
    if dataset.content_hash() != spec.data_hash:
        raise InputError(f"{spec.data}: not the data of {arguments.out}: it has changed since")
    return Study(arguments.out, spec, join=arguments.join), dataset
