"""The recipe of docs/distributed.md: info_nce over the batches of several processes."""

from __future__ import annotations

import runpy

import pytest
import torch
import torch.distributed as dist

from mmssl.ops import backend
from mmssl.ops.info_nce import info_nce
from tests.ops import truth
from tests.ops.kernels import ROOT
from tests.processes import run_together

PROCESSES, ROWS = 2, 7
RECIPE = str(ROOT / "examples" / "distributed_contrastive.py")


def compare() -> None:
    """Compare every process's part with the whole batch in float64."""
    part = slice(dist.get_rank() * ROWS, (dist.get_rank() + 1) * ROWS)
    global_info_nce = runpy.run_path(RECIPE)["global_info_nce"]
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(PROCESSES * ROWS, 5, generator=generator) for _ in range(2)]
    for intra_view in (True, False):
        options = {"symmetric": True, "intra_view": intra_view}
        exact = [v.double().requires_grad_() for v in (*views, torch.tensor(0.3))]
        with backend("reference"):
            expected = info_nce(*exact, **options)
        (by_loops,) = truth.info_nce(*views, 0.3, **options)
        torch.testing.assert_close(expected.item(), float(by_loops), rtol=0, atol=1e-6)
        expected.backward()
        mine = [v[part].clone().requires_grad_() for v in views]
        temperature = torch.tensor(0.3, requires_grad=True)
        loss = global_info_nce(*mine, temperature, intra_view=intra_view)
        loss.backward()
        mean = torch.stack([loss.detach(), temperature.grad]) / PROCESSES
        dist.all_reduce(mean)
        close = {"rtol": 0, "atol": 1e-6}
        torch.testing.assert_close(mean[0].double(), expected.detach(), **close)
        torch.testing.assert_close(mean[1].double(), exact[2].grad, rtol=1e-6, atol=1e-6)
        for got, wanted in zip(mine, exact, strict=False):
            torch.testing.assert_close(got.grad.double() / PROCESSES, wanted.grad[part], **close)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")
def test_two_processes_have_the_loss_and_gradients_of_one():
    run_together(PROCESSES, compare)
