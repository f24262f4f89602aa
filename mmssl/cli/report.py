"""`mmssl report`: compares runs on one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmssl.cli.common import Commands
from mmssl.errors import InputError

_COLUMNS = ("recall@10", "recall@20", "precision@20", "ndcg@20", "hit@20")


def add(commands: Commands) -> None:
    """Register the command."""
    report = commands.add_parser("report", help="compare runs and write report.html")
    report.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directories, or directories of seeds; the others are compared with the first",
    )
    report.add_argument(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="further runs, as after RUN",
    )
    report.add_argument("--data", type=Path, metavar="DIR", help="the data set, if it has moved")
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the first RUN"
    )
    report.add_argument("--user", nargs="+", default=[], metavar="ID", help="users to show")
    report.add_argument(
        "--examples",
        type=int,
        default=3,
        metavar="N",
        help="users shown without --user (default: 3)",
    )
    report.add_argument(
        "--images", type=Path, metavar="FOLDER", help="pictures of items, named by item id"
    )
    report.add_argument(
        "--map",
        choices=["tsne", "pca", "none"],
        default="tsne",
        dest="map_method",
        help="projection of the item vectors (default: tsne)",
    )
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from mmssl.report import write_report

    if arguments.examples < 0:
        raise InputError(f"--examples: expected at least 0, got {arguments.examples}")
    page, entries = write_report(
        [*arguments.runs, *arguments.against],
        arguments.out,
        data=arguments.data,
        users=arguments.user,
        examples=arguments.examples,
        images=arguments.images,
        map_method=arguments.map_method,
    )
    width = max(len(entry.name) for entry in entries)
    print(f"{'test':{width}s}  " + "  ".join(f"{c:>16s}" for c in _COLUMNS))
    for entry in entries:
        cells = []
        for column in _COLUMNS:
            mean, deviation = entry.mean("test", column), entry.deviation("test", column)
            text = "-" if mean is None else f"{mean:.4f}"
            cells.append(text if deviation is None else f"{text} +- {deviation:.4f}")
        print(f"{entry.name:{width}s}  " + "  ".join(f"{c:>16s}" for c in cells))
    print(f"report: {page}")
    return 0
