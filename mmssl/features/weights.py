"""Weights of encoders: read without unpickling, named by their hash."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmssl.errors import InputError

_WRAPPERS = ("state_dict", "model", "module")  # keys under which training scripts keep the weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name: ``.safetensors``, or a file of ``torch.save`` that holds tensors only.

    Raises:
        InputError: Neither of the two. Nothing else is ever unpickled.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(f"{path}: expected a safetensors file: {error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        raise InputError(
            f"{path}: expected weights (.safetensors, or torch.save of tensors), got something "
            "else; refused (never unpickled)"
        ) from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected tensors by name, got {type(content).__name__}")
    tensors = {
        str(name).removeprefix("module."): value  # DistributedDataParallel's
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise InputError(f"{path}: expected tensors by name, got none")
    return tensors


def module_digest(module: nn.Module) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
