"""The committed suites and their cases; each suite runs into one file."""

from __future__ import annotations

import functools
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import (
    bench_epochs,
    bench_evaluate,
    bench_info_nce,
    bench_layers,
    bench_models,
    bench_propagate,
    bench_propagate_layers,
    bench_scale,
    bench_step_parts,
    bench_topk,
    bench_train_step,
    limits,
)
from benchmarks.harness import environment, problem
from benchmarks.harness.record import Case, Results, Row, write
from benchmarks.peers import ops as peers_of_ops
from mmssl.errors import InputError
from mmssl.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
OPS = (
    bench_propagate,
    bench_propagate_layers,
    bench_info_nce,
    bench_topk,
    bench_step_parts,
    bench_layers,
)


class Failure(NamedTuple):
    """A case that could not be measured: our own op disagrees, or the benchmark has an error."""

    what: str


class Options(NamedTuple):
    """Options of the command line."""

    device: str = "cpu"
    smoke: bool = False
    out: Path = RESULTS
    peers: Sequence[str] | None = None  # None: all
    only: str | None = None  # cases whose benchmark and arguments contain it
    budget_s: float | None = None  # seconds after which no new case starts


def ops_cases(options: Options) -> Iterator[Case | Failure]:
    """Every op on its workloads."""
    benches = [bench.cases(_size(options), options.device) for bench in OPS]
    for make, budget in _in_turn(benches, options):
        if options.only and options.only not in _text(make):
            continue
        if options.peers is not None:
            budget.peers = options.peers
        budget.memory = budget.memory and not options.smoke
        if options.device == "cuda":
            budget.seconds = min(budget.seconds, 1.0)
        try:
            yield problem.measure(make(), budget)
        except Exception as error:  # the other cases can still be measured
            yield Failure(f"{_text(make)}: {type(error).__name__}: {error}")


def _text(make: functools.partial[Any]) -> str:
    """What ``--only`` searches, known before any data are read."""
    given = [repr(value) for value in (*make.args, *make.keywords.values())]
    return " ".join([make.func.__module__, *given])


def _in_turn(benches: list[Iterator[Any]], options: Options) -> Iterator[Any]:
    """Run one benchmark after the other; with a budget interleaved, so that each gets a case."""
    if options.budget_s is None:
        yield from itertools.chain.from_iterable(benches)
        return
    for cases in itertools.zip_longest(*benches):
        yield from (case for case in cases if case is not None)


def step_cases(options: Options) -> Iterator[Case]:
    """Whole training steps."""
    return bench_train_step.cases(_size(options), options.device, options.peers)


def evaluate_cases(options: Options) -> Iterator[Case]:
    """Full ranking."""
    return bench_evaluate.cases(_size(options), options.device, options.peers)


def scale_cases(options: Options) -> Iterator[Case]:
    """Steps against the size of the data."""
    return bench_scale.cases(_size(options), options.device)


def models_cases(options: Options) -> Iterator[Case]:
    """Light models: steps by phases, epochs against peers."""
    yield from bench_models.cases(_size(options), options.only)
    yield from bench_epochs.cases(_size(options), options.peers, options.only)


SUITES: dict[str, Callable[[Options], Iterator[Case | Failure]]] = {
    "ops": ops_cases,
    "step": step_cases,
    "evaluate": evaluate_cases,
    "scale": scale_cases,
    "models": models_cases,
}


def peer_names() -> list[str]:
    """Return the names that ``--peers`` accepts."""
    tables = (
        peers_of_ops.SPARSE, peers_of_ops.INFO_NCE, peers_of_ops.CROSS_VIEW, peers_of_ops.RANKING,
        bench_train_step.BY_NAME, *bench_epochs.PEERS.values(),
        ("released, 1 process", "released, 2 processes", "Python loop"),
    )  # fmt: skip
    return list(dict.fromkeys(itertools.chain.from_iterable(tables)))


