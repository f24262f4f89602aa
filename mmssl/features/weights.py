"""Safe loading and hashing of encoder weights."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmssl.errors import InputError

_WRAPPERS = ("state_dict", "model", "module")  # keys under which training scripts nest the weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from ``.safetensors`` or from a ``torch.save`` file of tensors only.

    Raises:
        InputError: The file can't be read, has another format or contains other Python objects,
            which are never unpickled.
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
            f"{path}: expected weights (.safetensors, or torch.save of tensors only), got another "
            "kind of file; Python objects are never unpickled"
        ) from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected named tensors, got {type(content).__name__}")
    tensors = {
        str(name).removeprefix("module."): value  # prefix of DistributedDataParallel
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise InputError(f"{path}: expected named tensors, got none")
    return tensors


def module_digest(module: nn.Module) -> str:
    """Return the SHA-256 (hex) of names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
