"""Decoding of untrusted pictures with Pillow.

A picture that can't be read raises :class:`PictureError` with a short reason, and no other
exception.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError
from mmssl.features.content import Content

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# An explicit list, since some of Pillow's other decoders run external programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
INTERPOLATIONS = ("bilinear", "bicubic")


class PictureError(Exception):
    """Raised if a picture can't be used; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing of pictures for an encoder, as in the evaluation of torchvision and timm.

    The shorter side is resized to ``resize`` and the central ``size`` x ``size`` pixels are
    cropped; with ``squash`` the whole picture is resized to ``size`` x ``size`` instead. Values in
    0 .. 1 are normalized to ``(value - mean) / std``.

    Raises:
        InputError: A value is out of range.
    """

    size: int = 224
    """Width and height of the encoder's input in pixels."""
    resize: int = 256
    """Length of the shorter side before cropping, in pixels."""
    squash: bool = False
    """Whether to change the aspect ratio instead of cropping."""
    interpolation: str = "bicubic"
    """Antialiased interpolation, "bicubic" or "bilinear"."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue channels; default: ImageNet."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the red, green and blue channels; default: ImageNet."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise InputError(f"--size must be in 1 .. 4096, got {self.size}")
        if not self.squash and not self.size <= self.resize <= 8192:
            raise InputError(f"--resize must be in {self.size} .. 8192, got {self.resize}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation must be one of {INTERPOLATIONS}, got {self.interpolation!r}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                f"mean and std must be three values each, with std above 0, got {self.mean}, "
                f"{self.std}"
            )


def find_pictures(folder: Path, ids: Sequence[str]) -> Content:
    """Find pictures that are named by item id, such as ``42.jpg``.

    Args:
        folder: Folder of the pictures.
        ids: Id of each item.

    Returns:
        One path per item, "" for items without a picture. If an item has several files, the first
        name in alphabetical order is used.

    Raises:
        InputError: The folder can't be read, or contains no picture of an item.
    """
    position = {name: index for index, name in enumerate(ids)}
    paths = [""] * len(ids)
    unknown = repeated = 0
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: can't be read: {error.strerror or error}") from None
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES:
            continue
        item = position.get(stem)
        if item is None:
            unknown += 1
        elif paths[item]:
            repeated += 1
        else:
            paths[item] = os.path.join(folder, name)
    if not any(paths):
        raise InputError(
            f"{folder}: expected pictures named by item id, such as {ids[0]:.60}.jpg, got "
            f"{unknown} pictures with other names"
        )
    return Content(tuple(paths), f"{folder.name}/", unknown, repeated)


def read_picture(path: str, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Decode a picture, or the first frame of an animation, to (3, size, size) values 0 .. 255.

    Raises:
        PictureError: The file does not exist, is not a picture, is damaged, or exceeds Pillow's
            limit ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual metadata
            # Pillow raises above twice its limit of pixels and only warns above the limit itself.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
                return _pixels(_rgb(upright), preprocess)
    except FileNotFoundError:
        raise PictureError("no such file") from None
    except Image.UnidentifiedImageError:
        raise PictureError("not a picture in a supported format") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PictureError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise PictureError(f"damaged: {' '.join(str(error).split()):.80}") from None


def _rgb(image: Image) -> Image:
    """Convert to three 8-bit channels on a white background."""
    from PIL import Image as pillow

    if image.mode == "F":
        raise PictureError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # 16-bit gray, which convert("RGB") would clip at 255
        gray = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        return pillow.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = pillow.new("RGBA", layer.size, "white")
        return pillow.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _pixels(image: Image, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Resize only the cropped part: a 1 x 10,000 strip never becomes 256 x 2,560,000."""
    from PIL.Image import Resampling

    bicubic = preprocess.interpolation == "bicubic"
    filter_: Any = Resampling.BICUBIC if bicubic else Resampling.BILINEAR
    size = (preprocess.size, preprocess.size)
    box = None if preprocess.squash else _central_box(*image.size, preprocess)
    pixels = np.asarray(image.resize(size, filter_, box=box))  # (size, size, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _central_box(
    width: int, height: int, preprocess: Preprocess
) -> tuple[float, float, float, float]:
    """Return the box of the original picture that corresponds to the central crop.

    The filter reads pixels outside the box, so the result equals torchvision's
    ``CenterCrop(size)(Resize(resize)(image))`` except where interpolated values saturate.
    """
    size, short = preprocess.size, preprocess.resize
    ratio = max(width, height) / min(width, height)
    long = int(short * max(width, height) / min(width, height)) if ratio > 1 else short
    new_width, new_height = (short, long) if width <= height else (long, short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)
