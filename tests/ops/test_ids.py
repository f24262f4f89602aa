"""Ids out of range: one line of InputError from every op that takes ids, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmssl import ops
from mmssl.errors import InputError
from mmssl.ops._registry import OPS, Op
from tests.ops.cases import call, first_gradients, sample, tensors, with_tensors
from tests.ops.kernels import needs_cpu_kernel

Limit = Callable[[dict[str, Any]], int]


def rows(*names: str) -> Limit:
    """The number of rows of the first of these tables that an op has."""
    return lambda arguments: next(arguments[n].shape[-2] for n in names if n in arguments)


USERS, ITEMS = rows("user_emb", "user"), rows("item_emb", "item")
LIMITS: dict[str, Limit | None] = {
    "users": USERS,
    "items": ITEMS,
    "pos_items": ITEMS,
    "neg_items": ITEMS,
    "target": rows("positive"),
    "num_rows": lambda arguments: arguments["anchor"].shape[-2] + 1,
    "labels": None,  # any integer is one
    "positive_labels": None,
}
"""Argument of ids -> the number that they have to be below."""


def ids_of_ops() -> dict[tuple[str, str], str]:
    """(op, argument of ids) -> label of the first sample that has some."""
    found: dict[tuple[str, str], str] = {}
    for op in OPS.values():
        for label, arguments, _ in op.contract.samples(torch.float32):
            for name, value in arguments.items():
                ids = isinstance(value, torch.Tensor) and value.dtype == torch.int64
                if ids and value.numel() and LIMITS[name] is not None:
                    found.setdefault((op.name, name), label)
    return found


IDS = ids_of_ops()
IN_KERNELS = [
    pair for pair in IDS if OPS[pair[0]].operators and pair[0] != "masked_similarity_linear"
]
"""Those that a kernel follows."""


def spoiled(op: Op, name: str, value: int | None) -> tuple[dict[str, Any], str]:
    """Arguments with one wrong id, the limit if None, and the line that names it."""
    arguments = sample(op, torch.float32, IDS[op.name, name])
    limit_of = LIMITS[name]
    assert limit_of is not None
    limit = limit_of(arguments)
    value = limit if value is None else value
    ids = arguments[name].clone()
    ids.view(-1)[-1] = value
    what = "numbers" if name == "num_rows" else "ids"
    return {**arguments, name: ids}, f"{name}: expected {what} in [0, {limit}), got {value}"


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "name"), IDS)
def test_an_id_out_of_range_is_named(op, name, backend):
    declared = OPS[op]
    for value in (None, -1, 2**31, 2**40, 2**63 - 1, -(2**63)):
        arguments, expected = spoiled(declared, name, value)
        leaves = [t.detach().requires_grad_() for t in tensors(declared, arguments)]
        for given in (arguments, with_tensors(declared, arguments, leaves)):
            with ops.backend(backend), pytest.raises(InputError) as caught:
                call(declared.function, given)
            assert str(caught.value) == expected


def test_the_table_has_all_ops_with_ids():
    assert {op for op, _ in IDS} == {
        "info_nce", "bpr_loss", "propagated_bpr_loss", "propagated_bpr_step", "propagated_rows",
        "masked_similarity", "masked_similarity_linear", "masked_topk",
    }  # fmt: skip


@needs_cpu_kernel
@pytest.mark.parametrize(
    ("op", "name"), [pair for pair in IN_KERNELS if OPS[pair[0]].contract.differentiable]
)
def test_an_id_that_changes_before_the_backward_pass_is_named(op, name):
    """The memory of an array of NumPy may change without torch knowing."""
    declared = OPS[op]
    arguments = sample(declared, torch.float32, IDS[op, name])
    leaves = [t.detach().requires_grad_() for t in tensors(declared, arguments)]
    array = arguments[name].numpy().copy()
    arguments[name] = torch.from_numpy(array)
    results = call(declared.function, with_tensors(declared, arguments, leaves))
    array.reshape(-1)[0] = 10**6
    with pytest.raises(InputError, match=rf"{name}: expected \w+ in \[-?\d, \d+\), got 1000000"):
        first_gradients(results, leaves)


@needs_cpu_kernel
@pytest.mark.parametrize(("op", "name"), IN_KERNELS)
def test_compiled_code_names_the_id_as_well(op, name):
    """It calls the operator without the package's Python around it, so torch chooses the type."""
    declared = OPS[op]
    arguments, expected = spoiled(declared, name, None)
    torch._dynamo.reset()

    def function(ids):
        return declared.function(**{**arguments, name: ids})

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with ops.backend("native"), pytest.raises((ValueError, RuntimeError)) as caught:
        compiled(arguments[name])
    # info_nce itself passes -1 where a row has no positive.
    assert str(caught.value).replace("[-1, ", "[0, ") == expected
