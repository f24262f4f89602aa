"""bpr_loss: error bounds, large margins, popular items, one result without the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmssl import ops
from mmssl.ops.bpr import bpr_loss_reference
from tests.ops.graphs import DTYPES, slack
from tests.ops.kernels import (
    KERNELS,
    needs_cpu_kernel,
)

WEIGHTS = (1.5, 0.25)  # of the loss and the squares


def problem(batch, d, users=50, items=40, *, dtype=torch.float32, size=0.3, seed=0):
    """(user_emb, item_emb, users, pos_items, neg_items); ids are repeated."""
    generator = torch.Generator().manual_seed(seed)
    tables = (  # drawn in float64: torch draws float32 differently at every SIMD level
        torch.randn(n, d, generator=generator, dtype=torch.float64) * size for n in (users, items)
    )
    ids = (torch.randint(n, (batch,), generator=generator) for n in (users, items, items))
    return *(table.to(dtype) for table in tables), *ids


def run(function, arguments, dtype, device="cpu") -> list[Tensor]:
    """Loss, squares and the gradients of both tables."""
    user_emb, item_emb, *ids = (x.to(device) for x in arguments)
    leaves = [x.to(dtype).detach().requires_grad_() for x in (user_emb, item_emb)]
    loss, squares = function(*leaves, *ids, with_l2=True)
    grads = torch.autograd.grad(WEIGHTS[0] * loss + WEIGHTS[1] * squares, leaves)
    return [x.detach().cpu() for x in (loss, squares, *grads)]


def native(*arguments, **options):
    with ops.backend("native"):
        return ops.bpr_loss(*arguments, **options)


def sizes(arguments) -> list[float]:
    """What rounding errors are proportional to: the largest sums of absolute terms."""
    user_emb, item_emb, *ids = (x.double() if x.is_floating_point() else x for x in arguments)
    rows = [user_emb[ids[0]], item_emb[ids[1]], item_emb[ids[2]]]
    margin = (rows[0].abs() * (rows[1].abs() + rows[2].abs())).sum(1)
    squares = sum(float(row.square().sum()) for row in rows)
    batch, grads = len(ids[0]), []
    for table, where in ((user_emb, ids[:1]), (item_emb, ids[1:])):
        per_row = torch.zeros(len(table), dtype=torch.float64)
        for places in where:
            per_row.index_add_(0, places, torch.ones(batch, dtype=torch.float64))
        term = 2 * max(float(e.abs().max()) for e in (user_emb, item_emb))
        # The slope carries the rounding of the margin with it.
        weight = WEIGHTS[0] / batch * (1 + float(margin.max())) + 2 * WEIGHTS[1]
        grads.append(float(per_row.max()) * weight * term)
    return [1 + float(margin.max()), squares, *grads]


def assert_as_good_as_reference(arguments, dtype, device="cpu") -> None:
    mine = run(native, arguments, dtype, device)
    plain = run(bpr_loss_reference, arguments, dtype)
    exact = run(bpr_loss_reference, arguments, torch.float64)
    names = ("loss", "squares", "user_emb", "item_emb")
    for name, m, p, e, size in zip(names, mine, plain, exact, sizes(arguments), strict=True):
        assert m.dtype == p.dtype and m.shape == p.shape, name
        error, own = ((x.double() - e).abs().max() / size for x in (m, p))
        assert error <= own + slack(dtype), name


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 300])
@pytest.mark.parametrize("d", [1, 16, 33, 64, 100, 300])
def test_error_is_within_that_of_the_reference(device, dtype, batch, d):
    assert_as_good_as_reference(problem(batch, d, dtype=dtype), dtype, device)


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_large_batch_with_a_popular_item(device, dtype):
    user_emb, item_emb, users, pos, neg = problem(5000, 64, 3000, 2500, dtype=dtype)
    pos[::3] = 7
    assert_as_good_as_reference((user_emb, item_emb, users, pos, neg), dtype, device)


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_margins_neither_overflow_nor_vanish(device, dtype):
    arguments = problem(200, 8, dtype=dtype, size=40.0)
    loss, *rest = run(native, arguments, dtype, device)
    exact, *_ = run(bpr_loss_reference, arguments, torch.float64)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert all(x.isfinite().all() for x in rest)
    one = torch.tensor([[1.0]], dtype=dtype, device=device)
    ids = torch.tensor([0], device=device)
    pair = torch.tensor([[30.0], [0.0]], dtype=dtype, device=device)
    tiny = native(one, pair, ids, ids, ids + 1)  # log(1 + exp(-30)), below a rounding of 1
    torch.testing.assert_close(float(tiny), 9.357622968839299e-14, rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_triple(device, dtype):
    loss, squares, *grads = run(native, problem(0, 5, dtype=dtype), dtype, device)
    assert loss.isnan() and squares == 0
    assert [tuple(grad.shape) for grad in grads] == [(50, 5), (40, 5)]
    assert all((grad == 0).all() for grad in grads)


@needs_cpu_kernel
def test_tables_without_columns_or_rows():
    loss, squares, *_ = run(native, problem(4, 0), torch.float32)
    assert loss == torch.tensor(2.0).log() and squares == 0
    empty = torch.zeros(0, 3), torch.zeros(0, 3), *[torch.zeros(0, dtype=torch.int64)] * 3
    assert run(native, empty, torch.float32)[2].shape == (0, 3)


@pytest.mark.parametrize("device", KERNELS)
def test_one_output_without_the_other(device):
    user_emb, item_emb, *ids = (x.to(device) for x in problem(60, 9))
    user_emb.requires_grad_()
    loss, squares = native(user_emb, item_emb, *ids, with_l2=True)
    alone = native(user_emb, item_emb, *ids)
    assert torch.equal(loss, alone)
    (of_loss,) = torch.autograd.grad(alone, user_emb)
    (of_squares,) = torch.autograd.grad(squares, user_emb)
    count = torch.bincount(ids[0], minlength=50)[:, None]
    torch.testing.assert_close(of_squares, 2 * count * user_emb.detach())
    leaf = user_emb.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(bpr_loss_reference(leaf, item_emb, *ids), leaf)
    torch.testing.assert_close(of_loss, expected)


@needs_cpu_kernel
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_batch(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 70))
    tables = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 1000))
    user_emb, item_emb, *ids = problem(*shape, *tables, dtype=dtype, seed=seed)
    wide = torch.cat([user_emb, user_emb], 1)[:, : shape[1]]
    layout = data.draw(st.sampled_from([wide, user_emb.mT.contiguous().mT]))
    assert_as_good_as_reference((layout, item_emb, *ids), dtype)
    strided = [torch.stack([x, x], 1)[:, 0] for x in ids]
    assert torch.equal(native(layout, item_emb, *strided), native(layout, item_emb, *ids))
