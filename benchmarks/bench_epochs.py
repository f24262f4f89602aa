"""Light models against other implementations: epochs of LightGCN, BPR-MF, FREEDOM, a fit of EASE.

The same interactions, batch size and width, interleaved. Before anything is timed, the losses of
three steps from the same tables on the same triples have to agree, or entries of the result of a
closed form. Peers in other environments are processes that wait for a line (peers/remote.py).
``mmssl bench models`` runs these cases.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import workloads
from benchmarks.bench_models import make_task, sizes_of
from benchmarks.harness import environment
from benchmarks.harness.clock import Work, clock_of, ratios, take_turns
from benchmarks.harness.record import Case, Row, Spread, Timing
from benchmarks.peers.model import coo
from benchmarks.peers.registry import Missing
from benchmarks.peers.remote import Remote
from benchmarks.peers.serve import PEERS, Spec, version
from mmssl.graph import InteractionGraph
from mmssl.memory import keep_freed_memory
from mmssl.models.closed_form import gram
from mmssl.models.ease import ease_weights
from mmssl.models.freedom import FreedomTask
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

EPOCHS = {
    "lightgcn": ("tiktok", "baby"), "bprmf": ("tiktok", "baby"), "freedom": ("baby-mmrec",),
}  # fmt: skip
THREE_STEPS = ("gowalla",)  # where an epoch of a peer takes minutes
FITS = ("tiktok", "ml1m")
EASE_REG = 100.0
OURS = "mmssl"
AGREEMENT = 1e-4  # of the largest of the compared numbers
UNTRAINED = math.log(2)  # BPR of equal scores


def epoch(
    model: str,
    data: str,
    *,
    turns: int = 4,
    peers: Sequence[str] | None = None,
    batch: int | None = None,
    validation: bool = False,
) -> Case:
    """An epoch of a model, sampling included, interleaved with its peers.

    Args:
        model: Key of ``EPOCHS``.
        data: Name of the workload.
        turns: Rounds after a first one that warms up.
        peers: Names of the wanted ones; None means all.
        batch: Replaces the batch size.
        validation: Whether an epoch ends with the full ranking of the validation split.
    """
    keep_freed_memory()
    dataset = workloads.dataset(data, with_features=model == "freedom")
    task = make_task(model, dataset, batch)
    case = Case(
        f"epoch {'and validation ' if validation else ''}of {model}", workloads.label(data),
        "float32", sizes_of(task), OURS, {}, commit=environment.commit(),
    )  # fmt: skip
    task.start_epoch(0, 0)
    problem = problem_of(task)
    if isinstance(task, FreedomTask):
        problem |= arrays_of_freedom(task)
    expected = losses_of(task, problem["batches"])
    evaluate: Callable[[], dict[str, float]] | None = None
    if validation:
        problem["held"] = np.stack(dataset.val)
        evaluator = task.evaluator(dataset, "val")
        evaluate = lambda: evaluator.evaluate(task.embed())  # noqa: E731
        expected.append(evaluate()["recall@20"])
    return compare(case, _epochs(task, evaluate), expected, problem, turns=turns, peers=peers)


def three_steps(data: str, *, turns: int = 6, peers: Sequence[str] | None = None) -> Case:
    """Three steps of LightGCN on given triples, without sampling."""
    keep_freed_memory()
    task = make_task("lightgcn", workloads.dataset(data))
    case = Case(
        "three steps of lightgcn", workloads.label(data), "float32", sizes_of(task), OURS, {},
        commit=environment.commit(),
    )  # fmt: skip
    task.start_epoch(0, 0)
    problem = problem_of(task)
    ours = lambda: losses_of(task, problem["batches"])  # noqa: E731
    return compare(case, ours, ours(), problem, turns=turns, peers=peers, whole=False)


def fit(data: str, *, turns: int = 3, peers: Sequence[str] | None = None) -> Case:
    """EASE for one weight of the regularization, from the graph to the weights between items."""
    keep_freed_memory()
    graph = workloads.load(data).graph.with_normalization("none")
    rng = np.random.default_rng(0)
    problem = {
        "user": graph.ui.row_of_edge().numpy(), "item": graph.index.col.long().numpy(),
        "num_users": graph.num_users, "num_items": graph.num_items, "reg": EASE_REG,
        "entries": rng.integers(0, graph.num_items, (2, 1000)),
    }  # fmt: skip
    sizes = {"users": graph.num_users, "items": graph.num_items, "edges": graph.nnz}
    case = Case(
        "fit of ease", workloads.label(data), "float64", sizes, OURS, {},
        commit=environment.commit(),
    )  # fmt: skip
    expected = _ease(graph)[tuple(problem["entries"])].tolist()
    ours = lambda: _ease(graph)  # noqa: E731
    return compare(case, ours, expected, problem, turns=turns, peers=peers)


def compare(
    case: Case,
    ours: Callable[[], object],
    expected: Sequence[float],
    problem: Mapping[str, Any],
    *,
    turns: int,
    peers: Sequence[str] | None = None,
    whole: bool = True,
) -> Case:
    """Fill in a case: check the peers, and time those that agree, interleaved with ours.

    Args:
        case: Without rows; its ``op`` names the peers.
        ours: What is timed.
        expected: What the peers have to return.
        problem: Arrays that they are constructed from.
        turns: Rounds after a first one that warms up.
        peers: Names of the wanted ones; None means all.
        whole: False to time what is checked instead of what a peer runs.
    """
    specs = {n: s for n, s in PEERS[case.op].items() if peers is None or n in peers}
    jobs: dict[str, Callable[[], object]] = {OURS: ours}
    errors: dict[str, float | None] = {}
    versions: dict[str, str] = {}
    remotes: list[Remote] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problem.npz")
        np.savez(path, **problem)
        try:
            for name, spec in specs.items():
                try:
                    check, run, versions[name] = _peer(case.op, name, problem, path, remotes)
                    errors[name] = _checked(spec, check(), expected)
                except Missing as reason:
                    case.missing[name] = str(reason)
                    continue
                jobs[name] = run if whole else check
            works = {name: Work(job) for name, job in jobs.items()}
            found = take_turns(works, clock_of("cpu"), seconds=0, turns=turns, most_calls=1)
        finally:
            for remote in remotes:
                remote.close()
    for name in works:
        case.rows[name] = Row(
            Timing.of([call.full for turn in found[name] for call in turn]),
            relative=Spread.of(ratios(found, name, OURS)),
            error=errors.get(name),
            note=specs[name].other or None if name in specs else None,
            extra={"version": versions[name]} if name in versions else {},
        )
    return case


def _peer(
    case: str, name: str, problem: Mapping[str, Any], path: Path, remotes: list[Remote]
) -> tuple[Callable[[], list[float]], Callable[[], object], str]:
    """Return what checks a peer, what runs it, and its version."""
    spec = PEERS[case][name]
    if spec.inside:
        peer = spec.make(problem)
        return peer.check, peer.run, version(spec)
    remote = Remote(case, name, path)
    remotes.append(remote)
    return lambda: remote.ask("check"), lambda: remote.ask("run"), remote.version


def _checked(spec: Spec, found: Sequence[float], expected: Sequence[float]) -> float | None:
    """Return the deviation of a peer that computes the same, None of another that learns.

    Raises:
        Missing: It disagrees, or does not learn.
    """
    if spec.other:
        if not all(loss < UNTRAINED for loss in found):
            raise Missing(f"does not learn: BPR {found}")
        return None
    error = np.abs(np.subtract(found, expected)).max() / np.abs(expected).max()
    if not error <= AGREEMENT:
        raise Missing(f"disagrees: results differ by {error:.1e}")
    return float(error)


def problem_of(task: PairwiseTask[Any, Any]) -> dict[str, Any]:
    """Return what a peer needs to start where the task does; see ``LightGCNPeer``."""
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
        "layers": model.num_layers, "lr": task.settings.lr, "reg": task.settings.reg,
        "batch_size": task.batch_size,
    }  # fmt: skip


def arrays_of_freedom(task: FreedomTask) -> dict[str, Any]:
    """Return what its peers need in addition: features, item graph, the edges of this epoch."""
    model, kept = task.model, task.pruned
    assert model.projections is not None
    items = coo(model.item_graph)
    found = {
        "kept": np.stack([kept.ui.row_of_edge().numpy(), kept.index.col.long().numpy()]),
        "item_graph": items.indices().numpy(), "item_value": items.values().numpy(),
        "prune": task.settings.prune,
    }  # fmt: skip
    for number, layer in enumerate(model.projections.layers):
        found[f"features_{number}"] = model.projections.get_buffer(f"raw_{number}").numpy()
        found[f"weight_{number}"] = layer.weight.detach().numpy().copy()
        found[f"bias_{number}"] = layer.bias.detach().numpy().copy()
    return found


def losses_of(task: PairwiseTask[Any, Any], batches: Any) -> list[float]:
    """Train on the given triples and return the loss of each step."""
    found = []
    for triples in batches:
        batch = Triples(*(torch.from_numpy(ids) for ids in triples))
        found.append(float(task.train_on(batch).sum()))
    return found


def _epochs(
    task: PairwiseTask[Any, Any], evaluate: Callable[[], object] | None
) -> Callable[[], None]:
    def run() -> None:
        task.start_epoch(0, 0)
        for number in range(task.steps_per_epoch):
            task.step(number)
        if evaluate is not None:
            evaluate()

    return run


def _ease(graph: InteractionGraph) -> torch.Tensor:
    return ease_weights(gram(graph), EASE_REG)


def cases(size: str, peers: Sequence[str] | None, only: str | None = None) -> Iterator[Case]:
    """The comparisons of ``mmssl bench models``, by size."""
    if size == "smoke":
        some = ["plain PyTorch", "NumPy"] if peers is None else peers
        for model in EPOCHS:
            yield epoch(model, "smoke", turns=2, peers=some, batch=200)
        yield three_steps("smoke", turns=2, peers=some)
        yield fit("smoke", turns=2, peers=some)
        return
    for model, names in EPOCHS.items():
        for data, validation in itertools.product(names, (False, True)):
            name = f"epoch {'and validation ' if validation else ''}of {model}"
            if name in PEERS and (only is None or only in f"{name} {data}"):
                yield epoch(model, data, peers=peers, validation=validation)
    for data in THREE_STEPS:
        if only is None or only in f"three steps of lightgcn {data}":
            yield three_steps(data, peers=peers)
    for data in FITS:
        if only is None or only in f"fit of ease {data}":
            yield fit(data, peers=peers)
