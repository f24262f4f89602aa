"""Thumbnails of items as data URLs."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

from mmssl.errors import InputError
from mmssl.extras import require

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_SIZE = (72, 96)  # twice the size on the page: sharp on dense screens
_MAX_BYTES = 1_200_000  # of all pictures on a page


class Pictures:
    """Thumbnails from a folder of files named by item id (``ID.jpg``, ``.png``, ``.webp``).

    Args:
        folder: The folder.

    Raises:
        InputError: The folder can't be read or holds no pictures, or Pillow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require("PIL.Image", "report", "--images needs Pillow")
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise InputError(f"{folder}: can't be read: {error.strerror}") from error
        self._files = {
            stem: folder / name
            for name in names
            for stem, suffix in [os.path.splitext(name)]
            if suffix.lower() in _SUFFIXES
        }
        if not self._files:
            raise InputError(f"{folder}: expected files ID{'|'.join(_SUFFIXES)}, got none")
        self._made: dict[str, str | None] = {}
        self._bytes = 0
        self.broken: list[Path] = []
        """Files that can't be read as pictures."""

    def url(self, item: str) -> str | None:
        """Return the data URL of an item; None without a picture, or beyond the size limit."""
        if item not in self._made:
            self._made[item] = self._make(self._files.get(item))
        return self._made[item]

    def _make(self, file: Path | None) -> str | None:
        from PIL import Image, ImageOps

        if file is None or self._bytes > _MAX_BYTES:
            return None
        buffer = io.BytesIO()
        try:
            with Image.open(file) as picture:
                small = ImageOps.fit(picture.convert("RGB"), _SIZE)
            small.save(buffer, "WEBP", quality=70)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            self.broken.append(file)
            return None
        self._bytes += buffer.tell()
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
