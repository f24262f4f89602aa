"""The choice of a backend, what status reports, and running without the extension."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from mmssl import _extension, ops
from mmssl.errors import InputError
from mmssl.ops import _registry, dispatch
from mmssl.ops.bpr import bpr_loss_reference
from tests.ops.graphs import random_view, random_x

KERNEL_OPS = {"spmm", "propagate"}


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_backend_applies_to_its_block_only():
    before = ops.requested_backend()
    with ops.backend("reference"):
        assert ops.requested_backend() == "reference"
        with pytest.raises(KeyError), ops.backend("native"):
            assert ops.requested_backend() == "native"
            raise KeyError
        assert ops.requested_backend() == "reference"
    assert ops.requested_backend() == before


def test_set_backend_lasts():
    before = ops.requested_backend()
    try:
        ops.set_backend("reference")
        assert ops.requested_backend() == "reference"
    finally:
        ops.set_backend(before)


@pytest.mark.parametrize("choose", [ops.set_backend, lambda name: ops.backend(name).__enter__()])
def test_unknown_backend_is_named(choose):
    with pytest.raises(InputError, match="backend: expected one of auto, native, reference, got"):
        choose("cuda")


def test_environment_sets_the_first_choice():
    code = "from mmssl import ops; print(ops.requested_backend())"
    assert run_python(code, MMSSL_OPS="reference").stdout.strip() == "reference"
    bad = run_python(code, MMSSL_OPS="fast")
    assert "environment variable MMSSL_OPS: expected one of auto" in bad.stderr
    assert "got 'fast'" in bad.stderr


def test_status_has_a_row_for_every_op():
    with ops.backend("auto"):
        rows = {row.op: row for row in ops.status() if row.device == "cpu"}
    assert set(rows) == {op.name for op in _registry.OPS.values() if op.public}
    for op, row in rows.items():
        if op not in KERNEL_OPS:
            assert (row.backend == "native") == (row.reason == "")
        elif _extension.ops is None:
            assert (row.backend, row.reason) == ("reference", _extension.missing["_C"])
        else:
            dtypes = ("float32", "bfloat16", "float64", "float16")
            assert row[2:] == (dtypes, "native", "")
    with ops.backend("reference"):
        assert {row.backend for row in ops.status()} == {"reference"}


@pytest.fixture
def only_float64(monkeypatch):
    """As if spmm had a kernel for float64 only."""
    op = dataclasses.replace(_registry.OPS["spmm"], dtypes={"cpu": (torch.float64,)})
    monkeypatch.setitem(_registry.OPS, "spmm", op)


def test_native_raises_where_there_is_no_kernel(monkeypatch, only_float64):
    view = random_view()
    with ops.backend("native"), pytest.raises(RuntimeError, match="spmm: backend 'native'"):
        ops.spmm(view, random_x(view, 3, torch.float32))
    # An op without any kernel.
    op = dataclasses.replace(_registry.OPS["bpr_loss"], dtypes={})
    monkeypatch.setitem(_registry.OPS, "bpr_loss", op)
    embedding, ids = torch.ones(2, 3), torch.tensor([0, 1])
    arguments = (embedding, embedding, ids, ids, ids)
    with ops.backend("native"), pytest.raises(RuntimeError, match="bpr_loss.*no native kernel yet"):
        ops.bpr_loss(*arguments)
    for choice in ("auto", "reference"):
        with ops.backend(choice):
            assert torch.equal(ops.bpr_loss(*arguments), bpr_loss_reference(*arguments))


def test_falling_back_is_said_once(monkeypatch, only_float64):
    monkeypatch.setattr(dispatch, "_warned", set())
    view = random_view()
    x = random_x(view, 3, torch.float32)
    with ops.backend("auto"):
        with pytest.warns(RuntimeWarning, match="mmssl.ops.spmm: slower plain PyTorch.*") as caught:
            first = ops.spmm(view, x)
            assert torch.equal(ops.spmm(view, x), first)
    assert len(caught) == 1
    assert caught[0].filename == __file__


WITHOUT_EXTENSION = """
import sys, warnings
for name in ("_C", "_C_cuda", "_host"):
    sys.modules["mmssl." + name] = None
import torch
from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl import _extension
assert _extension.ops is _extension.cuda is _extension.host is None
graph = InteractionGraph.from_edges(torch.tensor([0, 1, 1, 1]), torch.tensor([2, 0, 2, 2]), 2, 3)
x = torch.arange(6.0).view(3, 2).requires_grad_()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        (y,) = ops.propagate([graph.ui], [x])
y.sum().backward()
torch.testing.assert_close(y, graph.ui.to_dense() @ x)
torch.testing.assert_close(x.grad, graph.ui.to_dense().T @ torch.ones(2, 2))
print(len(caught), caught[0].category.__name__, caught[0].message)
print({row.backend for row in ops.status()}, ops.status()[0].reason)
try:
    with ops.backend("native"):
        ops.spmm(graph.ui, x)
except RuntimeError as error:
    print(error)
"""


def test_everything_works_without_the_extension():
    done = run_python(WITHOUT_EXTENSION, MMSSL_OPS="auto")
    assert done.returncode == 0, done.stderr
    warned, status, error = done.stdout.splitlines()
    assert warned.startswith("1 RuntimeWarning mmssl.ops.propagate: slower plain PyTorch is used")
    assert "mmssl._C was not built" in warned
    assert status.startswith("{'reference'} mmssl._C was not built")
    assert "backend 'native' is required, but mmssl._C was not built" in error


def test_a_broken_module_is_a_reason_and_no_crash(tmp_path):
    """For example a module that was built for another torch."""
    code = (
        "import sys, mmssl; mmssl.__path__.insert(0, {path!r})\n"
        "sys.modules.pop('mmssl._C', None)\n"  # tests/plain hides it there
        "from mmssl import _extension\n"
        "print(_extension.missing['_C'])"
    )
    (tmp_path / "_C.py").write_text("raise ImportError('undefined symbol: _ZN5torch\\nmore')")
    done = run_python(code.format(path=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "mmssl._C does not load with torch" in done.stdout
    assert "undefined symbol: _ZN5torch" in done.stdout
    assert "more" not in done.stdout


def test_importing_the_package_loads_nothing():
    code = "import sys, mmssl; print('torch' in sys.modules, 'mmssl.ops' in sys.modules)"
    assert run_python(code).stdout.split() == ["False", "False"]
