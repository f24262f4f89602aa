"""Malformed train.json, val.json, test.json, and what may lie next to them."""

from __future__ import annotations

import json
import shutil

from tests.hostile.world import Case, World, cases, naming, no_file_cases, sparse

READ = ("data",)
BOTH = ("inspect", "train")
# One of each kind of error; for the others the reader decides alone.
ON_THE_COMMAND_LINE = ("empty", "duplicate keys", "an item twice", "a user with a line end")


def _val(content: bytes | str):
    data = content.encode() if isinstance(content, str) else content
    return lambda w: (w.data / "val.json").write_bytes(data)


def _reencoded(encoding: str, bom: bytes = b""):
    def spoil(w: World) -> None:
        text = (w.data / "val.json").read_text(encoding="utf-8")
        (w.data / "val.json").write_bytes(bom + text.encode(encoding))

    return spoil


def _crlf(w: World) -> None:
    path = w.data / "val.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _truncated(w: World) -> None:
    path = w.data / "val.json"
    path.write_bytes(path.read_bytes()[:-20])


def _twice(w: World) -> None:
    path = w.data / "val.json"
    path.write_bytes(path.read_bytes() * 2)


def _overlap(w: World) -> None:
    shutil.copy(w.data / "train.json", w.data / "val.json")


def _added(split: str, user: str, item: object):
    def spoil(w: World) -> None:
        path = w.data / f"{split}.json"
        table = json.loads(path.read_text())
        table.setdefault(user, []).append(item)
        path.write_text(json.dumps(table))

    return spoil


def _first_twice(w: World) -> None:
    path = w.data / "train.json"
    table = json.loads(path.read_text())
    user = next(iter(table))
    table[user].append(table[user][0])
    path.write_text(json.dumps(table))


def _payload_beside(w: World) -> None:
    (w.data / "train_mat").write_bytes(w.pickle())


def _only_payload(w: World) -> None:
    (w.data / "train.json").rename(w.data / "was-train.json")
    _payload_beside(w)


def _no_data(w: World) -> None:
    shutil.rmtree(w.data)


def _data_is_a_file(w: World) -> None:
    shutil.rmtree(w.data)
    w.data.write_text("{}")


def _data_is_a_loop(w: World) -> None:
    shutil.rmtree(w.data)
    w.data.symlink_to("data")


