"""The contract of every declared op, tested on the samples of its declaration.

What is specific to an op is in ``test_<op>.py``; calls past the checks are in ``test_schemas.py``.
"""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import InputError
from mmssl.ops._registry import OPS
from tests.ops import truth as truths
from tests.ops.cases import (
    NATIVE,
    call,
    each,
    each_dtype,
    each_kernel,
    everything,
    first_gradients,
    flat,
    labels,
    moved,
    operator_calls,
    sample,
    small,
    tensors,
    with_tensors,
)
from tests.ops.kernels import KERNELS, needs_cpu_kernel

ALL = list(OPS.values())
DIFFERENTIABLE = [op for op in ALL if op.contract.derivatives]
PUBLIC = [op for op in ALL if op.public]
# Allowed roundings of the largest entry of a result, beyond the error of the reference.
ROUNDINGS = {torch.float32: 64, torch.float64: 256, torch.bfloat16: 8, torch.float16: 8}


def worst(got: Tensor, exact: Tensor) -> float:
    """Return the largest absolute error of the finite entries; NaN and infinities must agree."""
    got, exact = got.double(), exact.double()
    assert got.shape == exact.shape
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), finite)
    torch.testing.assert_close(got[~finite], exact[~finite], equal_nan=True)
    return float((got - exact)[finite].abs().max()) if finite.any() else 0.0


def size(exact: Tensor) -> float:
    finite = exact.double()[exact.isfinite()]
    return max(float(finite.abs().max()) if finite.numel() else 0.0, 1.0)


@each_dtype(ALL)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_result_is_that_of_the_definition(op, dtype, backend):
    for case in op.contract.samples(dtype):
        if not case.tiny:
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns about empty means
            exact = flat(getattr(truths, op.name)(**case.arguments))
        with ops.backend(backend):
            got = call(op.function, case.arguments)
        assert len(got) == len(exact), case.label
        for g, e in zip(got, exact, strict=True):
            if g.is_floating_point():
                bound = ROUNDINGS[g.dtype] * torch.finfo(g.dtype).eps * size(e)
                assert worst(g, e) <= bound, case.label
            else:
                assert torch.equal(g, e.to(g.dtype)), case.label


@each_kernel(NATIVE)
def test_errors_are_within_those_of_the_reference(op, dtype, device):
    """Compare results and gradients with the reference in float64."""
    for case, wide in zip(*(op.contract.samples(d) for d in (dtype, torch.float64)), strict=True):
        exact_arguments = {
            name: value.double()
            if isinstance(value, Tensor) and value.is_floating_point()
            else [x.double() for x in value]
            if name == "xs"
            else value
            for name, value in case.arguments.items()
        }
        if "view" in exact_arguments and not isinstance(exact_arguments["view"], Tensor):
            exact_arguments["view"] = wide.arguments["view"]
        exact = everything(op, exact_arguments, "reference")
        plain = everything(op, case.arguments, "reference")
        mine = everything(op, moved(case.arguments, device), "native")
        for m, p, e in zip(mine, plain, exact, strict=True):
            assert m.dtype == p.dtype and m.shape == p.shape, case.label
            if m.is_floating_point():
                slack = ROUNDINGS[dtype] * torch.finfo(dtype).eps * size(e)
                assert worst(m, e) <= 2 * worst(p, e) + slack, case.label
            else:
                assert torch.equal(m, p), case.label


@pytest.mark.parametrize(
    ("op", "device"),
    [
        pytest.param(op, device.values[0], marks=device.marks, id=f"{op.name}-{device.values[0]}")
        for op in DIFFERENTIABLE
        for device in KERNELS
        if device.values[0] in (op.dtypes or ("cpu",))
    ],
)
def test_gradients_by_differences(op, device):
    cases = small(op.contract.samples(torch.float64), op)
    assert cases
    for case in cases:
        arguments = moved(case.arguments, device)
        leaves = [t.detach().clone().requires_grad_() for t in tensors(op, arguments)]
        if not all(t.isfinite().all() for t in call(op.function, case.arguments)):
            continue  # an empty mean

        def function(*xs, arguments=arguments):
            results = call(op.function, with_tensors(op, arguments, xs))
            return tuple(t for t in results if t.requires_grad)

        with ops.backend("native" if op.dtypes else "auto"):
            assert torch.autograd.gradcheck(function, leaves), case.label
            if op.contract.derivatives > 1:
                assert torch.autograd.gradgradcheck(function, leaves), case.label


REFUSING = [op for op in NATIVE if any(o.refused for o in op.operators)]


