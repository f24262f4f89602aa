"""Malformed archives for the reader of the downloaded wheel; it takes bytes and writes nothing."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable

from mmssl.data.catalog import MAX_MEMBER_BYTES, MEMBERS, WHEEL_FILE

INTER, ITEM = MEMBERS


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive with these members."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as file:
        warnings.simplefilter("ignore")  # about duplicate names
        for name, content in members:
            file.writestr(name, content)
    return stream.getvalue()


GOOD = archive((INTER, b"inter"), (ITEM, b"item"))


def _changed(offset_of: bytes, place: int, value: bytes) -> bytes:
    """GOOD with bytes replaced behind every occurrence of a signature."""
    content = bytearray(GOOD)
    at = content.find(offset_of)
    while at >= 0:
        content[at + place : at + place + len(value)] = value
        at = content.find(offset_of, at + 1)
    return bytes(content)


_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"

REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a zip archive",
    "a pickle": lambda: b"\x80\x04K\x01.",
    "truncated": lambda: GOOD[:-30],
    "cut in front": lambda: GOOD[40:],
    "only the end record": lambda: GOOD[GOOD.find(_END) :],
    "members missing": lambda: archive(("other", b"x")),
    "one member missing": lambda: archive((INTER, b"x")),
    "a bomb": lambda: archive((INTER, b"\0" * (MAX_MEMBER_BYTES + 1)), (ITEM, b"")),
    "a bomb with a wrong size": lambda: _lying_bomb(),
    "encrypted": lambda: _changed(_CENTRAL, 8, b"\x01\x00"),
    "an unknown compression": lambda: _changed(_CENTRAL, 10, b"\x63\x00"),
    "a wrong checksum": lambda: _changed(_CENTRAL, 16, b"\xde\xad\xbe\xef"),
    "an offset outside": lambda: _changed(_CENTRAL, 42, b"\xff\xff\xff\x7f"),
    "a directory outside": lambda: _changed(_END, 16, b"\xff\xff\xff\x7f"),
    "damaged data": lambda: _changed(_LOCAL, 30 + len(INTER), b"\xff\xff\xff"),
    "no UTF-8 inside": lambda: archive((INTER, b"\xff\xfe"), (ITEM, b"")),
    "another version": lambda: _changed(_CENTRAL, 6, b"\xff\x00"),
}


def _lying_bomb() -> bytes:
    content = bytearray(archive((INTER, b"\0" * (MAX_MEMBER_BYTES * 4)), (ITEM, b"")))
    for signature, place in ((_LOCAL, 22), (_CENTRAL, 24)):
        at = content.find(signature)
        content[at + place : at + place + 4] = struct.pack("<I", 5)
    return bytes(content)


# Other members are ignored; nothing is extracted to disk.
RIGHT: dict[str, Callable[[], bytes]] = {
    "path traversal in another member": lambda: archive(
        ("../../executed", b"x"), ("/tmp/mmssl-executed", b"x"), (INTER, b"a"), (ITEM, b"b")
    ),
    "a symlink as another member": lambda: archive(
        ("link", b"/etc/passwd"), (INTER, b"a"), (ITEM, b"b")
    ),
    "stored": lambda: archive((INTER, b"a"), (ITEM, b"b"), method=zipfile.ZIP_STORED),
    "a name twice": lambda: archive((INTER, b"a"), (ITEM, b"b"), (INTER, b"c")),
}

FILE = WHEEL_FILE
