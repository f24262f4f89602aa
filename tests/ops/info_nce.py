"""Problems and error bounds that the tests of info_nce share."""

from __future__ import annotations

import torch

from mmssl import ops
from mmssl.ops.info_nce import info_nce_reference


def problem(n, d, batch=(), negatives=None, dtype=torch.float32, seed=0):
    """Return (anchor, positive, negatives) whose positives are similar to their anchors."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(*batch, n, d, generator=generator)
    positive = anchor + torch.randn(*batch, n, d, generator=generator)
    extra = None if negatives is None else torch.randn(negatives, d, generator=generator).to(dtype)
    return anchor.to(dtype), positive.to(dtype), extra


def run(function, anchor, positive, negatives, temperature, dtype, device="cpu", **options):
    """Return the loss and the gradients of all inputs under uneven weights, on the CPU."""
    leaves = [anchor, positive] + ([] if negatives is None else [negatives])
    leaves = [x.to(device, dtype, copy=True).requires_grad_() for x in leaves]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    t = torch.tensor(temperature, dtype=acc, device=device, requires_grad=True)
    extra = leaves[2] if negatives is not None else None
    loss = function(leaves[0], leaves[1], t, negatives=extra, **options)
    weight = torch.linspace(0.5, 1.5, loss.numel(), dtype=acc, device=device).view_as(loss)
    results = [loss.detach(), *torch.autograd.grad((loss * weight).sum(), [*leaves, t])]
    return [x.cpu() for x in results]


def native(*args, **options):
    with ops.backend("native"):
        return ops.info_nce(*args, **options)


def assert_as_good_as_reference(
    anchor, positive, negatives, temperature, dtype=torch.float32, device="cpu", **options
):
    """Check that no error exceeds twice that of the reference, up to a few roundings."""
    args = (anchor, positive, negatives, temperature)
    truth = run(info_nce_reference, *args, torch.float64, **options)
    reference = run(info_nce_reference, *args, dtype, **options)
    mine = run(native, *args, dtype, device, **options)
    n = anchor.shape[-2]
    rows = 1 if options.get("reduction", "mean") == "mean" else n
    total = n if options.get("reduction", "mean") == "sum" else 1
    # A gradient is a sum of (p - 1) z / (t |x|), and each p is rounded even if the sum cancels.
    norm = min(x.double().norm(dim=-1).clamp_min(1e-12).min() for x in (anchor, positive))
    slope = rows / n / temperature
    scale = [total * (1.0 + 1 / temperature)] + [slope / norm] * 2 + [rows / temperature**2]
    if negatives is not None and not negatives.numel():
        scale.insert(3, 0.0)  # no negatives, no gradient
    elif negatives is not None:
        norm = negatives.double().norm(dim=-1).clamp_min(1e-12).min()
        scale.insert(3, n * slope / norm)
    unit = {torch.float32: 1e-6, torch.float64: 4e-14, torch.bfloat16: 1e-6}[dtype]
    names = ["loss", "anchor", "positive", "negatives", "temperature"]
    if negatives is None:
        names.remove("negatives")
    for name, t, r, m, s in zip(names, truth, reference, mine, scale, strict=True):
        assert m.dtype == r.dtype and m.shape == r.shape, name
        assert m.isfinite().all(), name
        if not m.numel():
            continue  # the gradient of no negatives
        bound = 2 * (r - t).abs().amax() + unit * s
        if dtype == torch.bfloat16 and name != "loss":
            # the weights p are rounded to 8 bits as well
            bound += 2**-8 * t.abs().amax() + 2e-4 * s
        worst = (m - t).abs().amax()
        assert worst <= bound, f"{name}: error {worst:.2e}, allowed {bound:.2e}"
