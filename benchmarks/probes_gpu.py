"""Peak rates of a CUDA device by plain calls of torch: products, copies, gathers.

``python -m benchmarks.probes_gpu`` prints all of them. Not run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CALLS = 10
MATRIX = 8192
COPY_BYTES = 1 << 30
WIDTH = 64


def seconds(job: Callable[[], object]) -> float:
    """Return the median by events, after three warm-up calls."""
    taken = []
    for number in range(CALLS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        job()
        end.record()
        end.synchronize()
        if number >= 3:
            taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken)


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Run under a precision of torch: "highest" is float32, "high" TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def product_gflop_s(kind: str) -> float:
    """Return the rate of torch.mm on squares of 8192, in "bfloat16", "TF32" or "float32"."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    a, b = torch.randn(2, MATRIX, MATRIX, device="cuda", dtype=dtype).unbind()
    with float32_products("high" if kind == "TF32" else "highest"):
        return 2e-9 * MATRIX**3 / seconds(lambda: a @ b)


@functools.cache
def copy_gb_s() -> float:
    """Return the gigabytes per second that a copy of 1 GiB reads and writes."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2e-9 * COPY_BYTES / seconds(lambda: target.copy_(source))


@functools.cache
def gather_gb_s(table_rows: int, gathered: int = 4_000_000) -> float:
    """Return the rate of reading 256 B rows at random positions of a table, summed 32 at a time.

    The sums are those of ``embedding_bag``: one row is written for 32 that are read.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    table = torch.randn(table_rows, WIDTH, device="cuda", generator=generator)
    place = torch.randint(table_rows, (gathered // 32, 32), device="cuda", generator=generator)

    def job() -> Tensor:
        return torch.nn.functional.embedding_bag(place, table, mode="sum")

    return 1e-9 * gathered * 4 * WIDTH * (1 + 1 / 32) / seconds(job)


EXPONENTIALS = """
template <typename T> T exponentials(T x) {
  for (int n = 0; n < 512; ++n) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
"""


@functools.cache
def exponentials_g_s() -> float:
    """Return the billions of ex2 instructions per second; 0 where torch can't compile a kernel."""
    x = torch.full((1 << 22,), -1.0, device="cuda")
    try:
        kernel = torch.cuda.jiterator._create_jit_fn(EXPONENTIALS)
        return 1e-9 * 512 * x.numel() / seconds(lambda: kernel(x))
    except RuntimeError:
        return 0.0


def all_probes() -> dict[str, float]:
    """Return all rates by the names that results use."""
    return {
        "bfloat16_gflop_s": product_gflop_s("bfloat16"),
        "tf32_gflop_s": product_gflop_s("TF32"),
        "float32_gflop_s": product_gflop_s("float32"),
        "exponentials_g_s": exponentials_g_s(),
        "copy_gb_s": copy_gb_s(),
        "gather_cached_gb_s": gather_gb_s(20_000),
        "gather_gb_s": gather_gb_s(10_000_000),
    }


if __name__ == "__main__":
    for name, rate in all_probes().items():
        print(f"{name}: {rate:,.0f}")
