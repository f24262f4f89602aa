"""The effect of bfloat16 products in the critic on the training curve.

``MMSSL_DATA=folder python -m benchmarks.bench_precision --data tiktok [--seeds 5] [--epochs 3]
[--set a.b=c ...] [--json F]`` trains every seed with both precisions, interleaved, and prints
validation Recall@20 and NDCG@20 of every epoch: mean, standard deviation over the seeds, and the
paired difference. With ``--json`` finished runs are kept and not run again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import environment
from benchmarks.harness.record import Case, Results, Row, Timing, read, write
from mmssl.config import load_config, preset_names
from mmssl.data import read_dataset
from mmssl.memory import keep_freed_memory
from mmssl.models.registry import DEFAULT_MODEL
from mmssl.training.fit import fit_run
from mmssl.training.run import RunDirectory

PRECISIONS = ("float32", "bfloat16")
METRICS = ("recall@20", "ndcg@20")
Runs = dict[str, dict[str, Any]]  # "float32-0" -> curve and seconds of a step


def train(folder: Path, variant: str, settings: list[str]) -> dict[str, Any]:
    """Validation metrics of every epoch and the median seconds of a step."""
    dataset = read_dataset(folder)
    preset = dataset.name if variant == "paper" and dataset.name in preset_names() else None
    config = load_config(variant, preset=preset, settings=settings)
    with tempfile.TemporaryDirectory() as parent:
        run = RunDirectory.new(Path(parent) / "run", DEFAULT_MODEL, folder, dataset, config)
        metrics = fit_run(run, dataset, show_progress=False)
    curve = [{name: epoch["val"][name] for name in METRICS} for epoch in metrics["epochs"]]
    return {"curve": curve, "seconds_per_step": metrics["timing"]["seconds_per_step"]}


def as_case(data: str, what: dict[str, Any], runs: Runs) -> Case:
    """Return the runs in the schema of results: times of steps, and the curves as extra values."""
    rows = {}
    for precision in PRECISIONS:
        own = {k: run for k, run in runs.items() if k.startswith(f"{precision}-")}
        if own:
            seconds = [run["seconds_per_step"] for run in own.values()]
            rows[precision] = Row(Timing.of(seconds), extra={"runs": own, "what": what})
    return Case(
        f"training curve, {what['epochs']} epochs", data, "float32", {}, "float32", rows,
        commit=environment.commit(),
    )  # fmt: skip


def finished(path: Path | None, what: dict[str, Any]) -> Runs:
    """Return the runs of a file that have the same settings."""
    runs: Runs = {}
    for case in read(path).cases if path is not None and path.exists() else ():
        for row in case.rows.values():
            if row.extra.get("what") == what:
                runs |= row.extra["runs"]
    return runs


def show(runs: Runs, seeds: int, epochs: int) -> None:
    """A row per epoch and metric."""
    print(f"{'epoch':>5s} {'metric':10s} {'float32':>16s} {'bfloat16':>16s} {'difference':>18s}")

    def text(values: list[float]) -> str:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.4f} +- {deviation:.4f}"

    for epoch in range(epochs):
        for name in METRICS:
            wide, narrow = (
                [runs[f"{p}-{seed}"]["curve"][epoch][name] for seed in range(seeds)]
                for p in PRECISIONS
            )
            change = text([n - w for n, w in zip(narrow, wide, strict=True)])
            print(f"{epoch + 1:5d} {name:10s} {text(wide):>16s} {text(narrow):>16s} {change:>18s}")
    for p in PRECISIONS:
        step = statistics.median(runs[f"{p}-{seed}"]["seconds_per_step"] for seed in range(seeds))
        print(f"{p}: {step:.3f} s a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="tiktok", metavar="NAME")
    parser.add_argument("--variant", default="paper", choices=["paper", "released"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--json", type=Path, help="keep the runs here")
    options = parser.parse_args()
    if "MMSSL_DATA" not in os.environ:
        raise SystemExit("error: set MMSSL_DATA to the folder of the data sets")
    keep_freed_memory()
    what = {k: getattr(options, k) for k in ("variant", "epochs", "settings")}
    runs = finished(options.json, what)
    record = environment.environment()
    for seed in range(options.seeds):
        for precision in PRECISIONS:
            key = f"{precision}-{seed}"
            if key in runs:
                continue
            settings = [
                *options.settings,
                f"critic.precision={precision}",
                f"training.seed={seed}",
                f"training.epochs={options.epochs}",
            ]
            folder = Path(os.environ["MMSSL_DATA"]) / options.data
            runs[key] = train(folder, options.variant, settings)
            print(key, [f"{e['recall@20']:.4f}" for e in runs[key]["curve"]], flush=True)
            if options.json:
                case = as_case(options.data, what, runs)
                write(options.json, Results("precision", record, [case]))
    show(runs, options.seeds, options.epochs)


if __name__ == "__main__":
    main()
