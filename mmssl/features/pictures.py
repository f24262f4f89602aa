"""Pictures of strangers to tensors, by Pillow: every kind of file that items come with.

What can't be read raises :class:`PictureError` with a reason of a few words, never anything else.
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
# Named, since Pillow would try them all, and some of them start other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
INTERPOLATIONS = ("bilinear", "bicubic")


class PictureError(Exception):
    """Why a picture can't be used."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a picture to what an encoder takes, as torchvision and timm do it for evaluation.

    The shorter side becomes ``resize`` and the central ``size`` x ``size`` is cut out; with
    ``squash`` the whole picture becomes ``size`` x ``size`` instead. Values go from 0 .. 1 to
    ``(value - mean) / std``.

    Raises:
        InputError: A value out of range.
    """

    size: int = 224
    """Width and height of the encoder's input."""
    resize: int = 256
    """Of the shorter side before the cut."""
    squash: bool = False
    """Change the proportions instead of cutting."""
    interpolation: str = "bicubic"
    """Or "bilinear"; with antialiasing, both."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """The same."""

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
            raise InputError(f"mean and std must have three values, got {self.mean}, {self.std}")


def find_pictures(folder: Path, ids: Sequence[str]) -> Content:
    """Files named by item id, as ``42.jpg``.

    Returns:
        A path per item, "" where there is none. Of several files of one item the first by name
        counts.

    Raises:
        InputError: No such folder, or no file in it is an item's.
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
            f"{unknown} other pictures"
        )
    return Content(tuple(paths), f"{folder.name}/", unknown, repeated)


def read_picture(path: str, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """(3, size, size) values 0 .. 255 of a file; the first frame of a moving picture.

    Raises:
        PictureError: No such file, not a picture, a damaged one, or one with more pixels than
            Pillow takes for harmless (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            # Between once and twice the limit Pillow only warns.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
                return _pixels(_rgb(upright), preprocess)
    except FileNotFoundError:
        raise PictureError("no such file") from None
    except Image.UnidentifiedImageError:
        raise PictureError("not a picture of a known kind") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PictureError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except PictureError:
        raise
    except Exception as error:  # each of Pillow's decoders has its own for damaged files
        raise PictureError(f"damaged: {' '.join(str(error).split()):.80}") from None


def _rgb(image: Image) -> Image:
    """Three channels of 8 bits; what is transparent becomes white."""
    from PIL import Image as pillow

    if image.mode == "F":
        raise PictureError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # 16 bits of grey; convert("RGB") would clip them at 255
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        return pillow.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = pillow.new("RGBA", layer.size, "white")
        return pillow.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _pixels(image: Image, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Resizes and cuts in one go: a strip of 1 x 10,000 never becomes 256 x 2,560,000."""
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
    """The part of the picture that the central cut of its resized self would show.

    The filter still reads beyond the box, so the result is that of torchvision's
    ``CenterCrop(size)(Resize(resize)(image))``, but for saturated values that overshoot.
    """
    size, short = preprocess.size, preprocess.resize
    ratio = max(width, height) / min(width, height)
    long = int(short * max(width, height) / min(width, height)) if ratio > 1 else short
    new_width, new_height = (short, long) if width <= height else (long, short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)
