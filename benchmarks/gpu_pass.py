"""A short pass over every op on one device: small odd sizes, all dtypes, forward and backward.

``python -m benchmarks.gpu_pass [--device cuda] [--dtypes float32 ...] [--only OP ...]`` compares
each result with the plain PyTorch of the op in float64 on the CPU and exits 1 where one is off.
gpu.sh runs it, also under compute-sanitizer. The reductions of a GPU are in another order, so the
tolerances are those of the dtypes and not of the kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.clock import outputs
from benchmarks.harness.problem import largest_deviation
from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.ops.dispatch import why_not_native

# float32 products on a GPU are formed in full, except where a check is named TF32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float64": 1e-10}
TF32_TOLERANCE = 1e-2
USERS, ITEMS, D, N = 203, 131, 33, 129
HUB_EDGES = 1157  # enough for every way in which the kernels split a row
Check = tuple[str, str, Callable[[], Sequence[Tensor]], Callable[[], Sequence[Tensor]]]


def graph() -> InteractionGraph:
    """Empty rows, one long row, odd sizes."""
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(USERS - 5, (900,), generator=generator)
    item = torch.randint(ITEMS - 3, (900,), generator=generator)
    user = torch.cat([user, torch.full((ITEMS,), 7)])
    item = torch.cat([item, torch.arange(ITEMS)])
    return InteractionGraph.from_edges(user.numpy(), item.numpy(), USERS, ITEMS)


def hub() -> InteractionGraph:
    """One user of all items, and a few short rows."""
    user, item = torch.zeros(HUB_EDGES, dtype=torch.int64), torch.arange(HUB_EDGES)
    user, item = torch.cat([user, item % 5]), torch.cat([item, (item * 7) % HUB_EDGES])
    pairs = torch.stack([user, item]).unique(dim=1).numpy()
    return InteractionGraph.from_edges(*pairs, 6, HUB_EDGES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return float64 on the CPU of the same numbers, rounded to the dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(function: Callable[..., Any], *inputs: Tensor) -> Sequence[Tensor]:
    """Outputs and the gradients of a fixed weighting of their sum."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    values = outputs(function(*leaves))
    total = sum((v * torch.linspace(-1, 1, v.numel(), device=v.device).view_as(v)).sum()
                for v in values)  # fmt: skip
    assert isinstance(total, Tensor)
    return [*(v.detach() for v in values), *torch.autograd.grad(total, leaves)]


def tf32(function: Callable[[], Tensor]) -> Tensor:
    """Call a function while float32 products on a GPU are formed from TF32 operands."""
    torch.set_float32_matmul_precision("high")
    try:
        return function()
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def chosen(kernels: str) -> Iterator[None]:
    """Let info_nce use older kernels on a GPU: "mma", "tiles"; "" for its own choice."""
    os.environ["MMSSL_INFO_NCE"] = kernels
    try:
        yield
    finally:
        del os.environ["MMSSL_INFO_NCE"]


