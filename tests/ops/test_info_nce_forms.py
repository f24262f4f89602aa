"""info_nce with other positives and negatives than those of a batch of pairs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl import ops
from mmssl.ops._info_nce_forms import info_nce_reference
from tests.ops.info_nce import native, problem
from tests.ops.kernels import needs_cpu_kernel

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SIZES = [(1, 1), (1, 700), (700, 1), (130, 700), (700, 130), (193, 97)]


def gradients(loss, *leaves):
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def leaves_of(*values, dtype=None):
    """Copies that get a gradient; in float64 of the same rounded values unless a dtype is given."""
    return [v.to(dtype or torch.float64, copy=True).requires_grad_() for v in values]


def assert_close(got, exact, dtype, temperature):
    """Errors in units of the rounding of a score, which the temperature divides."""
    for g, e in zip(got, exact, strict=True):
        eps = 2**-8 if dtype == torch.bfloat16 and g.dim() > 1 else torch.finfo(g.dtype).eps
        scale = max(float(e.abs().max()) if e.numel() else 0.0, 1.0)
        assert (g.double() - e).abs().max() <= 16 * eps * scale * (1 + 1 / temperature)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_target_is_cross_entropy_over_all_rows(n, m, temperature, dtype):
    generator = torch.Generator().manual_seed(n)
    anchor, rows = (torch.randn(s, 24, generator=generator).to(dtype) for s in (n, m))
    target = torch.randint(m, (n,), generator=generator)
    a, r = leaves_of(anchor, rows)
    exact = F.cross_entropy(F.normalize(a) @ F.normalize(r).T / temperature, target)
    a2, r2 = leaves_of(anchor, rows, dtype=dtype)
    got = native(a2, r2, temperature, target=target, intra_view=False)
    assert_close(gradients(got, a2, r2), gradients(exact, a, r), dtype, temperature)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 300), (300, 1), (130, 500)])
def test_negatives_only(n, k, temperature, dtype):
    inputs = problem(n, 24, negatives=k, dtype=dtype)
    leaves = leaves_of(*inputs)
    a, p, z = (F.normalize(x, dim=-1) for x in leaves)
    scores = torch.cat([(a * p).sum(-1, keepdim=True), a @ z.T], -1) / temperature
    exact = F.cross_entropy(scores, torch.zeros(n, dtype=torch.long))
    mine = leaves_of(*inputs, dtype=dtype)
    options = {"in_batch": False, "intra_view": False}
    got = native(*mine[:2], temperature, negatives=mine[2], **options)
    assert_close(gradients(got, *mine), gradients(exact, *leaves), dtype, temperature)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_target_in_order_is_the_square_form(dtype):
    anchor, positive, negatives = problem(200, 24, negatives=50, dtype=dtype)
    order = torch.arange(200)
    for options in ({}, {"in_batch": False}, {"intra_view": False, "eps": 1e-3}):
        square, indexed = (
            gradients(native(*x[:2], 0.2, negatives=x[2], **options, **more), *x)
            for more in ({}, {"target": order})
            for x in [leaves_of(anchor, positive, negatives, dtype=dtype)]
        )
        assert all(torch.equal(s, i) for s, i in zip(square, indexed, strict=True))


def test_a_shuffled_pair_costs_nothing_of_the_loss():
    anchor, positive, _ = problem(50, 8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    loss = ops.info_nce(anchor, positive[order], 0.3, target=order.argsort())
    torch.testing.assert_close(loss, ops.info_nce(anchor, positive, 0.3))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_labels_are_supervised_contrastive_learning(backend):
    """Equation 2 of Khosla et al., 2020, written as there: over the 2 N views of N samples."""
    one, two, _ = problem(9, 6, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 0, 0, 1, 4, 2, 0])
    leaves = leaves_of(one, two)
    z, y, t = F.normalize(torch.cat(leaves)), label.repeat(2), 0.3
    total = z.new_zeros(())
    for i in range(18):
        others = [a for a in range(18) if a != i]
        denominator = sum(torch.exp(z[i] @ z[a] / t) for a in others)
        positives = [p for p in others if y[p] == y[i]]
        logs = sum(torch.log(torch.exp(z[i] @ z[p] / t) / denominator) for p in positives)
        total = total - logs / len(positives)
    exact = gradients(total / 18, *leaves)
    mine = leaves_of(one, two)
    with ops.backend(backend):
        got = gradients(ops.info_nce(*mine, t, labels=label, symmetric=True), *mine)
    assert_close(got, exact, torch.float64, t)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_labels_that_all_differ_are_the_square_form(backend):
    anchor, positive, negatives = problem(60, 8, batch=(2,), negatives=5)
    label = torch.randperm(120, generator=torch.Generator().manual_seed(0)).view(2, 60)
    with ops.backend(backend):
        args = (anchor, positive, 0.3)
        got = ops.info_nce(*args, negatives=negatives, labels=label - 7, reduction="none")
        torch.testing.assert_close(got, ops.info_nce(*args, negatives=negatives, reduction="none"))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_anchor_without_a_positive_does_not_count(backend):
    anchor, rows, _ = problem(3, 4)
    anchor.requires_grad_()
    options = {"labels": torch.tensor([7, 1, 2]), "positive_labels": torch.tensor([1, 2, 2])}
    with ops.backend(backend):
        each = ops.info_nce(anchor, rows, 0.3, intra_view=False, reduction="none", **options)
        mean = ops.info_nce(anchor, rows, 0.3, intra_view=False, **options)
        unmatched = {**options, "labels": torch.tensor([7, 8, 9])}
        empty = ops.info_nce(anchor, rows, 0.3, intra_view=False, **unmatched)
    assert each[0] == 0 and (each[1:] > 0).all()
    torch.testing.assert_close(mean, each[1:].mean())
    assert empty.isnan()
    (grad,) = torch.autograd.grad(mean, anchor)
    assert (grad[0] == 0).all() and grad.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_the_same_negatives_of_each_anchor_are_shared_ones(backend, in_batch):
    anchor, positive, negatives = problem(40, 8, negatives=5)
    options = {"in_batch": in_batch, "symmetric": True, "eps": 1e-3, "reduction": "none"}
    with ops.backend(backend):
        shared = ops.info_nce(anchor, positive, 0.3, negatives=negatives, **options)
        own = ops.info_nce(anchor, positive, 0.3, negatives=negatives.expand(40, 5, 8), **options)
    torch.testing.assert_close(own, shared)


@needs_cpu_kernel
@pytest.mark.parametrize(("n", "m"), [(100, 3000), (3000, 100), (1500, 1300)])
@pytest.mark.parametrize("form", ["target", "labels"])
def test_same_bits_for_any_number_of_threads(n, m, form):
    generator = torch.Generator().manual_seed(0)
    anchor, rows = (torch.randn(2, s, 8, generator=generator).requires_grad_() for s in (n, m))
    negatives = torch.randn(700, 8, generator=generator).requires_grad_()
    ids = torch.randint(m, (2, n), generator=generator)
    options = {"target": ids}
    if form == "labels":
        options = {"labels": ids % 50, "positive_labels": torch.arange(2 * m).view(2, m) % 40}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            loss = native(anchor, rows, 0.2, negatives=negatives, **options).sum()
            results.append(gradients(loss, anchor, rows, negatives))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu_kernel
def test_no_anchor_and_no_row():
    none, rows = torch.zeros(0, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    empty = torch.empty(0, dtype=torch.long)
    for call in (native, info_nce_reference):
        loss = call(none, rows, 0.2, target=empty, reduction="sum")
        assert loss == 0
        loss.backward()
        assert (rows.grad == 0).all()
    labels = {"labels": torch.arange(3), "positive_labels": empty}
    loss = native(rows, none, 0.2, **labels, reduction="none")
    assert (loss == 0).all()


@needs_cpu_kernel
@pytest.mark.parametrize(
    "form",
    [
        {"target": torch.tensor([3, 2, 1, 0, 5, 5])},
        {"labels": torch.tensor([0, 1, 0, 2, 1, 0]), "symmetric": True},
        {"negatives": torch.linspace(-1, 2, 72).view(6, 3, 4).sin()},
    ],
    ids=lambda form: next(iter(form)),
)
def test_compiles_to_one_graph(form):
    anchor, positive, _ = problem(6, 4)

    def function(a, p):
        return native(a * 2, p, 0.3, **form)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager, graph = (
        gradients(loss(*x), *x)
        for loss in (function, compiled)
        for x in [leaves_of(anchor, positive, dtype=torch.float32)]
    )
    assert all(torch.equal(e, g) for e, g in zip(eager, graph, strict=True))
