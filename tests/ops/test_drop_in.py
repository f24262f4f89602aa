"""The ops in the places where PyTorch users put their own losses and layers.

``test_all_ops.py`` tests the ops on tensors of one dtype under plain autograd.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.ops._registry import OPS
from tests.ops.cases import (
    NATIVE,
    call,
    each,
    flat,
    sample,
    small,
    tensors,
    weighted_sum,
    with_tensors,
)
from tests.ops.kernels import needs_cpu_kernel, run_python

PUBLIC = [op for op in OPS.values() if op.public]
DIFFERENTIABLE = [op for op in PUBLIC if op.contract.derivatives]
KERNELS = [op for op in NATIVE if op.public and op.contract.derivatives]


def tables(op) -> list[str]:
    """The matrices of floating point numbers among the arguments of an op."""
    arguments = sample(op, torch.float32, "typical").items()
    kept = [k for k, v in arguments if isinstance(v, Tensor) and v.is_floating_point()]
    return [name for name in kept if sample(op, torch.float32, "typical")[name].dim() > 1]


SEVERAL = [op for op in PUBLIC if len(tables(op)) > 1]


def results_and_gradients(op, arguments, autocast=False):
    """Only the forward pass runs under autocast, as torch's documentation advises."""
    torch.manual_seed(0)
    names = [k for k in tables(op) if isinstance(arguments.get(k), Tensor)]
    leaves = {k: arguments[k].detach().requires_grad_() for k in names}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = call(op.function, {**arguments, **leaves})
    total = weighted_sum(results)
    if total is None:
        return results
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return [*results, *(g for g in grads if g is not None)]


@each(SEVERAL)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_mixed_dtypes_are_promoted_under_autocast(op, backend):
    arguments = sample(op, torch.float32, "typical")
    names = tables(op)
    for name in names:
        half = {**arguments, name: arguments[name].bfloat16()}
        with ops.backend(backend):
            wide = results_and_gradients(op, {**half, name: half[name].float()})
            got = results_and_gradients(op, half, autocast=True)
            with pytest.raises(InputError, match=r"expected dtype torch\.(bfloat16|float32), like"):
                op.function(**half)
        assert len(got) == len(wide)
        for g, w in zip(got[: -len(names)], wide[: -len(names)], strict=True):
            assert g.dtype == w.dtype and torch.equal(g, w)
        for grad, w, place in zip(got[-len(names) :], wide[-len(names) :], names, strict=True):
            if grad.is_floating_point():
                assert grad.dtype == half[place].dtype or op.name == "masked_topk"
                assert torch.equal(grad, w.to(grad.dtype))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_products_keep_their_precision_under_autocast(backend):
    """torch's own products would be formed in bfloat16, in the reference and next to a kernel."""
    for op in PUBLIC:
        for case in op.contract.samples(torch.float32):
            if not case.tiny:
                continue
            with ops.backend(backend):
                outside = results_and_gradients(op, case.arguments)
                inside = results_and_gradients(op, case.arguments, autocast=True)
            for i, o in zip(inside, outside, strict=True):
                assert i.dtype == o.dtype, (op.name, case.label)
                torch.testing.assert_close(i, o, equal_nan=True, msg=f"{op.name}: {case.label}")


def test_a_layer_and_a_table_under_autocast():
    """The case that is met first: a layer returns bfloat16, an embedding stays float32."""
    torch.manual_seed(0)
    layer, table = torch.nn.Linear(16, 16), torch.nn.Embedding(48, 16)
    x = torch.randn(48, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        loss = ops.info_nce(layer(x), table.weight, 0.2)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in [*layer.parameters(), table.weight])


def test_float16_and_bfloat16_meet_in_float32():
    x = torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.add_normalized(x.half(), x[None].bfloat16())
    assert got.dtype == torch.float32


@each(SEVERAL)
def test_one_dtype_is_left_alone_under_autocast_on_a_device_without_it(op):
    arguments = sample(op, torch.float32, "typical")
    name = tables(op)[0]
    wrong = {**arguments, name: arguments[name].bfloat16().to("meta")}
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError):
        op.function(**wrong)


