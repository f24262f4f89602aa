"""What is specific to the denominator in parts: it is the one of the whole, in every way."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmssl import ops


def problem(anchors: int = 40, rows: int = 300, d: int = 16):
    generator = torch.Generator().manual_seed(1)
    shapes = ((anchors, d), (rows, d))
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


def exact_gradients(x, y, temperature):
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    scores = F.normalize(wide[0], dim=-1) @ F.normalize(wide[1], dim=-1).T / temperature
    out = scores.logsumexp(-1)
    out.sum().backward()
    return out.detach(), wide[0].grad, wide[1].grad


def assert_exact(got, exact, size=1.0):
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5 * size)


def test_blocks_in_any_order():
    x, y = problem()
    for temperature in (0.01, 0.1, 1.0):
        out, x_grad, y_grad = exact_gradients(x, y, temperature)
        total = None
        for block in reversed(y.split(97)):
            total = ops.cosine_logsumexp(x, block, temperature, partial=total)
        assert_exact(total, out)
        x.grad = y.grad = None
        total.sum().backward()
        assert_exact(x.grad, x_grad, 1 / temperature)
        assert_exact(y.grad, y_grad, 1 / temperature)


def test_sums_over_processes_need_no_maximum():
    x, y = problem()
    bound = 1 / 0.05
    sums = sum((ops.cosine_logsumexp(x, b, 0.05).double() - bound).exp() for b in y.split(97))
    assert_exact(sums.log() + bound, exact_gradients(x, y, 0.05)[0])


def test_a_second_pass_has_the_gradient_of_the_whole():
    """The recipe for gradient accumulation: one block's graph in memory at a time."""
    x, y = problem()
    _, x_grad, y_grad = exact_gradients(x, y, 0.2)
    with torch.no_grad():
        total = None
        for block in y.split(97):
            total = ops.cosine_logsumexp(x, block, 0.2, partial=total)
    for block in y.split(97):
        (ops.cosine_logsumexp(x, block, 0.2) - total).exp().sum().backward()
    assert_exact(x.grad, x_grad, 5)
    assert_exact(y.grad, y_grad, 5)
