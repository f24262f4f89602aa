"""Image encoders by name: a model of timm, torchvision or open_clip, or a TorchScript file.

Weights come from a file or from the library's own source; nothing is ever unpickled. The last
linear layer of a classifier is left out: rows are what it would have read.
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
"""In place of a weights file: a random projection, by the seed; a baseline that needs no file."""


def load_encoder(
    kind: str,
    model: str | None = None,
    weights: str | None = None,
    *,
    seed: int = 0,
    **preprocess: Any,
) -> ImageEncoder:
    """An encoder by name.

    Args:
        kind: one of :data:`ENCODERS`.
        model: its name in that library; for TorchScript there is none.
        weights: a file, "random", or None for the library's own, which it may download.
        seed: of random weights.
        **preprocess: fields of :class:`Preprocess` other than the model's own.

    Raises:
        InputError: The library, the model or the weights are missing or don't fit.
    """
    if kind not in ENCODERS:
        raise InputError(f"--encoder must be one of {', '.join(ENCODERS)}, got {kind!r:.60}")
    if kind == "torchscript":
        if model is not None or weights in (None, RANDOM):
            raise InputError("--encoder torchscript: expected --weights FILE, and no --model")
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
        fields["resize"] = fields.get("size", Preprocess.size) * 8 // 7  # 224 of 256
    record = {"name": kind, **record, "weights_sha256": module_digest(module)}
    return ImageEncoder(module=module, preprocess=Preprocess(**fields), record=record)


_Loaded = tuple[nn.Module, dict[str, Any], dict[str, Any]]  # module, preprocess, record


def _torchscript(path: Path) -> _Loaded:
    """Read by torch's own loader in C++, which knows no Python objects."""
    import warnings

    try:
        with path.open("rb"):
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, but what replaces it unpickles
            module = torch.jit.load(str(path), map_location="cpu")
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except (RuntimeError, ValueError):
        raise InputError(
            f"{path}: expected a TorchScript module (torch.jit.save), got something else"
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
    """Of a CLIP model, whose forward wants a text as well."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, d)."""
        rows = self.visual(pixels)
        first: Tensor = rows[0] if isinstance(rows, tuple) else rows
        return first


def _open_clip(model: str, weights: str | None) -> _Loaded:
    open_clip = _library("open_clip", "open_clip_torch")
    name, _, tag = model.partition("/")  # ViT-B-32/laion2b_s34b_b79k
    if weights is None and not tag:
        raise InputError(f"--model {model}: expected NAME/TAG, one of open_clip's, or --weights")
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
"""Name on the command line -> how it is made."""


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--encoder {module} needs {package}, which can't be imported ({error}): "
            f"pip install {package}"
        ) from None


def _made(what: str, make: Callable[[], Any]) -> Any:
    """A model with the library's own weights; its errors are of many kinds, network included."""
    try:
        return make()
    except Exception as error:
        raise InputError(f"{what}: {' '.join(str(error).split()):.300}") from None


def _fill(module: nn.Module, weights: str | None, heads: Sequence[str] = ()) -> None:
    """Weights of a file; only those of the parts in ``heads``, which were left out, may be more."""
    if weights is None or weights == RANDOM:
        return
    path = Path(weights)
    try:
        missing, unexpected = module.load_state_dict(read_weights(path), strict=False)
    except RuntimeError as error:  # shapes
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: weights of another model: {reason:.200}") from None
    if missing:
        raise InputError(
            f"{path}: weights of another model: {len(missing)} are missing, such as {missing[0]}"
        )
    strange = [name for name in unexpected if name.split(".")[0] not in heads]
    if strange:
        raise InputError(f"{path}: weights of another model: {strange[0]} is not in it")


def _without_head(module: nn.Module, model: str) -> str:
    """The last linear layer becomes the identity; the name of the part that it is in."""
    heads = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise InputError(f"--model {model}: expected a classifier that ends in a linear layer")
    parent, _, name = heads[-1].rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())
    return heads[-1].split(".")[0]


def _interpolation(name: str) -> str:
    """Pillow's word for it; timm's "random" and the like are for training."""
    return name if name in INTERPOLATIONS else "bicubic"
