"""The CUDA kernels without a GPU: compiled by nvcc, and run on the CPU by an emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl import _extension
from tests.ops.kernels import CXX, ROOT, needs_compiler, needs_cpu_kernel

CUDA_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (CUDA_HOME / "bin/nvcc").exists() or CXX is None,
    reason=f"no nvcc in {CUDA_HOME}/bin, or no C++ compiler",
)
def test_cuda_part_compiles_and_links(tmp_path):
    done = subprocess.run(
        ["bash", "csrc/check_cuda.sh", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "CUDA_HOME": str(CUDA_HOME)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Calls the ops on the CPU, then replaces their kernels by the CUDA bindings and calls them again.
CHECK_BINDINGS = r"""
import sys
import torch

torch.ops.load_library(sys.argv[1])
op = torch.ops.mmssl
rowptr, t_rowptr = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 2, 2, 3])
col = torch.tensor([0, 4, 1], dtype=torch.int32)
t_col = torch.tensor([0, 1, 0], dtype=torch.int32)
matrix = (rowptr, col, t_rowptr, t_col, None, None)
perm, weights = torch.tensor([0, 2, 1]), torch.linspace(0.5, 2, 5)
torch.manual_seed(0)
x, grad = torch.randn(5, 8), torch.randn(2, 8)
anchor, positive, negatives = torch.randn(2, 6, 8), torch.randn(2, 6, 8), torch.randn(3, 8)
options = (True, True, 1e-3, False)
catalog, target = torch.randn(2, 9, 8), torch.tensor([[0, 3, 3, 8, -1, 3], [7, 7, 1, 2, 0, 5]])
temperature = torch.tensor([0.3])
users, items, triples = torch.randn(9, 8), torch.randn(7, 8), torch.randint(7, (3, 20))
orders = triples[0].argsort(stable=True), triples[1:].flatten().argsort(stable=True)
exclude = torch.arange(0, 19, 2), torch.arange(18, dtype=torch.int32) % 7
views, matrix_of = torch.randn(3, 9, 8), torch.randn(9, 8)
normed = torch.randn(20, 8), torch.randn(8), torch.randn(8)
keep = (torch.rand(20, 8) < 0.7).to(torch.uint8)
draw, seed = torch.rand(3, 2, dtype=torch.float64), torch.tensor([12345])


def results():
    yield op.spmm(x, *matrix, None, None, None)
    yield op.spmm_value_grad(grad, x, *matrix, None, None)
    layers = (rowptr, col, t_rowptr, t_col, weights[:2], weights, weights, weights[:2], None, perm)
    yield from op.propagate_layers(grad, x, *layers, 3, 0.25)
    loss, saved = op.info_nce(anchor, positive, temperature, negatives, *options)
    yield from (loss, saved)
    yield from op.info_nce_backward(
        loss, anchor, positive, temperature, negatives, saved, *options)
    arguments = (anchor, positive, temperature, None)
    padded = (True, True, 1e-3, False, None, True, torch.tensor([4, 0]))
    loss, saved = op.info_nce(*arguments, *padded)
    yield from (loss, saved)
    yield from op.info_nce_backward(loss, *arguments, saved, *padded)
    for form in ((target, True), (target, False)):
        arguments = (anchor, catalog, temperature, negatives)
        loss, saved = op.info_nce(*arguments, True, False, 1e-3, False, *form)
        yield from (loss, saved)
        yield from op.info_nce_backward(loss, *arguments, saved, True, False, 1e-3, False, *form)
    *loss, slope = op.bpr_loss(users, items, *triples)
    yield from (*loss, slope)
    yield from op.bpr_loss_backward(*loss, users, items, *triples, slope, *orders)
    yield from op.masked_topk(users, items, 4, None, *exclude)
    y, mean, rstd = op.norm_act(*normed, keep, 1.4, 0.2, 1e-5, 2)
    yield from (y, mean, rstd)
    arguments = (normed[0], normed[1], mean, rstd, keep, 1.4, 0.2, 2)
    yield from op.norm_act_backward(y, *arguments)
    yield from op.norm_act_double_backward(y.flip(0), normed[1], None, y, *arguments)
    yield op.keep_mask(seed, 37, 1000)
    out, inverse = op.add_normalized(matrix_of, views, 0.3)
    yield from (out, inverse)
    yield op.add_normalized_backward(out, views, inverse, 0.3)
    out = op.view_attention(views, 2 * views, views.flip(0), 2)
    yield out
    yield from op.view_attention_backward(out, views, 2 * views, views.flip(0), 2)
    yield from op.sample_bpr(draw, torch.arange(2), rowptr, col, 5)


