"""Dropout: the rate, the expectation, the gradient, the generator."""

from __future__ import annotations

import pytest
import torch

from mmssl.ops.dropout import dropout, keep_mask


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.31, 0.5, 0.95])
def test_rate_and_scale(rate):
    torch.manual_seed(0)
    count = 200_003
    y = dropout(torch.ones(count), rate, True)
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert abs(float((y == 0).float().mean()) - rate) < 6 * deviation
    kept = y[y != 0]
    assert torch.all(kept == kept[0]) and float(kept[0]) == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_elements_are_independent_of_their_neighbours():
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
