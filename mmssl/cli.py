"""The command line, thin: parse, call, print.

Exit codes: 0 done, 1 internal error, 2 bad input or usage, 130 or 143 interrupted by SIGINT or
SIGTERM with the checkpoint saved.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmssl import __version__
from mmssl.errors import InputError


class _Parser(argparse.ArgumentParser):
    """Usage errors are one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # `mmssl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = f"{error.filename or 'system'}: {error.strerror or error}"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mmssl", description="Train and use the multi-modal recommender MMSSL.")
    parser.add_argument("--version", action="version", version=f"mmssl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    data = commands.add_parser("data", help="fetch or inspect a data set")
    actions = data.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    fetch = actions.add_parser("fetch", help="download a public data set and convert it")
    fetch.add_argument("name", help="ml-100k")
    fetch.add_argument("--out", type=Path, help="directory (default: data/NAME)")
    fetch.set_defaults(run=_fetch)
    inspect = actions.add_parser("inspect", help="check a data set and say what is in it")
    inspect.add_argument("directory", type=Path, metavar="DIR")
    inspect.add_argument("--json", action="store_true", help="machine-readable output")
    inspect.set_defaults(run=_inspect)

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
    _device_options(train)
    train.add_argument("--quiet", action="store_true", help="no progress")
    train.add_argument(
        "--profile",
        action="store_true",
        help="only run a few steps, print where their time goes and write RUN/trace.json",
    )
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="rank all items and print the metrics")
    _run_options(evaluate)
    evaluate.add_argument("--split", choices=["val", "test"], default="test")
    evaluate.add_argument("--json", action="store_true", help="machine-readable output")
    _device_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    recommend = commands.add_parser("recommend", help="print the best items of users")
    _run_options(recommend)
    recommend.add_argument("--user", nargs="+", required=True, metavar="ID", help="user ids")
    recommend.add_argument("--top-k", type=int, default=20, metavar="K")
    recommend.add_argument("--json", action="store_true", help="machine-readable output")
    _device_options(recommend)
    recommend.set_defaults(run=_recommend)

    report = commands.add_parser("report", help="compare runs and write report.html")
    _run_options(report)
    report.add_argument(
        "--against", nargs="+", type=Path, default=[], metavar="RUN", help="runs to compare with"
    )
    report.add_argument("--user", nargs="+", default=[], metavar="ID", help="show their lists")
    report.set_defaults(run=_report)

    doctor = commands.add_parser("doctor", help="what was built and which backend each op takes")
    doctor.set_defaults(run=_doctor)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data set, if it has moved")


def _device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--ops", default=None, choices=["auto", "native", "reference"], help="backend of the ops"
    )


def _device(arguments: argparse.Namespace) -> str:
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


def _fetch(arguments: argparse.Namespace) -> int:
    from mmssl.data.catalog import fetch

    print(fetch(arguments.name, arguments.out).message)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from mmssl.data.readers import read_dataset
    from mmssl.data.summary import summarise, summary_lines

    dataset = read_dataset(arguments.directory)
    if arguments.json:
        print(json.dumps(summarise(dataset), indent=1))
    else:
        print("\n".join(summary_lines(dataset)))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from mmssl.training.baseline_run import fit_baseline
    from mmssl.training.memory import keep_freed_memory
    from mmssl.training.trainer import Interrupted, Trainer

    keep_freed_memory()
    device = _device(arguments)
    run, dataset = (_resumed_run if arguments.resume else _new_run)(arguments)
    show_progress = not arguments.quiet
    if arguments.profile and (arguments.resume or run.info.model != "mmssl"):
        raise InputError("train: --profile needs a new run of the model mmssl")
    if run.info.model != "mmssl":
        run.initialize()
        metrics = fit_baseline(dataset, run, device=device, show_progress=show_progress)
    else:
        stop = _StopOnSignal()
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
        with stop:
            try:
                metrics = trainer.fit()
            except Interrupted:
                print(f"stopped; continue with: mmssl train --resume --out {run.path}")
                return stop.exit_code
    print(f"test of epoch {metrics['best_epoch']}:" if metrics.get("best_epoch") else "test:")
    _print_metrics(metrics["test"])
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
    for option in ("model", "variant", "preset", "config", "settings", "seed"):
        if getattr(arguments, option) is not None:
            flag = "set" if option == "settings" else option
            raise InputError(f"train: --{flag} can't be changed by --resume, only --epochs can")
    run = RunDirectory.open(arguments.out)
    if run.info.model != "mmssl":
        raise InputError(f"{arguments.out}: a {run.info.model} run can't be resumed; start it anew")
    if arguments.epochs is not None:
        layer = {"training": {"epochs": arguments.epochs}}
        run.config = run.config.replace(layer, source="--epochs")
    return run, run.read_data(arguments.data)


