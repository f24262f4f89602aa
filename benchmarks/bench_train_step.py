"""A whole training step compared with the released arithmetic in plain PyTorch.

Both are first checked to compute the same; then every configuration runs one step per round. The
results include the time of each phase and the peak memory of a fresh process. ``mmssl bench step``
runs these cases; ``benchmarks/test_speed.py`` times single steps.

Legend: U users, I items, B batch.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.harness import environment, memory
from benchmarks.harness.clock import Turns, Work, clock_of, ratios, take_turns
from benchmarks.harness.phases import annotated, phases
from benchmarks.harness.record import Case, Row, Spread, Timing
from benchmarks.peers.agreement import check_agreement, make_peer
from benchmarks.steps import make_step, named_functions
from mmssl import ops
from mmssl.config import Config, load_config, preset_names
from mmssl.graph import InteractionGraph
from mmssl.memory import keep_freed_memory

PEER = "released arithmetic"


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
    Configuration(f"{PEER}, critic 512", "released", ("critic.hidden=512",), peer=True),
    Configuration("released", "released"),
    Configuration("released, bfloat16", "released", ("critic.precision=bfloat16",)),
    Configuration("released, critic 512", "released", ("critic.hidden=512",)),
    Configuration("paper", "paper"),
    Configuration("paper, reference ops", "paper", backend="reference"),
    Configuration("paper, bfloat16", "paper", ("critic.precision=bfloat16",)),
    Configuration("paper, critic 512", "paper", ("critic.hidden=512",)),
    Configuration(
        "paper, critic 512, penalty every 4th", "paper",
        ("critic.hidden=512", "critic.penalty_interval=4"),
    ),
)  # fmt: skip
BY_NAME = {c.name: c for c in CONFIGURATIONS}

# If the peer of the paper's width needs more FLOP than this, it runs only once on the CPU, and the
# slow configurations are left out.
LARGE_FLOP = 2e12
NOT_IF_LARGE = (f"{PEER}, critic 512", "paper, reference ops")
# Configurations whose memory is measured, each in a process.
WEIGHED = (PEER, "released", "paper", "paper, bfloat16", "paper, critic 512")


class Runner:
    """One configuration on one data set, ready to step.

    It starts with the second step of an epoch, when the released schedule has emptied the modality
    graphs, which is the usual case. If not every step has a penalty, a call is ``steps`` steps.
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
            self.peer = make_peer(self.step)
            del self.step

    def __call__(self) -> None:
        """Draw a batch and train on it."""
        step = self.peer if hasattr(self, "peer") else self.step
        with ops.backend(self.backend):
            for _ in range(self.steps):
                self.number += 1
                step(step.draw(), self.number)

    def phases(self) -> dict[str, float]:
        """Return the milliseconds of each phase of a step; they add up to the step."""
        named = [] if hasattr(self, "peer") else named_functions(self.step)
        with annotated(named):
            spent = phases(self)
        return {name: milliseconds / self.steps for name, milliseconds in spent.items()}

    def state_mb(self) -> float:
        """Return the size of the critic's parameters, gradients and two moments, in MiB."""
        owner = self.peer if hasattr(self, "peer") else self.step
        assert owner.critic is not None
        return 4 * sum(p.numel() * p.element_size() for p in owner.critic.parameters()) / 2**20


def configure(configuration: Configuration, data: str) -> Config:
    """The hyper-parameters of the variant: the released code's defaults, or the paper's runs."""
    preset = data if configuration.variant == "paper" and data in preset_names() else None
    settings: tuple[str, ...] = configuration.settings
    if data == "smoke":
        settings = ("training.batch_size=64", *settings)
        settings = tuple(s.replace("critic.hidden=512", "critic.hidden=16") for s in settings)
    return load_config(configuration.variant, preset=preset, settings=settings)


def runner(configuration: Configuration, data: str, device: str) -> Runner:
    """A configuration on a data set by name."""
    graph, features = load(data, device)
    return Runner(configuration, graph, features, configure(configuration, data))


def load(data: str, device: str) -> tuple[InteractionGraph, dict[str, Tensor]]:
    """Graph and features on the device."""
    graph = workloads.load(data).graph
    features = workloads.features(data, graph.num_items)
    return graph.to(device), {name: rows.to(device) for name, rows in features.items()}


