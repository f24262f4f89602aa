"""Light models: a step by phases against its limits, and an epoch against other implementations.

A step of LightGCN and of ``plus`` runs as in training, and every phase is compared with the least
that it can take (model_phases.py). An epoch of LightGCN, sampling included, is compared with plain
PyTorch and, in an environment of its own, torch_geometric, once the losses of three steps from the
same tables on the same triples agree. ``mmssl bench models`` runs these cases.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import model_phases, workloads
from benchmarks.harness import environment
from benchmarks.harness.clock import Work, clock_of, ratios, take_turns
from benchmarks.harness.record import Case, Row, Spread, Timing
from benchmarks.peers.lightgcn import PEERS, LightGCNPeer, PlainPyTorch
from benchmarks.peers.registry import Missing
from benchmarks.peers.remote import Remote
from mmssl.config import load_config
from mmssl.data.dataset import InteractionDataset
from mmssl.memory import keep_freed_memory
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask
from mmssl.training.task import create_task

LAYERS, LR, REG, BATCH = 3, 1e-3, 1e-4, 2048
OURS = "mmssl"
AGREEMENT = 1e-4  # relative, of a loss


class Model(NamedTuple):
    """A model as ``mmssl train`` names it, with the settings that are measured."""

    name: str
    variant: str = "paper"
    settings: tuple[str, ...] = ()


MODELS = {
    "lightgcn": Model(
        "lightgcn", settings=(f"lightgcn.num_layers={LAYERS}", f"lightgcn.lr={LR}",
                              f"lightgcn.reg={REG}", f"lightgcn.batch_size={BATCH}"),
    ),
    "plus": Model("mmssl", "plus"),
}  # fmt: skip
STEPS = {"lightgcn": ("tiktok", "sports", "gowalla", "microlens", "power-law-2m"),
         "plus": ("tiktok", "sports", "microlens")}  # fmt: skip
EPOCHS = ("tiktok", "baby", "gowalla")


def make_task(
    model: str, dataset: InteractionDataset, batch: int | None = None
) -> PairwiseTask[Any, Any]:
    """Return the model in training; ``batch`` replaces the configured batch size."""
    found = MODELS[model]
    section = "plus" if model == "plus" else model
    settings = (
        found.settings if batch is None else (*found.settings, f"{section}.batch_size={batch}")
    )
    task = create_task(found.name, dataset, load_config(found.variant, settings=settings))
    assert isinstance(task, PairwiseTask)
    return task


def step(model: str, data: str, *, turns: int = 5, batch: int | None = None) -> Case:
    """A step by phases, each with its limit."""
    keep_freed_memory()
    task = make_task(model, workloads.dataset(data, with_features=model == "plus"), batch)
    found = model_phases.measure(task, turns=turns, steps=min(12, task.steps_per_epoch))
    row = Row(Timing.of(found.steps_s), extra={"phases_ms": found.phases_ms})
    row.of_limit = found.limit.ms / row.full.median_ms
    return Case(
        f"step of {model}", workloads.label(data), "float32", _sizes(task), "native",
        {"native": row}, limit=found.limit, commit=environment.commit(),
    )  # fmt: skip


def epoch(
    data: str,
    *,
    turns: int = 5,
    peers: Sequence[str] | None = None,
    batch: int | None = None,
) -> Case:
    """An epoch of LightGCN, interleaved with its peers."""
    keep_freed_memory()
    dataset = workloads.dataset(data)
    task = make_task("lightgcn", dataset, batch)
    problem = problem_of(task)
    jobs: dict[str, Callable[[], object]] = {OURS: _epochs(task)}
    missing: dict[str, str] = {}
    errors: dict[str, float] = {}
    expected = losses_of(task, problem["batches"])
    remotes: list[Remote] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problem.npz")
        np.savez(path, **problem)
        for name in PEERS if peers is None else [n for n in PEERS if n in peers]:
            try:
                peer = _peer(name, problem, path, remotes)
            except Missing as reason:
                missing[name] = str(reason)
                continue
            errors[name] = max(
                abs(a - b) / abs(b) for a, b in zip(peer("losses"), expected, strict=True)
            )
            if errors[name] > AGREEMENT:
                missing[name] = f"disagrees: losses differ by {errors[name]:.1e}"
                continue
            jobs[name] = lambda peer=peer: peer("epoch")
        works = {name: Work(job) for name, job in jobs.items()}
        found = take_turns(works, clock_of("cpu"), seconds=0, turns=turns, most_calls=1)
        for remote in remotes:
            remote.close()
    rows = {
        name: Row(
            Timing.of([call.full for turn in found[name] for call in turn]),
            relative=Spread.of(ratios(found, name, OURS)),
            error=errors.get(name),
        )
        for name in works
    }
    return Case(
        "epoch of lightgcn", workloads.label(data), "float32", _sizes(task), OURS, rows, missing,
        commit=environment.commit(),
    )  # fmt: skip


def problem_of(task: PairwiseTask[Any, Any]) -> dict[str, Any]:
    """Return what a peer needs to start where the task does; see :class:`LightGCNPeer`."""
    model, generator = task.model, np.random.default_rng(0)
    user, item = task.edge_user.numpy(), task.edge_item.numpy()
    batches = []
    for _ in range(3):
        chosen = generator.integers(0, len(user), min(task.batch_size, len(user)))
        draw = torch.from_numpy(generator.random(len(chosen)))
        negative = task.graph.missing_item(torch.from_numpy(user[chosen]), draw).numpy()
        batches.append((user[chosen], item[chosen], negative))
    return {
        "user": user, "item": item, "batches": np.array(batches),
        "user_table": model.user_embedding.detach().numpy().copy(),
        "item_table": model.item_embedding.detach().numpy().copy(),
        "layers": task.settings.num_layers, "lr": task.settings.lr, "reg": task.settings.reg,
        "batch_size": task.batch_size,
    }  # fmt: skip


def losses_of(task: PairwiseTask[Any, Any], batches: Any) -> list[float]:
    """Train on the given triples and return the loss of each step."""
    found = []
    for triples in batches:
        batch = Triples(*(torch.from_numpy(ids) for ids in triples))
        found.append(float(task.train_on(batch).sum()))
    return found


def _epochs(task: PairwiseTask[Any, Any]) -> Callable[[], None]:
    def run() -> None:
        task.start_epoch(0, 0)
        for number in range(task.steps_per_epoch):
            task.step(number)

    return run


def _peer(
    name: str, problem: dict[str, Any], path: Path, remotes: list[Remote]
) -> Callable[[str], Any]:
    if PEERS[name] is PlainPyTorch:
        peer: LightGCNPeer = PlainPyTorch(problem)
        return lambda line: peer.losses() if line == "losses" else peer.epoch()
    remote = Remote("lightgcn.py", name, str(path))
    remotes.append(remote)
    return remote.ask


def _sizes(task: PairwiseTask[Any, Any]) -> dict[str, int]:
    graph = task.graph
    return {
        "users": graph.num_users, "items": graph.num_items, "edges": graph.nnz,
        "batch": task.batch_size, "steps": task.steps_per_epoch,
    }  # fmt: skip


def cases(size: str, peers: Sequence[str] | None, only: str | None = None) -> Iterator[Case]:
    """What ``mmssl bench models`` measures, by size."""
    if size == "smoke":
        for model in MODELS:
            yield step(model, "smoke", turns=1, batch=200)
        yield epoch(
            "smoke", turns=2, peers=["plain PyTorch"] if peers is None else peers, batch=200
        )
        return
    for model, names in STEPS.items():
        for data in names:
            if only is None or only in f"step of {model} {data}":
                yield step(model, data)
    for data in EPOCHS:
        if only is None or only in f"epoch of lightgcn {data}":
            yield epoch(data, peers=peers)
