"""Ids and values of every array type, by the door that graphs take them through."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from mmssl import ops
from mmssl.arrays import as_ids, as_numbers
from mmssl.data import Interactions
from mmssl.data.neighbors import Neighbors
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from tests.arrays import Column, filtered


def readonly(array):
    array = np.array(array)
    array.setflags(write=False)
    return array


IDS = {
    "list": lambda ids: ids,
    "tuple": tuple,
    "list of NumPy scalars": lambda ids: [np.int32(i) for i in ids],
    "column": lambda ids: Column(ids),
    "filtered column": filtered,
    "objects": lambda ids: np.array(ids, object),
    "read-only": readonly,
    "read-only int32": lambda ids: readonly(np.array(ids, np.int32)),
    "big-endian": lambda ids: np.array(ids, ">i8"),
    "big-endian uint16": lambda ids: np.array(ids, ">u2"),
    "negative stride": lambda ids: np.array(ids[::-1])[::-1],
    "strided": lambda ids: np.array([ids, ids]).T[:, 0],
    "masked, nothing masked": lambda ids: np.ma.array(ids),
    **{
        f"NumPy {dtype}": lambda ids, dtype=dtype: np.array(ids, dtype)
        for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
    },
    **{
        str(dtype): lambda ids, dtype=dtype: torch.tensor(ids).to(dtype)
        for dtype in (
            torch.int8, torch.uint8, torch.int16, torch.uint16,
            torch.int32, torch.uint32, torch.int64, torch.uint64,
        )
    },
    "strided tensor": lambda ids: torch.tensor([ids, ids]).T[:, 1],
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("ids", [[2, 0, 1, 2], [1]])  # one id: a stride without a meaning
def test_ids_of_every_kind(kind, ids):
    user, item = IDS[kind](ids), IDS[kind]([3 - i for i in ids])
    expected = InteractionGraph.from_edges(torch.tensor(ids), 3 - torch.tensor(ids), 3, 4)
    for one, other in itertools.product((user, ids), (item, [3 - i for i in ids])):
        graph = InteractionGraph.from_edges(one, other, np.int64(3), np.uint8(4))
        for ours, theirs in zip(graph.index, expected.index, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", IDS)
def test_data_sets_take_ids_of_every_kind(kind):
    for ids in ([2, 0, 1], [1]):
        user, item = IDS[kind](ids), IDS[kind]([3 - i for i in ids])
        order = sorted(range(len(ids)), key=ids.__getitem__)
        expected = [[ids[n] for n in order], [3 - ids[n] for n in order]]
        assert [array.tolist() for array in Interactions.from_edges(user, item)] == expected
        row, col, value = Neighbors.from_edges(user, item, np.array(ids, object))
        assert [row.tolist(), col.tolist()] == expected and value.tolist() == expected[0]


NO_IDS = {
    "torch.float32": (torch.tensor([0.0, 1.9]), "got torch.float32; drop missing values, then con"),
    "whole floats": (np.array([0.0, 1.0]), r"got float64; .* \.astype\('int64'\), or \.long\(\)"),
    "NaN": ([0, float("nan")], "got float64; drop missing values"),
    "column of floats": (Column([0.0, 1.0]), "got float64"),
    "torch.bool": (torch.tensor([True, False]), "got torch.bool$"),
    "bool": ([True, False], "got bool$"),
    "strings": (["0", "1"], "got <U1; map ids to 0, 1, "),
    "object strings": (np.array(["a", "b"], object), "got 'a' at position 0; map ids to 0, 1, "),
    "a missing object": (np.array([0, None], object), "got None at position 1; map ids"),
    "an object float": (np.array([0, 1.0], object), "got 1.0 at position 1"),
    "an object bool": (np.array([0, True], object), "got True at position 1"),
    "dates": (np.array([0, 1], "M8[s]"), r"got datetime64\[s\]; map ids"),
    "complex": (torch.zeros(2, dtype=torch.complex64), "got torch.complex64"),
    "huge": (np.array([0, 2**63], np.uint64), "below 2\\^63, got 9223372036854775808"),
    "huge tensor": (torch.tensor([0, 2**63], dtype=torch.uint64), "below 2\\^63"),
    "huge object": ([0, 2**70], "got 1180591620717411303424 at position 1"),
    "masked": (np.ma.array([0, 1], mask=[0, 1]), "a masked array that masks some"),
    "None": (None, "array of numbers, got NoneType"),
    "a set": ({0, 1}, "array of numbers, got set"),
    "a generator": ((i for i in (0, 1)), "array of numbers, got generator"),
    "ragged": ([[0], [1, 2]], "array of numbers, got list"),
    "another device": (torch.tensor([0, 1], device="meta"), "device cpu, got meta"),
    "sparse": (torch.tensor([0, 1]).to_sparse(), "dense tensor, got one of layout"),
}


@pytest.mark.parametrize("kind", NO_IDS)
def test_other_ids_are_refused_in_one_line(kind):
    ids, message = NO_IDS[kind]
    with pytest.raises(InputError, match=f"^item: expected .*{message}") as caught:
        InteractionGraph.from_edges([0, 1], ids, 3, 3)
    assert "\n" not in str(caught.value)
    if not isinstance(ids, torch.Tensor):
        with pytest.raises(InputError, match=f"^item: expected .*{message}"):
            Interactions.from_edges([0, 1], ids)


def test_shapes_and_ranges_are_named():
    for ids in (np.zeros((2, 1), np.int64), torch.tensor(3), 3):
        with pytest.raises(InputError, match=r"^user, item: expected shape \(E,\) of both, got"):
            InteractionGraph.from_edges(ids, [0, 1], 3, 3)
    with pytest.raises(InputError, match=r"shape \(E,\) of both, got \(\) and \(\)"):
        InteractionGraph.from_edges(np.int64(1), 1, 3, 3)
    for count in (True, 3.0, "3", -1, 2**31, None):
        with pytest.raises(InputError, match=r"^num_users: expected an integer in \[0, 2\^31\)"):
            InteractionGraph.from_edges([0], [0], count, 3)
    with pytest.raises(InputError, match=r"^item: expected ids in \[0, 3\), got 3"):
        InteractionGraph.from_edges(np.zeros(2, np.uint8), filtered([1, 3]), 3, 3)


@pytest.mark.parametrize("empty", [[], np.array([]), torch.tensor([]), Column([])])
def test_an_empty_array_has_no_dtype_that_matters(empty):
    assert InteractionGraph.from_edges(empty, empty, 3, 3).nnz == 0
    assert InteractionGraph.from_edges(empty, empty, 3, 3, value=empty).nnz == 0


VALUES = {
    "list": (lambda v: v, torch.float32),
    "integers": (lambda v: [int(x) for x in v], torch.float32),
    "column": (lambda v: Column(v), torch.float64),
    "filtered column": (filtered, torch.float64),
    "objects": (lambda v: np.array(v, object), torch.float64),
    "float16": (lambda v: np.array(v, np.float16), torch.float32),
    "long double": (lambda v: np.array(v, np.longdouble), torch.float64),
    "big-endian": (lambda v: np.array(v, ">f4"), torch.float32),
    "read-only": (lambda v: readonly(np.array(v, np.float32)), torch.float32),
    "negative stride": (lambda v: np.array(v[::-1])[::-1], torch.float64),
    "torch.bfloat16": (lambda v: torch.tensor(v).bfloat16(), torch.float32),
    "torch.int16": (lambda v: torch.tensor(v).short(), torch.float32),
    "torch.float64": (lambda v: torch.tensor(v).double(), torch.float64),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_every_kind(kind):
    convert, dtype = VALUES[kind]
    for values in ([1.0, 2.0, 4.0], [3.0]):
        ids = list(range(len(values)))
        graph = InteractionGraph.from_edges(ids, ids, 3, 3, value=convert(values))
        assert graph.value.dtype == dtype and graph.value.tolist() == values


def test_a_list_that_float32_cannot_hold():
    assert as_numbers("value", [1e300, 1e-300]).tolist() == [1e300, 1e-300]


def test_a_gradient_flows_back_to_a_half_tensor():
    value = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    as_numbers("value", value).sum().backward()
    assert value.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([True, False], "real numbers, got bool"),
        (torch.tensor([True, False]), "real numbers, got torch.bool"),
        (np.array([1j, 0]), "real numbers, got complex128"),
        (["1", "2"], "real numbers, got <U1"),
        (np.array([1.0, None], object), "real numbers, got None at position 1$"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), "masked array that masks some"),
        (torch.ones(2, device="meta"), "device cpu, got meta"),
        (3.0, r"shape \(2,\), got \(\)"),
    ],
)
def test_other_values_are_refused_in_one_line(value, message):
    with pytest.raises(InputError, match=f"^value: expected .*{message}"):
        InteractionGraph.from_edges([0, 1], [0, 1], 2, 2, value=value)


def test_ids_are_not_copied_without_need():
    array = np.arange(4)
    assert as_ids("user", array).data_ptr() == array.ctypes.data
    tensor = torch.arange(4)
    assert as_ids("user", tensor).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_numpy_scalars_as_options_of_ops(backend):
    """They are accepted like Python's numbers; bools and NaN are refused like Python's."""
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    graph = InteractionGraph.from_edges([0, 1, 2], [0, 1, 0], 3, 3)
    with ops.backend(backend):
        for half in (np.float16(0.5), np.float32(0.5), np.float64(0.5)):
            assert torch.equal(ops.info_nce(a, b, half), ops.info_nce(a, b, 0.5))
        for two in (np.uint8(2), np.int32(2), np.int64(2)):
            assert torch.equal(ops.masked_topk(a, b, two)[1], ops.masked_topk(a, b, 2)[1])
            assert ops.sample_bpr(graph, two).user.numel() == 2
        for wrong in (np.float32("nan"), np.True_):
            with pytest.raises(InputError, match="^temperature: expected a finite number > 0"):
                ops.info_nce(a, b, wrong)
        for wrong in (np.float64(2), np.True_):
            with pytest.raises(InputError, match="^k: expected an integer >= 0"):
                ops.masked_topk(a, b, wrong)


def test_data_sets_do_not_need_torch():
    code = "import sys, mmssl.data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
