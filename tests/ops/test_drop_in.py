"""The ops in the places where PyTorch users put their own losses and layers.

``test_all_ops.py`` tests the ops on tensors of one dtype under plain autograd.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from mmssl.ops._registry import OPS
from tests.ops.cases import call, each, sample, weighted_sum

PUBLIC = [op for op in OPS.values() if op.public]


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
        for case in op.samples(torch.float32):
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
