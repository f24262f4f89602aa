"""What is fuzzed: readers, valid files to start from, and what a reader may answer."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

from mmssl.errors import InputError


class Fuzzed(NamedTuple):
    """A reader over one file of a folder."""

    check: Callable[[bytes], None]
    """Raises what is neither a result nor an InputError."""
    seeds: list[bytes]


Target = Callable[[Path], Fuzzed]

NASTY = [
    *(b"", b"0", b"-1", b"-0", b"1.0", b"1e400", b"NaN", b"Infinity", b"true", b"null", b'"1"'),
    *(b"2147483647", b"2147483648", b"4294967296", b"1099511627776", b"9223372036854775808"),
    *(b"9" * 400, b"9" * 5000, b"[" * 500, b"{" * 50, b'"\\ud800"', b'"\\u0000"', b"\xff\xfe"),
    *(b"\x00", b"\t", b"\r\n", b"\x1b[2J", b"../../x", b"\xef\xbb\xbf"),
]


def structured(seed: bytes) -> list[bytes]:
    """Mutations that keep most of a text valid: each number or string in turn made nasty."""
    out = [seed, seed[: len(seed) // 2], seed * 2]
    text = seed[:2000]
    for at in [i for i, byte in enumerate(text) if chr(byte) in "0123456789"][:6]:
        out += [seed[:at] + nasty + seed[at + 1 :] for nasty in NASTY]
    return out


def _check(read: Callable[[], object]) -> None:
    try:
        read()
    except InputError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"not one line: {str(error)[:100]!r}") from None


def _fuzzed(path: Path, read: Callable[[], object], seeds: Iterable[bytes]) -> Fuzzed:
    def check(content: bytes) -> None:
        path.write_bytes(content)
        _check(read)

    return Fuzzed(check, list(seeds))


def _splits(folder: Path) -> Fuzzed:
    from mmssl.data import read_dataset

    splits = {"train": {"0": [0, 1], "1": [2]}, "val": {"0": [2]}, "test": {"1": [0, 1]}}
    for name, table in splits.items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    seed = json.dumps(splits["train"]).encode()
    return _fuzzed(folder / "train.json", lambda: read_dataset(folder), structured(seed))


def _features(folder: Path) -> Fuzzed:
    from mmssl.data.npy import read_features

    path, seeds = folder / "image_feat.npy", []
    for dtype in ("<f4", ">f8", "<f2", "|b1", "<i8", "<U2"):
        for order in "CF":
            np.save(path, np.zeros((3, 2), dtype=dtype, order=order))
            seeds.append(path.read_bytes())
    head = b"\x93NUMPY\x01\x00"
    for shape in (b"(3,)", b"(-3, 2)", b"(9999999999999, 2)", b"(3, 2, 1)", b"[3, 2]"):
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b"}\n"
        seeds.append(head + struct.pack("<H", len(text)) + text + bytes(24))
    return _fuzzed(path, lambda: read_features(path), seeds)


def _tables(folder: Path) -> Fuzzed:
    from mmssl.data.tables import read_table

    path = folder / "users.tsv"
    seed = b"user\tid\n0\tann\n1\tbob\n2\tcid\n"
    return _fuzzed(path, lambda: read_table(path, "user", 3), structured(seed))


def _configs(folder: Path) -> Fuzzed:
    from mmssl.config import Config, load_config

    path = folder / "mine.toml"
    seeds = [*structured(b"[model]\nembedding_dim = 8\n[training]\nlr = 0.1\n")]
    seeds.append(Config().to_toml().encode())
    return _fuzzed(path, lambda: load_config(file=path), seeds)


def _runs(folder: Path) -> Fuzzed:
    """config.toml of a run; then metrics.json and log.jsonl, by the first byte."""
    from mmssl.report.log import read_run
    from mmssl.training.run import RunDirectory

    metrics = b'{"val": {"recall@20": 0.5}, "test": {"recall@20": 0.25}, "best_epoch": 1}'
    line = b'{"event": "epoch", "epoch": 1, "loss": {"bpr": 0.5}, "val": {}, "seconds": 1.5}\n'
    config = b"variant = 'paper'\n[run]\nmodel = 'mmssl'\ndata = 'd'\ndata_hash = 'h'\n"
    config += b"version = '0.1.0'\n"
    files = {b"c": ("config.toml", config), b"m": ("metrics.json", metrics)}
    files[b"l"] = ("log.jsonl", line)

    def check(content: bytes) -> None:
        for name, good in files.values():
            (folder / name).write_bytes(good)
        name, _ = files.get(content[:1], files[b"c"])
        (folder / name).write_bytes(content[1:])
        if name == "config.toml":
            _check(lambda: RunDirectory.open(folder))
            return
        with contextlib.suppress(InputError):
            _check(RunDirectory.open(folder).read_metrics)
        _check(lambda: read_run(folder))

    return Fuzzed(
        check, [key + text for key, (_, good) in files.items() for text in structured(good)]
    )


def _checkpoints(folder: Path) -> Fuzzed:
    from mmssl.training.checkpoint import load_checkpoint, save_checkpoint

    path, seeds = folder / "model.safetensors", []
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        save_checkpoint(path, {"a": torch.ones(2, 2).to(dtype), "b": torch.ones(())}, {"x": 1})
        seeds.append(path.read_bytes())
    seeds.append(save({"a": torch.ones(2)}, metadata={"mmssl": "[1]"}))
    seeds.append(save({"a": torch.ones(2)}, metadata={"mmssl": '{"state": 1, "sha256": "x"}'}))
    for kind in ("F8_E4M3", "F4", "C64", "U64", "F8_E8M0", "F6_E2M3"):
        header = json.dumps({"a": {"dtype": kind, "shape": [8], "data_offsets": [0, 8]}})
        seeds.append(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    return _fuzzed(path, lambda: load_checkpoint(path), seeds)


def _archives(folder: Path) -> Fuzzed:
    from mmssl.data.catalog import read_members
    from tests.hostile.archives import GOOD, REFUSED

    small = [made for made in (make() for make in REFUSED.values()) if len(made) < 5000]

    def check(content: bytes) -> None:
        _check(lambda: read_members(content))

    return Fuzzed(check, [GOOD, *small])


def _settings(folder: Path) -> Fuzzed:
    """Values of ``--set``, which are text of the command line."""
    from mmssl.config import load_config

    def check(content: bytes) -> None:
        text = content.decode("utf-8", "surrogateescape")
        _check(lambda: load_config(settings=[text]))

    seeds = [b"model.embedding_dim=8", b"critic.dropout=[0.1, 0.2]", b"variant=paper"]
    return Fuzzed(check, [mutated for seed in seeds for mutated in structured(seed)])


TARGETS: dict[str, Target] = {
    "splits": _splits,
    "features": _features,
    "tables": _tables,
    "configs": _configs,
    "settings": _settings,
    "runs": _runs,
    "checkpoints": _checkpoints,
    "archives": _archives,
}
