r"""Decodes text in blocks of whole lines, so that a file may be larger than memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from mmssl.data.importing.sources import Stream
from mmssl.errors import InputError

BLOCK = 1 << 24
"""Bytes that are read at a time."""
MAX_ROW = 1 << 28
"""Bytes of a row, which is held as a whole."""


def whole_lines(stream: Stream, encoding: str) -> Iterator[bytes]:
    r"""Yield the text of a source in blocks of whole lines.

    Args:
        stream: The source.
        encoding: Its encoding.

    Yields:
        Valid UTF-8 without a byte order mark, in lines that all end in ``\n``.

    Raises:
        InputError: The encoding is unknown or another one, or the text has a zero byte or a line
            of more than ``MAX_ROW`` bytes.
    """
    name = _known(encoding)
    decoder = None if name == "utf-8" else codecs.getincrementaldecoder(name)()
    rest, line, first, more = b"", 1, True, True  # an incomplete line, and its number
    while more:
        data = stream.read(BLOCK)
        more = len(data) == BLOCK
        try:
            data = rest + (data if decoder is None else decoder.decode(data, not more).encode())
        except UnicodeError as error:
            raise InputError(f"{stream.path}: {_where(error, line, name)}") from None
        if first:
            data = _without_mark(stream.path, data, name)
            first = False
        late = b"\r" if more and data.endswith(b"\r") else b""  # half of a line end, maybe
        if b"\r" in data:
            data = data[: len(data) - len(late)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not more and data and not data.endswith(b"\n"):
            data += b"\n"
        end = data.rfind(b"\n") + 1
        block, rest = data[:end], data[end:] + late
        _check(stream.path, block, line, name)
        if block:
            yield block
        line += block.count(b"\n")
        if len(rest) > MAX_ROW:
            raise InputError(
                f"{stream.path}: line {line}: expected at most {MAX_ROW} bytes, got more"
            )


def _known(encoding: str) -> str:
    try:
        "".encode(encoding)  # only the encodings of text do this
        codecs.getincrementaldecoder(encoding)
        return codecs.lookup(encoding).name
    except LookupError:
        raise InputError(f"encoding must be one Python knows, got {encoding!r}") from None


def _without_mark(path: Path, data: bytes, encoding: str) -> bytes:
    if encoding == "utf-8" and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: expected UTF-8, got UTF-16: --encoding utf-16")
    return data.removeprefix(codecs.BOM_UTF8)


def _check(path: Path, block: bytes, line: int, encoding: str) -> None:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {_where(error, line, encoding)}") from None
    zero = block.find(b"\0")
    if zero >= 0:
        line += block.count(b"\n", 0, zero)
        raise InputError(f"{path}: line {line}: expected text, got a zero byte")


def _where(error: UnicodeError, line: int, encoding: str) -> str:
    """Describe an error in a text that begins with a line of this number."""
    if not isinstance(error, UnicodeDecodeError):
        return f"expected {encoding}, got something else: {error}"
    line += error.object.count(b"\n", 0, error.start)
    return (
        f"line {line}: expected {encoding}, got byte 0x{error.object[error.start]:02x}: name the "
        "encoding of the file, e.g. --encoding latin-1"
    )