def total_of(op, arguments):
    """A function of the differentiable tensors of an op: the weighted sum of its results."""

    def total(*xs):
        results = flat(op.function(**with_tensors(op, arguments, xs)))
        return sum((t * (0.5 + torch.arange(t.numel()).view_as(t) % 9 / 8)).sum() for t in results)

    return total


def inputs_of(op, case):
    return [t.detach() for t in tensors(op, case.arguments)]


@each(DIFFERENTIABLE)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_torch_func_grad_is_the_gradient_of_autograd(op, backend):
    for case in small(list(op.contract.samples(torch.float32)), op):
        if case.arguments.get("running_mean") is not None:
            continue  # torch refuses to update a tensor in place there
        xs, total = inputs_of(op, case), total_of(op, case.arguments)
        leaves = [x.clone().requires_grad_() for x in xs]
        with ops.backend(backend):
            value = total(*leaves)
            expected = torch.autograd.grad(value, leaves)
            got, of = torch.func.grad_and_value(total, argnums=tuple(range(len(xs))))(*xs)
        # It is plain PyTorch under the transforms.
        exact = {} if op.name == "masked_similarity_linear" else {"rtol": 0, "atol": 0}
        for g, e in zip((of, *got), (value.detach(), *expected), strict=True):
            torch.testing.assert_close(g, e, equal_nan=True, **exact)


@needs_cpu_kernel
@each(KERNELS)
def test_vmap_is_a_loop(op):
    """Over one tensor at a time, along every dimension, and over all; forward and gradient."""
    arguments = sample(op, torch.float32, "typical")
    case = next(s for s in op.contract.samples(torch.float32) if s.label == "typical")
    xs, total = inputs_of(op, case), total_of(op, arguments)
    gradient = torch.func.grad(total, argnums=tuple(range(len(xs))))
    batch = [torch.stack([x, x.flip(0), x * 0.5]) for x in xs]
    choices = [[n] for n in range(len(xs))] + [list(range(len(xs)))]
    for chosen in choices:
        for dim in (0, -1):
            in_dims = tuple(dim if n in chosen else None for n in range(len(xs)))
            given = [batch[n].movedim(0, dim) if n in chosen else x for n, x in enumerate(xs)]
            examples = [
                [batch[n][k] if n in chosen else x for n, x in enumerate(xs)] for k in range(3)
            ]
            for function in (total, gradient):
                with ops.backend("native"):
                    got = flat(torch.func.vmap(function, in_dims)(*given))
                    each_one = [flat(function(*example)) for example in examples]
                for g, parts in zip(got, zip(*each_one, strict=True), strict=True):
                    torch.testing.assert_close(g, torch.stack(parts))


@needs_cpu_kernel
def test_per_sample_gradients_and_jacobians():
    torch.manual_seed(0)
    anchor, positive = torch.randn(5, 4).double(), torch.randn(5, 4).double()

    def rows(x):
        return ops.info_nce(x, positive, 0.3, reduction="none")

    expected = torch.autograd.functional.jacobian(rows, anchor)
    torch.testing.assert_close(torch.func.jacrev(rows)(anchor), expected)
    graph = InteractionGraph.from_edges([0, 0, 1, 2, 2], [1, 2, 0, 2, 3], 3, 4)
    table = torch.randn(4, 2).double()

    def cubes(x):
        return ops.spmm(graph.ui, x).pow(3).sum()

    expected = torch.autograd.functional.hessian(cubes, table)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(cubes))(table), expected)
    batch = torch.randn(3, 5, 4).double()
    one = torch.func.vmap(torch.func.grad(lambda x: ops.info_nce(x, positive, 0.3)))(batch)
    leaf = batch.clone().requires_grad_()
    total = torch.func.vmap(lambda x: ops.info_nce(x, positive, 0.3))(leaf).sum()
    total.backward()
    torch.testing.assert_close(one, leaf.grad)