@needs_cpu_kernel
@each(REFUSING)
def test_a_derivative_without_kernel_is_refused(op):
    arguments = sample(op, torch.float32, "typical")
    leaves = [t.detach().requires_grad_() for t in tensors(op, arguments)]
    with ops.backend("native"):
        results = call(op.function, with_tensors(op, arguments, leaves))
        for _ in range(op.contract.derivatives):
            results = first_gradients(results, leaves, create_graph=True)
            results = [g.sin() for g in results if g.requires_grad]
        what = next(o.refused for o in op.operators if o.refused)
        expected = rf'mmssl\.ops\.{op.name}: {what} is not supported; use mmssl\.ops\.backend\("ref'
        with pytest.raises(RuntimeError, match=expected):
            first_gradients(results, leaves)
    with ops.backend("reference"):
        results = call(op.function, with_tensors(op, arguments, leaves))
        try:
            for _ in range(op.contract.derivatives + 1):
                results = [g.sin() for g in first_gradients(results, leaves, create_graph=True)]
        except RuntimeError as error:  # torch 2.15 refuses it as well
            assert op.name == "norm_act" and "batch_norm does not support 3rd" in str(error)


@needs_cpu_kernel
@each(NATIVE)
def test_opcheck(op):
    """Check every operator of the op, with the arguments that the op passes to it."""
    checked = set()
    dtypes = [d for d in (torch.float32, torch.bfloat16) if d in op.dtypes["cpu"]]
    cases = [s for s in op.contract.samples(torch.float32) if s.tiny][:3]
    cases += [s for d in dtypes[1:] for s in op.contract.samples(d) if s.label == "typical"]
    for case in cases:
        seen = set()
        for function, arguments in operator_calls(op, case.arguments):
            name = function._schema.name.removeprefix("mmssl::")
            declared = next((o for o in op.operators if o.name == name), None)
            if declared is None or name in seen:
                continue
            seen.add(name)
            inputs = [
                [t.detach() if isinstance(t, Tensor) else t for t in x]
                if isinstance(x, list)
                else x.detach()
                if isinstance(x, Tensor)
                else x
                for x in arguments
            ]
            for n in declared.differentiable:
                for x in inputs[n] if isinstance(inputs[n], list) else [inputs[n]]:
                    if isinstance(x, Tensor):
                        x.requires_grad_()
            assert set(torch.library.opcheck(function, tuple(inputs)).values()) == {"SUCCESS"}
        checked |= seen
    assert checked == {o.name for o in op.operators}


