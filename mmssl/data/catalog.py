"""Public data sets for ``mmssl data fetch``: download, verification and conversion.

MovieLens-100K (GroupLens; Harper and Konstan, 2015, doi 10.1145/2827872) is part of RecBole's
wheel, which pip downloads from the index that the user has configured.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mmssl.data.dataset import InteractionDataset
from mmssl.data.manifest import Source, read_manifest
from mmssl.data.movielens import build_movielens
from mmssl.data.readers import read_dataset
from mmssl.data.staging import check_writable
from mmssl.data.writers import write_dataset
from mmssl.errors import InputError
from mmssl.features.tfidf import require_sklearn

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FILE = "recbole-1.2.1-py3-none-any.whl"
MAX_WHEEL_BYTES = 16 * 2**20
MEMBERS = {f"recbole/dataset_example/ml-100k/ml-100k.{kind}": kind for kind in ("inter", "item")}
MAX_MEMBER_BYTES = 16 * 2**20  # the largest member is 2 MB

# Increment the recipe with every change to the resulting data set: `fetch` then rejects a directory
# that an earlier recipe wrote instead of reporting it as up to date.
ML_100K_SOURCE = f"MovieLens-100K of {WHEEL}, sha256 {WHEEL_SHA256}, recipe 1"


class Fetched(NamedTuple):
    """Result of :func:`fetch`."""

    directory: Path
    """Directory of the data set."""
    created: bool
    """False if the directory already held the same data set."""
    dataset: InteractionDataset
    """The data set, checked."""

    @property
    def message(self) -> str:
        """One-line summary for the terminal."""
        if self.created:
            return f"{self.dataset.name} written to {self.directory}"
        return f"{self.dataset.name} is already in {self.directory}, nothing to do"


class _Entry(NamedTuple):
    source: str
    build: Callable[[], InteractionDataset]


def available() -> tuple[str, ...]:
    """Return the names of the data sets that :func:`fetch` accepts."""
    return tuple(_CATALOG)


def fetch(name: str, directory: str | Path | None = None) -> Fetched:
    """Download a data set into ``directory``, unless the directory already contains it.

    Args:
        name: One of :func:`available`.
        directory: Target directory, created if necessary and never overwritten; None selects
            ``data/<name>`` in the working directory.

    Raises:
        InputError: ``name`` is unknown, the directory contains other files, or the download fails
            or does not match its hash. Partial output is removed.
    """
    entry = _CATALOG.get(name)
    if entry is None:
        raise InputError(f"data set must be one of {', '.join(_CATALOG)}, got {name!r}")
    target = Path("data", name) if directory is None else Path(directory)
    present = _already_there(target, entry.source)
    if present is not None:
        return Fetched(target, False, present)
    check_writable(target)
    dataset = entry.build()
    write_dataset(dataset, target, source=Source("catalog", recipe=entry.source))
    return Fetched(target, True, dataset)


def _already_there(target: Path, source: str) -> InteractionDataset | None:
    """Return the data set in ``target`` if it was built from this source, else None."""
    if not os.path.isdir(target):
        return None
    recorded = read_manifest(target).source
    if recorded is None or recorded.recipe != source:
        return None
    return read_dataset(target)  # verifies the hash of the interactions


def _build_ml_100k() -> InteractionDataset:
    require_sklearn()  # fail before the download rather than after it
    return build_movielens("ml-100k", read_members(download_wheel()))


def download_wheel() -> bytes:
    """Download RecBole's wheel with pip, honoring the user's pip configuration and cache.

    Returns:
        Content of the wheel; its hash is verified by pip and again here.

    Raises:
        InputError: pip fails, or the file is too large or has another hash.
    """
    with tempfile.TemporaryDirectory(prefix="mmssl-fetch-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
        command += ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += ["--dest", scratch, "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        wheel = Path(scratch, WHEEL_FILE)
        if done.returncode != 0 or not wheel.is_file():
            raise InputError(f"pip could not download {WHEEL}: {_reason(done.stderr)}")
        if wheel.stat().st_size > MAX_WHEEL_BYTES:
            raise InputError(f"{WHEEL_FILE}: expected at most {MAX_WHEEL_BYTES} bytes, got more")
        content = wheel.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WHEEL_SHA256:
        raise InputError(f"{WHEEL_FILE}: expected sha256 {WHEEL_SHA256}, got {digest}")
    return content


def _reason(stderr: str) -> str:
    """Return the last error line of pip's output, or its last line if it reports no error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no error message"])[-1]


def read_members(wheel: bytes) -> dict[str, str]:
    """Read the data files of the wheel in memory, without extracting anything to disk.

    Returns:
        Kind (``inter``, ``item``) -> text of the file.

    Raises:
        InputError: The archive is damaged, or a member is missing, too large or not UTF-8.
    """
    texts: dict[str, str] = {}
    for member, kind in MEMBERS.items():
        try:
            with zipfile.ZipFile(io.BytesIO(wheel)) as archive, archive.open(member) as file:
                # Limit the decompressed bytes: the size in the archive's header is untrusted.
                content = file.read(MAX_MEMBER_BYTES + 1)
        except Exception as error:
            # zipfile and its decompressors raise a dozen exception types for malformed input:
            # BadZipFile, KeyError, NotImplementedError, zlib.error, struct.error, ...
            raise InputError(
                f"{WHEEL_FILE}: expected a zip archive with {member}, got {type(error).__name__}"
            ) from error
        if len(content) > MAX_MEMBER_BYTES:
            raise InputError(
                f"{WHEEL_FILE}: expected {member} to have at most {MAX_MEMBER_BYTES} bytes, "
                "got more"
            )
        try:
            texts[kind] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{WHEEL_FILE}: {member}: expected UTF-8 text, got an invalid byte at offset "
                f"{error.start}"
            ) from None
    return texts


_CATALOG = {"ml-100k": _Entry(ML_100K_SOURCE, _build_ml_100k)}
