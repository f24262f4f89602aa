"""Runs `mmssl` in a directory of small files, for tests of what it reads and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.cli import main
from mmssl.data import read_dataset
from mmssl.data.log import is_log, read_log

PAIRS = {"a": "xyz", "b": "xyw", "c": "zwv"}  # user -> items
LOG = "user,item,rating,time\n" + "".join(
    f"{u},{i},{n + 1},{100 + n}\n" for u, items in PAIRS.items() for n, i in enumerate(items)
)
ROWS = [(u, i) for u, items in PAIRS.items() for i in items]


class Shell:
    """Runs ``mmssl`` in a directory; knows what it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def write(self, name: str, content: str | bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def run(self, *arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        printed = self._capsys.readouterr()
        return code, printed.err if code else printed.out

    def bring(self, source: str, *options: str, says: str = "", name: str = "out"):
        code, printed = self.run("data", "import", source, "--out", name, *options)
        assert code == 0, printed
        assert says in printed, printed
        out = self.folder / name
        return read_log(out)[0] if is_log(out) else read_dataset(out)

    def refused(self, *arguments: str, says: str | tuple[str, ...]) -> None:
        if arguments[0] not in ("data", "train"):
            arguments = ("data", "import", *arguments, "--out", "refused")
        code, printed = self.run(*arguments)
        assert code == 2 and printed.count("\n") == 1 and printed.startswith("error: "), printed
        for words in (says,) if isinstance(says, str) else says:
            assert words in printed, printed
        assert not (self.folder / arguments[arguments.index("--out") + 1]).exists()


def pairs(data) -> list[tuple[str, str]]:
    """Return the interactions of a log in order, as ids."""
    users, items = data.user_ids, data.item_ids
    return [(users[u], items[i]) for u, i in zip(data.user, data.item, strict=True)]


def pairs_of(dataset, split: str) -> list[tuple[str, str]]:
    edges = getattr(dataset, split)
    return [(dataset.user_ids[u], dataset.item_ids[i]) for u, i in zip(*edges, strict=True)]


def same_log(log) -> bool:
    return sorted(pairs(log)) == sorted(ROWS)


def table(rows, separator: str = ",") -> str:
    return "".join(separator.join(row) + "\n" for row in [("user_id", "parent_asin"), *rows])
