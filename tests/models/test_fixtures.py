"""Both variants against float64 recordings of the reference (tests/fixtures)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl import ops
from tests.fixtures.make_fixtures import FOLDER, record


def worst(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], prefix: str):
    """Largest error over the arrays of a prefix, relative to each array's largest entry."""
    names = [n for n in expected if n.startswith(prefix)]
    assert names
    errors = {
        n: np.abs(got[n].astype(np.float64) - expected[n]).max()
        / max(np.abs(expected[n]).max(), 1e-5)  # some gradients are 0 but for rounding
        for n in names
        if expected[n].size
    }
    name = max(errors, key=errors.__getitem__)
    return errors[name], name


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_float64(variant, backend):
    expected = dict(np.load(FOLDER / f"{variant}.npz"))
    with ops.backend(backend):
        got = record(variant, torch.float64, expected)
    assert got.keys() == expected.keys()
    error, name = worst(got, expected, "")
    assert error < 1e-9, f"{name}: {error:.1e}"


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_float32(variant, backend):
    expected = dict(np.load(FOLDER / f"{variant}.npz"))
    start = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in expected.items()}
    with ops.backend(backend):
        got = record(variant, torch.float32, start)
    for prefix, bound in (("forward", 2e-6), ("step0/losses", 1e-4), ("step0/graph", 1e-6)):
        error, name = worst(got, expected, prefix)
        assert error < bound, f"{name}: {error:.1e}"


def test_variants_differ():
    """The recordings pin two models, not one twice."""
    paper, released = (dict(np.load(FOLDER / f"{v}.npz")) for v in ("paper", "released"))
    assert np.abs(paper["forward/user"] - released["forward/user"]).max() > 0.1
