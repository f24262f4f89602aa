"""Fixtures that several rooms of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def oracle():
    """Arrays recorded from the released code; sizes are always read from them."""
    folder = Path(os.environ.get("MMSSL_ORACLE", ROOT.parent / "shared" / "oracle"))
    if not folder.is_dir():
        pytest.skip(f"no recorded oracle: folder {folder} does not exist (set MMSSL_ORACLE)")
    return np.load(folder / "oracle.npz", allow_pickle=False)
