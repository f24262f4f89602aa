"""The small parts of a training step: sampling, the batch's edges, BPR with L2, modality graphs.

Peers are the reference, torch.compile of it, the loop of the released code for the sampler
(rewritten) and a general sort for the graphs. The limit of BPR is the time to allocate the two
gradient tables and clear them, that of the graphs a copy of the bytes that they hold. ``mmssl bench
ops`` runs these cases; ``benchmarks/test_speed.py`` times the same functions.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor

from benchmarks import limits, workloads
from benchmarks.harness.clock import Work
from benchmarks.harness.problem import Budget, Probe, Problem
from benchmarks.peers.registry import compiled, with_backend
from mmssl import indexing, ops
from mmssl.config import load_config, preset_names
from mmssl.graph import InteractionGraph
from mmssl.ops.bpr import bpr_loss_reference
from mmssl.ops.masked_similarity import batch_edges
from mmssl.ops.sampling import triples_from_draws

D = 64
BATCH = 1024
MODALITIES = 2
PARTS = ("sample_bpr", "batch_edges", "bpr_loss", "modality graphs")
Peers = dict[str, Callable[[], Work]]


def problem(
    part: str = "sample_bpr", graph: str = "tiktok", device: str = "cpu", batch: int = BATCH
) -> Problem:
    """One part of a step; the reference gives the expected result."""
    name, loaded = workloads.load(graph)
    loaded = loaded.to(device)
    probe: Probe | None = None
    sizes = {"users": loaded.num_users, "items": loaded.num_items, "edges": loaded.nnz}
    if part == "modality graphs":
        preset = graph if graph in preset_names() else None
        k = load_config("paper", preset=preset).structure.edges_per_user(loaded.num_items)
        peers = rebuild(loaded, k)
        # Two index arrays of int32, two of int64 pointers, per graph; the lists are read once.
        nodes = loaded.num_users + loaded.num_items
        probe = limits.copying(MODALITIES * (12.0 * loaded.num_users * k + 8.0 * nodes), device)
        sizes |= {"k": k}
    else:
        makers = {"sample_bpr": sampling, "batch_edges": edges, "bpr_loss": bpr}
        peers = makers[part](loaded, batch)
        sizes |= {"batch": batch}
    if part == "bpr_loss":
        nodes = loaded.num_users + loaded.num_items

        def cleared() -> list[Tensor]:
            shapes = (loaded.num_users, loaded.num_items)
            return [torch.zeros(rows, D, device=device) for rows in shapes]

        probe = limits.Job("two gradient tables made and cleared", cleared, device, 4.0 * D * nodes)
    return Problem(
        op={"bpr_loss": "bpr_loss with L2"}.get(part, part),
        workload=name,
        dtype="float32",
        device=device,
        sizes=sizes,
        peers=peers,
        expected=lambda: peers["reference"]().full(),
        tolerance=1e-5,
        probe=probe,
        again=(
            "bench_step_parts",
            {"part": part, "graph": graph, "device": device, "batch": batch},
        ),
    )


def sampling(graph: InteractionGraph, batch: int) -> Peers:
    """Users with one train item and one other item each, from a seed."""
    device = str(graph.device)

    def draw() -> object:
        return ops.sample_bpr(graph, batch, torch.Generator(device).manual_seed(0))

    def from_draws() -> Work:
        uniform = torch.rand(
            3, batch, generator=torch.Generator(device).manual_seed(0), dtype=torch.float64,
            device=device,
        )  # fmt: skip
        _ = graph.trainable_users, graph.negative_rank_key
        function = compiled(lambda draws: triples_from_draws(graph, draws))
        return Work(lambda: function(uniform))

    def loop() -> Work:
        rowptr, col = graph.index.rowptr.tolist(), graph.index.col.tolist()
        users = graph.trainable_users.tolist()
        items = {user: col[rowptr[user] : rowptr[user + 1]] for user in users}

        def draw_in_python() -> tuple[Tensor, ...]:
            triples = []
            for user in random.sample(users, batch):
                own = items[user]
                negative = random.randrange(graph.num_items)
                while negative in own:
                    negative = random.randrange(graph.num_items)
                triples.append((user, random.choice(own), negative))
            return tuple(torch.tensor(triples).T.to(device))

        return Work(draw_in_python)

    native = "native" if device == "cpu" else "auto"  # on a GPU this op is plain PyTorch
    return {
        "native": lambda: Work(with_backend(native, draw)),
        "reference": lambda: Work(with_backend("reference", draw)),
        "torch.compile": from_draws,
        "Python loop": loop,
    }


def edges(graph: InteractionGraph, batch: int) -> Peers:
    """The index arrays of the rows of a batch, in both directions."""
    generator = torch.Generator(graph.device).manual_seed(0)
    users = ops.sample_bpr(graph, batch, generator).user

    def gather() -> tuple[Tensor, ...]:
        found = batch_edges(graph.ui, users)
        return found.position, found.item, found.view.t_col, found.view.t_rowptr

    return {"native": lambda: Work(gather), "reference": lambda: Work(in_plain_torch(gather))}


def bpr(graph: InteractionGraph, batch: int) -> Peers:
    """The loss with the L2 of its rows, and both gradients."""
    generator = torch.Generator().manual_seed(0)
    tables = tuple(
        torch.randn(n, D, generator=generator).mul_(0.1).to(graph.device).requires_grad_()
        for n in (graph.num_users, graph.num_items)
    )
    triples = ops.sample_bpr(graph, batch, torch.Generator(graph.device).manual_seed(0))

    def both(function: Callable[..., tuple[Tensor, Tensor]]) -> Work:
        def compute() -> Tensor:
            loss, squares = function(*tables, *triples, with_l2=True)
            return loss + 1e-5 * squares

        return Work(compute, tables)

    return {
        "native": lambda: both(with_backend("native", ops.bpr_loss)),
        "reference": lambda: both(bpr_loss_reference),
        "torch.compile": lambda: both(compiled(bpr_loss_reference)),
    }


def rebuild(graph: InteractionGraph, k: int) -> Peers:
    """Modality graphs from random lists for all users, the worst case for a cache."""
    generator = torch.Generator().manual_seed(0)
    step = max(1, graph.num_items // k)  # distinct items: a random start, then equal steps
    start = torch.randint(
        graph.num_items, (MODALITIES, graph.num_users, 1), generator=generator, dtype=torch.int32
    )
    lists = (start + step * torch.randperm(k, generator=generator).int()) % graph.num_items
    lists = lists.to(graph.device)
    user = torch.arange(graph.num_users, device=graph.device).repeat_interleave(k)
    shape = (graph.num_users, graph.num_items)

    def learn() -> list[Tensor]:
        return [t for learned in graph.with_lists(lists) for t in learned.index[:4]]

    def sort() -> list[Tensor]:
        graphs = (InteractionGraph.from_edges(user, table.flatten(), *shape) for table in lists)
        return [t for learned in graphs for t in learned.index[:4]]

    return {
        "native": lambda: Work(learn),
        "reference": lambda: Work(in_plain_torch(learn)),
        "from_edges": lambda: Work(sort),
    }


def in_plain_torch(job: Callable[[], object]) -> Callable[[], object]:
    """Run a job without the compiled index building."""

    def call() -> object:
        with mock.patch.object(indexing, "_host_for", lambda array: None):
            return job()

    return call


def cases(size: str, device: str) -> Iterator[tuple[functools.partial[Problem], Budget]]:
    """What ``mmssl bench ops`` measures, by size."""
    make = functools.partial(problem, device=device)
    if size == "smoke":
        for part in PARTS:
            budget = Budget(0, 2, peers=["reference", "Python loop", "from_edges"], memory=False)
            yield functools.partial(make, part, "smoke", batch=64), budget
        return
    for graph in ("tiktok", "sports"):
        for part in PARTS:
            yield functools.partial(make, part, graph), Budget(1, 3, memory=False)
