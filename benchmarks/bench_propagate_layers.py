"""All hops of a LightGCN and the mean of its layers, forward and backward.

Compared with one ``spmm`` for each hop and side, with torch's CSR and with a pair of CSR matrices
kept for both directions. The limit is that of the products, as in ``bench_propagate``: each layer
is one forward and one backward.
``mmssl bench ops`` runs these cases; ``benchmarks/test_speed.py`` times the same functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.harness.clock import Work
from benchmarks.harness.problem import Budget, Problem
from benchmarks.limits import Gathers
from benchmarks.peers.ops import SPARSE
from benchmarks.peers.registry import with_backend
from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.ops.propagate_layers import propagate_layers_reference

D, LAYERS = 64, 3
Tables = tuple[Tensor, Tensor]
# The products of the peers that multiply hop by hop.
PEERS = {"spmm per hop": "native", "kept transpose": "kept transpose", "torch CSR": "torch CSR"}


def problem(
    graph: str = "tiktok", layers: int = LAYERS, d: int = D, device: str = "cpu"
) -> Problem:
    """The mean of L + 1 layers of both sides, and the gradients of both tables."""
    workload = workloads.load(graph)
    here = InteractionGraph(workload.graph.index, "sym").to(device)
    generator = torch.Generator().manual_seed(0)
    shapes = [(here.num_users, d), (here.num_items, d)] * 2
    *tables, grad_user, grad_item = (torch.randn(s, generator=generator).to(device) for s in shapes)
    trained = tuple(t.requires_grad_() for t in tables)

    def work(function: Callable[[Tensor, Tensor], Tables]) -> Work:
        return Work(lambda: function(*trained), trained, (grad_user, grad_item))

    def by_hops(name: str) -> Work:
        to_user, to_item = SPARSE[name](here.ui), SPARSE[name](here.iu)

        def mean(user: Tensor, item: Tensor) -> Tables:
            user_sum, item_sum = user, item
            for _ in range(layers):
                user, item = to_user(item), to_item(user)
                user_sum, item_sum = user_sum + user, item_sum + item
            return user_sum / (layers + 1), item_sum / (layers + 1)

        return work(mean)

    def in_float64() -> tuple[Tensor, ...]:
        wide = tuple(t.detach().double().requires_grad_() for t in trained)
        grads = grad_user.double(), grad_item.double()
        function = functools.partial(propagate_layers_reference, here, *wide, layers)
        return Work(function, wide, grads).full()

    native = with_backend("native", ops.propagate_layers)
    limited = d == D or device == "cuda"
    return Problem(
        op="propagate_layers",
        workload=workload.name,
        dtype="float32",
        device=device,
        sizes={
            "users": here.num_users,
            "items": here.num_items,
            "edges": here.nnz,
            "layers": layers,
            "d": d,
        },
        peers={
            "native": lambda: work(lambda user, item: native(here, user, item, layers)),
            "reference": lambda: work(
                lambda user, item: propagate_layers_reference(here, user, item, layers)
            ),
            **{name: functools.partial(by_hops, product) for name, product in PEERS.items()},
        },
        expected=in_float64,
        # A probe reads the rows of both directions, as a hop does forward and again backward.
        probe=Gathers(here.ui, tables[1], tables[0], 2 * layers) if limited else None,
        again=(
            "bench_propagate_layers",
            {"graph": graph, "layers": layers, "d": d, "device": device},
        ),
    )


def cases(size: str, device: str) -> Iterator[tuple[functools.partial[Problem], Budget]]:
    """What ``mmssl bench ops`` measures, by size."""
    make = functools.partial(problem, device=device)
    if size == "smoke":
        yield functools.partial(make, "smoke"), Budget(0, 2)
        return
    for graph in ("tiktok", "sports"):
        peers = [*PEERS, "reference"] if graph == "tiktok" else list(PEERS)
        yield functools.partial(make, graph), Budget(2, peers=peers, memory=graph == "sports")
