"""Fixtures of the model tests."""

from __future__ import annotations

import pytest

from tests.models.recording import Setting, make_setting


@pytest.fixture(scope="module")
def setting(oracle) -> Setting:
    """The recording's world, rebuilt with the package."""
    return make_setting(oracle)
