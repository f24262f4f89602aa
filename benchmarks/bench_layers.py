"""Layers of critic and recommender: elementwise ones, attention, products, the critic's first.

The limit of the elementwise ones is a copy of the bytes that they must at least read and write:
three arrays forward and backward for norm_act (x, the gradient, the mask; y, the gradient of x),
the views, queries and keys with their gradients for view_attention, table and views for
add_normalized. That of the products is their FLOP (low rank in ``masked_similarity_linear``) at the
multiply-add rate. ``mmssl bench ops`` runs
these cases; ``pytest benchmarks --benchmark-only`` times them one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks import limits, workloads
from benchmarks.harness.clock import Work
from benchmarks.harness.problem import Budget, Problem
from benchmarks.peers.registry import compiled, with_backend
from mmssl import ops
from mmssl.ops.dispatch import why_not_native
from mmssl.ops.product import product
from mmssl.ops.reference import (
    keep_mask_reference,
    masked_similarity_reference,
    norm_act_reference,
    view_attention_reference,
)

LAYERS = (
    "norm_act", "keep_mask", "view_attention", "add_normalized", "tall_product",
    "masked_similarity_linear",
)  # fmt: skip
RATE = 0.3
HEADS, VIEWS, D = 4, 3, 64
BATCH, HIDDEN = 1024, 512
SIZES = {  # rows and columns of a step on TikTok
    "norm_act": (2048, 1677),
    "keep_mask": (2048, 1677),
    "view_attention": (16_018, D),
    "add_normalized": (16_018, D),
    "tall_product": (18_616, D),
    "masked_similarity_linear": (BATCH, HIDDEN),
}
SMOKE = {
    "norm_act": (64, 33),
    "keep_mask": (64, 33),
    "view_attention": (100, 16),
    "add_normalized": (100, 16),
    "tall_product": (300, 16),
    "masked_similarity_linear": (64, 32),
}


def problem(layer: str = "norm_act", n: int = 2048, h: int = 1677, device: str = "cpu") -> Problem:
    """A layer of N rows (nodes) and H columns (features)."""
    return {
        "norm_act": norm_act,
        "keep_mask": keep_mask,
        "view_attention": view_attention,
        "add_normalized": add_normalized,
        "tall_product": tall_product,
        "masked_similarity_linear": similarity_linear,
    }[layer](n, h, device)


def norm_act(n: int, h: int, device: str) -> Problem:
    """LeakyReLU, batch normalisation and dropout, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(n, h, generator=generator).to(device) for _ in range(2))
    x.requires_grad_()
    weight, bias = (torch.ones(h, device=device, requires_grad=True) for _ in range(2))
    keep = (torch.rand(n, h, generator=generator) > RATE).to(device, torch.uint8)
    options = {"keep": keep, "keep_scale": 1 / (1 - RATE)}

    def work(function: Callable[..., torch.Tensor]) -> Work:
        return Work(lambda: function(x, weight, bias, **options), (x, weight, bias), (grad,))

    def reference(*arguments: torch.Tensor, **options: object) -> torch.Tensor:
        return with_backend("reference", ops.norm_act)(*arguments, **options)

    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """As modules would: three calls of torch.nn.functional."""
        a = torch.nn.functional.leaky_relu(x, 0.2)
        y = torch.nn.functional.batch_norm(a, None, None, weight, bias, True, 0.1, 1e-5)
        return y * (keep * options["keep_scale"])

    return Problem(
        op="norm_act",
        workload=f"{n:,} x {h:,}",
        dtype="float32",
        device=device,
        sizes={"n": n, "h": h},
        peers={
            "native": lambda: work(with_backend(_backend("norm_act", device), ops.norm_act)),
            "reference": lambda: work(reference),
            "torch.nn.functional": lambda: Work(
                lambda: plain(x, weight, bias), (x, weight, bias), (grad,)
            ),
            "torch.compile": lambda: Work(
                functools.partial(compiled(plain), x, weight, bias), (x, weight, bias), (grad,)
            ),
        },
        expected=lambda: _in_float64(x, weight, bias, keep, grad),
        tolerance=1e-4,
        probe=limits.copying(n * h * (4.0 * 5 + 2), device),
        again=("bench_layers", {"layer": "norm_act", "n": n, "h": h, "device": device}),
    )


