"""keep_mask and dropout: the bits, the rate, the expectation, the gradient, the generator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import ops
from mmssl.ops.keep_mask import (
    dropout,
    dropout_of_columns,
    keep_mask,
    keep_masks,
    mask_from_seed,
)
from tests.ops.kernels import needs_cpu_kernel


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.31, 0.5, 0.95])
def test_rate_and_scale(rate):
    torch.manual_seed(0)
    count = 200_003
    y = dropout(torch.ones(count), rate, True)
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert abs(float((y == 0).float().mean()) - rate) < 6 * deviation
    kept = y[y != 0]
    assert torch.all(kept == kept[0]) and float(kept[0]) == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_elements_are_independent_of_their_neighbors():
    torch.manual_seed(0)
    keep = (dropout(torch.ones(400_000), 0.5, True) != 0).double()
    centered = keep - keep.mean()
    for lag in (1, 2, 3, 4, 8):
        correlation = (centered[:-lag] * centered[lag:]).mean() / centered.square().mean()
        assert abs(float(correlation)) < 6 / 400_000**0.5


def test_gradient_is_the_mask():
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    y = dropout(x, 0.4, True)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad * x.detach(), y.detach())


@pytest.mark.parametrize("first", [0, 1, 4, 6, 103])
def test_a_part_of_a_tensor_has_its_part_of_the_mask(first):
    x = torch.randn(211)
    torch.manual_seed(3)
    whole = dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(dropout(x[first:], 0.4, first=first), whole[first:])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_masks_of_some_rounds_are_those_of_single_calls(backend):
    layers = [((3, 5), 0.3), ((2,), 0.0), ((7,), 0.5)]
    with ops.backend(backend):
        torch.manual_seed(2)
        found = keep_masks(4, layers)
        torch.manual_seed(2)
        single = [[keep_mask(*layer) for layer in layers] for _ in range(4)]
    for n, (keep, scale) in enumerate(found):
        masks, scales = zip(*(row[n] for row in single), strict=True)
        assert scales == (scale,) * 4
        assert keep is None if masks[0] is None else torch.equal(keep, torch.stack(masks))


@pytest.mark.parametrize("first", [0, 6])
def test_blocks_of_columns_are_dropped_one_after_the_other(first):
    x = torch.randn(6, 3 * 5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    y = dropout_of_columns(x, 3, 0.4, first=first)
    torch.manual_seed(7)
    expected = torch.cat([dropout(part, 0.4, first=first) for part in x.split(5, 1)], 1)
    assert torch.equal(y, expected)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)]
    assert torch.equal(*grads)
    assert dropout_of_columns(x, 3, 0.0) is x


def test_seeded_and_switched_off():
    x = torch.randn(3, 3)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(dropout(x, 0.5, True))
    assert torch.equal(*results)
    assert dropout(x, 0.5, False) is x
    assert keep_mask(x.shape, 1e-7, x.device) == (None, 1.0)
    assert dropout(x, 0.0, True) is x
    assert dropout(torch.empty(0, 4), 0.5, True).shape == (0, 4)


@needs_cpu_kernel
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    n=st.integers(0, 300) | st.just(70_001),
    limit=st.integers(-(2**15), 2**15 - 1),
)
def test_mask_is_the_reference_bit_for_bit(seed, n, limit):
    start = torch.tensor([seed])
    expected = mask_from_seed(start, n, limit)
    assert torch.equal(torch.ops.mmssl.keep_mask(start, n, limit), expected)


def test_first_words_are_those_of_splitmix64():
    """The generator's published outputs for the seed 1234567."""
    words = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    draws = [(w >> (16 * j)) & 0xFFFF for w in words for j in range(4)]
    signed = torch.tensor([d - 0x10000 if d >= 0x8000 else d for d in draws])
    for limit in (-20000, 0, 15000):
        got = mask_from_seed(torch.tensor([1234567]), 12, limit)
        assert torch.equal(got.bool(), signed >= limit)