@needs_cpu_kernel
def test_vmap_over_the_ids_of_a_batch():
    torch.manual_seed(0)
    user, item, ids = torch.randn(6, 4), torch.randn(5, 4), torch.randint(5, (3, 3, 7))
    got = torch.func.vmap(lambda u, p, n: ops.bpr_loss(user, item, u, p, n))(*ids)
    assert torch.equal(got[1], ops.bpr_loss(user, item, *ids[:, 1]))
    got = torch.func.vmap(lambda t: ops.info_nce(user, item, 0.2, target=t[:6]))(ids[0])
    assert torch.equal(got[2], ops.info_nce(user, item, 0.2, target=ids[0, 2, :6]))
    lists = torch.func.vmap(lambda x: ops.masked_topk(x, item, 2)[1])(torch.stack([user, -user]))
    assert torch.equal(lists[1], ops.masked_topk(-user, item, 2)[1])


@needs_cpu_kernel
@each(KERNELS)
def test_what_torch_func_lacks_is_said_in_one_line(op):
    case = next(s for s in op.contract.samples(torch.float32) if s.label == "typical")
    xs, total = inputs_of(op, case), total_of(op, case.arguments)
    way = r'is not supported; use mmssl\.ops\.backend\("reference"\)$'
    with ops.backend("native"):
        with pytest.raises(RuntimeError, match=f"forward-mode differentiation {way}"):
            torch.func.jvp(total, tuple(xs), tuple(xs))
        if op.contract.derivatives == 1 and op.name != "masked_similarity_linear":
            every = tuple(range(len(xs)))
            first = torch.func.grad(total, argnums=every)
            twice = torch.func.grad(lambda *ys: sum(g.sin().sum() for g in first(*ys)), every)
            with pytest.raises(RuntimeError, match=f"{op.name}: double backward {way}"):
                twice(*xs)
    with ops.backend("reference"):
        torch.func.jvp(total, tuple(xs), tuple(xs))


def test_functional_call_trains():
    """A step of plain gradient descent, by autograd and by torch.func."""
    torch.manual_seed(0)
    layer, x, y = torch.nn.Linear(8, 4), torch.randn(20, 8), torch.randn(20, 4)

    def loss(weights):
        return ops.info_nce(torch.func.functional_call(layer, weights, (x,)), y, 0.2)

    weights = {name: p.detach() for name, p in layer.named_parameters()}
    grads, value = torch.func.grad_and_value(loss)(weights)
    direct = ops.info_nce(layer(x), y, 0.2)
    direct.backward()
    assert torch.equal(value, direct)
    assert all(torch.equal(grads[name], p.grad) for name, p in layer.named_parameters())
    after = loss({name: w - 0.1 * grads[name] for name, w in weights.items()})
    assert after < value


def test_importing_the_ops_does_not_import_the_compiler():
    code = "import sys, mmssl.ops; print(any(m.startswith('torch._dynamo') for m in sys.modules))"
    assert run_python(code) == "False"


HALF = [op for op in PUBLIC if op.name not in ("keep_mask", "sample_bpr")]


@each(HALF)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_float16_is_float32_rounded_once(op, backend):
    """Results and gradients on the CPU, for every form of every op."""
    for case in op.contract.samples(torch.float16):
        if not case.tiny:
            continue
        exact = {
            k: v.float()
            if isinstance(v, Tensor) and v.dtype == torch.float16
            else [x.float() for x in v]
            if k == "xs"
            else v
            for k, v in case.arguments.items()
        }
        with ops.backend(backend), warnings.catch_warnings():
            warnings.simplefilter("error")  # such as that of a missing kernel
            got = results_and_gradients(op, case.arguments)
            expected = results_and_gradients(op, exact)
        assert len(got) == len(expected)
        for g, e in zip(got, expected, strict=True):
            assert g.dtype in (e.dtype, torch.float16)
            assert torch.equal(g, e.to(g.dtype)) or e.isnan().any(), case.label


def test_float16_does_not_overflow_on_the_way():
    """Squares and sums beyond 65504 are formed in float32."""
    big = torch.full((40, 64), 6e4, dtype=torch.float16)
    loss = ops.info_nce(big, big, 0.5, intra_view=False)
    torch.testing.assert_close(loss, torch.tensor(40.0).log())
    graph = InteractionGraph.from_edges([0, 0, 0], [0, 1, 2], 1, 40, normalization="row")
    assert (ops.spmm(graph.ui, big) == 6e4).all()
    assert ops.masked_topk(big[:1], big, 1)[0].isfinite().all()
    assert (ops.add_normalized(big * 0, big[None]) == 0.125).all()
