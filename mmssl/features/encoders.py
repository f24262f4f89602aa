"""Image encoders by name: a model of timm, torchvision or open_clip, or a TorchScript file.

Weights come from a file or are downloaded by the library; nothing is ever unpickled. The final
linear layer of a classifier is removed, so features are the input of that layer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import InputError
from mmssl.features.image import ImageEncoder
from mmssl.features.pictures import INTERPOLATIONS, Preprocess
from mmssl.features.weights import module_digest, read_weights

RANDOM = "random"
"""Value of ``weights`` that selects random weights, a baseline that needs no file."""


def load_encoder(
    kind: str,
    model: str | None = None,
    weights: str | None = None,
    *,
    seed: int = 0,
    **preprocess: Any,
) -> ImageEncoder:
    """Load an image encoder by name.

    Args:
        kind: Source of the encoder, one of :data:`ENCODERS`.
        model: Name of the model in that library; None for TorchScript.
        weights: Path of a weights file, "random", or None for the library's pretrained weights,
            which it may download.
        seed: Random seed of random weights.
        **preprocess: Fields of :class:`Preprocess` that override the model's own.

    Raises:
        InputError: The library, the model or the weights are missing or do not match.
    """
    if kind not in ENCODERS:
        raise InputError(f"--encoder must be one of {', '.join(ENCODERS)}, got {kind!r:.60}")
    if kind == "torchscript":
        if model is not None or weights in (None, RANDOM):
            raise InputError("--encoder torchscript: expected --weights FILE without --model")
        module, fields, record = _torchscript(Path(str(weights)))
    else:
        if model is None:
            raise InputError(f"--encoder {kind}: expected --model NAME")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, fields, record = ENCODERS[kind](model, weights)
        record |= {"model": model, "weights": Path(weights).name if weights else "pretrained"}
        if weights == RANDOM:
            record["seed"] = seed
    fields |= {name: value for name, value in preprocess.items() if value is not None}
    if "resize" not in fields:
        fields["resize"] = fields.get("size", Preprocess.size) * 8 // 7  # 256 for size 224
    record = {"name": kind, **record, "weights_sha256": module_digest(module)}
    return ImageEncoder(module=module, preprocess=Preprocess(**fields), record=record)


_Loaded = tuple[nn.Module, dict[str, Any], dict[str, Any]]  # module, preprocess, record


def _torchscript(path: Path) -> _Loaded:
    """Load a TorchScript file with torch's C++ loader, which does not create Python objects."""
    import warnings

    try:
        with path.open("rb"):
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, but torch.export.load unpickles
            module = torch.jit.load(str(path), map_location="cpu")
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except (RuntimeError, ValueError):
        raise InputError(
            f"{path}: expected a TorchScript module, as torch.jit.save writes it"
        ) from None
    return module, {}, {"weights": path.name, "torch": torch.__version__}


def _timm(model: str, weights: str | None) -> _Loaded:
    timm = _library("timm", "timm")
    module = _made(
        f"--model {model}",
        lambda: timm.create_model(model, pretrained=weights is None, num_classes=0),
    )
    classifier = module.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    _fill(module, weights, [head.split(".")[0] for head in heads])
    config = timm.data.resolve_model_data_config(module)
    size = int(config["input_size"][-1])
    fields: dict[str, Any] = {
        "size": size,
        "resize": int(size / config["crop_pct"]),
        "squash": config["crop_mode"] == "squash",
        "interpolation": _interpolation(config["interpolation"]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
    return module, fields, {"timm": timm.__version__}


def _torchvision(model: str, weights: str | None) -> _Loaded:
    torchvision = _library("torchvision", "torchvision")
    models = torchvision.models
    chosen = "DEFAULT" if weights is None else None
    module = _made(f"--model {model}", lambda: models.get_model(model, weights=chosen))
    head = _without_head(module, model)
    _fill(module, weights, (head, "aux", "aux1", "aux2", "AuxLogits"))
    transform = models.get_model_weights(model).DEFAULT.transforms()
    fields: dict[str, Any] = {
        "size": int(transform.crop_size[0]),
        "resize": int(transform.resize_size[0]),
        "interpolation": _interpolation(transform.interpolation.value),
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
    }
    return module, fields, {"torchvision": torchvision.__version__}


class _ImageTower(nn.Module):
    """Image tower of a CLIP model, whose own forward also requires a text."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) pixels to (B, d) features."""
        rows = self.visual(pixels)
        first: Tensor = rows[0] if isinstance(rows, tuple) else rows
        return first


def _open_clip(model: str, weights: str | None) -> _Loaded:
    open_clip = _library("open_clip", "open_clip_torch")
    name, _, tag = model.partition("/")  # ViT-B-32/laion2b_s34b_b79k
    if weights is None and not tag:
        raise InputError(f"--model {model}: expected NAME/TAG of open_clip, or --weights")
    module = _made(
        f"--model {model}",
        lambda: open_clip.create_model(name, pretrained=tag if weights is None else None),
    )
    _fill(module, weights)
    visual = module.visual
    config = getattr(visual, "preprocess_cfg", {})
    size = config.get("size", visual.image_size)
    size = int(size if isinstance(size, int) else size[0])
    fields: dict[str, Any] = {
        "size": size,
        "resize": size,
        "squash": config.get("resize_mode", "shortest") == "squash",
        "interpolation": _interpolation(config.get("interpolation", "bicubic")),
        "mean": tuple(config.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        "std": tuple(config.get("std", open_clip.OPENAI_DATASET_STD)),
    }
    return _ImageTower(visual), fields, {"open_clip": open_clip.__version__}


ENCODERS: dict[str, Callable[[str, str | None], _Loaded]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
    "torchscript": lambda _model, weights: _torchscript(Path(str(weights))),
}
"""Name on the command line -> loader."""


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--encoder {module}: expected {package} to be installed (pip install {package}), got "
            f"{error}"
        ) from None


def _made(what: str, make: Callable[[], Any]) -> Any:
    """Create a model; libraries raise many exception types, including network errors."""
    try:
        return make()
    except Exception as error:
        raise InputError(f"{what}: {' '.join(str(error).split()):.300}") from None


def _fill(module: nn.Module, weights: str | None, heads: Sequence[str] = ()) -> None:
    """Load weights from a file, which may also contain the removed parts named in ``heads``."""
    if weights is None or weights == RANDOM:
        return
    path = Path(weights)
    try:
        missing, unexpected = module.load_state_dict(read_weights(path), strict=False)
    except RuntimeError as error:  # shapes
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected weights of this model: {reason:.200}") from None
    if missing:
        raise InputError(
            f"{path}: expected weights of this model: {len(missing)} tensors are missing, such as "
            f"{missing[0]}"
        )
    unknown = [name for name in unexpected if name.split(".")[0] not in heads]
    if unknown:
        raise InputError(
            f"{path}: expected weights of this model: {unknown[0]} is not part of the model"
        )


def _without_head(module: nn.Module, model: str) -> str:
    """Replace the last linear layer with the identity; return its top-level module name."""
    heads = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise InputError(f"--model {model}: expected a classifier with a final linear layer")
    parent, _, name = heads[-1].rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())
    return heads[-1].split(".")[0]


def _interpolation(name: str) -> str:
    """Return a supported interpolation; names such as timm's "random" only apply to training."""
    return name if name in INTERPOLATIONS else "bicubic"
