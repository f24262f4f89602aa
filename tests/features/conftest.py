"""Fixtures: a data set with ids and titles, pictures, and a file with a small encoder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.data import write_dataset
from tests.conftest import make_dataset

WORDS = (
    "red green blue dark light old new small great silent river road garden winter summer".split()
)


def titles(count: int) -> tuple[str, ...]:
    """Return distinct titles of two words and a number; the first two contain no word."""
    made = [f"{WORDS[i % 15]} {WORDS[i // 15 + 5]} {i}" for i in range(count)]
    return ("", " ", *made[2:])


@pytest.fixture
def shop(tmp_path) -> Path:
    """Write a data set of 50 items "i0" .. "i49" with titles and without features."""
    dataset = dataclasses.replace(
        make_dataset(),
        features={},
        item_ids=tuple(f"i{item}" for item in range(50)),
        item_titles=titles(50),
    )
    write_dataset(dataset, tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def untouched(shop) -> Callable[[], bool]:
    """Return a function that checks that no file of the data set was changed or added."""

    def contents() -> dict[str, bytes]:
        return {p.name: p.read_bytes() if p.is_file() else b"" for p in shop.iterdir()}

    before = contents()
    return lambda: contents() == before


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Write pictures of items i0 .. i39 in several formats; the first 20 reddish, others bluish."""
    pillow = pytest.importorskip("PIL.Image", reason="pictures need mmssl[image]")
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for item in range(40):
        pixels = rng.integers(0, 80, (30 + item, 50, 3), dtype=np.uint8)
        pixels[..., 0 if item < 20 else 2] += 150
        suffix = ("jpg", "png", "webp", "JPEG")[item % 4]
        pillow.fromarray(pixels).save(folder / f"i{item}.{suffix}")
    return folder


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory) -> Path:
    """Write a TorchScript convolution from (B, 3, S, S) to (B, 8, S / 4, S / 4)."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()).eval()
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module).save(str(path))
    return path
