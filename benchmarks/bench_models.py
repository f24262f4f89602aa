"""Light models: a step by phases against its limits.

A step of LightGCN and of ``plus`` runs as in training, and every phase is compared with the least
that it can take (model_phases.py). ``mmssl bench models`` runs these cases and those of
bench_epochs.py, which compares with other implementations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import model_phases, workloads
from benchmarks.harness import environment
from benchmarks.harness.record import Case, Row, Timing
from mmssl.config import load_config
from mmssl.data.dataset import InteractionDataset
from mmssl.memory import keep_freed_memory
from mmssl.training.pairwise import PairwiseTask
from mmssl.training.task import create_task

LAYERS, LR, REG, BATCH = 3, 1e-3, 1e-4, 2048


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
    # Without L2, which not every implementation of BPR adds to its loss.
    "bprmf": Model(
        "bprmf", settings=(f"bprmf.lr={LR}", "bprmf.reg=0", f"bprmf.batch_size={BATCH}"),
    ),
    "freedom": Model(
        "freedom", settings=(f"freedom.lr={LR}", "freedom.reg=1e-3", f"freedom.batch_size={BATCH}"),
    ),
    "plus": Model("mmssl", "plus"),
}  # fmt: skip
STEPS = {"lightgcn": ("tiktok", "sports", "gowalla", "microlens", "power-law-2m"),
         "plus": ("tiktok", "sports", "microlens")}  # fmt: skip


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
        f"step of {model}", workloads.label(data), "float32", sizes_of(task), "native",
        {"native": row}, limit=found.limit, commit=environment.commit(),
    )  # fmt: skip


def sizes_of(task: PairwiseTask[Any, Any]) -> dict[str, int]:
    """Return what identifies a problem in the results."""
    graph = task.graph
    return {
        "users": graph.num_users, "items": graph.num_items, "edges": graph.nnz,
        "batch": task.batch_size, "steps": task.steps_per_epoch,
    }  # fmt: skip


def cases(size: str, only: str | None = None) -> Iterator[Case]:
    """The steps of ``mmssl bench models``, by size."""
    if size == "smoke":
        for model in STEPS:
            yield step(model, "smoke", turns=1, batch=200)
        return
    for model, names in STEPS.items():
        for data in names:
            if only is None or only in f"step of {model} {data}":
                yield step(model, data)
