"""Image features of the items: decoding in worker processes, encoding in batches."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError
from mmssl.extras import require
from mmssl.features.output import Output, Written, write_features
from mmssl.features.pictures import PictureError, Preprocess, read_picture

MAX_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """A module with the preprocessing of its input."""

    module: nn.Module
    """Maps (B, 3, S, S) float32 to (B, d), or to (B, d, H, W), which is averaged over H and W."""
    preprocess: Preprocess = Preprocess()
    """Resizing and normalization of the pictures."""
    record: dict[str, Any] = field(default_factory=dict)
    """Description of the encoder, written to the record of the features."""


class Extracted(NamedTuple):
    """Result of :func:`extract_images`."""

    written: Written
    """The files that were written."""
    broken: dict[int, str]
    """Item -> reason, for each picture that can't be read; these items count as missing."""


def extract_images(
    paths: Sequence[str],
    encoder: ImageEncoder,
    output: Output,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "cpu",
    strict: bool = False,
    show_progress: bool = True,
    source: str = "",
) -> Extracted:
    """Encode one picture per item and write the features.

    Args:
        paths: (I,) path of the picture of each item; "" for an item without a picture.
        encoder: Encoder of the pictures; it is switched to evaluation mode.
        output: Destination and postprocessing of the features.
        batch_size: Number of pictures per forward pass.
        workers: Number of decoding processes, 0 to decode in this process; None selects one per
            core, at most :data:`MAX_WORKERS`.
        device: Device of the encoder.
        strict: Raise for a picture that can't be read instead of treating it as missing.
        show_progress: Show a progress bar on a terminal.
        source: Description of where the pictures come from, for the record.

    Raises:
        InputError: No picture can be read, the encoder's output has the wrong shape, or
            :func:`write_features` fails. Nothing is written in these cases.
    """
    from tqdm import tqdm

    require_pillow()
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    if workers is None:
        workers = min(os.cpu_count() or 1, MAX_WORKERS)
    if workers < 0:
        raise InputError(f"--workers must be at least 0, got {workers}")
    items = np.array([item for item, path in enumerate(paths) if path], dtype=np.int64)
    if not items.size:
        raise InputError(f"{output.features}: expected at least one item with a picture, got none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns if there are more workers than cores
        loader = DataLoader(
            _Pictures([paths[item] for item in items], encoder.preprocess),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        batches = iter(loader)
    broken: dict[int, str] = {}
    hidden = None if show_progress else True  # None shows the bar on a terminal only

    def blocks() -> Iterator[tuple[IntArray, FloatArray]]:
        forward = _Forward(encoder, device)
        with tqdm(total=len(items), desc="pictures", unit="picture", disable=hidden) as bar:
            for numbers, pixels, reasons in batches:
                for number, reason in reasons:
                    item = int(items[number])
                    if strict:
                        raise InputError(f"{paths[item]}: {reason}")
                    broken[item] = reason
                if len(numbers):
                    yield items[numbers], forward(pixels)
                bar.update(len(numbers) + len(reasons))
        if len(broken) == len(items):
            item, reason = next(iter(broken.items()))
            raise InputError(
                f"{paths[item]}: {reason} (none of the {len(items)} pictures can be read)"
            )

    record = {**encoder.record, "preprocess": _plain(encoder.preprocess)}
    return Extracted(write_features(output, blocks(), len(paths), record, source), broken)


def require_pillow() -> None:
    """Raise InputError, naming the extra to install, if Pillow is missing."""
    require("PIL", "image", "features of pictures need Pillow")


_Pixels = npt.NDArray[np.uint8]
_Decoded = tuple[int, _Pixels | None, str]


class _Pictures(Dataset[_Decoded]):
    """Decoded pictures: (index, (3, S, S) pixels or None, reason if None)."""

    def __init__(self, paths: list[str], preprocess: Preprocess) -> None:
        self._paths = paths
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> _Decoded:
        try:
            return number, read_picture(self._paths[number], self._preprocess), ""
        except PictureError as error:
            return number, None, str(error)


def _collate(batch: list[_Decoded]) -> tuple[IntArray, _Pixels, list[tuple[int, str]]]:
    """Collect indices (n,) and pixels (n, 3, S, S) of readable pictures, and the other reasons.

    The result is bytes, a quarter of the size of float32, and NumPy arrays, which are sent through
    a pipe; tensors would use /dev/shm, which is limited to 64 MB in many containers.
    """
    good = [(number, pixels) for number, pixels, _ in batch if pixels is not None]
    pixels = np.stack([p for _, p in good]) if good else np.empty((0, 3, 0, 0), np.uint8)
    reasons = [(number, reason) for number, p, reason in batch if p is None]
    return np.array([number for number, _ in good], dtype=np.int64), pixels, reasons


def _leave_signals_to_the_parent(_worker: int) -> None:
    # Ctrl-C and `timeout` signal the whole process group. A worker that died before the parent has
    # cleaned up would raise a second error; workers exit on their own when the parent is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Forward:
    """Forward pass of an encoder on a device."""

    def __init__(self, encoder: ImageEncoder, device: str) -> None:
        self._module = encoder.module.to(device).eval()
        self._device = device
        shape = (1, 3, 1, 1)
        # (value / 255 - mean) / std, rewritten as one multiplication and one addition.
        std = torch.tensor(encoder.preprocess.std)
        self._scale = (1 / (255 * std)).view(shape).to(device)
        self._shift = (-torch.tensor(encoder.preprocess.mean) / std).view(shape).to(device)

    def __call__(self, pixels: _Pixels) -> FloatArray:
        """Map (n, 3, S, S) pixels to (n, d) features."""
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self._device)
            rows = self._module(batch * self._scale + self._shift)
        if not isinstance(rows, Tensor) or rows.dim() not in (2, 4) or len(rows) != len(pixels):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise InputError(
                f"encoder: expected output ({len(pixels)}, d) or ({len(pixels)}, d, H, W), "
                f"got {got}"
            )
        if rows.dim() == 4:
            rows = rows.mean((2, 3))
        return rows.float().cpu().numpy()


def _plain(preprocess: Preprocess) -> dict[str, Any]:
    """Return the fields as TOML values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(preprocess).items()
    }