@each_kernel(NATIVE)
def test_same_bits_every_time_and_for_any_number_of_threads(op, dtype, device):
    arguments = moved(sample(op, dtype, "large"), device)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2, 3, 5, 16, 64) if device == "cpu" else (1, 1, 1):
            torch.set_num_threads(threads)
            results.append(everything(op, arguments, "native"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu_kernel
@each_dtype([op for op in NATIVE if "strided" in labels(op)])
def test_strides_do_not_matter(op, dtype):
    arguments = sample(op, dtype, "strided")
    dense = {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    assert any(isinstance(v, Tensor) and not v.is_contiguous() for v in arguments.values())
    pairs = zip(everything(op, arguments, "native"), everything(op, dense, "native"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@needs_cpu_kernel
@each(NATIVE)
def test_compiles_to_one_graph(op):
    arguments = sample(op, torch.float32, "typical")
    leaves = [t.detach().requires_grad_() for t in tensors(op, arguments)]

    def function(*xs):
        return op.function(**with_tensors(op, arguments, [x * 2 for x in xs]))

    torch._dynamo.reset()  # all ops share the code of this function, which counts as recompiling
    # What is drawn is only the same without a compiler in between.
    backend = "aot_eager" if leaves else "eager"
    with ops.backend("native"):
        torch.manual_seed(0)
        expected = flat(function(*leaves))
        torch.manual_seed(0)
        got = flat(torch.compile(function, fullgraph=True, backend=backend)(*leaves))
    expected += first_gradients(expected, leaves)
    got += first_gradients(got, leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@each_kernel([op for op in NATIVE if op.public])
def test_autocast_leaves_the_dtypes_alone(op, dtype, device):
    arguments = moved(sample(op, dtype, "typical"), device)
    with torch.autocast(device, torch.bfloat16):
        inside = everything(op, arguments, "native")
    pairs = zip(inside, everything(op, arguments, "native"), strict=True)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


SCALES = [0.0, 1.4e-45, 1e-42, 1.2e-38, 1e-30, 1e-12, 1.0, 1e6, 1e12, 1e18]
# Beyond these the reference overflows, or jumps between rows.
LARGEST = {"norm_act": 1e6, "view_attention": 1.0}


def terms(op, arguments) -> float:
    """Return the size of the terms of a sum whose result may be a small difference."""
    found = max((float(t.abs().max()) for t in tensors(op, arguments) if t.numel()), default=0.0)
    if op.name in ("info_nce", "cosine_logsumexp"):  # grows with the inverse of a row's norm
        norms = [t.double().norm(dim=-1) for t in tensors(op, arguments) if t.dim() == 2]
        norm = float(torch.cat(norms).clamp_min(1e-12).min())
        return max(1.0, 1 / norm) / float(arguments["temperature"])
    if op.name == "add_normalized":
        return max(found, 2 / float(arguments["x"].double().norm(dim=-1).clamp_min(1e-12).min()))
    return found


@needs_cpu_kernel
@each([op for op in NATIVE if op.contract.differentiable])
def test_extreme_numbers(op):
    """Zero, subnormal, tiny and huge rows: as accurate as plain PyTorch, and finite where it is."""
    scales = [s for s in SCALES if s <= LARGEST.get(op.name, 1e30)]
    combinations = [(s,) for s in scales] + list(itertools.combinations(scales, 2))[::3]
    label = "typical" if op.name != "spmm" else "binary"
    for number, chosen in enumerate(combinations):
        random = torch.Generator().manual_seed(number)
        arguments = sample(op, torch.float32, label)
        scaled = []
        for t in tensors(op, arguments):
            if t.dim() < 2:  # a temperature, or the parameters of a layer
                scaled.append(t)
                continue
            factor = torch.tensor(chosen, dtype=torch.float64)
            rows = factor[torch.randint(len(chosen), (*t.shape[:-1], 1), generator=random)]
            scaled.append((t.double() * rows).float())
        arguments = with_tensors(op, arguments, scaled)
        wide = with_tensors(op, arguments, [t.double() for t in scaled])
        exact = everything(op, wide, "reference")
        plain = everything(op, arguments, "reference")
        mine = everything(op, arguments, "native")
        for m, p, e in zip(mine, plain, exact, strict=True):
            assert not (m.isfinite() < p.isfinite()).any(), (chosen, "not finite where PyTorch is")
            known = m.isfinite() & p.isfinite() & e.isfinite()
            m, p, e = (t.double()[known] for t in (m, p, e))
            if not m.numel():
                continue
            largest = max(
                float(e.abs().max()), torch.finfo(torch.float32).tiny, terms(op, arguments)
            )
            allowed = 4 * float((p - e).abs().max()) + 64 * torch.finfo(torch.float32).eps * largest
            assert float((m - e).abs().max()) <= allowed, chosen


@needs_cpu_kernel
@each([op for op in NATIVE if op.contract.differentiable])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_where_plain_pytorch_leaves_it(op, value):
    arguments = sample(op, torch.float32, "typical")
    spoiled = [t.clone() for t in tensors(op, arguments)]
    row = int(arguments["users"][0]) if op.name in OF_BATCHES else 0  # one that is read
    (spoiled[0][row] if op.name in OF_BATCHES else spoiled[0].view(-1))[1] = value
    arguments = with_tensors(op, arguments, spoiled)
    with ops.backend("native"):
        mine = call(op.function, arguments)
    with ops.backend("reference"):
        plain = call(op.function, arguments)
    assert any(not t.isfinite().all() for t in plain)
    for m, p in zip(mine, plain, strict=True):
        assert torch.equal(m.isfinite(), p.isfinite())


BAD = [
    pytest.param(op, bad, id=f"{op.name}-{bad.argument}-{n}")
    for op in PUBLIC
    for n, bad in enumerate(op.contract.bad())
]


@pytest.mark.parametrize(("op", "bad"), BAD)
def test_bad_arguments_are_named(op, bad):
    arguments = {**sample(op, torch.float32, "typical"), bad.argument: bad.value}
    with pytest.raises(InputError) as caught:
        op.function(**arguments)
    message = str(caught.value)
    assert "\n" not in message and message.strip()
    with pytest.raises(InputError, match=f"^{bad.message}"):
        op.function(**arguments)


WRONG_TENSOR = {
    "None": lambda t: None,
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.numpy(),
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "three dimensions too many": lambda t: t[None, None, None],
    "no dimension": lambda t: t.sum(),
    "another device": lambda t: t.to("meta"),
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
    "another device": lambda t: t.to("meta"),
    "negative": lambda t: t - 100,
    "too large": lambda t: t + 100,
    "2^40": lambda t: t + 2**40,
    "least": lambda t: torch.full_like(t, -(2**63)),
    "largest": lambda t: torch.full_like(t, 2**63 - 1),
}
# Allowed: a default, a free size.
FREE = {
    ("spmm", "x", "another width"),
    ("info_nce", "negatives", "None"),
    ("cosine_logsumexp", "partial", "None"),
    ("masked_topk", "users", "None"),
    ("norm_act", "keep", "None"),
    ("masked_similarity_linear", "weight", "another width"),
}
OF_BATCHES = {"bpr_loss", "propagated_bpr_loss", "propagated_rows"}


@each(PUBLIC)
def test_wrong_tensors_end_in_one_line(op):
    arguments = sample(op, torch.float32, "typical")
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        for label, spoil in (WRONG_IDS if value.dtype == torch.int64 else WRONG_TENSOR).items():
            wrong = {**arguments, name: spoil(value)}
            if (op.name, name, label) in FREE:
                op.function(**wrong)
                continue
            try:
                op.function(**wrong)
            except InputError as error:
                message = str(error)
            else:
                pytest.fail(f"{name}: {label} is accepted")
            assert message.strip() and "\n" not in message, (name, label)
