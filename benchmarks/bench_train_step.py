"""A whole training step against the released arithmetic in plain PyTorch (benchmarks/peers).

``python benchmarks/bench_train_step.py [--smoke] [--data tiktok baby sports] [--json F]`` first
checks that both do the same, then lets every configuration run one step a round and prints medians
with quartiles, steps per second, the ratio to the peer, where the time goes, and the peak memory of
a fresh process each. ``MMSSL_DATA=folder`` takes the real sets.

Legend: U users, I items, B batch.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

if __package__ in (None, ""):
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure, workloads
from benchmarks.peers.agreement import check_agreement, make_peer
from benchmarks.steps import make_step, named_functions
from mmssl import ops
from mmssl.config import Config, load_config, preset_names
from mmssl.graph import InteractionGraph
from mmssl.training.memory import keep_freed_memory

PEER = "peer"


class Configuration(NamedTuple):
    """A row of the table: who runs the step, and with what."""

    name: str
    variant: str  # of the package's configuration; the peer runs "released"
    settings: tuple[str, ...] = ()
    backend: str = "auto"
    peer: bool = False


# To compare another option, add a row; settings are those of `mmssl train --set`.
CONFIGURATIONS = (
    Configuration(PEER, "released", peer=True),
    Configuration("peer, critic 512", "released", ("critic.hidden=512",), peer=True),
    Configuration("released", "released"),
    Configuration("released, reference ops", "released", backend="reference"),
    Configuration("released, bfloat16", "released", ("critic.precision=bfloat16",)),
    Configuration("released, critic 512", "released", ("critic.hidden=512",)),
    Configuration("paper", "paper"),
    Configuration("paper, reference ops", "paper", backend="reference"),
    Configuration("paper, bfloat16", "paper", ("critic.precision=bfloat16",)),
    Configuration("paper, critic 512", "paper", ("critic.hidden=512",)),
    Configuration(
        "paper, penalty every 4th", "paper", ("critic.hidden=512", "critic.penalty_interval=4")
    ),
)

# What the peer of the paper's width needs on two cores, in FLOP, decides how often it is run.
_LARGE_FLOP = 2e12


class Runner:
    """One configuration on one data set, ready to step.

    It starts with an epoch's second step, by which the released schedule has emptied the modality
    graphs: the usual case. Where not every step has a penalty, a call is ``steps`` steps.
    """

    def __init__(
        self,
        configuration: Configuration,
        graph: InteractionGraph,
        features: dict[str, Tensor],
        config: Config,
    ) -> None:
        self.backend = configuration.backend
        self.number = 0
        self.steps = config.critic.penalty_interval
        self.step = make_step(graph, features, config)
        if configuration.peer:
            assert self.step.critic is not None
            self.peer = make_peer(self.step)
            del self.step

    def __call__(self) -> None:
        """Draws a batch and trains on it."""
        step = self.peer if hasattr(self, "peer") else self.step
        with ops.backend(self.backend):
            for _ in range(self.steps):
                self.number += 1
                step(step.draw(), self.number)

    def phases(self, repeats: int) -> dict[str, float]:
        """Milliseconds a step spends in each phase; they add up to the step."""
        named = [] if hasattr(self, "peer") else named_functions(self.step)
        with measure.annotated(named):
            spent = measure.phases(self, repeats)
        return {name: milliseconds / self.steps for name, milliseconds in spent.items()}

    def state_mb(self) -> float:
        """The critic's parameters, gradients and two moments, in MB."""
        owner = self.peer if hasattr(self, "peer") else self.step
        return 4 * sum(p.numel() * p.element_size() for p in owner.critic.parameters()) / 2**20


def configure(configuration: Configuration, data: str, smoke: bool) -> Config:
    """The hyper-parameters of the variant: the released code's defaults, or the paper's runs."""
    preset = data if configuration.variant == "paper" and data in preset_names() else None
    small = ("training.batch_size=64",) if smoke else ()
    settings = (*small, *configuration.settings)
    if smoke:
        settings = tuple(s.replace("critic.hidden=512", "critic.hidden=16") for s in settings)
    return load_config(configuration.variant, preset=preset, settings=settings)


def peak(configuration: Configuration, data: str, smoke: bool) -> dict[str, float]:
    """Peak memory of two steps; to be called in a process of its own."""
    workload = workloads.load(data)
    config = configure(configuration, data, smoke)
    features = workloads.features(data, workload.graph.num_items)
    runner = Runner(configuration, workload.graph, features, config)
    measure.reset_peak()
    runner()
    runner()
    return {"peak_mb": measure.peak_mb(), "critic_state_mb": runner.state_mb()}


