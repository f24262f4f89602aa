"""InfoNCE of divided rows whose blocks travel in a ring: that of one process, and its gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mmssl.distributed.group import Processes
from mmssl.distributed.ring import ring_info_nce
from tests.processes import run_together

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")

PROCESSES, DIM = 3, 6
# Rows of every process, contrasts, temperature, eps, data type.
CASES = (
    ((5, 0, 4), 2, 0.4, 0.0, torch.float64),
    ((1, 7, 2), 1, 0.05, 1e-3, torch.float64),
    ((0, 0, 3), 3, 0.2, 0.0, torch.float64),
    ((40, 33, 51), 2, 0.1, 0.0, torch.float32),
)


def drawn(case: int) -> tuple[Tensor, Tensor, Tensor]:
    """The anchors (M, N, D) and positives (N, D) of all, and the weight of each process's loss."""
    counts, contrasts, *_, dtype = CASES[case]
    generator = torch.Generator().manual_seed(case)
    anchor = torch.randn(contrasts, sum(counts), DIM, generator=generator, dtype=torch.float64)
    positive = torch.randn(sum(counts), DIM, generator=generator, dtype=torch.float64)
    weight = torch.rand(PROCESSES, generator=generator, dtype=torch.float64)
    return anchor.to(dtype), positive.to(dtype), weight


def rows_of(case: int, rank: int) -> slice:
    counts = CASES[case][0]
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def compute(folder: Path) -> None:
    group = Processes(sharded=True)
    for case, (_, _, temperature, eps, _) in enumerate(CASES):
        for run in range(2):
            anchor, positive, weight = drawn(case)
            rows = rows_of(case, group.rank)
            own = anchor[:, rows].requires_grad_(), positive[rows].requires_grad_()
            loss = ring_info_nce(group, *own, temperature, eps)
            grads = torch.autograd.grad(weight[group.rank] * loss, own)
            arrays = [t.detach().numpy() for t in (loss, *grads)]
            np.savez(folder / f"{case}.{group.rank}.{run}.npz", *arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    run_together(PROCESSES, compute, folder)
    return folder


def truth(case: int) -> tuple[list[float], Tensor, Tensor]:
    """The summand of every process, and the gradient of their weighted sum, in float64."""
    temperature, eps = CASES[case][2:4]
    anchor, positive, weight = drawn(case)
    anchor, positive = (t.double().requires_grad_() for t in (anchor, positive))
    z1, z2 = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
    other, same = ((z1 @ z.mT / temperature).exp() for z in (z2, z1))
    own = other.diagonal(0, -2, -1)
    ratio = own / (other.sum(-1) + same.sum(-1) - same.diagonal(0, -2, -1))
    losses = -(ratio + eps).log() / positive.shape[0]
    summands = [losses[:, rows_of(case, rank)].sum() for rank in range(PROCESSES)]
    total = sum(w * summand for w, summand in zip(weight, summands, strict=True))
    grads = torch.autograd.grad(total, (anchor, positive))
    return [s.item() for s in summands], *grads


@pytest.mark.parametrize("case", range(len(CASES)))
def test_summands_and_gradients_are_those_of_one_process(folder, case):
    summands, to_anchor, to_positive = truth(case)
    tolerance = 1e-11 if CASES[case][-1] == torch.float64 else 1e-5
    for rank, summand in enumerate(summands):
        rows = rows_of(case, rank)
        got, again = (np.load(folder / f"{case}.{rank}.{run}.npz") for run in range(2))
        expected = (np.array(summand), to_anchor[:, rows].numpy(), to_positive[rows].numpy())
        for name, wanted in zip(got, expected, strict=True):
            np.testing.assert_array_equal(got[name], again[name])
            scale = max(abs(wanted).max(initial=0), 1e-300)
            np.testing.assert_allclose(got[name] / scale, wanted / scale, rtol=0, atol=tolerance)
