"""`mmssl train`: a new run, a resumed one, several seeds, or the profile of a step."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.cli.common import (
    Commands,
    add_config_options,
    add_device_options,
    epochs_section,
    print_metrics,
    resolve_device,
    warn_without_effect,
)
from mmssl.distributed import MODES, restarted
from mmssl.errors import InputError
from mmssl.files import quoted
from mmssl.models.registry import (
    DEFAULT_MODEL,
    DEFAULT_VARIANT,
    model_names,
    model_spec,
    model_specs,
)
from mmssl.signals import StopOnSignal

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.distributed.group import Group
    from mmssl.training.run import RunDirectory


def add(commands: Commands) -> None:
    """Register the command."""
    train = commands.add_parser("train", help="train a model into a run directory")
    add_config_options(train, models=model_names())
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument(
        "--seeds", type=int, metavar="N", help="train from N seeds, into OUT/seed-*; mean +- sd"
    )
    train.add_argument("--out", type=Path, metavar="RUN", help="default: runs/DATA-MODEL-SEED")
    train.add_argument("--resume", action="store_true", help="continue what is in --out")
    train.add_argument(
        "--track",
        nargs="+",
        default=[],
        metavar="TRACKER",
        help="tensorboard, wandb, mlflow; log.jsonl is always written",
    )
    train.add_argument(
        "--parallel",
        choices=MODES,
        help="train in the processes that torchrun has started (docs/distributed.md): data: every "
        "process has the whole model and a part of each batch; sharded: every process has a part "
        "of the users and items",
    )
    add_device_options(train)
    train.add_argument("--quiet", action="store_true", help="no progress")
    train.add_argument(
        "--profile",
        action="store_true",
        help="only run a few steps, print where their time goes and write RUN/trace.json",
    )
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from mmssl.distributed.launch import joined

    device = resolve_device(arguments)
    with StopOnSignal() as stop, joined(arguments.parallel, device) as (group, device):
        with ExitStack() as locks:
            return _train_until(stop, locks, arguments, group, device)


def _train_until(
    stop: StopOnSignal,
    locks: ExitStack,
    arguments: argparse.Namespace,
    group: Group,
    device: str,
) -> int:
    from mmssl.locks import DirectoryLock
    from mmssl.memory import keep_freed_memory
    from mmssl.tracking import Tracking, check_installed
    from mmssl.training.fit import fit_run
    from mmssl.training.guards import Interrupted
    from mmssl.training.seeds import fit_seeds, summary_lines

    keep_freed_memory(large=not group.sharded)  # who divides tables lacks memory, not time
    check_installed(arguments.track)
    for option in ("seeds", "profile"):
        if arguments.parallel is not None and getattr(arguments, option):
            raise InputError(f"train: --{option} can't be used with --parallel")
    model, variant = arguments.model or DEFAULT_MODEL, arguments.variant or DEFAULT_VARIANT
    if arguments.profile and (
        arguments.resume
        or arguments.seeds is not None
        or model_spec(model, variant).schedule is None
    ):
        raise InputError("train: --profile needs one new run of a model that is trained in epochs")
    group.check_same("command line", _shared(arguments))
    if arguments.out is not None and group.leads:
        DirectoryLock(arguments.out).check()  # before the data is read
    runs, dataset, out = (_resumed if arguments.resume else _new)(arguments, locks, group)
    if arguments.parallel is not None:
        _check_parallel(arguments, runs[0])
        _check_same(runs[0], group)
    several = runs[0].path != out
    if arguments.profile:
        return _profile(runs[0], dataset, device)

    def fit(run: Any) -> dict[str, Any]:
        if several and not arguments.quiet:
            print(f"seed {run.config.training.seed}", flush=True)
        return fit_run(
            run,
            dataset,
            device=device,
            show_progress=not arguments.quiet,
            resume=arguments.resume,
            should_stop=stop.requested,
            tracking=Tracking(run, arguments.track),
            group=group,
        )

    try:
        if several:
            print("\n".join(summary_lines(fit_seeds(runs, fit))))
            print(f"runs and summary: {out}")
            return 0
        metrics = fit(runs[0])
    except Interrupted:
        if group.leads:
            parallel = f" --parallel {arguments.parallel}" if arguments.parallel else ""
            again = f"mmssl train --resume --out {quoted(out)}{parallel}"
            print(f"stopped; continue with: {again}")
        return stop.exit_code
    if not group.leads:
        return 0
    print(f"test of epoch {metrics['best_epoch']}:" if metrics.get("best_epoch") else "test:")
    print_metrics(metrics["test"])
    print(f"run directory: {out}")
    return 0


def _profile(run: Any, dataset: Any, device: str) -> int:
    from mmssl.training.profile import profile_task
    from mmssl.training.run import check_new
    from mmssl.training.task import create_task

    trace = run.path / "trace.json"
    with run.lock:
        check_new(run.path)
        task = create_task(run.info.model, dataset, run.config, device)
        run.initialize()
        print("\n".join(profile_task(task, trace).lines()))
    print(f"trace: {trace} (chrome://tracing or ui.perfetto.dev)")
    return 0


def _check_parallel(arguments: argparse.Namespace, run: Any) -> None:
    mode = arguments.parallel
    spec = model_spec(run.info.model, run.config.variant)
    if mode not in spec.parallel:
        have = ", ".join(s.option() for s in model_specs() if mode in s.parallel)
        got = spec.option(run.config.variant)
        raise InputError(f"--parallel {mode}: expected {have}, got {got}")


def _shared(arguments: argparse.Namespace) -> str:
    """Return the arguments that must be the same on all machines: not paths, nor the display."""
    own = ("data", "out", "config", "quiet", "run")
    return repr(sorted((key, value) for key, value in vars(arguments).items() if key not in own))


def _check_same(run: Any, group: Group) -> None:
    """Check that no process has read another data set or file of settings than the others."""
    import torch

    import mmssl

    group.check_same("data set", run.info.data_hash)
    group.check_same("configuration", repr(run.config))
    group.check_same("version of mmssl and torch", f"{mmssl.__version__} {torch.__version__}")


def _kind(group: Group) -> type[RunDirectory]:
    """Return the class of run directories; only the leading process writes."""
    from mmssl.distributed.run import FollowedRun
    from mmssl.training.run import RunDirectory

    return RunDirectory if group.leads else FollowedRun


def _reader(group: Group) -> Callable[[Path], InteractionDataset]:
    """Return what reads a data set, or the part of it that this process trains on."""
    from mmssl.data.readers import read_dataset
    from mmssl.distributed.dataset import read_part
    from mmssl.distributed.group import Processes

    if group.sharded:
        assert isinstance(group, Processes)
        return partial(read_part, group=group)
    return read_dataset


def _new(
    arguments: argparse.Namespace, locks: ExitStack, group: Group
) -> tuple[list[Any], Any, Path]:
    from mmssl.cli.common import build_config
    from mmssl.locks import DirectoryLock
    from mmssl.training.run import default_run_path
    from mmssl.training.seeds import new_seeds

    if arguments.data is None:
        raise InputError("train: --data DIR is required")
    model = arguments.model or DEFAULT_MODEL
    config = build_config(arguments)
    if group.leads:
        warn_without_effect(arguments, config, model)
    dataset = _reader(group)(arguments.data)
    default = default_run_path(dataset, model, config)
    if arguments.seeds is None:
        out = arguments.out or default
        # The processes must agree, and the leading one may write the file while another looks.
        exists = restarted() and group.leads and (out / "config.toml").exists()
        if arguments.parallel is not None and group.any(exists)[0]:
            arguments.resume = True
            run = _kind(group).open(out)
            return [run], run.read_data(dataset), out
        return [_kind(group).new(out, model, arguments.data, dataset, config)], dataset, out
    out = arguments.out or default.with_name(f"{default.name}-{arguments.seeds}-seeds")
    runs = new_seeds(out, model, arguments.data, dataset, config, arguments.seeds)
    locks.enter_context(DirectoryLock(out))
    return list(runs), dataset, out


def _resumed(
    arguments: argparse.Namespace, locks: ExitStack, group: Group
) -> tuple[list[Any], Any, Path]:
    from mmssl.locks import DirectoryLock
    from mmssl.training.seeds import add_seeds, is_seeds_directory, open_seeds

    out = arguments.out
    if out is None:
        raise InputError("train: --resume needs --out RUN, the run to continue")
    for option in ("model", "variant", "preset", "config", "seed"):
        if getattr(arguments, option) is not None:
            raise InputError(
                f"train: --{option} can't be changed by --resume, only --epochs and some --set can"
            )
    several = is_seeds_directory(out)
    if several:
        locks.enter_context(DirectoryLock(out))
    runs = open_seeds(out) if several else [_kind(group).open(out)]
    if arguments.seeds is not None and not several:
        raise InputError(f"train: --seeds: {out} is one run, not several seeds")
    dataset = runs[0].read_data(arguments.data, _reader(group))
    if arguments.seeds is not None:
        add_seeds(runs, dataset, arguments.seeds)
    settings = list(arguments.settings or ())
    if arguments.epochs is not None:
        first = runs[0]
        section = epochs_section(first.info.model, first.config.variant)
        settings.append(f"{section}.epochs={arguments.epochs}")
    for run in runs:
        run.change(settings)
    if group.leads:
        warn_without_effect(arguments, runs[0].config, runs[0].info.model)
    return runs, dataset, out
