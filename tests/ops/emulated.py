"""A pytest plugin that replaces the CPU kernels by the CUDA kernels on the emulator.

``MMSSL_EMULATED=LIBRARY pytest -p tests.ops.emulated ...`` runs tests of the CPU against a library
that :func:`tests.ops.kernels.build_emulated_bindings` has built.
"""

from __future__ import annotations

import os

import torch

import mmssl.ops  # noqa: F401  # the CPU kernels have to be there before they are replaced


def pytest_configure() -> None:
    torch.ops.load_library(os.environ["MMSSL_EMULATED"])