def run(suite: str, options: Options) -> tuple[Path, list[Failure]]:
    """Run a suite, prints a line per implementation, and writes its file after every case.

    What fails is printed and returned, and the rest goes on.

    Raises:
        InputError: ``options.peers`` names somebody unknown.
    """
    if unknown := set(options.peers or ()) - set(peer_names()):
        raise InputError(
            f"--peers: expected names among {', '.join(peer_names())}; got {sorted(unknown)}"
        )
    warnings.filterwarnings("ignore", message="Sparse")
    if suite == "ops":
        keep_freed_memory()  # for every peer alike; see benchmarks/NOTES.md
    if options.smoke:
        torch.set_num_threads(1)  # times do not matter, but a busy machine must not stall it
    found = environment.environment(options.device, smoke=options.smoke)
    print(environment.heading(found))
    if line := environment.warning(found):
        print(line)
    found["rates"] = limits.machine(options.device)
    found["data"] = "real" if os.environ.get("MMSSL_DATA") else "stand-ins"
    path = options.out / file_name(suite, found)
    start, clocks = time.perf_counter(), []
    failures: list[Failure] = []
    for case in SUITES[suite](options):
        if isinstance(case, Failure):
            print(f"\nFAILED: {case.what}", flush=True)
            failures.append(case)
            continue
        clocks += environment.clocks_mhz(options.device)
        if clocks:
            found["clock_mhz"] = {"lowest": min(clocks), "highest": max(clocks)}
        show(case)
        found["seconds"] = time.perf_counter() - start
        write(path, Results(suite, found, [case]))
        if options.budget_s is not None and found["seconds"] > options.budget_s:
            print(f"{suite}: cases are left out, the budget of {options.budget_s:.0f} s is spent")
            break
    print(f"{path}: {time.perf_counter() - start:.0f} s")
    return path, failures


def file_name(suite: str, found: dict[str, object]) -> str:
    """Return e.g. ``ops-cpu.json``, or the same with the GPU's name."""
    name = "cpu" if found["device"] == "cpu" else str(found["name"]).lower().replace(" ", "-")
    return f"{suite}-{name}{'-smoke' if found['smoke'] else ''}.json"


def show(case: Case) -> None:
    """Print a heading and a line per implementation."""
    sizes = ", ".join(f"{key} {value:,}" for key, value in case.sizes.items())
    print(f"\n{case.op}, {case.workload}, {case.dtype} ({sizes})")
    if case.limit is not None:
        parts = " + ".join(f"{name} {ms:.3f}" for name, ms in case.limit.parts_ms.items())
        print(f"  limit {case.limit.ms:.3f} ms: {parts}")
    for name, row in case.rows.items():
        print(f"  {name:36s} {_line(row)}")
        if case.limit is not None and "phases_ms" in row.extra:
            for phase, spent in row.extra["phases_ms"].items():
                least = case.limit.parts_ms.get(phase, 0.0)
                print(f"    {phase:22s} {spent:8.3f} ms, limit {least:7.3f}, {least / spent:4.0%}")
    for name, reason in case.missing.items():
        print(f"  {name:36s} not measured: {reason}", flush=True)


def _line(row: Row) -> str:
    t = row.full
    parts = [f"{t.median_ms:10.3f} ms ({t.q1_ms:.3f}-{t.q3_ms:.3f}, {t.calls} calls)"]
    if row.forward is not None and row.backward is not None:
        parts.append(f"{row.forward.median_ms:.3f} + {row.backward.median_ms:.3f}")
    if row.relative is not None:
        parts.append(f"{row.relative.median:.3g} times the baseline")
    if row.of_limit is not None:
        parts.append(f"{100 * row.of_limit:.0f} % of the limit")
    if row.peak_mb is not None:
        parts.append(f"{row.peak_mb:.0f} MB")
    return ", ".join([*parts, *([row.note] if row.note else [])])


def _size(options: Options) -> str:
    return "smoke" if options.smoke else "full"
