"""Tensors that outlive the call that made them: free of inference mode, tracers and transforms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Leave inference mode, so that the tensors made here can later take part in training."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    # Leaving inference mode turns gradients on, which its user wants off.
    with torch.inference_mode(False), torch.no_grad():
        yield


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor may be kept: not of inference mode, a tracer or a transform."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.is_inference():
        return False
    try:
        tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # a wrapper of torch.func
        return False
    return True
