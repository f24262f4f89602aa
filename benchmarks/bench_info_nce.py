"""InfoNCE compared with eager PyTorch, torch.compile, checkpointed chunks, and GPU packages.

The limit is 6 U FLOP with intra-view negatives (forward 1.5, backward 4.5, of which the symmetric
s11 is formed half) and 4 U without (forward 1, backward 3), U = 2 N^2 D, or 2 N M D for a
catalog of M rows. ``mmssl bench ops`` runs these cases; ``benchmarks/test_speed.py`` times the same
functions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness.clock import Work
from benchmarks.harness.problem import Budget, Problem
from benchmarks.limits import Products
from benchmarks.peers.ops import CATALOG, CROSS_VIEW, INFO_NCE
from benchmarks.peers.registry import need_bytes
from benchmarks.workloads import element_type

D = 64
TEMPERATURE = 0.2
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "TF32", "bfloat16")}
TOLERANCE = {"float32": 2e-4, "TF32": 5e-3, "bfloat16": 2e-2}
SQUARES = {"eager": 10, "torch.compile": 6}  # approximate number of live N x N float32 arrays
LARGE = 20_000  # above this N the expected value is computed in chunks


def problem(
    n: int = 1024,
    dtype: str = "float32",
    device: str = "cpu",
    d: int = D,
    intra_view: bool = True,
    catalog: int = 0,
) -> Problem:
    """The loss and both gradients, of pairs or of anchors with the rows of a catalog."""
    anchor, positive = inputs(n, d, dtype, device, catalog)
    makers = CATALOG if catalog else INFO_NCE if intra_view else {**INFO_NCE, **CROSS_VIEW}
    m = catalog or n

    def make(name: str) -> Work:
        if name in SQUARES:
            what = f"its {SQUARES[name]} N x M arrays"
            need_bytes(4.0 * n * m * SQUARES[name], device, what)
        loss = makers[name](TEMPERATURE, intra_view)
        return Work(lambda: loss(anchor, positive), (anchor, positive))

    def expected() -> tuple[Tensor, ...]:
        loss = makers["eager" if n <= LARGE else "chunked"](TEMPERATURE, intra_view)
        return Work(lambda: loss(anchor, positive), (anchor, positive)).full()

    size = anchor.element_size()
    passes = 6 if intra_view and not catalog else 4
    cross_view = "info_nce, catalog" if catalog else "info_nce, cross-view"
    return Problem(
        op="info_nce" if passes == 6 else cross_view,
        workload=f"N = {n:,}" + (f", M = {m:,}" if catalog else ""),
        dtype=dtype,
        device=device,
        sizes={"n": n, "d": d} | ({"m": m} if catalog else {}),
        peers={name: functools.partial(make, name) for name in makers},
        expected=expected,
        tolerance=TOLERANCE[dtype],
        probe=Products(passes * 2.0 * n * m * d, device, dtype, bytes=2.0 * (n + m) * d * size),
        again=(
            "bench_info_nce",
            {"n": n, "dtype": dtype, "device": device, "d": d, "intra_view": intra_view}
            | ({"catalog": catalog} if catalog else {}),
        ),
    )


def inputs(n: int, d: int, dtype: str, device: str, catalog: int = 0) -> tuple[Tensor, Tensor]:
    """Return seeded anchors and similar positives, (N, D), drawn on the CPU.

    With a catalog, the positives are its first rows.
    """
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(n, d, generator=generator)
    positive = anchor + torch.randn(n, d, generator=generator)
    if catalog:
        positive = torch.cat([positive, torch.randn(catalog - n, d, generator=generator)])
    kind = element_type(dtype, device)
    return anchor.to(device, kind).requires_grad_(), positive.to(device, kind).requires_grad_()


def cases(size: str, device: str) -> Iterator[tuple[functools.partial[Problem], Budget]]:
    """What ``mmssl bench ops`` measures, by size."""
    make = functools.partial(problem, device=device)
    if size == "smoke":
        peers = ["eager", "chunked"]
        yield functools.partial(make, 200), Budget(0, 2, peers=peers)
        return
    large = (16_384, 65_536, 262_144) if device == "cuda" else ()
    for n in (1024, 4096, 9308, *large):
        for dtype in DTYPES[device]:
            budget = Budget(3 if n < 9000 else 1)
            if device == "cpu" and dtype == "bfloat16":  # neither the chunks nor the peaks change
                budget.peers, budget.memory = ["eager", "torch.compile"], False
            yield functools.partial(make, n, dtype), budget
    for dtype in DTYPES[device]:
        for n in (4096, *large[:2]):
            cross = functools.partial(make, n, dtype, intra_view=False)
            yield cross, Budget(1.5, peers=["eager", *CROSS_VIEW], memory=False)
    if device == "cpu":  # on a GPU it is plain PyTorch itself
        catalog = functools.partial(make, 1024, catalog=30_000)
        yield catalog, Budget(1.5, peers=["eager", "torch.compile"])
    if device == "cpu":  # a length at which peers take ten seconds per call
        yield functools.partial(make, 16_384), Budget(0, 3, peers=[])
    for d in (16, 32, 128, 256):
        yield functools.partial(make, 2048, d=d), Budget(1.5, peers=["eager"], memory=False)