_REFUSED: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "expected JSON"),
    "only white space": ("  \n\n ", "expected JSON"),
    "not UTF-8": (b'{"0": [\xff]}', "expected JSON"),
    "NUL bytes": (b"\0" * 64, "expected JSON"),
    "a pickle": (b"\x80\x04K\x01.", "expected JSON"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "expected JSON"),
    "XML": ("<?xml version='1.0'?><a/>", "expected JSON"),
    "trailing comma": ('{"0": [1,]}', "expected JSON"),
    "comments": ('{"0": [1] // mine\n}', "expected JSON"),
    "a list": ("[[0, 1]]", "expected a JSON object"),
    "a number": ("7", "expected a JSON object"),
    "null": ("null", "expected a JSON object"),
    "no user": ("{}", "at least one interaction"),
    "no items": ('{"0": [], "1": []}', "at least one interaction"),
    "duplicate keys": ('{"0": [1], "0": [2]}', "duplicate key"),
    "NaN": ('{"0": [NaN]}', "got NaN"),
    "Infinity": ('{"0": [Infinity]}', "got Infinity"),
    "-Infinity": ('{"0": [-Infinity]}', "got -Infinity"),
    "an overflowing float": ('{"0": [1e999]}', "integer items"),
    "a float id": ('{"0": [1.0]}', "integer items"),
    "an exponent": ('{"0": [1e0]}', "integer items"),
    "a text id": ('{"0": ["1"]}', "integer items"),
    "a boolean id": ('{"0": [true]}', "integer items"),
    "a null id": ('{"0": [null]}', "integer items"),
    "a nested list": ('{"0": [[1]]}', "integer items"),
    "a negative id": ('{"0": [-1]}', "got -1"),
    "item 2^31": ('{"0": [2147483648]}', "got 2147483648"),
    "item 2^40": ('{"0": [1099511627776]}', "got 1099511627776"),
    "item 2^64": ('{"0": [18446744073709551616]}', "got 18446744073709551616"),
    "an id of 400 digits": ('{"0": [' + "9" * 400 + "]}", "far out of range"),
    "an id of 5000 digits": ('{"0": [' + "9" * 5000 + "]}", "val.json"),
    "user 2^40": ('{"1099511627776": [1]}', "got '1099511627776'"),
    "a negative user": ('{"-1": [1]}', "got '-1'"),
    "a float user": ('{"1.0": [1]}', "got '1.0'"),
    "a user with a leading zero": ('{"01": [1]}', "got '01'"),
    "a user with a space": ('{" 1": [1]}', "got ' 1'"),
    "a user in other digits": ('{"\u0661": [1]}', "user keys"),
    "a user that is half a character": ('{"\\ud800": [1]}', "user keys"),
    "a user with a line end": ('{"1\\n2": [1]}', "user keys"),
    "an empty user": ('{"": [1]}', "user keys"),
    "an object of items": ('{"0": {"1": 1}}', "a list of items"),
    "an item twice": ('{"2": [1, 3, 1]}', "expected unique items"),
    "not UTF-8 in a key": (b'{"\xc3\x28": [1]}', "expected JSON"),
    "100,000 open lists": ("[" * 100_000, "expected JSON"),
    "100,000 open objects": ('{"0":' * 100_000, "expected JSON"),
    "10,000 closed lists": ('{"0":' + "[" * 10_000 + "]" * 10_000 + "}", "val.json"),
}

CASES = [
    *cases(
        "val.json",
        naming("val.json", _REFUSED),
        _val,
        reader="data",
        commands=BOTH,
        on_command_line=ON_THE_COMMAND_LINE,
    ),
    *no_file_cases("val.json", "data", lambda w: w.data / "val.json"),
    Case("val.json: truncated", _truncated, READ, ("val.json", "expected JSON")),
    Case("val.json: twice in a row", _twice, READ, ("val.json", "expected JSON")),
    Case("val.json: edges of train.json", _overlap, READ, ("val.json", "overlap")),
    Case("train.json: an edge twice", _first_twice, READ, ("train.json", "expected unique items")),
    Case("train.json: item beyond the features", _added("train", "3", 999), READ, ("train.json",)),
    Case("train.json: a pickle instead", _only_payload, BOTH, ("train.json", "pickle")),
    Case(
        "val.json: 8 GiB and a byte",
        lambda w: sparse(2**33 + 1)(w.data / "val.json"),
        BOTH,
        ("val.json", "at most"),
        isolated=True,
    ),
    Case(
        "val.json: 4 GiB of zeros",
        lambda w: sparse(2**32)(w.data / "val.json"),
        BOTH,
        ("val.json", "fit in memory"),
        isolated=True,
    ),
    Case("no data set", _no_data, BOTH, ("data", "expected the directory")),
    Case("the data set is a file", _data_is_a_file, READ, ("data", "expected the directory")),
    Case("the data set is a symlink loop", _data_is_a_loop, READ, ("data", "the directory")),
    # Unusual, but unambiguous.
    Case("val.json: byte order mark", _reencoded("utf-8", b"\xef\xbb\xbf"), BOTH[:1], None),
    Case("val.json: UTF-16", _reencoded("utf-16"), READ, None),
    Case("val.json: UTF-32, big-endian", _reencoded("utf-32-be"), READ, None),
    Case("val.json: CRLF", _crlf, READ, None),
    Case("train_mat: a pickle next to the splits", _payload_beside, BOTH[:1], None),
]