def critic_flop(graph: InteractionGraph, modalities: int, batch_size: int) -> float:
    """The 13 products of (M B, I) rows with the first layer in a step of the peer."""
    return 13 * 2.0 * modalities * batch_size * graph.num_items * (graph.num_items // 4)


def run(data: str, chosen: list[Configuration], options: argparse.Namespace) -> dict[str, Any]:
    """Agreement, turns, phases and memory on one data set."""
    workload = workloads.load(data)
    graph, features = workload.graph, workloads.features(data, workload.graph.num_items)
    config = configure(CONFIGURATIONS[0], data, options.smoke)
    large = critic_flop(graph, len(features), config.training.batch_size) > _LARGE_FLOP
    widths = ", ".join(f"{name} {rows.shape[1]}" for name, rows in features.items())
    print(
        f"\n{workload.name}: {graph.num_users} users, {graph.num_items} items, {graph.nnz} edges, "
        f"{widths}"
    )
    if large:
        config = config.replace({"critic": {"hidden": 512}}, source="large")
    deviations = check_agreement(graph, features, config)
    print("agreement with the peer, worst: ", end="")
    print(", ".join(f"{name} {worst:.0e}" for name, worst in deviations.items()), flush=True)
    once = [c for c in chosen if large and c.peer and not c.settings]
    rows: dict[str, Any] = {}
    for configuration in once:  # minutes and gigabytes: one step, alone, without a warm-up
        runner = Runner(
            configuration, graph, features, configure(configuration, data, options.smoke)
        )
        timing = measure.take_turns({configuration.name: runner}, 1)[configuration.name]
        rows[configuration.name] = {**timing._asdict(), "phases_ms": {}}
        del runner
        gc.collect()
    runners = {
        c.name: Runner(c, graph, features, configure(c, data, options.smoke))
        for c in chosen
        if c not in once
    }
    timings = measure.take_turns(runners, options.rounds, warmup=1)
    for name, timing in timings.items():
        timing = timing.divided(runners[name].steps)
        split = runners[name].phases(options.profiled) if options.profiled else {}
        rows[name] = {**timing._asdict(), "phases_ms": split}
    del runners
    for configuration in chosen if options.memory else ():
        arguments = ["--peak", configuration.name, "--data", data]
        arguments += ["--smoke"] if options.smoke else []
        if configuration not in once:
            rows[configuration.name] |= measure.in_fresh_process("bench_train_step.py", *arguments)
    report({c.name: rows[c.name] for c in chosen})
    return {"data": workload.name, "agreement": deviations, "configurations": rows}


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Prints the table of times and memory, and the phases side by side."""
    baseline = rows.get(PEER)
    print(
        f"{'':26s} {'median, s':>10s} {'quartiles':>15s} {'steps/s':>8s} {'vs peer':>8s} "
        f"{'peak, MB':>9s} {'critic state':>12s}"
    )
    for name, row in rows.items():
        if baseline is not None:
            row["ratio_to_peer"] = baseline["median"] / row["median"]
        ratio = f"{row['ratio_to_peer']:7.1f}x" if baseline is not None else ""
        memory = f"{row['peak_mb']:9.0f} {row['critic_state_mb']:12.0f}" if "peak_mb" in row else ""
        median, quartiles = row["median"], f"{row['low']:.3f}-{row['high']:.3f}"
        print(
            f"{name:26s} {median:10.3f} {quartiles:>15s} {1 / median:8.2f} {ratio:>8s} "
            f"{memory}{'  (one step)' if row['runs'] == 1 else ''}"
        )
    names = list(dict.fromkeys(phase for row in rows.values() for phase in row["phases_ms"]))
    profiled = {name: row["phases_ms"] for name, row in rows.items() if row["phases_ms"]}
    if not names:
        return
    print("\nms a step in each phase (without what is listed on its own), one profiled step each")
    names.sort(key=lambda phase: -max(split.get(phase, 0.0) for split in profiled.values()))
    labels = [chr(ord("A") + n) for n in range(len(profiled))]
    print("  ".join(f"{label}: {name}" for label, name in zip(labels, profiled, strict=True)))
    print(f"{'':20s}" + "".join(f"{label:>9s}" for label in labels))
    for phase in names:
        cells = (split.get(phase) for split in profiled.values())
        print(f"{phase:20s}" + "".join("        -" if c is None else f"{c:9.1f}" for c in cells))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny graph, seconds")
    parser.add_argument("--data", nargs="+", default=["tiktok", "baby", "sports"], metavar="NAME")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="configurations, by name")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each configuration")
    parser.add_argument("--profiled", type=int, default=1, help="profiled steps of each; 0: none")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--peak", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.data, options.rounds = ["smoke"], min(options.rounds, 2)
    return options


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    options = parse(arguments)
    keep_freed_memory()  # as `mmssl train` does; the peer, in the same process, gains from it too
    by_name = {c.name: c for c in CONFIGURATIONS}
    unknown = set(options.only or ()) - set(by_name)
    if unknown:
        raise SystemExit(f"--only: expected names among {', '.join(by_name)}, got {unknown}")
    if options.peak:
        print(json.dumps(peak(by_name[options.peak], options.data[0], options.smoke)))
        return
    chosen = [by_name[name] for name in options.only] if options.only else list(CONFIGURATIONS)
    print(measure.heading())
    torch.manual_seed(0)
    results = [run(data, chosen, options) for data in options.data]
    measure.write_json(options.json, results=results)


if __name__ == "__main__":
    main()
