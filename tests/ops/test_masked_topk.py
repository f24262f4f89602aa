"""masked_topk: exact lists, ties, NaN and infinity, error bounds, memory, few users."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import _extension, ops
from mmssl.graph import GraphView, InteractionGraph
from mmssl.ops.masked_topk import masked_topk_reference
from tests.ops.graphs import DTYPES, on, random_view, slack
from tests.ops.kernels import KERNELS, needs_cpu_kernel

Lists = tuple[torch.Tensor, torch.Tensor]


def whole_numbers(rows: int, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Dot products of these are exact in every order, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (rows, d), generator=generator).to(dtype)


def normal(rows: int, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype)


def native(
    user: torch.Tensor,
    item: torch.Tensor,
    k: int,
    users: torch.Tensor | None = None,
    exclude: GraphView | None = None,
    device: str = "cpu",
) -> Lists:
    users = None if users is None else users.to(device)
    exclude = None if exclude is None else on(exclude, device)
    too_long = _extension.on_gpu(user.to(device)) and k > 1024
    with ops.backend("auto" if too_long else "native"):
        scores, items = ops.masked_topk(
            user.to(device), item.to(device), k, users=users, exclude=exclude
        )
    return scores.cpu(), items.cpu()


def by_sorting(user, item, k, users=None, exclude=None) -> Lists:
    """The definition, one user at a time."""
    users = range(len(user)) if users is None else users.tolist()
    scores = torch.full((len(users), k), -torch.inf, dtype=torch.float64)
    items = torch.full((len(users), k), -1)
    for b, u in enumerate(users):
        score = (item.double() @ user[u].double()).tolist()
        own = set()
        if exclude is not None:
            own = set(exclude.col[exclude.rowptr[u] : exclude.rowptr[u + 1]].tolist())
        left = [i for i, s in enumerate(score) if i not in own and s > -np.inf]
        for place, i in enumerate(sorted(left, key=lambda i: (-score[i], i))[:k]):
            scores[b, place], items[b, place] = score[i], i
    return scores, items


def assert_equal(got: Lists, want: Lists) -> None:
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0].double(), want[0].double())


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_items", [1, 5, 47, 48, 49, 333, 1000])
def test_equals_sorting(device, dtype, num_items):
    view = random_view(21, num_items, min(4 * num_items, 900), hub=num_items // 2)
    user = whole_numbers(21, 7, dtype)
    item = whole_numbers(num_items, 7, dtype, seed=1)
    users = torch.tensor([3, 20, 0, 0, 7])
    for k in (0, 1, 3, 20, 50, 163, 999, 1100):
        for chosen, exclude in ((None, None), (users, view)):
            want = by_sorting(user, item, k, chosen, exclude)
            got = native(user, item, k, chosen, exclude, device)
            assert got[0].dtype == torch.promote_types(dtype, torch.float32)
            assert_equal(got, want)
            with ops.backend("reference"):
                assert_equal(ops.masked_topk(user, item, k, users=chosen, exclude=exclude), want)


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 3, 64, 130])
def test_error_is_within_that_of_the_reference(device, dtype, d):
    user, item = normal(40, d, dtype), normal(700, d, dtype, seed=1)
    view = random_view(40, 700, 2000)
    exact = user.double() @ item.double().T
    size = float((user.double().abs() @ item.double().abs().T).max())
    for k in (10, 300):
        error = {}
        lists = {
            "native": native(user, item, k, exclude=view, device=device),
            "reference": masked_topk_reference(user, item, k, None, view),
        }
        for name, (scores, items) in lists.items():
            error[name] = float((scores - exact.gather(1, items)).abs().max()) / size
        assert error["native"] <= error["reference"] + slack(dtype)
        # Nothing that was left out is better than the last one taken, up to rounding.
        scores, items = lists["native"]
        rest = exact.masked_fill(view.to_dense() != 0, -torch.inf).scatter(1, items, -torch.inf)
        assert float((rest.amax(1) - scores[:, -1]).max()) <= 1e-5 * size
        assert bool((scores.diff(dim=1) <= 0).all())


@needs_cpu_kernel
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_problem(data):
    num_users = data.draw(st.integers(1, 20) | st.integers(256, 262))
    num_items = data.draw(st.integers(0, 300))
    d, k = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 320))
    dtype = data.draw(st.sampled_from(DTYPES))
    seed = data.draw(st.integers(0, 2**31))
    user, item = whole_numbers(num_users, 2 * d, dtype, seed), None
    item = whole_numbers(num_items, 2 * d, dtype, seed + 1)
    cut = {"plain": lambda x: x[:, :d], "columns": lambda x: x[:, ::2], "rows": lambda x: x.flip(0)}
    layout = cut[data.draw(st.sampled_from(list(cut)))]
    user, item = layout(user), layout(item)
    users = exclude = None
    if data.draw(st.booleans()):
        size = data.draw(st.integers(0, 40))
        users = torch.from_numpy(np.random.default_rng(seed).integers(0, num_users, size))
    if num_items and data.draw(st.booleans()):
        exclude = random_view(num_users, num_items, data.draw(st.integers(0, 500)), seed=seed)
    assert_equal(native(user, item, k, users, exclude), by_sorting(user, item, k, users, exclude))


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_everywhere(device, dtype):
    """More equal scores than any buffer holds; both zeros are one."""
    user, item = torch.ones(9, 1, dtype=dtype), torch.zeros(3000, 1, dtype=dtype)
    item[::3] = -0.0
    item[1234] = 1
    item[77] = -1
    order = [1234, *(i for i in range(3000) if i not in (77, 1234)), 77]
    for k in (1, 2, 50, 700, 3000):
        scores, items = native(user, item, k, device=device)
        assert items.tolist() == [order[:k]] * 9
        assert_equal((scores, items), masked_topk_reference(user, item, k, None, None))


MANY = 300  # users: beyond 255 the items are ranked in the order of their norms


def powers(rows: int, low: int, high: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 ** torch.randint(low, high, (rows, 1), generator=generator)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_items", [0, 1, 49, 700, 3001])
def test_many_users_and_norms_of_any_size(dtype, num_items):
    """Items that no user can reach are skipped; scores are exact and many are equal."""
    user = whole_numbers(MANY, 6, dtype) * powers(MANY, -3, 4, 5).to(dtype)
    item = whole_numbers(num_items, 6, dtype, seed=1) * powers(num_items, -4, 5, 6).to(dtype)
    view = random_view(MANY, num_items, 4 * num_items, hub=num_items // 2)
    users = torch.randperm(MANY, generator=torch.Generator().manual_seed(0))[:290]
    for k in (1, 20, 163):
        for exclude in (None, view):
            want = by_sorting(user, item, k, users, exclude)
            assert_equal(native(user, item, k, users, exclude), want)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_as_large_as_the_norms_allow(dtype):
    """Short items in the direction of the users are a little better than long ones that are not."""
    slanted, along = 1 - 4e-6, 1 - 2e-6
    item = torch.tensor([[slanted, (1 - slanted**2) ** 0.5]], dtype=torch.float64).repeat(2000, 1)
    item[123::20] = torch.tensor([along, 0.0], dtype=torch.float64)
    item[1999] /= 2  # items of one norm are not reordered
    user = torch.tensor([[1.0, 0.0]]) * powers(MANY, -3, 3, 0)
    _, items = native(user.to(dtype), item.to(dtype), 8)
    assert items.tolist() == [list(range(123, 283, 20))] * MANY


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exponents", [(-15, -9), (-4, 3), (9, 15)])
def test_many_users_with_rounded_scores(dtype, exponents):
    """The same lists as for a few users at a time, whose items are in the order of their ids."""
    user = normal(MANY, 33, dtype) * 10.0 ** exponents[0]
    item = normal(1500, 33, dtype, seed=1) * powers(1500, 3 * exponents[0], 3 * exponents[1], 2)
    item = item.to(dtype)
    scores, items = native(user.to(dtype), item, 30)
    for first in range(0, MANY, 100):
        users = torch.arange(first, first + 100)
        assert_equal((scores[users], items[users]), native(user.to(dtype), item, 30, users=users))


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [5, 170])
def test_many_users_with_nan_and_infinity(dtype, k):
    user, item = normal(MANY, 3, dtype), normal(900, 3, dtype, seed=1)
    item[::7, 1], item[3, 0], item[400:410, 2] = torch.nan, torch.inf, -torch.inf
    user[::11, 0], user[5], user[6] = torch.inf, torch.nan, 0
    view = random_view(MANY, 900, 3000)
    scores, items = native(user, item, k, exclude=view)
    for first in range(0, MANY, 100):
        users = torch.arange(first, first + 100)
        few = native(user, item, k, users=users, exclude=view)
        assert_equal((scores[users], items[users]), few)


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("k", [3, 50, 400])
def test_falling_and_rising_scores(device, k):
    """The extremes of how often the list is cut: never again, and all the time."""
    user = torch.ones(2, 1)
    for score in (torch.arange(5000.0), -torch.arange(5000.0)):
        assert_equal(
            native(user, score[:, None], k, device=device), by_sorting(user, score[:, None], k)
        )


@pytest.mark.parametrize("device", KERNELS)
def test_view_in_any_order(device):
    view = random_view(30, 200, 1500)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    col = view.col.clone()
    for start, stop in zip(view.rowptr[:-1].tolist(), view.rowptr[1:].tolist(), strict=True):
        ranked = order[view.col[start:stop].long()].argsort()
        col[start:stop] = view.col[start:stop][ranked]
    user, item = whole_numbers(30, 5, torch.float32), whole_numbers(200, 5, torch.float32, seed=1)
    shuffled = dataclasses.replace(view, col=col)
    assert not torch.equal(col, view.col)
    assert_equal(
        native(user, item, 60, exclude=shuffled, device=device),
        native(user, item, 60, exclude=view, device=device),
    )


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_left(device, dtype):
    full = InteractionGraph.from_edges(
        torch.arange(3).repeat_interleave(100), torch.arange(100).repeat(3), 4, 100
    ).ui
    user, item = normal(4, 8, dtype), normal(100, 8, dtype)
    scores, items = native(user, item, 10, exclude=full, device=device)
    assert bool((items[:3] == -1).all()) and bool((scores[:3] == -torch.inf).all())
    assert bool((items[3] >= 0).all())


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [5, 150, 900])
def test_nan_and_infinity(device, dtype, k):
    """NaN of either sign and -inf are never returned; +inf is the best there is."""
    item = normal(1000, 1, dtype)
    item[::3], item[1::6], item[2], item[5], item[8] = (
        torch.nan,
        -torch.nan,
        torch.inf,
        -torch.inf,
        0,
    )
    user = torch.tensor([[1.0], [torch.nan], [torch.inf], [-1.0]], dtype=dtype)
    got = native(user, item, k, device=device)
    assert_equal(got, masked_topk_reference(user, item, k, None, None))
    score = user.double() @ item.double().T
    real = (~score.isnan() & (score != -torch.inf)).sum(1)
    assert torch.equal((got[1] >= 0).sum(1), real.clamp(max=k))
    assert not bool(got[0].isnan().any())
    assert got[1][0, 0] == 2 and bool((got[1][1] == -1).all())


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_with_any_number_of_threads_and_any_company(dtype):
    view = random_view(300, 500, 3000)
    user, item = normal(300, 64, dtype), normal(500, 64, dtype, seed=1)
    alone = [native(user, item, 30, torch.tensor([u]), view) for u in (0, 17, 299)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            scores, items = native(user, item, 30, exclude=view)
            for u, want in zip((0, 17, 299), alone, strict=True):
                assert torch.equal(scores[u], want[0][0]) and torch.equal(items[u], want[1][0])
            again = native(user, item, 30, torch.arange(299, -1, -1), view)
            assert torch.equal(again[0].flip(0), scores) and torch.equal(again[1].flip(0), items)
    finally:
        torch.set_num_threads(before)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 20, 700])
def test_a_few_users_share_out_the_items(dtype, k):
    """Up to a tile of users, threads take ranges of items; more users are ranked by tiles."""
    user, item = whole_numbers(40, 6, dtype), whole_numbers(20_011, 6, dtype, 1)
    view = random_view(40, 20_011, 4_000, seed=2)
    everybody = native(user, item, k, exclude=view)
    assert_equal(everybody, by_sorting(user, item, k, exclude=view))
    for few in (1, 3, 8):
        users = torch.arange(5, 5 + few)
        assert_equal(native(user, item, k, users, view), tuple(t[5 : 5 + few] for t in everybody))
    real, table = normal(40, 64, dtype), normal(20_011, 64, dtype, 1)
    scores, items = native(real, table, k)
    one = native(real, table, k, torch.tensor([17]))
    assert torch.equal(one[0], scores[17:18]) and torch.equal(one[1], items[17:18])


MEMORY = """
import resource, torch
from mmssl import ops
user, item = torch.randn(5000, 8), torch.randn(20000, 8)
ops.masked_topk(user[:10], item[:10], 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.masked_topk(user, item, 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@needs_cpu_kernel
def test_no_matrix_of_scores():
    environment = {**os.environ, "MMSSL_OPS": "native"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000  # kB; 5000 x 20000 scores are 400,000


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_lists_carry_no_gradient(backend):
    user, item = normal(5, 3, torch.float32).requires_grad_(), normal(9, 3, torch.float32)
    with ops.backend(backend):
        scores, items = ops.masked_topk(user, item, 4)
    assert not scores.requires_grad and not items.requires_grad
    again = (user[:, None] * item[items]).sum(-1)
    torch.testing.assert_close(again, scores)
    assert again.requires_grad


@needs_cpu_kernel
@pytest.mark.parametrize("largest", [1.4e-45, 1.2e-38, 1e-30, 1.0, 1e12, 1e18])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_scores_of_extreme_rows(largest, k):
    """Every score is that of its item, and the lists fall, where rows differ by 45 decades."""
    user, item = normal(7, 9, torch.float32), normal(10, 9, torch.float32, seed=1)
    user[::2] *= largest
    item[::3] *= largest
    item[1] = 0
    scores, items = native(user, item, k)
    kept = items >= 0
    assert not scores.isnan().any() and (scores[~kept] == -torch.inf).all()
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    exact = (user.double() @ item.double().T).gather(1, items.clamp_min(0))
    terms = (user.double().abs() @ item.double().abs().T).gather(1, items.clamp_min(0))
    near = (scores.double() - exact).abs() <= 1e-5 * terms + torch.finfo(torch.float32).tiny
    assert (near | ~kept | ~scores.isfinite()).all()
