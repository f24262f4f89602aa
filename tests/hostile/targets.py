"""Fuzzing targets: a reader, the contents to start from, and what the reader may answer."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tomli_w
import torch
from safetensors.torch import save

from mmssl.errors import InputError


class Fuzzed(NamedTuple):
    """A reader of one file, and the contents that fuzzing starts from."""

    read: Callable[[bytes], object]
    """Writes the content where the reader expects it and reads it."""
    valid: list[bytes]
    """Contents that the reader must accept; a target that refuses them would fuzz nothing."""
    malformed: list[bytes]
    """Further contents to start from."""

    @property
    def seeds(self) -> list[bytes]:
        """All contents to start from."""
        return [*self.valid, *self.malformed]

    def check(self, content: bytes) -> None:
        """Raises unless the content is accepted or refused in one line."""
        try:
            self.read(content)
        except InputError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                raise AssertionError(f"not one line: {str(error)[:100]!r}") from None


Target = Callable[[Path], Fuzzed]

NASTY = [
    *(b"", b"0", b"-1", b"-0", b"1.0", b"1e400", b"NaN", b"Infinity", b"true", b"null", b'"1"'),
    *(b"2147483647", b"2147483648", b"4294967296", b"1099511627776", b"9223372036854775808"),
    *(b"9" * 400, b"9" * 5000, b"[" * 500, b"{" * 50, b'"\\ud800"', b'"\\u0000"', b"\xff\xfe"),
    *(b"\x00", b"\t", b"\r\n", b"\x1b[2J", b"../../x", b"\xef\xbb\xbf"),
]


def structured(seed: bytes) -> list[bytes]:
    """Mutations that keep most of a text valid: each digit in turn replaced by a nasty value."""
    out = [seed[: len(seed) // 2], seed * 2]
    text = seed[:2000]
    for at in [i for i, byte in enumerate(text) if chr(byte) in "0123456789"][:6]:
        out += [seed[:at] + nasty + seed[at + 1 :] for nasty in NASTY]
    return out


def _fuzzed(
    path: Path,
    read: Callable[[], object],
    valid: Iterable[bytes],
    malformed: Iterable[bytes] | None = None,
) -> Fuzzed:
    """The target of a reader of ``path``; malformed by default: `structured` of the valid ones."""

    def read_content(content: bytes) -> object:
        path.write_bytes(content)
        return read()

    valid = list(valid)
    if malformed is None:
        malformed = [mutated for seed in valid for mutated in structured(seed)]
    return Fuzzed(read_content, valid, list(malformed))


def _splits(folder: Path) -> Fuzzed:
    from mmssl.data import read_dataset

    splits = {"train": {"0": [0, 1], "1": [2]}, "val": {"0": [2]}, "test": {"1": [0, 1]}}
    for name, table in splits.items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    seed = json.dumps(splits["train"]).encode()
    return _fuzzed(folder / "train.json", lambda: read_dataset(folder), [seed])


def _features(folder: Path) -> Fuzzed:
    from mmssl.data.npy import read_features

    path = folder / "image_feat.npy"

    def saved(dtype: str, order: Literal["C", "F"]) -> bytes:
        np.save(path, np.zeros((3, 2), dtype=dtype, order=order))
        return path.read_bytes()

    orders: tuple[Literal["C", "F"], ...] = ("C", "F")
    valid = [saved(t, order) for t in ("<f4", ">f8", "<f2", "|b1", "<i8") for order in orders]
    malformed = [saved("<U2", order) for order in orders]
    head = b"\x93NUMPY\x01\x00"
    for shape in (b"(3,)", b"(-3, 2)", b"(9999999999999, 2)", b"(3, 2, 1)", b"[3, 2]"):
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b"}\n"
        malformed.append(head + struct.pack("<H", len(text)) + text + bytes(24))
    return _fuzzed(path, lambda: read_features(path), valid, malformed)


def _tables(folder: Path) -> Fuzzed:
    from mmssl.data.tables import read_table

    path = folder / "users.tsv"
    seed = b"user\tid\n0\tann\n1\tbob\n2\tcid\n"
    return _fuzzed(path, lambda: read_table(path, "user", 3), [seed])


def _configs(folder: Path) -> Fuzzed:
    from mmssl.config import Config, load_config

    path = folder / "mine.toml"
    small = b"[model]\nembedding_dim = 8\n[training]\nlr = 0.1\n"
    valid = [small, Config().to_toml().encode()]
    return _fuzzed(path, lambda: load_config(file=path), valid, structured(small))


_METRICS = b'{"val": {"recall@20": 0.5}, "test": {"recall@20": 0.25}, "best_epoch": 1}'
_EPOCH = b'{"event": "epoch", "epoch": 1, "loss": {"bpr": 0.5}, "val": {}, "seconds": 1.5}\n'


def _run_config(**sections: object) -> bytes:
    from mmssl.training.run import RunInfo

    info = RunInfo("mmssl", "d", "h", {"protocol": "random", "hash": "h"}, "0.1.0")
    return tomli_w.dumps({"run": info._asdict(), **sections}).encode()


def _runs(folder: Path) -> Fuzzed:
    """config.toml of a run."""
    from mmssl.config import Config
    from mmssl.training.run import RunDirectory

    small, whole = _run_config(), _run_config(**Config().to_dict())
    path = folder / "config.toml"
    return _fuzzed(path, lambda: RunDirectory.open(folder), [small, whole], structured(small))


def _metrics(folder: Path) -> Fuzzed:
    """metrics.json as every command but ``mmssl report`` reads it."""
    from mmssl.training.run import RunDirectory

    (folder / "config.toml").write_bytes(_run_config())
    run = RunDirectory.open(folder)
    return _fuzzed(folder / "metrics.json", run.read_metrics, [_METRICS])


def _reports(folder: Path) -> Fuzzed:
    """metrics.json as ``mmssl report`` reads it."""
    from mmssl.report.log import read_run

    return _fuzzed(folder / "metrics.json", lambda: read_run(folder), [_METRICS])


def _logs(folder: Path) -> Fuzzed:
    """log.jsonl."""
    from mmssl.report.log import read_run

    (folder / "metrics.json").write_bytes(_METRICS)
    return _fuzzed(folder / "log.jsonl", lambda: read_run(folder), [_EPOCH, _EPOCH * 2])


def _checkpoints(folder: Path) -> Fuzzed:
    from mmssl.training.checkpoint import load_checkpoint, save_checkpoint

    path = folder / "model.safetensors"
    valid: list[bytes] = []
    malformed: list[bytes] = []
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        save_checkpoint(path, {"a": torch.ones(2, 2).to(dtype), "b": torch.ones(())}, {"x": 1})
        valid.append(path.read_bytes())
    malformed.append(save({"a": torch.ones(2)}, metadata={"mmssl": "[1]"}))
    malformed.append(save({"a": torch.ones(2)}, metadata={"mmssl": '{"state": 1, "sha256": "x"}'}))
    for kind in ("F8_E4M3", "F4", "C64", "U64", "F8_E8M0", "F6_E2M3"):
        header = json.dumps({"a": {"dtype": kind, "shape": [8], "data_offsets": [0, 8]}})
        malformed.append(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    return _fuzzed(path, lambda: load_checkpoint(path), valid, malformed)


def _archives(folder: Path) -> Fuzzed:
    from mmssl.data.catalog import read_members
    from tests.hostile.archives import GOOD, REFUSED

    small = [made for made in (make() for make in REFUSED.values()) if len(made) < 5000]
    return Fuzzed(read_members, [GOOD], small)


def _neighbors(folder: Path) -> Fuzzed:
    from mmssl.data.npz import read_neighbors

    path = folder / "image_knn.npz"
    row, col = np.array([0, 0, 2]), np.array([1, 2, 0])
    valid = [
        {"row": row, "col": col},
        {"row": row.astype("<i4"), "col": col.astype(">i8"), "value": np.ones(3, "<f2")},
    ]
    malformed = [
        {"row": row, "col": row},
        {"row": row, "col": col, "value": np.array([1, np.nan, 0])},
        {"row": np.array([None] * 3), "col": col},
    ]

    def contents(arrays: dict[str, np.ndarray]) -> list[bytes]:
        made = []
        for write in (np.savez, np.savez_compressed):
            write(path, **arrays)
            made.append(path.read_bytes())
        return made

    return _fuzzed(
        path,
        lambda: read_neighbors(path, 3),
        [content for arrays in valid for content in contents(arrays)],
        [content for arrays in malformed for content in contents(arrays)],
    )


def _settings(folder: Path) -> Fuzzed:
    """Values of ``--set``, which are text of the command line."""
    from mmssl.config import load_config

    def read(content: bytes) -> object:
        return load_config(settings=[content.decode("utf-8", "surrogateescape")])

    valid = [b"model.embedding_dim=8", b"critic.dropout=[0.1, 0.2]", b"plus.lr=1"]
    return Fuzzed(read, valid, [mutated for seed in valid for mutated in structured(seed)])


def _imports(*valid: bytes, suffix: str = "csv") -> Target:
    """A log of any kind, which is found out by its content."""

    def target(folder: Path) -> Fuzzed:
        from mmssl.data.importing import ImportOptions
        from mmssl.data.importing.importer import read_any

        path = folder / f"log.{suffix}"
        return _fuzzed(path, lambda: read_any(path, ImportOptions()), list(valid))

    return target


_CSV = b'user,item,rating,time\n1,"x, y",3,2017-07-14 03:09:28\n2,b,4.5,2017-07-15\n'
_JSON = b'{"user_id": "a", "asin": "x", "overall": 5.0, "unixReviewTime": 1500001768}\n'
_MIXED = b'{"user": 1, "item": "x"}\n{"user": "b", "item": 7, "more": null}\n'


def _matrices(folder: Path) -> Fuzzed:
    from mmssl.data.importing.sparse import Matrix

    path = folder / "inter.npz"

    def saved(**arrays: object) -> bytes:
        np.savez(path, **{name: np.array(value) for name, value in arrays.items()})
        return path.read_bytes()

    row, col, data = [0, 2, 2], [1, 0, 3], [1.0, 2.0, 0.5]
    valid = [
        saved(format=b"coo", shape=[3, 4], row=row, col=col, data=data),
        saved(format=b"csr", shape=[3, 4], indptr=[0, 1, 1, 3], indices=col, data=data),
    ]
    malformed = [
        saved(format=b"csr", shape=shape, indptr=pointers, indices=ids, data=data)
        for shape, pointers, ids in (
            ([3], [0, 1, 1, 3], col),
            ([-3, 4], [0, 1, 1, 3], col),
            ([2**40, 4], [0, 1, 1, 3], col),
            ([3, 4], [0, 3, 1, 3], col),
            ([3, 4], [0, 1, 1, 2**62], col),
            ([3, 4], [0, 1, 1, 3], [1, 0, 9]),
            ([3, 4], [0.0, 1, 1, 3], col),
        )
    ]
    malformed.append(saved(format="dia", shape=[3, 4], data=data))
    malformed.append(saved(format=b"coo", shape=[3, 4], row=row, col=col, data=["a", "b", "c"]))
    return _fuzzed(path, lambda: Matrix(path), valid, malformed)


def _tensors(folder: Path) -> Fuzzed:
    """Features of torch.save, whose content may be anything."""
    from mmssl.data.importing.tensors import tensor_features

    path = folder / "image_feat.pt"
    torch.save(torch.ones(3, 2), path)
    seed = path.read_bytes()
    malformed = [seed[:at] + b"\xff" + seed[at + 1 :] for at in range(0, len(seed), 97)]
    return _fuzzed(path, lambda: tensor_features(folder), [seed], malformed)


TARGETS: dict[str, Target] = {
    "texts": _imports(
        _CSV, b"user::item\n1::2\n", b"user\titem\r\na\tx\r\n", _CSV.replace(b",", b";")
    ),
    "lists": _imports(b"0 1 2 3\n1 4 5\n2 \n", b"1\t10 20 30\n2\t20 10\n", suffix="txt"),
    "json-lines": _imports(_JSON, _MIXED, b"[" + _JSON.strip() + b"]", suffix="json"),
    "matrices": _matrices,
    "tensors": _tensors,
    "splits": _splits,
    "features": _features,
    "tables": _tables,
    "configs": _configs,
    "settings": _settings,
    "runs": _runs,
    "metrics": _metrics,
    "reports": _reports,
    "logs": _logs,
    "checkpoints": _checkpoints,
    "archives": _archives,
    "neighbors": _neighbors,
}
