"""A pytest plugin that replaces the CPU kernels by the CUDA kernels on the emulator.

``MMSSL_EMULATED=LIBRARY pytest -p tests.ops.emulated ...`` runs tests of the CPU against a library
that :func:`tests.ops.kernels.build_emulated_bindings` has built.
"""

from __future__ import annotations

import os

import torch

from mmssl import _extension, ops  # noqa: F401  (the kernels that are then replaced)


def load(library: str) -> None:
    """Replace the CPU kernels, and what a call of them depends on."""
    torch.ops.load_library(library)
    _extension.on_gpu = lambda x: True


def pytest_configure() -> None:
    load(os.environ["MMSSL_EMULATED"])