class _StopOnSignal:
    """SIGINT and SIGTERM ask training to save and stop; a second one stops at once."""

    def __init__(self) -> None:
        self._signal = 0

    def requested(self) -> bool:
        return self._signal != 0

    @property
    def exit_code(self) -> int:
        return 128 + self._signal

    def __enter__(self) -> None:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number


def _evaluate(arguments: argparse.Namespace) -> int:
    from mmssl.evaluation.evaluator import Evaluator

    _, dataset, graph, user, item = _load(arguments, _device(arguments))
    metrics = Evaluator(dataset, arguments.split, graph).evaluate(user, item)
    if arguments.json:
        print(json.dumps({"split": arguments.split, **metrics}))
    else:
        _print_metrics(metrics)
    return 0


def _recommend(arguments: argparse.Namespace) -> int:
    from mmssl.serving.recommend import recommend_with_titles, resolve_user

    _, dataset, graph, user, item = _load(arguments, _device(arguments))
    users = [resolve_user(dataset, name) for name in arguments.user]
    if arguments.top_k < 1:
        raise InputError(f"--top-k: expected at least 1, got {arguments.top_k}")
    lists = recommend_with_titles(dataset, graph, user, item, users, arguments.top_k)
    for entry in lists:
        if arguments.json:
            print(json.dumps(entry._asdict()))
            continue
        print(f"user {entry.user}")
        print("  has: " + "; ".join(entry.history))
        for rank, (label, score) in enumerate(entry.items, 1):
            print(f"  {rank:3d}. {score:8.4f}  {label}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from mmssl.report import write_run_report
    from mmssl.serving.recommend import recommend_with_titles, resolve_user
    from mmssl.training.run import RunDirectory

    runs = [RunDirectory.open(p) for p in (arguments.run_directory, *arguments.against)]
    tests = {}
    for run in runs:
        metrics = run.read_metrics()
        if metrics is None:
            raise InputError(f"{run.path}: the run is not finished (it has no metrics.json)")
        if run.info.data_hash != runs[0].info.data_hash:
            raise InputError(f"{run.path}: was trained on other data than {runs[0].path}")
        tests[run.path.name] = metrics["test"]
    lists = []
    if arguments.user:
        arguments.device, arguments.ops = "cpu", None
        _, dataset, graph, user, item = _load(arguments, "cpu")
        users = [resolve_user(dataset, name) for name in arguments.user]
        lists = recommend_with_titles(dataset, graph, user, item, users, 10)
    columns = ("recall@10", "recall@20", "precision@20", "ndcg@20", "hit@20")
    width = max(map(len, tests))
    print(f"{'test':{width}s}  " + "  ".join(f"{c:>12s}" for c in columns))
    for name, test in tests.items():
        print(f"{name:{width}s}  " + "  ".join(f"{test[c]:12.4f}" for c in columns))
    first, *others = tests
    page = write_run_report(
        runs[0].path, baselines={name: tests[name] for name in others}, recommendations=lists
    )
    print(f"report: {page}")
    return 0


def _load(arguments: argparse.Namespace, device: str) -> tuple[Any, Any, Any, Any, Any]:
    """Run, data set, train graph and embeddings of a trained run."""
    from mmssl.graph import InteractionGraph
    from mmssl.training.run import RunDirectory

    run = RunDirectory.open(arguments.run_directory)
    user, item = run.load_embeddings()
    dataset = run.read_data(arguments.data)
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    return run, dataset, graph.to(device), user.to(device), item.to(device)


def _doctor(_arguments: argparse.Namespace) -> int:
    from mmssl.doctor import report_lines

    print("\n".join(report_lines()))
    return 0


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        print(f"  {name:14s} {value:.4f}")


if __name__ == "__main__":
    sys.exit(main())
