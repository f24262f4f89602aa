"""No argument of a public op, however wrong, ends in anything but one line.

What lies behind them is ``test_schemas.py``'s.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmssl import ops
from tests.ops.small import BATCH, DIM, ITEMS, USERS, graph, ids, table

META = torch.device("meta")


def good() -> dict[str, dict[str, Any]]:
    """Arguments that every public op takes."""
    pairs = {"user_emb": table(USERS), "item_emb": table(ITEMS)}
    rows = {**pairs, "users": ids(0, 5, 2), "exclude": graph().ui}
    views = torch.stack([table(BATCH), table(BATCH)])
    return {
        "spmm": {"view": graph().ui, "x": table(ITEMS)},
        "propagate": {"views": [graph().ui, graph().iu], "xs": [table(ITEMS), table(USERS)]},
        "info_nce": {
            "anchor": table(BATCH),
            "positive": table(BATCH).flip(0),
            "temperature": 0.5,
            "negatives": table(2),
        },
        "masked_topk": {**rows, "k": 2},
        "masked_similarity": rows,
        "masked_similarity_linear": {**rows, "weight": table(ITEMS, 3)},
        "sample_bpr": {"graph": graph(), "batch_size": 2},
        "bpr_loss": {
            **pairs,
            "users": ids(0, 5, 0),
            "pos_items": ids(0, 1, 2),
            "neg_items": ids(1, 4, 0),
        },
        "norm_act": {
            "x": table(BATCH),
            "weight": torch.ones(DIM),
            "bias": torch.zeros(DIM),
            "keep": torch.ones(BATCH, DIM, dtype=torch.uint8),
            "running_mean": torch.zeros(DIM),
            "running_var": torch.ones(DIM),
        },
        "view_attention": {"query": views, "key": views, "view": views, "num_heads": 2},
        "keep_mask": {"shape": (3, 2), "rate": 0.5},
    }


# What is wrong for every tensor of real numbers, and for every vector of ids.
WRONG_TENSOR = {
    "None": lambda t: None,
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.numpy(),
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "one dimension too many": lambda t: t[None, None, None],
    "no dimension": lambda t: torch.tensor(1.0),
    "another device": lambda t: t.to(META),
    "another width": lambda t: torch.cat([t, t], -1),
    "no columns": lambda t: t[..., :0],
}
WRONG_IDS = {
    "None": lambda t: None,
    "a list": lambda t: t.tolist(),
    "int32": lambda t: t.int(),
    "floats": lambda t: t.double(),
    "booleans": lambda t: t.bool(),
    "two dimensions": lambda t: t[:, None],
    "no dimension": lambda t: t[0],
    "another device": lambda t: t.to(META),
    "negative": lambda t: t - 100,
    "too large": lambda t: t + 100,
    "2^40": lambda t: t + 2**40,
    "least": lambda t: torch.full_like(t, -(2**63)),
    "largest": lambda t: torch.full_like(t, 2**63 - 1),
}
WRONG_NUMBER = {
    "None": None,
    "text": "many",
    "negative": -1,
    "NaN": float("nan"),
    "a list": [1],
}
# Where it is no mistake: a default, a free size, a tensor that is only updated.
FREE = {
    ("spmm", "x", "another width"),
    ("info_nce", "negatives", "None"),
    ("masked_topk", "users", "None"),
    ("masked_topk", "exclude", "None"),
    ("norm_act", "keep", "None"),
    ("norm_act", "running_mean", "None"),
    ("norm_act", "running_var", "None"),
    ("masked_similarity_linear", "weight", "another width"),
    ("masked_similarity_linear", "weight", "no columns"),
    ("norm_act", "running_mean", "another device"),
    ("norm_act", "running_var", "another device"),
}
# Ids out of range are found by the kernel, as documented; the plain PyTorch has errors of its own.
RUNTIME_IDS = {"negative", "too large", "2^40", "least", "largest"}


def bad_calls() -> list[Any]:
    calls = []

    def add(op: str, argument: str, label: str, value: Any) -> None:
        if (op, argument, label) not in FREE:
            calls.append(pytest.param(op, argument, label, value, id=f"{op}-{argument}-{label}"))

    for op, arguments in good().items():
        for argument, value in arguments.items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.int64:
                for label, spoil in WRONG_IDS.items():
                    add(op, argument, label, spoil(value))
            elif isinstance(value, torch.Tensor):
                for label, spoil in WRONG_TENSOR.items():
                    if not (argument == "keep" and label == "integers"):
                        add(op, argument, label, spoil(value))
            elif isinstance(value, (int, float)):
                for label, wrong in WRONG_NUMBER.items():
                    add(op, argument, label, wrong)
            else:
                add(op, argument, "None", None)
                add(op, argument, "a number", 3)
                add(op, argument, "a tensor", torch.ones(2, 2))
    for argument in ("negative_slope", "keep_scale", "eps", "momentum"):
        for label, wrong in WRONG_NUMBER.items():
            add("norm_act", argument, label, wrong)
    for shape in ((-1, 2), (2.0, 3), (True,)):
        add("keep_mask", "shape", str(shape), shape)
    add("view_attention", "num_heads", "no divisor", 3)
    add("info_nce", "reduction", "unknown", "median")
    add("masked_topk", "k", "a boolean", True)
    add("masked_topk", "exclude", "transposed", graph().iu)
    add("masked_similarity", "exclude", "transposed", graph().iu)
    add("sample_bpr", "batch_size", "more than users", USERS + 1)
    return calls


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "argument", "label", "value"), bad_calls())
def test_public_ops_answer_in_one_line(op, argument, label, value, backend):
    arguments = {**good()[op], argument: value}
    expected: tuple[type[Exception], ...] = (ValueError, TypeError)  # InputError is a ValueError
    if op == "bpr_loss" and label in RUNTIME_IDS:
        expected = (RuntimeError, IndexError)
    with ops.backend(backend), pytest.raises(expected) as caught:
        getattr(ops, op)(**arguments)
    assert str(caught.value).strip(), "an error without a word"
    if op != "bpr_loss" or label not in RUNTIME_IDS:
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_the_table_spoils_is_good(backend):
    with ops.backend(backend):
        for op, arguments in good().items():
            getattr(ops, op)(**arguments)
