"""The readers and commands that malformed files are tried on, and a small world for each case."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mmssl.cli import main
from mmssl.config import load_config
from mmssl.data import read_dataset
from mmssl.data.writers import write_dataset
from mmssl.report.log import read_run
from mmssl.training.checkpoint import load_checkpoint
from mmssl.training.run import RunDirectory
from tests.conftest import make_dataset

NUM_USERS, NUM_ITEMS = 24, 16


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trap,)


class World(NamedTuple):
    """The folder of one case."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def out(self) -> Path:
        """Output of a command; must not exist after an error."""
        return self.root / "out"

    @property
    def config(self) -> Path:
        return self.root / "mine.toml"

    @property
    def trap(self) -> Path:
        """Exists if a payload was executed."""
        return self.root / "executed"

    def pickle(self) -> bytes:
        return pickle.dumps(Payload(self.trap))

    def object_array(self, path: Path) -> None:
        rows = np.array([[Payload(self.trap)]] * NUM_ITEMS, dtype=object)
        np.save(path, rows, allow_pickle=True)


class Case(NamedTuple):
    """A malformed file, the readers or commands that meet it, and what they must say."""

    name: str
    spoil: Callable[[World], object]
    meets: tuple[str, ...]
    """What the file is tried on: keys of ``READERS``, or of ``COMMANDS``, which go end to end."""
    words: tuple[str, ...] | None
    """What the one line of the error holds, the file's name first; None: the right result."""
    isolated: bool = False
    """Tried in a separate process only, with limited memory and time."""
    code: int = 2
    """Exit code of the error."""


TRAIN = ["train", "--device", "cpu", "--epochs", "1", "--quiet", "--set=training.batch_size=8"]
COMMANDS: dict[str, Callable[[World], list[str]]] = {
    "inspect": lambda w: ["data", "inspect", str(w.data)],
    "train": lambda w: [*TRAIN, "--data", str(w.data), "--out", str(w.out)],
    "config": lambda w: [
        *[*TRAIN, "--data", str(w.data), "--out", str(w.out)],
        *["--config", str(w.config)],
    ],
    "evaluate": lambda w: ["evaluate", str(w.run), "--device", "cpu"],
    "recommend": lambda w: ["recommend", str(w.run), "--user", "1", "--device", "cpu"],
    "report": lambda w: ["report", str(w.run)],
    "resume": lambda w: ["train", "--resume", "--out", str(w.run), "--epochs", "2", "--quiet"],
}


def _run(world: World) -> RunDirectory:
    return RunDirectory.open(world.run)


# The functions that the commands open their files with.
READERS: dict[str, Callable[[World], object]] = {
    "data": lambda w: read_dataset(w.data),
    "config file": lambda w: load_config(file=w.config),
    "run": lambda w: _run(w).read_data(),
    "model": lambda w: _run(w).load_scorer(_run(w).read_data()),
    "checkpoint": lambda w: load_checkpoint(_run(w).checkpoint_path),
    "record": lambda w: read_run(w.run),
}


def make_template(root: Path) -> None:
    """Make ``root/data`` and ``root/run``, which every case copies."""
    dataset = make_dataset(NUM_USERS, NUM_ITEMS)
    write_dataset(dataset, root / "data")
    command = [*TRAIN, "--data", str(root / "data"), "--out", str(root / "run")]
    if main(command) != 0:
        raise RuntimeError("the template's run failed")


def make_world(template: Path, root: Path) -> World:
    """Copy the template; the copied run refers to the copied data."""
    root.mkdir(parents=True)
    root.chmod(0o755)
    for name in ("data", "run"):
        shutil.copytree(template / name, root / name)
    config = root / "run" / "config.toml"
    text = config.read_text(encoding="utf-8").replace(str(template / "data"), str(root / "data"))
    config.write_text(text, encoding="utf-8")
    return World(root)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Return name -> kind and size of everything below, without opening or following it."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            size = 0 if name in folders else state.st_size
            found[os.path.relpath(path, root)] = (state.st_mode, size)
    return found


# Ways to replace a file by something else.


def symlink_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def to_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent)


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def unreadable(path: Path) -> None:
    path.chmod(0)


def sparse(size: int) -> Callable[[Path], None]:
    """A file of ``size`` zeros that take no space on the disk."""

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(size)

    return make


# Name -> (how, words of the error, whether it is tried in isolation only).
NO_FILES: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "symlink loop": (symlink_loop, "symbolic links", False),
    "dangling symlink": (dangling, "No such file", False),
    "symlink to a directory": (to_directory, "directory", False),
    "directory": (directory, "directory", False),
    "pipe": (pipe, "a pipe", True),
    "endless device": (device, "a device", True),
    "unreadable": (unreadable, "Permission denied", False),
}


Content = TypeVar("Content")


def cases(
    label: str,
    table: Mapping[str, tuple[Content, tuple[str, ...]]],
    spoil: Callable[[Content], Callable[[World], object]],
    *,
    reader: str,
    commands: tuple[str, ...],
    on_command_line: tuple[str, ...],
) -> list[Case]:
    """The cases of a table: some on commands, the others on the reader that the commands use.

    Args:
        label: What the names of the cases begin with.
        table: Name -> how the file is malformed, and the words of the error.
        spoil: Makes the file from an entry of the table.
        reader: Key of ``READERS``.
        commands: Keys of ``COMMANDS``.
        on_command_line: Names of the cases that go end to end.
    """
    unknown = [name for name in on_command_line if name not in table]
    if unknown:
        raise ValueError(f"{label}: no case is named {unknown[0]!r}")
    return [
        Case(
            f"{label}: {name}",
            spoil(content),
            commands if name in on_command_line else (reader,),
            words,
        )
        for name, (content, words) in table.items()
    ]


def naming(
    file: str, table: Mapping[str, tuple[Content, str]]
) -> dict[str, tuple[Content, tuple[str, ...]]]:
    """A table whose errors name the file as well."""
    return {name: (content, (file, word)) for name, (content, word) in table.items()}


def no_file_cases(name: str, reader: str, path: Callable[[World], Path]) -> list[Case]:
    """Everything in ``NO_FILES`` instead of a file that the error calls ``name``."""
    return [
        Case(
            f"{name}: {label}",
            lambda w, spoil=spoil: spoil(path(w)),
            (reader,),
            (name, words),
            only,
        )
        for label, (spoil, words, only) in NO_FILES.items()
    ]
