"""Threads in every sense: callers, workers of a kernel, forked processes, a dying interpreter."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from mmssl import ops
from mmssl.graph import InteractionGraph
from tests.ops.kernels import needs_cpu_kernel

pytestmark = needs_cpu_kernel

USERS, ITEMS, DIM = 300, 200, 32


def work(seed: int = 0) -> dict[str, str]:
    """A digest of what every op gives, forward and backward."""
    random = torch.Generator().manual_seed(seed)
    user, item = (torch.randint(n, (4000,), generator=random) for n in (USERS, ITEMS))
    graph = InteractionGraph.from_edges(user, item, USERS, ITEMS)
    u, i = (torch.randn(n, DIM, generator=random, requires_grad=True) for n in (USERS, ITEMS))
    found = {}

    def note(name: str, *results: torch.Tensor) -> None:
        digest = hashlib.sha256()
        for result in results:
            digest.update(result.detach().numpy().tobytes())
        found[name] = digest.hexdigest()

    def with_gradients(name: str, out: torch.Tensor, *inputs: torch.Tensor) -> None:
        note(name, out, *torch.autograd.grad(out.square().sum(), inputs))

    with_gradients("spmm", ops.spmm(graph.ui, i), i)
    a, b = ops.propagate([graph.ui, graph.iu], [i, u])
    with_gradients("propagate", torch.cat([a, b]), u, i)
    with_gradients("info_nce", ops.info_nce(u[:ITEMS], i, 0.3), u, i)
    triples = ops.sample_bpr(graph, 128, random)
    note("sample_bpr", *triples)
    with_gradients("bpr_loss", ops.bpr_loss(u, i, *triples), u, i)
    note("masked_topk", *ops.masked_topk(u, i, 10, exclude=graph.ui))
    weight = torch.ones(DIM, requires_grad=True)
    bias = torch.zeros(DIM, requires_grad=True)
    with_gradients("norm_act", ops.norm_act(u, weight, bias), u, weight, bias)
    views = torch.stack([u, u.flip(0)])
    with_gradients("view_attention", ops.view_attention(views, views, views, 4), u)
    users = torch.arange(64)
    rows = ops.masked_similarity_linear(u, i, users, graph.ui, torch.ones(ITEMS, 8))
    # Its dense products are torch's, whose sums may depend on the number of threads.
    note("masked_similarity_linear", (rows * 1e3).round())
    return found


@pytest.fixture
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 64])
def test_any_number_of_workers_gives_the_same_bits(count, num_threads):
    torch.set_num_threads(1)
    expected = work()
    torch.set_num_threads(count)
    got = work()
    expected.pop("masked_similarity_linear"), got.pop("masked_similarity_linear")
    assert got == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_concurrent_callers(workers, num_threads):
    """Eight Python threads run all ops at once, each on data of its own or on the same."""
    torch.set_num_threads(workers)
    expected = {seed: work(seed) for seed in (0, 1)}
    wrong: list[str] = []
    start = threading.Barrier(8)

    def call(number: int) -> None:
        torch.set_num_threads(workers)  # OpenMP keeps the number per calling thread
        start.wait()
        for _ in range(3):
            got = work(number % 2)
            wrong.extend(name for name in got if got[name] != expected[number % 2][name])

    callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_backward_on_the_threads_of_autograd(num_threads):
    """One graph, several backward passes at once; each sees whole gradients."""
    anchor, positive = torch.randn(2, 64, DIM).unbind()
    anchor.requires_grad_()
    loss = ops.info_nce(anchor, positive, 0.5, reduction="none")
    expected = torch.autograd.grad(loss.sum(), anchor, retain_graph=True)[0]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(10):
            grad = torch.autograd.grad(loss.sum(), anchor, retain_graph=True)[0]
            if not torch.equal(grad, expected):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def run_script(script: str, **environment: str) -> str:
    """A process of its own; one that hangs is a failure."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


FORKED = """
import os, sys, torch
torch.set_num_threads({parent})
from tests.ops.test_threads import work
expected = work() if {used} else None
child = os.fork()
if child == 0:
    if {child}: torch.set_num_threads({child})
    got = work()
    os._exit(0 if expected is None or got == expected else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert work() == (expected or work())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parent", "used", "child"), [(1, True, 0), (2, False, 0), (2, False, 2), (2, True, 1)]
)
def test_fork(parent, used, child):
    """What works after a fork: see docs/hardening.md for what torch's OpenMP does not allow."""
    run_script(FORKED.format(parent=parent, used=used, child=child))


LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset
from tests.ops.test_threads import work
torch.set_num_threads(2)
class Digests(Dataset):
    def __len__(self): return 4
    def __getitem__(self, n): return work(n)["spmm"]
if __name__ == "__main__":
    own = [work(n)["spmm"] for n in range(4)]
    loader = DataLoader(Digests(), num_workers=2, batch_size=None, multiprocessing_context="fork")
    assert list(loader) == own
"""


def test_workers_of_a_data_loader():
    run_script(LOADER)


LEAVING = """
import threading, time, torch
from tests.ops.test_threads import work
torch.set_num_threads(2)
end = time.monotonic() + 1
def call():
    while time.monotonic() < end:
        work()
for _ in range(3):
    threading.Thread(target=call).start()
print("leaving")
"""


@pytest.mark.slow
def test_the_main_thread_ends_before_others_leave_a_kernel():
    assert run_script(LEAVING) == "leaving\n"
