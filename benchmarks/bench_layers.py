"""Layers of critic and recommender: elementwise ones, attention, products, the critic's first.

The limit of an elementwise layer is a copy of the bytes that it must at least read and write: three
arrays forward and backward for norm_act (x, the gradient, the mask; y, the gradient of x), the
views, queries and keys with their gradients for view_attention, table and views for add_normalized.
The limit of a product is its FLOP (low rank in ``masked_similarity_linear``) at the multiply-add
rate. ``mmssl bench ops`` runs these cases; ``benchmarks/test_speed.py`` times the same functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import limits, workloads
from benchmarks.harness.clock import Work
from benchmarks.harness.problem import Budget, Probe, Problem
from benchmarks.peers.registry import compiled, with_backend
from mmssl import ops
from mmssl.graph import GraphView
from mmssl.ops.dispatch import why_not_native
from mmssl.ops.keep_mask import mask_from_seed
from mmssl.ops.masked_similarity import masked_similarity_reference
from mmssl.ops.product import product
from mmssl.ops.view_attention import view_attention_reference

RATE = 0.3
HEADS, VIEWS, D = 4, 3, 64
BATCH, HIDDEN = 1024, 512
MEMORY = ("norm_act", "view_attention", "masked_similarity_linear")  # whose peak is measured


class Layer(NamedTuple):
    """What distinguishes the problem of one layer from the others."""

    workload: str
    sizes: dict[str, int]
    peers: dict[str, Callable[[], Work]]
    expected: Callable[[], Sequence[Tensor]]
    probe: Probe
    tolerance: float = 1e-4
    dtype: str = "float32"


def problem(layer: str = "norm_act", n: int = 2048, h: int = 1677, device: str = "cpu") -> Problem:
    """A layer of N rows (nodes) and H columns (features)."""
    made = MAKERS[layer](n, h, device)
    arguments = {"layer": layer, "n": n, "h": h, "device": device}
    return Problem(op=layer, device=device, again=("bench_layers", arguments), **made._asdict())


def _drawn(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Seeded normal draws, made on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def _native(op: str, device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The op with its kernel; plain PyTorch where the device has none, as some ops on a GPU."""
    return with_backend("auto" if why_not_native(op, device) else "native", function)


def _peers(
    work: Callable[[Callable[..., Tensor]], Work],
    native: Callable[..., Tensor],
    plain: Callable[..., Tensor],
) -> dict[str, Callable[[], Work]]:
    """Return the peers: an op, its plain PyTorch, and that under torch.compile."""
    return {
        "native": lambda: work(native),
        "reference": lambda: work(plain),
        "torch.compile": lambda: work(compiled(plain)),
    }


def norm_act(n: int, h: int, device: str) -> Layer:
    """LeakyReLU, batch normalization and dropout, forward and backward."""
    x, grad = _drawn(device, (n, h), (n, h))
    weight, bias = torch.ones(2, h, device=device).unbind()
    trained = tuple(t.detach().requires_grad_() for t in (x, weight, bias))
    generator = torch.Generator().manual_seed(1)
    keep = (torch.rand(n, h, generator=generator) > RATE).to(device, torch.uint8)
    options = {"keep": keep, "keep_scale": 1 / (1 - RATE)}

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """As modules would: three calls of torch.nn.functional."""
        a = F.leaky_relu(x, 0.2)
        y = F.batch_norm(a, None, None, weight, bias, True, 0.1, 1e-5)
        return y * (keep * options["keep_scale"])

    def in_float64() -> tuple[Tensor, ...]:
        wide = tuple(t.detach().double().requires_grad_() for t in trained)
        reference = with_backend("reference", ops.norm_act)
        return Work(lambda: reference(*wide, **options), wide, (grad.double(),)).full()

    def work(function: Callable[..., Tensor], **given: Any) -> Work:
        return Work(functools.partial(function, *trained, **given), trained, (grad,))

    return Layer(
        workload=f"{n:,} x {h:,}",
        sizes={"n": n, "h": h},
        peers={
            "native": lambda: work(_native("norm_act", device, ops.norm_act), **options),
            "reference": lambda: work(with_backend("reference", ops.norm_act), **options),
            "torch.nn.functional": lambda: work(plain),
            "torch.compile": lambda: work(compiled(plain)),
        },
        expected=in_float64,
        probe=limits.copying(n * h * (4.0 * 5 + 2), device),
    )


def keep_mask(n: int, h: int, device: str) -> Layer:
    """The mask of dropout."""
    seed = torch.tensor([7], device=device)
    limit = round(RATE * 2**16) - 2**15

    def drawn() -> Tensor:
        return torch.empty(n * h, dtype=torch.uint8, device=device).bernoulli_(1 - RATE)

    def written() -> Tensor:
        return torch.empty(n * h, dtype=torch.uint8, device=device).fill_(1)

    reference = functools.partial(mask_from_seed, seed, n * h, limit)
    native = functools.partial(torch.ops.mmssl.keep_mask, seed, n * h, limit)
    return Layer(
        workload=f"{n:,} x {h:,}",
        dtype="uint8",
        sizes={"n": n, "h": h},
        peers={
            "native": lambda: Work(native if device == "cpu" else reference),
            "reference": lambda: Work(reference),
            "torch bernoulli_": lambda: Work(drawn),
        },
        expected=lambda: (reference(),),
        probe=limits.Job("a write of the same bytes", written, device, float(n * h)),
    )


