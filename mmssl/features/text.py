"""Text features of the items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError
from mmssl.features.output import Output, Written, write_features


class TextEncoder(Protocol):
    """Interface of text encoders."""

    record: dict[str, Any]
    """Description for the record of the features: name, model, seed, versions, hash."""

    def has_content(self, text: str) -> bool:
        """Return whether a text can be encoded; items with other texts are missing."""

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield blocks of (n,) text indices and their (n, d) rows; each text occurs once."""


def extract_text(
    texts: Sequence[str], encoder: TextEncoder, output: Output, source: str = ""
) -> Written:
    """Encode one text per item and write the features.

    Args:
        texts: (I,) text of each item; "" for an item without a text.
        encoder: Encoder of the texts.
        output: Destination and postprocessing of the features.
        source: Description of where the texts come from, for the record.

    Raises:
        InputError: No item has a text, or :func:`write_features` fails. Nothing is written in these
            cases.
    """
    items = np.array([i for i, text in enumerate(texts) if encoder.has_content(text)], np.int64)
    if not items.size:
        raise InputError(f"{output.features}: expected at least one item with a text, got none")
    blocks = (
        (items[numbers], rows) for numbers, rows in encoder.encode([texts[item] for item in items])
    )
    return write_features(output, blocks, len(texts), encoder.record, source)
