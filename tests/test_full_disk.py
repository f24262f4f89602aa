"""A disk that fills up ends every command that writes in one line; nothing incomplete is left.

A limit on the size of files has the same effect as a full disk. One byte too few for the largest
file matters: a library that ignores the error of its last flush leaves a file that is cut short.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mmssl.cli import main
from mmssl.data.npy import save_array
from tests.training.test_faults import in_a_mount_namespace

TRAIN = ["--set=model.embedding_dim=16", "--epochs=1", "--device=cpu", "--quiet"]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the size of the files that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def world(tiny_directory, tmp_path_factory) -> Path:
    """A run, an imported log and texts, all small."""
    folder = tmp_path_factory.mktemp("full")
    command = ["train", "--data", str(tiny_directory), "--out", str(folder / "run"), *TRAIN]
    assert main(command) == 0
    lines = [f"u{n % 40},i{n * 7 % 30},{n % 5 + 1},{n}" for n in range(1500)]
    (folder / "log.csv").write_text("user,item,rating,timestamp\n" + "\n".join(lines))
    assert main(["data", "import", str(folder / "log.csv"), "--out", str(folder / "log")]) == 0
    (folder / "texts.csv").write_text(
        "item,title\n" + "\n".join(f"{n},film {n} about a word{n % 9}" for n in range(49))
    )
    return folder


def export_as(name: str) -> object:
    """Return the command for a format, skipped without its library."""
    module = {"faiss": "faiss", "onnx": "onnx"}.get(name)
    missing = module is not None and importlib.util.find_spec(module) is None
    reason = f"the package {module} is not installed"
    return pytest.param(
        ["export", "RUN", "--to", "OUT", "--formats", name],
        id=f"export-{name}",
        marks=pytest.mark.skipif(missing, reason=reason),
    )


@pytest.mark.parametrize(
    "command",
    [
        *map(export_as, ("npz", "safetensors", "faiss", "torch-export", "onnx")),
        pytest.param(["report", "RUN", "--out", "OUT"], id="report"),
        pytest.param(
            ["recommend", "RUN", "--all", "--format", "json", "--out", "OUT"], id="recommend"
        ),
        pytest.param(["data", "import", "LOG", "--out", "OUT"], id="data-import"),
        pytest.param(["data", "split", "IMPORTED", "--out", "OUT"], id="data-split"),
        pytest.param(
            ["features", "text", "COPY", "--from", "TEXTS", "--column=title", "--name=words"],
            id="features",
        ),
        pytest.param(["train", "--data", "DATA", "--out", "OUT", *TRAIN, "--profile"], id="trace"),
    ],
)
def test_one_line_and_nothing_left(world, tiny_directory, tmp_path, capsys, command):
    def run(name: str, limit: int = resource.RLIM_INFINITY) -> tuple[int, Path]:
        folder = tmp_path / name
        folder.mkdir()
        if "COPY" in command:
            shutil.copytree(tiny_directory, folder / "copy")
        paths = {
            "RUN": world / "run",
            "OUT": folder / "out",
            "LOG": world / "log.csv",
            "IMPORTED": world / "log",
            "COPY": folder / "copy",
            "TEXTS": world / "texts.csv",
            "DATA": tiny_directory,
        }
        with full_disk(limit):
            return main([str(paths.get(word, word)) for word in command]), folder

    def files(folder: Path) -> dict[Path, int]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): path.stat().st_size for path in found}

    code, folder = run("whole")
    assert code == 0, capsys.readouterr().err
    before = files(tiny_directory) if "COPY" in command else {}
    before = {Path("copy") / path: size for path, size in before.items()}
    new = {path: size for path, size in files(folder).items() if before.get(path) != size}
    largest = max(new.values())
    for size in (largest - 1, largest // 2):
        capsys.readouterr()
        code, folder = run(f"limited-{size}", size)
        err = capsys.readouterr().err
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (code, err)
        assert str(folder) in err, err
        left = files(folder)
        if "train" in command:  # its directory is that of a run, without the trace
            assert left.pop(Path("out/config.toml")) == new[Path("out/config.toml")]
        assert left == before


@pytest.mark.parametrize("shape", [(3,), (1000, 3), (0, 4)])
def test_save_array_writes_what_numpy_writes(tmp_path, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    for name, value in (("c", array), ("fortran", np.asfortranarray(array)), ("step", array[::2])):
        save_array(tmp_path / name, value)
        np.save(tmp_path / f"{name}.npy", value)
        assert (tmp_path / name).read_bytes() == (tmp_path / f"{name}.npy").read_bytes()


@pytest.mark.parametrize("missing", [1, 100, 4000, 5000, 100_000])
def test_save_array_on_a_full_disk(tmp_path, missing):
    """np.save does not notice up to 4 KB that are missing."""
    array = np.ones(50_000, np.float32)
    with pytest.raises(OSError, match="File too large"), full_disk(200_128 - missing):
        save_array(tmp_path / "a.npy", array)


@pytest.mark.slow
def test_an_export_to_a_disk_that_is_really_full(world, tmp_path):
    (tmp_path / "disk").mkdir()
    script = """
    mount -t tmpfs -o size=16k none "$DISK"
    for format in npz safetensors; do
        code=0; $PYTHON -m mmssl export "$RUN" --to "$DISK/ex" --formats $format || code=$?
        test $code = 2
        test -z "$(ls -A "$DISK")"
    done
    """
    out = in_a_mount_namespace(
        script, DISK=tmp_path / "disk", RUN=world / "run", PYTHON=sys.executable
    )
    lines = out.splitlines()
    assert len(lines) == 2 and "Traceback" not in out
    for line in lines:
        assert line.startswith(f"error: {tmp_path / 'disk' / 'ex'}: can't be written: ")
        assert "No space left on device" in line


def test_a_study_whose_journal_can_not_grow_is_continued(
    tiny_directory, tmp_path, capsys, monkeypatch
):
    """The trial is not marked as failed: it is continued once there is space."""
    backend = pytest.importorskip("optuna.storages.journal").JournalFileBackend
    space = tmp_path / "space.toml"
    space.write_text('[space]\n"lightgcn.lr" = {low = 1e-3, high = 1e-1, log = true}\n')
    new = ["--data", str(tiny_directory), "--model=lightgcn", "--space", str(space), "--trials=2"]
    new += ["--epochs=3", "--device=cpu", "--seed=3"]

    def tune(name: str, *options: str) -> int:
        return main(["tune", "--quiet", "--out", str(tmp_path / name), *options])

    assert tune("whole", *new) == 0
    append = backend.append_logs
    reports = []

    def append_until_full(self: object, logs: list[dict]) -> None:
        reports.extend(log for log in logs if "intermediate_value" in log)
        if len(reports) > 4:  # in the second epoch of the second trial
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, logs)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "append_logs", append_until_full)
        capsys.readouterr()
        assert tune("study", *new) == 2
    study = tmp_path / "study"
    assert capsys.readouterr().err == f"error: {study}: No space left on device\n"
    assert tune("study", "--resume") == 0
    results = [(tmp_path / name / "study.json").read_text() for name in ("study", "whole")]
    assert results[0] == results[1]