def differentiable(device: str, dtype: str) -> Iterator[Check]:
    """The ops with gradients, each with its truth."""
    kind = getattr(torch, dtype)
    here, there = graph().to(device), graph()
    long_here, long_there = hub().to(device), hub()
    x, y = draw(ITEMS, D).to(kind), draw(USERS, D, seed=1).to(kind)
    a, p, extra = (draw(N, D, seed=s).to(kind) for s in (2, 3, 4))

    def check(
        name: str, op: str, function: Callable[..., Any], *inputs: Tensor, kernels: str = ""
    ) -> Check:
        def truth() -> Sequence[Tensor]:
            with ops.backend("reference"):
                return both(lambda *t: function(there, *t), *(i.double() for i in inputs))

        def mine() -> Sequence[Tensor]:
            with chosen(kernels):
                return both(lambda *t: function(here, *t), *(i.to(device) for i in inputs))

        return f"{name}, {dtype}", op, mine, truth

    yield check("spmm", "spmm", lambda g, t: ops.spmm(g.ui, t), x)
    yield check(
        "propagate", "propagate",
        lambda g, t, u: ops.propagate([g.ui, g.iu, g.ui], [t, u, 2 * t]), x, y,
    )  # fmt: skip
    yield check(
        "propagate_layers", "propagate_layers",
        lambda g, t, u: ops.propagate_layers(g, u, t, 3), x, y,
    )  # fmt: skip
    for width in (D, 64, 130):
        yield check(
            f"spmm with a hub, D = {width}", "spmm",
            lambda g, t: ops.spmm((long_there if g is there else long_here).ui, t),
            draw(HUB_EDGES, width, seed=6).to(kind),
        )  # fmt: skip
    for options in ({}, {"intra_view": False}, {"symmetric": True}, {"eps": 1e-8}):
        shown = "".join(f", {k}={v}" for k, v in options.items())
        yield check(
            f"info_nce{shown}", "info_nce",
            lambda _, t, u, options=options: ops.info_nce(t, u, 0.3, **options), a, p,
        )  # fmt: skip
    yield check(
        "info_nce, padded", "info_nce",
        lambda _, t, u: ops.info_nce(t, u, 0.3, num_rows=torch.tensor(N * 2 // 3, device=t.device)),
        a, p,
    )  # fmt: skip
    yield check(
        "cosine_logsumexp", "cosine_logsumexp",
        lambda _, t, u, v: ops.cosine_logsumexp(t, v, 0.3, partial=ops.cosine_logsumexp(t, u, 0.3)),
        a, p, extra,
    )  # fmt: skip
    for width in (D, 64, 130):
        wide = (draw(N, width, seed=s).to(kind) for s in (2, 3, 4))
        yield check(
            f"info_nce, negatives, D = {width}", "info_nce",
            lambda _, t, u, v: ops.info_nce(t, u, 0.3, negatives=v), *wide,
        )  # fmt: skip
    yield check(
        "info_nce, temperature 0.01", "info_nce",
        lambda _, t, u: ops.info_nce(t, u, 0.01, symmetric=True), a, p,
    )  # fmt: skip
    if dtype == "bfloat16":  # a device of capability 9.0 has used wgmma so far
        for width in (D, 64, 130):
            for temperature in (0.3, 0.01):
                yield check(
                    f"info_nce, mma.sync, D = {width}, t = {temperature}", "info_nce",
                    lambda _, *t, temperature=temperature: ops.info_nce(*t, temperature),
                    draw(N, width, seed=2).to(kind), draw(N, width, seed=3).to(kind),
                    kernels="mma",
                )  # fmt: skip
    if dtype == "float32":
        for width in (D, 64, 130):
            yield check(
                f"info_nce, TF32, D = {width}", "info_nce",
                lambda _, t, u: tf32(lambda: ops.info_nce(t, u, 0.3, symmetric=True)),
                draw(N, width, seed=2).to(kind), draw(N, width, seed=3).to(kind),
            )  # fmt: skip

    def bpr(g: InteractionGraph, user: Tensor, item: Tensor) -> Any:
        at = [torch.arange(start, start + 90, device=user.device) for start in (0, 20, 40)]
        return ops.bpr_loss(user, item, *at, with_l2=True)

    yield check("bpr_loss with L2", "bpr_loss", bpr, y, x)

    rows, weight_of = draw(N, D, seed=7), torch.linspace(0.5, 2, D, dtype=torch.float64)
    yield check(
        "add_normalized", "add_normalized",
        lambda _, t, u: ops.add_normalized(t, torch.stack([u, 2 * u, u.flip(0)]), 0.3), a, p,
    )  # fmt: skip
    yield check(
        "view_attention", "view_attention",
        lambda _, *t: ops.view_attention(*(x.view(3, -1, D) for x in t), 3), a, p, extra,
    )  # fmt: skip

    def normalized(_: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
        keep = (torch.arange(x.numel(), device=x.device).view_as(x) % 3 > 0).byte()
        y = ops.norm_act(x, weight, bias, keep=keep, keep_scale=1.5)
        # The gradient of the gradient runs the third kernel.
        (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return y, slope

    sums = torch.float64 if kind == torch.float64 else torch.float32
    vectors = weight_of.to(sums), weight_of.flip(0).to(sums)
    yield check("norm_act", "norm_act", normalized, rows.to(kind), *vectors)

    def linear(g: InteractionGraph, user: Tensor, item: Tensor, weight: Tensor) -> Tensor:
        users = torch.arange(0, USERS, 3, device=user.device)
        return ops.masked_similarity_linear(user, item, users, g.ui, weight)

    weight = draw(ITEMS, 17, seed=5).to(kind)
    yield check("masked_similarity_linear", "masked_similarity_linear", linear, y, x, weight)


def ranking(device: str, dtype: str) -> Check:
    """Scores of the k best; items may swap where scores are equal after rounding."""
    kind = getattr(torch, dtype)
    user, item, here = draw(USERS, D).to(kind), draw(ITEMS, D, seed=1).to(kind), graph()

    def rank(user: Tensor, item: Tensor, g: InteractionGraph) -> Sequence[Tensor]:
        scores, items = ops.masked_topk(user, item, 20, exclude=g.ui)
        return [torch.where(items < 0, 0.0, scores)]

    def truth() -> Sequence[Tensor]:
        with ops.backend("reference"):
            return rank(user.double(), item.double(), here)

    return (
        f"masked_topk, {dtype}", "masked_topk",
        lambda: rank(user.to(device), item.to(device), here.to(device)), truth,
    )  # fmt: skip


def sampled(device: str) -> float:
    """Return 1 if a drawn positive is not an edge or a drawn negative is one."""
    here = graph().to(device)
    known = here.ui.to_dense() > 0
    users, positives, negatives = ops.sample_bpr(here, 64, torch.Generator(device).manual_seed(0))
    wrong = ~known[users, positives] | known[users, negatives]
    return float(wrong.any())


def masked(device: str) -> bool:
    """Return whether the mask of dropout differs from that of its seed in plain PyTorch."""
    torch.manual_seed(0)
    keep, _ = ops.keep_mask((203, 7), 0.3, device)
    with ops.backend("reference"):
        torch.manual_seed(0)
        expected, _ = ops.keep_mask((203, 7), 0.3, device)
    assert keep is not None and expected is not None
    return not torch.equal(keep, expected)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--dtypes", nargs="+", default=list(TOLERANCE), choices=TOLERANCE)
    parser.add_argument("--only", nargs="+", metavar="OP", help="default: every op")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"error: torch {torch.__version__} has no usable CUDA device")
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)  # the truth is tiny
    failures = 0
    for dtype in options.dtypes:
        for name, op, mine, truth in (
            *differentiable(options.device, dtype), ranking(options.device, dtype)
        ):  # fmt: skip
            if options.only and op not in options.only:
                continue
            reason = why_not_native(op, options.device, getattr(torch, dtype))
            expected = [t.double() for t in truth()]
            error = largest_deviation([t.cpu() for t in mine()], expected)
            wrong = not error <= (TF32_TOLERANCE if "TF32" in name else TOLERANCE[dtype])
            failures += wrong
            backend = f"plain PyTorch: {reason}" if reason else "native"
            print(f"{'WRONG' if wrong else 'ok':5s} {name:40s} {error:.1e}  {backend}", flush=True)
    if not options.only or "sample_bpr" in options.only:
        failures += bool(sampled(options.device))
    if not options.only or "keep_mask" in options.only:
        failures += masked(options.device)
    print(f"{failures} wrong" if failures else "every op agrees with its reference in float64")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