def peak(name: str, data: str, device: str) -> dict[str, float]:
    """Return the peak memory of two steps; on the CPU, call it in a fresh process."""
    keep_freed_memory()
    run = runner(BY_NAME[name], data, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    memory.reset_peak()
    run()
    run()
    found = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory.peak_mb()
    return {"peak_mb": found, "critic_state_mb": run.state_mb()}


def critic_flop(graph: InteractionGraph, modalities: int, batch_size: int) -> float:
    """The 13 products of (M B, I) rows with the first layer in a step of the peer."""
    return 13 * 2.0 * modalities * batch_size * graph.num_items * (graph.num_items // 4)


def measure(
    data: str,
    device: str,
    *,
    turns: int = 3,
    peers: Sequence[str] | None = None,
    profile: bool = True,
    with_memory: bool = True,
) -> Case:
    """Check agreement, then measure times, phases and memory on one data set."""
    keep_freed_memory()  # as `mmssl train` does; the peer benefits too
    name = workloads.load(data).name
    graph, features = load(data, device)
    config = configure(CONFIGURATIONS[0], data)
    flop = critic_flop(graph, len(features), config.training.batch_size)
    large = device == "cpu" and flop > LARGE_FLOP
    if large:
        config = config.replace({"critic": {"hidden": 512}}, source="large")
    deviations = check_agreement(graph, features, config)
    chosen = [
        c
        for c in CONFIGURATIONS
        if c.name == PEER or peers is None or c.name in peers
        if not (large and c.name in NOT_IF_LARGE)
    ]
    rows: dict[str, Row] = {}
    once = [c for c in chosen if large and c.peer]
    for c in once:  # half a minute and gigabytes: one step, alone, without a warm-up
        alone = {c.name: Work(Runner(c, graph, features, configure(c, data)))}
        found = take_turns(alone, clock_of(device), seconds=0, turns=1, most_calls=1, warm_up=False)
        rows[c.name] = Row(_timing(found, c.name), note="one step, without a warm-up")
        del alone
        gc.collect()
    runners = {
        c.name: Runner(c, graph, features, configure(c, data)) for c in chosen if c not in once
    }
    works = {name: Work(run) for name, run in runners.items()}
    found = take_turns(works, clock_of(device), seconds=0, turns=turns, most_calls=1)
    for name_, run in runners.items():
        rows[name_] = Row(_timing(found, name_).divided(run.steps))
        if PEER in found:
            rows[name_].relative = Spread.of([r / run.steps for r in ratios(found, name_, PEER)])
        if profile:
            rows[name_].extra["phases_ms"] = run.phases()
    peer_ms = rows[PEER].full.median_ms
    for row in rows.values():
        if row.relative is None:
            row.relative = Spread.of([row.full.median_ms / peer_ms])
    del runners, works
    gc.collect()
    for c in chosen if with_memory else ():
        if c.name in WEIGHED and c not in once:
            row = rows[c.name]
            result = _peak(c.name, data, device)
            row.peak_mb = result["peak_mb"]
            row.extra["critic_state_mb"] = result["critic_state_mb"]
    sizes = {"users": graph.num_users, "items": graph.num_items, "edges": graph.nnz}
    rows[PEER].extra["agreement"] = deviations
    ordered = {c.name: rows[c.name] for c in chosen}
    return Case("training step", name, "float32", sizes, PEER, ordered, commit=environment.commit())


def _timing(rounds: Turns, name: str) -> Timing:
    return Timing.of([call.full for turn in rounds[name] for call in turn])


def _peak(name: str, data: str, device: str) -> dict[str, float]:
    if device == "cuda":
        return peak(name, data, device)
    found: dict[str, float] = memory.in_fresh_process("bench_train_step", name, data)
    return found


def cases(size: str, device: str, peers: Sequence[str] | None) -> Iterator[Case]:
    """What ``mmssl bench step`` measures, by size."""
    if size == "smoke":
        wanted = peers or [PEER, "released", "paper", "paper, critic 512, penalty every 4th"]
        yield measure("smoke", device, turns=2, peers=wanted, with_memory=False)
        return
    for data in ("tiktok", "baby", "sports"):
        yield measure(data, device, peers=peers)


if __name__ == "__main__":  # memory of one configuration, in a fresh process
    print(json.dumps(peak(sys.argv[1], sys.argv[2], "cpu")))
