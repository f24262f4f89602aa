"""Threads in every sense: concurrent callers, forked processes, a dying interpreter.

That the number of workers does not change a bit is in ``test_all_ops.py``.
"""

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
from tests.ops.cases import NATIVE, everything, sample
from tests.ops.kernels import needs_cpu_kernel

pytestmark = needs_cpu_kernel


def work(seed: int = 0) -> dict[str, str]:
    """Return a digest of the results and gradients of every op, on data of one of two sizes."""
    found = {}
    for op in NATIVE:
        if op.name == "keep_mask":
            continue  # it draws from the one default generator
        arguments = sample(op, torch.float32, ("large", "typical")[seed % 2])
        if op.name == "sample_bpr":
            arguments = {**arguments, "generator": torch.Generator().manual_seed(seed)}
        digest = hashlib.sha256()
        for result in everything(op, arguments, "auto"):
            digest.update(result.numpy().tobytes())
        found[op.name] = digest.hexdigest()
    return found


@pytest.fixture
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_concurrent_callers(workers, num_threads):
    """Eight Python threads run all ops at once, on two data sets."""
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
    """Several backward passes run through one graph at once; each gets complete gradients."""
    anchor, positive = torch.randn(2, 64, 32).unbind()
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
    """Run a script in a new process; one that hangs is a failure."""
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
    ("parent", "used", "child"),
    [(1, True, 0), (2, False, 0), (2, False, 2), (2, True, 0), (2, True, 1)],
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
