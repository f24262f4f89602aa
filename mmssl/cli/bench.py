"""`mmssl bench`: the suites of `benchmarks/`, their reports, and comparisons.

The suites are part of a checkout and are not installed: their results are committed next to them,
and some of them compile probes of the machine. Without a checkout the command fails in one line.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from mmssl.cli.common import Commands
from mmssl.errors import InputError

_SUITES = {
    "ops": "every op against its peers and its limit",
    "step": "a training step against the released arithmetic",
    "evaluate": "full ranking against the released evaluation",
    "scale": "a step's time and memory against the size of the data",
    "models": "light models: a step by phases against its limits, an epoch against others",
}


def add(commands: Commands) -> None:
    """Register the command."""
    bench = commands.add_parser("bench", help="run, report and compare the committed benchmarks")
    _add_options(bench)
    bench.set_defaults(run=_run, suites=list(_SUITES))
    parts = bench.add_subparsers(metavar="SUITE|compare|report", title="only a part")
    for name, text in _SUITES.items():
        suite = parts.add_parser(name, help=text, argument_default=argparse.SUPPRESS)
        _add_options(suite)
        suite.set_defaults(suites=[name])
    compare = parts.add_parser("compare", help="exit 1 where a result file is slower than another")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    compare.add_argument(
        "--threshold", type=float, default=1.1, metavar="X", help="ratio that counts (1.1)"
    )
    compare.set_defaults(run=_compare)
    report = parts.add_parser("report", help="Markdown and HTML of result files")
    report.add_argument("files", nargs="*", type=Path, metavar="FILE|DIR", help="default: results/")
    report.add_argument("--out", type=Path, metavar="DIR", help="default: next to the results")
    report.add_argument(
        "--readme", action="store_true", help="rewrite the figures in README and docs"
    )
    report.set_defaults(run=_report)


def _add_options(parser: argparse.ArgumentParser) -> None:
    # The parser of a suite must not reset an option given before its name.
    off = argparse.SUPPRESS if parser.argument_default is argparse.SUPPRESS else False
    parser.add_argument("--smoke", action="store_true", default=off, help="tiny sizes, one minute")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument(
        "--peers", nargs="+", metavar="NAME", help="measure only these peers, and our own"
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        help="only cases whose benchmark or arguments contain this, such as topk or LightGCN",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the real data sets")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument(
        "--budget", type=float, metavar="S", help="start no new case after S seconds of a suite"
    )


def _run(arguments: argparse.Namespace) -> int:
    suites = _benchmarks("suites")
    device = arguments.device or "cpu"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                f"--device cuda: no CUDA device is usable by torch {torch.__version__}"
            )
    if arguments.data is not None:
        if not arguments.data.is_dir():
            raise InputError(f"--data: expected a folder of data sets, got {arguments.data}")
        os.environ["MMSSL_DATA"] = str(arguments.data.resolve())
    elif arguments.smoke:
        os.environ.pop("MMSSL_DATA", None)
    options = suites.Options(
        device=device,
        smoke=arguments.smoke,
        out=arguments.out or (Path("runs/bench-smoke") if arguments.smoke else suites.RESULTS),
        peers=arguments.peers,
        only=arguments.only,
        budget_s=arguments.budget,
    )
    done = [suites.run(name, options) for name in arguments.suites]
    files = [path for path, _ in done if path.exists()]
    for page in _benchmarks("report").write(files, options.out) if files else ():
        print(f"report: {page}")
    return 1 if any(failures for _, failures in done) else 0


def _compare(arguments: argparse.Namespace) -> int:
    compare = _benchmarks("compare")
    found = compare.compare(arguments.before, arguments.after, arguments.threshold)
    print("\n".join(found.lines))
    return 1 if found.regressions else 0


def _report(arguments: argparse.Namespace) -> int:
    report = _benchmarks("report")
    files = arguments.files or [_benchmarks("suites").RESULTS]
    out = arguments.out or (files[0] if files[0].is_dir() else files[0].parent)
    for page in report.write(files, out):
        print(f"report: {page}")
    if arguments.readme:
        for path in report.write_documents():
            print(f"rewritten: {path}")
    return 0


def _benchmarks(module: str) -> Any:
    """Import a module of the checkout's ``benchmarks``.

    Raises:
        InputError: The package is not installed from a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "suites.py").is_file():
        raise InputError(
            "bench: expected mmssl to be installed from a checkout, which contains benchmarks/ "
            f"(git clone, then pip install -e .); got the package without it in {root}"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"benchmarks.{module}")
