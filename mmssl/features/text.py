"""From the items' texts to ``NAME_feat.npy``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError
from mmssl.features.output import Output, Written, write_features


class TextEncoder(Protocol):
    """Anything that makes rows of texts."""

    record: dict[str, Any]
    """What it is, for the file beside the features: name, model, seed, versions, hash."""

    def has_content(self, text: str) -> bool:
        """False for texts that have no row; they are missing."""

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray]]:
        """Blocks of (n,) numbers of texts and (n, d) their rows; each text once."""


def extract_text(
    texts: Sequence[str], encoder: TextEncoder, output: Output, source: str = ""
) -> Written:
    """Encodes one text per item and writes the features.

    Args:
        texts: (I,) one per item, "" where there is none.
        encoder: makes the rows.
        output: where they go and what is done to them.
        source: where the texts come from, for the record.

    Raises:
        InputError: No item has a text, or anything that :func:`write_features` says. Nothing is
            written.
    """
    items = np.array([i for i, text in enumerate(texts) if encoder.has_content(text)], np.int64)
    if not items.size:
        raise InputError(f"{output.features}: expected a text for at least one item, got none")
    blocks = (
        (items[numbers], rows) for numbers, rows in encoder.encode([texts[item] for item in items])
    )
    return write_features(output, blocks, len(texts), encoder.record, source)