def rejected(what, name, *arguments):
    try:
        getattr(op, name)(*arguments)
    except RuntimeError as error:
        assert what in str(error), error
    else:
        raise AssertionError(f"not rejected: {what}")


def check_rejections():
    rejected("lists must be as long as x, 0",
             "propagate", [], [rowptr], [col], [t_rowptr], [t_col], *[[None]] * 5)
    for wrong in (grad[0], grad[:, :4], grad[:1], grad.double()):
        rejected("grad must be (R, D)", "spmm_value_grad", wrong, x, *matrix, None, None)
    for rowptrs in ((rowptr[0], col, t_rowptr), (rowptr, col, t_rowptr[0])):
        rejected("grad must be (R, D)",
                 "spmm_value_grad", grad, x, *rowptrs, t_col, None, None, None, None)
    for wrong in (grad[0], grad[:1], grad[:, :4], grad.double()):
        rejected("user must be (U, D) and item (I, D)",
                 "propagate_layers", wrong, x, *matrix[:4], *[None] * 6, 2, 1.0)
    rejected("anchor and positive must be (B, N, D)",
             "info_nce", anchor, positive[:1], temperature, None, *options)
    rejected("must be (B,) int64", "bpr_loss", users, items, triples[0].int(), *triples[1:])
    rejected("belong together", "masked_topk", users, items, 4, None, exclude[0], None)
    rejected("must be (H,)",
             "norm_act", normed[0], normed[1][:3], normed[2], None, 1.0, 0.2, 1e-5, 1)
    rejected("(K,) int64", "keep_mask", seed.int(), 5, 0)
    rejected("base must be (N, D)", "add_normalized", matrix_of[:3], views, 0.3)
    rejected("must divide D", "view_attention", views, views, views, 3)
    rejected("n >= B", "sample_bpr", draw, torch.arange(1), rowptr, col, 5)


on_cpu = list(results())
check_rejections()
torch.ops.load_library(sys.argv[2])
for got, want in zip(results(), on_cpu, strict=True):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
check_rejections()
# A meta tensor stands for one of another device: its memory can't be read.
rejected("on one device", "spmm_value_grad", grad.to("meta"), x, *matrix, None, None)
rejected("on one device",
         "propagate_layers", grad, x.to("meta"), *matrix[:4], *[None] * 6, 2, 1.0)
rejected("on one device", "info_nce", anchor, positive.to("meta"), temperature, None, *options)
wide = torch.randn(200, 1, 1)
rejected("on a GPU num_heads", "view_attention", wide, wide, wide, 1)
vectors = normed[1].to("meta"), normed[2]
rejected("on the device of x", "norm_act", normed[0], *vectors, None, 1.0, 0.2, 1e-5, 1)
rejected("on the device of x", "add_normalized", matrix_of.to("meta"), views, 0.3)
rejected("on the device of view", "view_attention", views.to("meta"), views, views, 2)
rejected("on the device of draw", "sample_bpr", draw, torch.arange(2), rowptr, col.to("meta"), 5)
rejected("on the device of user_emb", "bpr_loss", users, items.to("meta"), *triples)
rejected("on the device of user_emb", "masked_topk", users, items.to("meta"), 4, None, None, None)
print("checked")
"""


@needs_compiler
@needs_cpu_kernel
def test_cuda_bindings_agree_with_the_cpu_in_results_and_checks(emulated):
    assert _extension.ops is not None
    done = subprocess.run(
        [sys.executable, "-c", CHECK_BINDINGS, _extension.ops.__file__, str(emulated)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "checked" in done.stdout


@needs_compiler
@pytest.mark.parametrize("source", ["tensor_test", "hopper_test"])
def test_twins_of_the_tensor_core_instructions(source, tmp_path):
    program = tmp_path / "twins"
    flags = ["-std=c++20", "-O1", "-fsanitize=address,undefined", "-DMMSSL_EMULATE_CUDA", "-Icsrc"]
    assert CXX is not None
    built = subprocess.run(
        [CXX, *flags, f"csrc/emu/{source}.cpp", "-o", str(program)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0 and "ok" in done.stdout, done.stdout + done.stderr