def view_attention(n: int, h: int, device: str) -> Layer:
    """Three views of N nodes, four heads; ``h`` is the width of a view."""
    *inputs, grad = _drawn(device, *[(VIEWS, n, h)] * 3, (n, HEADS * h))
    trained = tuple(t.requires_grad_() for t in inputs)
    plain = view_attention_reference

    def work(function: Callable[..., Tensor]) -> Work:
        return Work(lambda: function(*trained, HEADS), trained, (grad,))

    return Layer(
        workload=f"{n:,} nodes",
        sizes={"n": n, "d": h},
        peers=_peers(work, _native("view_attention", device, ops.view_attention), plain),
        expected=lambda: work(plain).full(),
        # Forward reads three and writes HEADS; backward reads those again and writes three.
        probe=limits.copying(4.0 * n * h * (2 * 3 * VIEWS + 2 * HEADS), device),
    )


def add_normalized(n: int, h: int, device: str) -> Layer:
    """A table of N rows plus the normalized rows of its two views."""
    base, views, grad = _drawn(device, (n, h), (2, n, h), (n, h))
    trained = (base.requires_grad_(), views.requires_grad_())

    def plain(base: Tensor, views: Tensor, weight: float) -> Tensor:
        return base + weight * F.normalize(views, dim=-1).sum(0)

    def work(function: Callable[..., Tensor]) -> Work:
        return Work(lambda: function(*trained, 0.5), trained, (grad,))

    return Layer(
        workload=f"{n:,} rows",
        sizes={"n": n, "d": h},
        peers=_peers(work, _native("add_normalized", device, ops.add_normalized), plain),
        expected=lambda: work(plain).full(),
        # Forward reads three tables and writes one; backward reads three and writes two.
        probe=limits.copying(4.0 * n * h * 9, device),
    )


def tall_product(n: int, h: int, device: str) -> Layer:
    """The gradient of a linear layer's weight: two tables of N rows, H columns each."""
    a, b = _drawn(device, (n, h), (n, h))
    native = with_backend("auto", product)
    return Layer(
        workload=f"{n:,} x {h} x {h}",
        sizes={"n": n, "d": h},
        peers={
            "native": lambda: Work(lambda: native(a.T, b)),
            "reference": lambda: Work(lambda: a.T @ b),
        },
        expected=lambda: ((a.double().T @ b.double()).float(),),
        probe=limits.Products(2.0 * n * h * h, device, "float32", 8.0 * n * h + 4.0 * h * h),
    )


def similarity_linear(n: int, h: int, device: str) -> Layer:
    """The critic's first layer for a batch of N users on TikTok (below N = 1,024: a tiny graph)."""
    name, graph = workloads.load("tiktok" if n >= BATCH else "smoke")
    graph = graph.to(device)
    *tables, grad = _drawn(
        device, (graph.num_users, D), (graph.num_items, D), (graph.num_items, h), (n, h)
    )
    trained = tuple(t.requires_grad_() for t in tables)
    generator = torch.Generator().manual_seed(1)
    users = torch.randperm(graph.num_users, generator=generator)[:n].to(device)
    native = with_backend("native", ops.masked_similarity_linear)

    def formed(user: Tensor, item: Tensor, users: Tensor, ui: GraphView, weight: Tensor) -> Tensor:
        return masked_similarity_reference(user, item, users, ui) @ weight

    def work(function: Callable[..., Tensor]) -> Work:
        user, item, weight = trained
        return Work(lambda: function(user, item, users, graph.ui, weight), trained, (grad,))

    factors = 3 * 2.0 * (graph.num_items + n) * D * h  # forward, and both gradients of each product
    return Layer(
        workload=name,
        sizes={"batch": n, "items": graph.num_items, "h": h, "d": D},
        peers={"native": lambda: work(native), "reference": lambda: work(formed)},
        expected=lambda: work(formed).full(),
        tolerance=5e-4,
        probe=limits.Products(factors, device, "float32", 4.0 * (2 * graph.num_items + n) * h),
    )


MAKERS = {
    "norm_act": norm_act,
    "keep_mask": keep_mask,
    "view_attention": view_attention,
    "add_normalized": add_normalized,
    "tall_product": tall_product,
    "masked_similarity_linear": similarity_linear,
}
LAYERS = tuple(MAKERS)
SIZES = {  # rows and columns: of a step on TikTok, and of a smoke run
    "norm_act": ((2048, 1677), (64, 33)),
    "keep_mask": ((2048, 1677), (64, 33)),
    "view_attention": ((16_018, D), (100, 16)),
    "add_normalized": ((16_018, D), (100, 16)),
    "tall_product": ((18_616, D), (300, 16)),
    "masked_similarity_linear": ((BATCH, HIDDEN), (64, 32)),
}


def cases(size: str, device: str) -> Iterator[tuple[functools.partial[Problem], Budget]]:
    """What ``mmssl bench ops`` measures, by size."""
    make = functools.partial(problem, device=device)
    for layer, (full, small) in SIZES.items():
        if size == "smoke":
            yield (
                functools.partial(make, layer, *small),
                Budget(0, 2, peers=["reference"], memory=False),
            )
        else:
            yield functools.partial(make, layer, *full), Budget(1.5, 3, memory=layer in MEMORY)
