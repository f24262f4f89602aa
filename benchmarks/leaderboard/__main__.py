"""The command: ``python -m benchmarks.leaderboard run|ablate|report``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from benchmarks.leaderboard import records
from benchmarks.leaderboard.cell import Budget, Cell
from benchmarks.leaderboard.data import Data
from benchmarks.leaderboard.entries import ABLATIONS, Entry, ablations, chosen, entries
from benchmarks.leaderboard.score import FinalTest
from mmssl.cli.common import Parser
from mmssl.errors import InputError
from mmssl.memory import keep_freed_memory
from mmssl.signals import StopOnSignal
from mmssl.training.guards import Interrupted
from mmssl.tuning import require_optuna

WORK = Path("runs/leaderboard")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.action(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.leaderboard", description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="run|ablate|report")
    run = actions.add_parser("run", help="tune every model on every data set, then run the seeds")
    run.set_defaults(action=lambda options: _run(options, entries()))
    ablate = actions.add_parser("ablate", help="the same for parts of a model, switched off")
    ablate.add_argument("--file", type=Path, default=ABLATIONS, help="default: ablations.toml")
    ablate.set_defaults(action=lambda options: _run(options, ablations(options.file)))
    for command in (run, ablate):
        command.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
        command.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
        command.add_argument(
            "--trials", type=int, default=4, metavar="N", help="per model; 0: the defaults (4)"
        )
        command.add_argument("--seeds", type=int, default=5, metavar="N", help="per model (5)")
        command.add_argument("--minutes", type=float, metavar="M", help="save and stop after M")
        command.add_argument("--dry-run", action="store_true", help="print what is done and left")
        command.add_argument("--runs", type=Path, default=WORK, help=f"unfinished runs ({WORK})")
    report = actions.add_parser("report", help="rewrite the tables of docs/leaderboard.md")
    report.set_defaults(action=_report)
    for command in (run, ablate, report):
        command.add_argument("--out", type=Path, default=records.RESULTS, help="the results")
    return parser


def _run(options: argparse.Namespace, every: Sequence[Entry]) -> int:
    for name, least in (("trials", 0), ("seeds", 1)):
        count = getattr(options, name)
        if count < least:
            raise InputError(f"--{name}: expected at least {least}, got {count}")
    if options.minutes is not None and not options.minutes > 0:
        raise InputError(f"--minutes: expected a positive number, got {options.minutes}")
    wanted = chosen(every, options.models)
    budget = Budget(options.trials, options.seeds)
    deadline = time.monotonic() + 60 * (options.minutes or float("inf"))
    with StopOnSignal() as stop:
        if not options.dry_run:
            keep_freed_memory()
        for path in options.data:
            data = Data.read(path, options.out)
            cells = [Cell(data, entry, budget, options.out, options.runs) for entry in wanted]
            if not options.dry_run:
                if any(cell.trials for cell in cells):
                    require_optuna()
                data.write(options.out)
            test = cache(partial(FinalTest, data.dataset))
            for cell in cells:
                if options.dry_run:
                    print(_progress(cell))
                    continue
                try:
                    _finish(cell, test, lambda: stop.requested() or time.monotonic() > deadline)
                except Interrupted:
                    print("stopped; the same command continues")
                    return stop.exit_code if stop.requested() else 0
                except InputError as error:  # the other models can still be run
                    print(f"{_name(cell)}: left out: {error}", file=sys.stderr, flush=True)
    return 0


def _finish(cell: Cell, test: Callable[[], FinalTest], should_stop: Callable[[], bool]) -> None:
    """Run what is left of a cell."""

    def say(text: str) -> None:
        print(f"{_name(cell)}: {text}", flush=True)

    cell.tune(should_stop, say)
    cell.run_seeds(test, should_stop, say)


def _name(cell: Cell) -> str:
    return f"{cell.data.dataset.name}, {cell.entry.label}"


def _progress(cell: Cell) -> str:
    """Return one line: what is done, and about how long the rest takes."""
    trials = cell.finished_trials()
    try:
        config = cell.config()
    except InputError as error:
        return f"{_name(cell)}: {error}"
    seeds = cell.finished_seeds(config[0]) if config else {}
    done = [record["seconds"] for record in (*trials.values(), *seeds.values()) if _ran(record)]
    wanted = [seed for seed in cell.seeds if seed not in seeds]  # there may be others
    left = cell.trials - len(trials) + len(wanted)
    parts = [f"trials {len(trials)}/{cell.trials}"]
    parts.append(f"seeds {len(cell.seeds) - len(wanted)}/{len(cell.seeds)}")
    if done:
        parts.append(f"{sum(done) / 60:.0f} min so far")
        if left:
            parts.append(f"about {left * sum(done) / len(done) / 60:.0f} min left")
    return f"{_name(cell)}: {', '.join(parts)}"


def _ran(record: records.Record) -> bool:
    return record["state"] == "complete"


def _report(options: argparse.Namespace) -> int:
    from benchmarks.leaderboard.report import write_page

    for path in write_page(options.out):
        print(f"rewritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
