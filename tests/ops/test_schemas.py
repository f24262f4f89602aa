"""Call ``torch.ops.mmssl.*`` and ``mmssl._host`` with wrong arguments, past every Python check.

Nothing may be read or written out of bounds; ``make sanitize`` runs this file for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mmssl import _extension, ops
from mmssl.graph import InteractionGraph
from mmssl.indexing import GraphIndex, edges_of_rows
from tests.ops.graphs import random_view
from tests.ops.kernels import needs_cpu_kernel

USERS, ITEMS, DIM, BATCH = 6, 5, 4, 3


def graph() -> InteractionGraph:
    user = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5])
    item = torch.tensor([0, 2, 1, 3, 4, 0, 2, 1])
    return InteractionGraph.from_edges(user, item, USERS, ITEMS)


def table(rows: int, columns: int = DIM, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-1, 1, rows * columns, dtype=torch.float64).view(rows, columns).to(dtype)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def raw_view(**changes: Any) -> list[Any]:
    """The inputs of mmssl::spmm after x, for a (USERS, ITEMS) view with values."""
    view = random_view(USERS, ITEMS, 12)
    return [getattr(view, f.name) for f in dataclasses.fields(dataclasses.replace(view, **changes))]


pointers = ids


def view_cases() -> dict[str, dict[str, torch.Tensor]]:
    view = random_view(USERS, ITEMS, 12)
    end = view.nnz
    edge, col = view.edge, view.col
    assert edge is not None
    huge = 2**63 - 1

    def col_with(value: int) -> torch.Tensor:
        changed = col.clone()
        changed[-1] = value
        return changed

    def edge_with(value: int) -> torch.Tensor:
        changed = edge.clone()
        changed[3] = value
        return changed

    return {
        "rowptr falls": {"rowptr": pointers(0, 5, 2, 7, 7, 9, end)},
        "rowptr leaves and returns": {"rowptr": pointers(0, 10**12, 10**12, 7, 7, 9, end)},
        "rowptr wraps": {"rowptr": pointers(0, huge, -huge - 1, 7, 7, 9, end)},
        "rowptr starts late": {"rowptr": pointers(1, 2, 3, 4, 5, 6, end)},
        "rowptr starts below": {"rowptr": pointers(-4, 0, 0, 0, 0, 0, end)},
        "rowptr ends early": {"rowptr": pointers(0, 0, 0, 0, 0, 0, end - 1)},
        "rowptr ends late": {"rowptr": pointers(0, 0, 0, 0, 0, 0, end + 10**6)},
        "rowptr is empty": {"rowptr": pointers()},
        "rowptr is int32": {"rowptr": view.rowptr.int()},
        "rowptr has two dimensions": {"rowptr": view.rowptr[None]},
        "t_rowptr has no dimension": {"t_rowptr": torch.tensor(ITEMS + 1)},
        "t_rowptr is empty": {"t_rowptr": pointers()},
        "col is too large": {"col": col_with(ITEMS)},
        "col is far too large": {"col": col_with(2**31 - 1)},
        "col is negative": {"col": col_with(-1)},
        "col is least": {"col": col_with(-(2**31))},
        "col is int64": {"col": view.col.long()},
        "col is short": {"col": view.col[:-1]},
        "edge is too large": {"edge": edge_with(end)},
        "edge is 2^40": {"edge": edge_with(2**40)},
        "edge is negative": {"edge": edge_with(-1)},
        "edge is short": {"edge": edge[:-1]},
        "value is short": {"value": torch.ones(end - 1)},
        "value is float64": {"value": torch.ones(end, dtype=torch.float64)},
        "row_scale is long": {"row_scale": torch.ones(USERS + 1)},
        "col_scale is a matrix": {"col_scale": torch.ones(ITEMS, 1)},
    }


def propagated_bpr_calls(
    label: str, rest: Any, place: int = 0, wrong: Any = None
) -> dict[str, Any]:
    """Calls of the operators that take a graph and a batch, one input of which is replaced."""
    both, one = (table(USERS), table(ITEMS)), torch.tensor(1.0)
    batch = [ids(0, 1, 2), ids(0, 1, 2), ids(2, 1, 0), torch.ones(3), table(3), table(6)]
    batch[place] = batch[place] if wrong is None else wrong
    calls = {"propagated_bpr_loss_backward": (one, one, *both, *batch, *rest)}
    if place < 3:
        calls["propagated_bpr_loss"] = (*both, *batch[:3], *rest)
        calls["propagated_bpr_step"] = (*both * 3, *batch[:3], *rest, 0.1, 0.1, 0.9, 0.9, 0.1, 1)
    return {f"{k}: {label}": partial(getattr(torch.ops.mmssl, k), *v) for k, v in calls.items()}


def raw_calls() -> dict[str, Callable[[], Any]]:
    """Invalid calls of the operators themselves."""
    op = torch.ops.mmssl
    both = table(USERS), table(ITEMS)
    calls: dict[str, Callable[[], Any]] = {}
    for label, changes in view_cases().items():
        view = raw_view(**changes)
        where = [i for i, f in enumerate(dataclasses.fields(random_view())) if f.name in changes]
        for i, value in zip(where, changes.values(), strict=True):
            view[i] = value
        calls[f"spmm: {label}"] = lambda view=view: op.spmm(table(ITEMS), *view)
        calls[f"propagate: {label}"] = lambda view=view: op.propagate(
            [table(ITEMS)] * 2, *[[of_view, t] for of_view, t in zip(raw_view(), view, strict=True)]
        )
        if not label.startswith("value"):
            call = partial(op.spmm_value_grad, *both, *view[:6], *view[7:])
            calls[f"spmm_value_grad: {label}"] = call
        if "edge" not in label:  # the operator reads t_edge alone
            rest = (*view[:6], view[5], view[4], view[6], view[8], 2, 0.5)
            calls[f"propagate_layers: {label}"] = partial(op.propagate_layers, *both, *rest)
            calls |= propagated_bpr_calls(label, rest)
    calls["spmm: x is short"] = lambda: op.spmm(table(ITEMS - 1), *raw_view())
    calls["spmm: x is float16"] = lambda: op.spmm(table(ITEMS).half(), *raw_view())
    view = raw_view()
    good = (*view[:6], view[5], view[4], view[6], view[8], 2, 0.5)
    layers = {
        "user is short": (table(USERS - 1), both[1], *good),
        "item is wide": (both[0], table(ITEMS, DIM + 1), *good),
        "item is float64": (both[0], both[1].double(), *good),
        "both are bfloat16": (both[0].bfloat16(), both[1].bfloat16(), *good),
        "t_col is short": (*both, *good[:3], view[3][:-1], *good[4:]),
        "t_edge is too large": (*both, *good[:9], view[8] + 12, 2, 0.5),
        "no layer": (*both, *good[:-2], 0, 0.5),
    }
    calls |= {f"propagate_layers: {k}": partial(op.propagate_layers, *v) for k, v in layers.items()}
    for n, wrong in enumerate(
        (ids(0, 7, 1), ids(0, -1, 1), ids(0), torch.ones(2), table(2), view[0])
    ):
        calls |= propagated_bpr_calls(f"batch {n}", good, n, wrong)

    index = graph().index
    draw = torch.full((3, 2), 0.5, dtype=torch.float64)
    candidates = ids(0, 1, 2, 3)
    sample = {
        "draw is 1": (draw * 2, candidates, index.rowptr, index.col, ITEMS),
        "draw is huge": (draw * 1e300, candidates, index.rowptr, index.col, ITEMS),
        "draw is negative": (-draw, candidates, index.rowptr, index.col, ITEMS),
        "draw is NaN": (draw * float("nan"), candidates, index.rowptr, index.col, ITEMS),
        "candidate is negative": (draw, candidates - 4, index.rowptr, index.col, ITEMS),
        "candidate is 2^40": (draw, candidates + 2**40, index.rowptr, index.col, ITEMS),
        "pointer is outside": (draw, candidates, index.rowptr + 2**40, index.col, ITEMS),
        "pointer is below": (draw, candidates, index.rowptr - 2**40, index.col, ITEMS),
        "pointers fall": (draw, candidates, index.rowptr.flip(0), index.col, ITEMS),
        "no column": (draw, candidates, index.rowptr, index.col[:0], ITEMS),
        "a user has everything": (draw, candidates, index.rowptr, index.col, 1),
        "num_items is negative": (draw, candidates, index.rowptr, index.col, -5),
        "too few candidates": (draw, candidates[:1], index.rowptr, index.col, ITEMS),
    }
    for label, arguments in sample.items():
        calls[f"sample_bpr: {label}"] = lambda a=arguments: op.sample_bpr(*a)

    user, item = table(USERS), table(ITEMS)
    outside = pointers(0, 10**12, 10**12, 8, 8, 8, 8)
    calls["masked_topk: user 2^40"] = lambda: op.masked_topk(user, item, 2, ids(2**40), None, None)
    calls["masked_topk: rowptr outside"] = lambda: op.masked_topk(
        user, item, 2, None, outside, index.col
    )
    calls["masked_topk: k is negative"] = lambda: op.masked_topk(user, item, -1, None, None, None)
    calls["masked_topk: k is 2^61"] = lambda: op.masked_topk(user, item, 2**61, None, None, None)
    calls["masked_topk: dtypes"] = lambda: op.masked_topk(user, item.double(), 2, None, None, None)
    calls["masked_topk: users int32"] = lambda: op.masked_topk(
        user, item, 2, ids(0).int(), None, None
    )
    calls["masked_topk: rowptr alone"] = lambda: op.masked_topk(
        user, item, 2, None, index.rowptr, None
    )
    calls["masked_topk: widths"] = partial(op.masked_topk, user, table(5, 9), 2, None, None, None)

    scalar, slope = torch.tensor(1.0), torch.ones(3)
    triple = (ids(0, 1, 2), ids(0, 1, 2), ids(2, 1, 0))
    for place in range(3):
        for bad in (-1, 2**40, ITEMS + 1):
            wrong = list(triple)
            wrong[place] = ids(0, bad, 1)
            calls[f"bpr_loss: {place} {bad}"] = lambda w=wrong: op.bpr_loss(user, item, *w)
            calls[f"bpr_loss_backward: {place} {bad}"] = lambda w=wrong: op.bpr_loss_backward(
                scalar, scalar, user, item, *w, slope, None, None
            )
    calls["bpr_loss_backward: slope"] = lambda: op.bpr_loss_backward(
        scalar, scalar, user, item, *triple, slope[:2], None, None
    )
    calls["bpr_loss_backward: no gradient"] = lambda: op.bpr_loss_backward(
        scalar[None][:0], scalar, user, item, *triple, slope, None, None
    )

    pair, one = table(3)[None], torch.ones(1)
    saved = torch.zeros(2, 1, 3, dtype=torch.float64)
    options = (True, False, 0.0, False)
    calls["info_nce: sizes"] = lambda: op.info_nce(pair, pair[:, :2], one, None, *options)
    calls["info_nce: temperature"] = lambda: op.info_nce(pair, pair, one[:0], None, *options)
    calls["info_nce: negatives"] = lambda: op.info_nce(pair, pair, one, table(2, 9), *options)
    cut = (torch.ones(1, 3), pair, pair, one, None, saved[:, :, :2], *options)
    calls["info_nce_backward: saved"] = partial(op.info_nce_backward, *cut)
    calls["info_nce_backward: grad"] = lambda: op.info_nce_backward(
        torch.ones(1, 2), pair, pair, one, None, saved, *options
    )
    calls["info_nce_backward: symmetric"] = lambda: op.info_nce_backward(
        torch.ones(1, 3), pair, pair, one, None, saved, True, True, 0.0, False
    )

    there = (None, True)
    for name, form in {
        "target, shape": (ids(0, 1)[None],),
        "target, dtype": (torch.zeros(1, 3),),
        "target, negative": (ids(0, -2, 0)[None],),
        "target, too large": (ids(0, 0, 3)[None],),
        "num_rows, shape": (*there, ids(3)[None]),
        "num_rows, dtype": (*there, torch.ones(1)),
        "num_rows, negative": (*there, ids(-1)),
        "num_rows, too large": (*there, ids(4)),
    }.items():
        calls[f"info_nce: {name}"] = partial(op.info_nce, pair, pair, one, None, *options, *form)
        arguments = (torch.ones(1, 3), pair, pair, one, None, saved, *options, *form)
        calls[f"info_nce_backward: {name}"] = partial(op.info_nce_backward, *arguments)
    forms = (True, True, 0.0, False, ids(0, 1, 2)[None])
    calls["info_nce: target and symmetric"] = partial(op.info_nce, pair, pair, one, None, *forms)

    ones, short, rest = torch.ones(DIM), torch.ones(1, DIM, dtype=torch.uint8), (1.0, 0.2, 1e-5)
    calls["norm_act: weight"] = lambda: op.norm_act(user, ones[:2], ones, None, *rest, 1)
    calls["norm_act: keep"] = lambda: op.norm_act(user, ones, ones, short, *rest, 1)
    for n in (0, -1, 4, 2**62):
        calls[f"norm_act: {n} groups"] = partial(op.norm_act, user, ones, ones, None, *rest, n)
    for n, grad in ((1, user[:2]), (2, user)):
        call = partial(op.norm_act_backward, grad, user, *[ones] * 3, None, *rest[:2], n)
        calls[f"norm_act_backward: {n} groups"] = call
    calls["keep_mask: n is negative"] = lambda: op.keep_mask(ids(1), -1, 0)
    calls["keep_mask: n is 2^62"] = lambda: op.keep_mask(ids(1), 2**62, 0)
    calls["keep_mask: limit"] = lambda: op.keep_mask(ids(1), 5, 2**20)
    calls["keep_mask: two of 2^62"] = lambda: op.keep_mask(ids(1, 2), 2**62, 0)

    views = torch.stack([table(BATCH), table(BATCH)])
    calls["view_attention: heads"] = lambda: op.view_attention(views, views, views, 0)
    calls["view_attention: 2^62 heads"] = lambda: op.view_attention(views, views, views, 2**62)
    calls["view_attention: key"] = lambda: op.view_attention(views, views[:1], views, 2)
    calls["view_attention_backward: grad"] = lambda: op.view_attention_backward(
        table(BATCH), views, views, views, 2
    )
    base, inverse = table(BATCH), torch.ones(2, BATCH)
    calls["add_normalized: base"] = lambda: op.add_normalized(base[:1], views, 1.0)
    calls["add_normalized: dtypes"] = lambda: op.add_normalized(base.double(), views, 1.0)
    calls["add_normalized: one view"] = lambda: op.add_normalized(base, base, 1.0)
    calls["add_normalized: float16"] = lambda: op.add_normalized(base.half(), views.half(), 1.0)
    for label, grad, norms in (("grad", base[:1], inverse), ("inverse", base, inverse[:, :1])):
        call = partial(op.add_normalized_backward, grad, views, norms, 1.0)
        calls[f"add_normalized_backward: {label}"] = call
    calls["tall_product: rows"] = lambda: op.tall_product(user, user[:-1])
    calls["tall_product: dtypes"] = lambda: op.tall_product(user, user.double())
    calls["tall_product: bfloat16"] = lambda: op.tall_product(user.bfloat16(), user.bfloat16())
    calls["tall_product: a vector"] = lambda: op.tall_product(user[0], user)
    calls["gram: a vector"] = lambda: op.gram(user[0])
    calls["gram: integers"] = lambda: op.gram(user.long())
    calls["transposed: a vector"] = lambda: op.transposed(user[0])
    calls["transposed: integers"] = lambda: op.transposed(user.long())
    calls["sample_bpr: draw is float32"] = lambda: op.sample_bpr(
        draw.float(), candidates, index.rowptr, index.col, ITEMS
    )
    return calls


@needs_cpu_kernel
@pytest.mark.parametrize("call", raw_calls() if _extension.ops is not None else {})
def test_schemas_refuse_what_would_leave_an_array(call):
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        raw_calls()[call]()


@needs_cpu_kernel
def test_schemas_take_empty_and_odd_sizes():
    """Either a result or a clean error; the sanitizers find anything else."""
    op = torch.ops.mmssl
    assert op.propagate([], *[[] for _ in range(8)], [table(2)]) == []
    for dim in (0, 1, 3):
        for rows in (0, 1, 2):
            pair = torch.ones(1, rows, dim)
            with_or_without_error(
                op.info_nce, pair, pair, torch.ones(1), None, True, True, 0.0, False
            )
            x, ones = torch.ones(rows, dim), torch.ones(dim)
            with_or_without_error(op.norm_act, x, ones, ones, None, 1.0, 0.2, 1e-5, 1)
            with_or_without_error(op.masked_topk, x, x, 3, None, None, None)
            with_or_without_error(op.view_attention, pair, pair, pair, 1)
            with_or_without_error(op.view_attention, pair[:0], pair[:0], pair[:0], 1)
            empty = ids()
            with_or_without_error(op.bpr_loss, x, x, empty, empty, empty)
    for temperature in (0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30):
        pair = table(5)[None]
        scale = torch.tensor([temperature])
        with_or_without_error(op.info_nce, pair, pair, scale, None, True, False, 0.0, False)


def with_or_without_error(function: Any, *arguments: Any) -> None:
    try:
        function(*arguments)
    except (RuntimeError, IndexError):
        pass


def test_graphs_refuse_ids_out_of_range():
    for user, item, users, items in (
        ([0, -1], [0, 0], 2, 2),
        ([0, 2], [0, 0], 2, 2),
        ([0, 1], [0, 2**40], 2, 2),
        ([0], [0], 2**31, 2),
        ([0], [0], 2, 2**40),
        ([0], [0, 1], 2, 2),
    ):
        with pytest.raises(ValueError) as caught:
            InteractionGraph.from_edges(np.array(user), np.array(item), users, items)
        assert "\n" not in str(caught.value)


@needs_cpu_kernel
def test_index_arrays_that_change_between_forward_and_backward():
    """Every call checks its indices, so a view that was valid earlier is checked again."""
    view = random_view(USERS, ITEMS, 12, valued=False)
    x = table(ITEMS).requires_grad_()
    y = ops.spmm(view, x)
    view.t_col[0] = 10**6
    with pytest.raises(RuntimeError, match=r"col must lie in \[0, 6\)"):
        y.sum().backward()


@needs_cpu_kernel
def test_saved_inputs_that_change_before_backward():
    anchor = table(BATCH).requires_grad_()
    other = table(BATCH).clone()
    loss = ops.info_nce(anchor, other, 0.5)
    other.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_graph_with_inconsistent_arrays():
    """GraphIndex is a plain tuple; wrong indices are found by the op that reads them."""
    index = graph().index
    wrong = GraphIndex(index.rowptr, index.col + 100, index.colptr, index.row)
    broken = InteractionGraph(wrong, "none")
    with pytest.raises((RuntimeError, IndexError)):
        ops.spmm(broken.ui, table(ITEMS))
    if _extension.host is not None:  # plain PyTorch, as on a GPU, does not check
        with pytest.raises(ValueError, match="col must hold columns"):
            edges_of_rows(wrong.rowptr, wrong.col, ITEMS, ids(0, 1))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_inputs_may_alias_and_mix_gradients(backend):
    """The same tensor twice, views of one storage, with and without requires_grad."""
    base = table(8).double()
    with ops.backend(backend):
        for flags in range(4):
            anchor = base.clone().requires_grad_(bool(flags & 1))
            positive = anchor if flags == 3 else base.flip(0).requires_grad_(bool(flags & 2))
            loss = ops.info_nce(anchor, positive, 0.5)
            assert loss.requires_grad == bool(flags)
            if flags:
                loss.backward()
            assert (anchor.grad is not None) == bool(flags & 1)
        rows = base.requires_grad_()
        triple = (ids(0, 1, 1), ids(2, 2, 0), ids(1, 1, 1))
        ops.bpr_loss(rows, rows, *triple).backward()
        twice = rows.grad.clone()
        rows.grad = None
        split = [rows.detach().clone().requires_grad_() for _ in range(2)]
        ops.bpr_loss(*split, *triple).backward()
        torch.testing.assert_close(twice, split[0].grad + split[1].grad)
        x = table(ITEMS).requires_grad_()
        first, second = ops.propagate([graph().ui] * 2, [x, x])
        (first.sum() + second.sum()).backward()
        both = x.grad.clone()
        x.grad = None
        ops.spmm(graph().ui, x).sum().backward()
        torch.testing.assert_close(both, 2 * x.grad)


def test_conjugate_and_negative_views_are_resolved():
    """A lazily negated view must not be read as it is stored."""
    real = table(ITEMS)
    negative = torch.complex(torch.zeros_like(real), -real).conj().imag  # = real, is_neg() set
    assert negative.is_neg()
    view = graph().ui
    torch.testing.assert_close(ops.spmm(view, negative), ops.spmm(view, real))
