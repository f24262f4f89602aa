"""`mmssl report`: runs side by side, and the HTML page of one."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mmssl.cli.common import Commands, add_run_options, load_run
from mmssl.errors import InputError


def add(commands: Commands) -> None:
    """Registers the command."""
    report = commands.add_parser("report", help="compare runs and write report.html")
    add_run_options(report)
    report.add_argument(
        "--against", nargs="+", type=Path, default=[], metavar="RUN", help="runs to compare with"
    )
    report.add_argument("--user", nargs="+", default=[], metavar="ID", help="show their lists")
    report.set_defaults(run=_report)


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
        _, dataset, graph, user, item = load_run(arguments, "cpu")
        users = [resolve_user(dataset, name) for name in arguments.user]
        lists = recommend_with_titles(dataset, graph, user, item, users, 10)
    columns = ("recall@10", "recall@20", "precision@20", "ndcg@20", "hit@20")
    width = max(map(len, tests))
    print(f"{'test':{width}s}  " + "  ".join(f"{c:>12s}" for c in columns))
    for name, test in tests.items():
        print(f"{name:{width}s}  " + "  ".join(f"{test.get(c, math.nan):12.4f}" for c in columns))
    first, *others = tests
    page = write_run_report(
        runs[0].path, baselines={name: tests[name] for name in others}, recommendations=lists
    )
    print(f"report: {page}")
    return 0
