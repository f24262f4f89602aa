"""A pytest plugin that replaces the CPU kernels by the CUDA kernels on the emulator.

``MMSSL_EMULATED=LIBRARY pytest -p tests.ops.emulated ...`` runs tests of the CPU against a library
that :func:`tests.ops.kernels.build_emulated_bindings` has built.
"""

from __future__ import annotations

import os

import torch

from mmssl.ops._registry import OPS  # loads the CPU kernels, which are then replaced


def pytest_configure() -> None:
    torch.ops.load_library(os.environ["MMSSL_EMULATED"])
    for op in OPS.values():
        everywhere = op.contract.samples
        object.__setattr__(
            op.contract,
            "samples",
            lambda dtype, all=everywhere: (s for s in all(dtype) if "cuda" in s.devices),
        )
