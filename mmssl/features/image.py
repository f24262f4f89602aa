"""From the items' pictures to ``NAME_feat.npy``: decoded in processes, encoded in batches."""

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
from tqdm import tqdm

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError
from mmssl.features.output import Output, Written, write_features
from mmssl.features.pictures import PictureError, Preprocess, read_picture

MAX_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """Any module with what it wants to see."""

    module: nn.Module
    """(B, 3, S, S) float32 to (B, d), or to (B, d, H, W), which is averaged over H and W."""
    preprocess: Preprocess = Preprocess()
    """From a file to its input."""
    record: dict[str, Any] = field(default_factory=dict)
    """What it is, for the file beside the features."""


class Extracted(NamedTuple):
    """What :func:`extract_images` did."""

    written: Written
    broken: dict[int, str]
    """Items whose picture can't be read, and why; they are among the missing."""


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
    """Encodes one picture per item and writes the features.

    Args:
        paths: (I,) one per item, "" where there is none.
        encoder: makes the rows; put into evaluation mode.
        output: where they go and what is done to them.
        batch_size: pictures at once.
        workers: processes that decode, 0 for this one; None for one per core, eight at most.
        device: of the encoder.
        strict: raise for a picture that can't be read instead of taking it for missing.
        show_progress: draw a bar on a terminal.
        source: where the pictures come from, for the record.

    Raises:
        InputError: No picture can be read, an encoder that gives no rows of one width, or anything
            that :func:`write_features` says. Nothing is written.
    """
    require_pillow()
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    if workers is None:
        workers = min(os.cpu_count() or 1, MAX_WORKERS)
    if workers < 0:
        raise InputError(f"--workers must be at least 0, got {workers}")
    items = np.array([item for item, path in enumerate(paths) if path], dtype=np.int64)
    if not items.size:
        raise InputError(f"{output.features}: expected a picture of at least one item, got none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores: the user's to choose
        loader = DataLoader(
            _Pictures([paths[item] for item in items], encoder.preprocess),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        batches = iter(loader)
    broken: dict[int, str] = {}
    shown = None if show_progress else True  # None: only on a terminal

    def blocks() -> Iterator[tuple[IntArray, FloatArray]]:
        forward = _Forward(encoder, device)
        with tqdm(total=len(items), desc="pictures", unit="picture", disable=shown) as bar:
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
            raise InputError(f"{paths[item]}: {reason} (as all of {len(items)} pictures)")

    record = {**encoder.record, "preprocess": _plain(encoder.preprocess)}
    return Extracted(write_features(output, blocks(), len(paths), record, source), broken)


def require_pillow() -> None:
    """Raises InputError, with the extra to install, when Pillow is missing."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise InputError(
            'features of pictures need Pillow, which is not installed: pip install "mmssl[image]"'
        ) from None


_Pixels = npt.NDArray[np.uint8]
_Decoded = tuple[int, _Pixels | None, str]


class _Pictures(Dataset[_Decoded]):
    """Number -> (number, pixels (3, S, S) or None, why not)."""

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
    """Numbers (n,) and pixels (n, 3, S, S) of those that could be read, reasons of the others.

    Bytes, not floats, and arrays, not tensors: a quarter of the size, and through a pipe; tensors
    go through /dev/shm, of which a container has 64 MB.
    """
    good = [(number, pixels) for number, pixels, _ in batch if pixels is not None]
    pixels = np.stack([p for _, p in good]) if good else np.empty((0, 3, 0, 0), np.uint8)
    reasons = [(number, reason) for number, p, reason in batch if p is None]
    return np.array([number for number, _ in good], dtype=np.int64), pixels, reasons


def _leave_signals_to_the_parent(_worker: int) -> None:
    # Ctrl-C and `timeout` reach the whole process group; a worker that died before its parent had
    # cleaned up would be an error of its own. Without a parent a worker ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Forward:
    """Pixels to rows on a device."""

    def __init__(self, encoder: ImageEncoder, device: str) -> None:
        self._module = encoder.module.to(device).eval()
        self._device = device
        shape = (1, 3, 1, 1)
        # (value / 255 - mean) / std as one multiplication and one addition
        std = torch.tensor(encoder.preprocess.std)
        self._scale = (1 / (255 * std)).view(shape).to(device)
        self._shift = (-torch.tensor(encoder.preprocess.mean) / std).view(shape).to(device)

    def __call__(self, pixels: _Pixels) -> FloatArray:
        """(n, 3, S, S) to (n, d)."""
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
    """Fields as TOML has them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(preprocess).items()
    }