def _in_float64(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    keep: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    options = {
        "running_mean": None, "running_var": None, "momentum": 0.1, "eps": 1e-5,
        "negative_slope": 0.2, "keep": keep, "keep_scale": 1 / (1 - RATE),
    }  # fmt: skip
    work = Work(lambda: norm_act_reference(*wide, **options), tuple(wide), (grad.double(),))
    return work.full()


def keep_mask(n: int, h: int, device: str) -> Problem:
    """What dropout lets through."""
    seed = torch.tensor([7], device=device)
    limit = round(RATE * 2**16) - 2**15

    def native() -> Work:
        return Work(lambda: torch.ops.mmssl.keep_mask(seed, n * h, limit))

    def reference() -> Work:
        return Work(lambda: keep_mask_reference(seed, n * h, limit))

    return Problem(
        op="keep_mask",
        workload=f"{n:,} x {h:,}",
        dtype="uint8",
        device=device,
        sizes={"n": n, "h": h},
        peers={
            "native": native if device == "cpu" else reference,
            "reference": reference,
            "torch bernoulli_": lambda: Work(
                lambda: torch.empty(n * h, dtype=torch.uint8, device=device).bernoulli_(1 - RATE)
            ),
        },
        expected=lambda: (keep_mask_reference(seed, n * h, limit),),
        probe=limits.Job(
            "as many bytes written",
            lambda: torch.empty(n * h, dtype=torch.uint8, device=device).fill_(1),
            device,
            float(n * h),
        ),
        again=("bench_layers", {"layer": "keep_mask", "n": n, "h": h, "device": device}),
    )


def view_attention(n: int, h: int, device: str) -> Problem:
    """Three views of N nodes, four heads; ``h`` is the width of a view."""
    generator = torch.Generator().manual_seed(0)
    arguments = tuple(
        torch.randn(VIEWS, n, h, generator=generator).to(device).requires_grad_() for _ in range(3)
    )
    grad = torch.randn(n, HEADS * h, generator=generator).to(device)

    def work(function: Callable[..., torch.Tensor]) -> Work:
        return Work(lambda: function(*arguments, HEADS), arguments, (grad,))

    return Problem(
        op="view_attention",
        workload=f"{n:,} nodes",
        dtype="float32",
        device=device,
        sizes={"n": n, "d": h},
        peers={
            "native": lambda: work(
                with_backend(_backend("view_attention", device), ops.view_attention)
            ),
            "reference": lambda: work(view_attention_reference),
            "torch.compile": lambda: work(compiled(view_attention_reference)),
        },
        expected=lambda: work(view_attention_reference).full(),
        tolerance=1e-4,
        # Forward reads three and writes HEADS; backward reads those again and writes three.
        probe=limits.copying(4.0 * n * h * (2 * 3 * VIEWS + 2 * HEADS), device),
        again=("bench_layers", {"layer": "view_attention", "n": n, "h": h, "device": device}),
    )


def add_normalized(n: int, h: int, device: str) -> Problem:
    """A table of N rows plus the normalised rows of its two views."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, h, generator=generator).to(device).requires_grad_()
    views = torch.randn(2, n, h, generator=generator).to(device).requires_grad_()
    grad = torch.randn(n, h, generator=generator).to(device)

    def work(function: Callable[..., torch.Tensor]) -> Work:
        return Work(lambda: function(base, views, 0.5), (base, views), (grad,))

    def plain(base: torch.Tensor, views: torch.Tensor, weight: float) -> torch.Tensor:
        return base + weight * torch.nn.functional.normalize(views, dim=-1).sum(0)

    native = with_backend(_backend("add_normalized", device), ops.add_normalized)
    return Problem(
        op="add_normalized",
        workload=f"{n:,} rows",
        dtype="float32",
        device=device,
        sizes={"n": n, "d": h},
        peers={
            "native": lambda: work(native),
            "reference": lambda: work(plain),
            "torch.compile": lambda: work(compiled(plain)),
        },
        expected=lambda: work(plain).full(),
        # Forward reads three tables and writes one; backward reads three and writes two.
        probe=limits.copying(4.0 * n * h * 9, device),
        again=("bench_layers", {"layer": "add_normalized", "n": n, "h": h, "device": device}),
    )


def tall_product(n: int, h: int, device: str) -> Problem:
    """What a linear layer's weight gets as gradient: two tables of N rows, H columns each."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, h, generator=generator).to(device) for _ in range(2))

    def native() -> torch.Tensor:
        return with_backend("auto", product)(a.T, b)

    return Problem(
        op="tall_product",
        workload=f"{n:,} x {h} x {h}",
        dtype="float32",
        device=device,
        sizes={"n": n, "d": h},
        peers={"native": lambda: Work(native), "reference": lambda: Work(lambda: a.T @ b)},
        expected=lambda: ((a.double().T @ b.double()).float(),),
        probe=limits.Products(2.0 * n * h * h, device, "float32", 8.0 * n * h + 4.0 * h * h),
        again=("bench_layers", {"layer": "tall_product", "n": n, "h": h, "device": device}),
    )


def similarity_linear(n: int, h: int, device: str) -> Problem:
    """The critic's first layer for a batch of N users on TikTok (below N = 1,024: a tiny graph)."""
    name, graph = workloads.load("tiktok" if n >= BATCH else "smoke")
    graph = graph.to(device)
    generator = torch.Generator().manual_seed(0)
    user, item, weight = (
        torch.randn(rows, width, generator=generator).to(device).requires_grad_()
        for rows, width in ((graph.num_users, D), (graph.num_items, D), (graph.num_items, h))
    )
    users = torch.randperm(graph.num_users, generator=generator)[:n].to(device)
    grad = torch.randn(n, h, generator=generator).to(device)
    trained = (user, item, weight)

    def native() -> Work:
        function = with_backend("native", ops.masked_similarity_linear)
        return Work(lambda: function(user, item, users, graph.ui, weight), trained, (grad,))

    def dense() -> Work:
        def formed() -> torch.Tensor:
            return masked_similarity_reference(user, item, users, graph.ui) @ weight

        return Work(formed, trained, (grad,))

    factors = 3 * 2.0 * (graph.num_items + n) * D * h  # forward, and both gradients of each product
    return Problem(
        op="masked_similarity_linear",
        workload=name,
        dtype="float32",
        device=device,
        sizes={"batch": n, "items": graph.num_items, "h": h, "d": D},
        peers={"native": native, "reference": dense},
        expected=lambda: dense().full(),
        tolerance=5e-4,
        probe=limits.Products(factors, device, "float32", 4.0 * (2 * graph.num_items + n) * h),
        again=(
            "bench_layers",
            {"layer": "masked_similarity_linear", "n": n, "h": h, "device": device},
        ),
    )


def _backend(op: str, device: str) -> str:
    """Native where there is a kernel; on a GPU some ops are plain PyTorch."""
    return "auto" if why_not_native(op, device) else "native"


def cases(size: str, device: str) -> Iterator[tuple[functools.partial[Problem], Budget]]:
    """What ``mmssl bench ops`` measures, by size."""
    make = functools.partial(problem, device=device)
    for layer in LAYERS:
        if size == "smoke":
            budget = Budget(0, 2, peers=["reference"], memory=False)
        else:
            budget = Budget(
                1.5, 3, memory=layer in ("norm_act", "view_attention", "masked_similarity_linear")
            )
        yield functools.partial(make, layer, *(SMOKE if size == "smoke" else SIZES)[layer]), budget
