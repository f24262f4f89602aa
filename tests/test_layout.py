"""What `python -m tools.count` enforces of the repository's layout, and that it can fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import count, tree

# "duplicates" is an optional external command and not enforced here.
ENFORCED = ("read-op", "add-op", "step", "lines", "cycles", "vocabulary", "imports")

if not (tree.ROOT / ".git").exists():
    pytest.skip("what is tracked is known in a git checkout only", allow_module_level=True)


@pytest.mark.parametrize("name", ENFORCED)
def test_goal_is_reached(name, capsys):
    code = count.main(["--check", name])
    assert code == 0, capsys.readouterr().out


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small git repository in the layout that is counted; writes files and tracks them."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(tree, "ROOT", tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        tree.tracked.cache_clear()
        tree.imports.cache_clear()

    write()
    yield lambda files: write(**files)
    tree.tracked.cache_clear()
    tree.imports.cache_clear()


def found(name: str) -> list[str]:
    return count.COUNTS[name]()[0].found


def test_an_import_cycle_is_seen(repository):
    repository({
        "mmssl/__init__.py": "",
        "mmssl/a.py": "from mmssl import b\n",
        "mmssl/b.py": "from .c import x\n",
        "mmssl/c.py": "def x():\n    from mmssl import a\n",
        "mmssl/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mmssl.e\n",
        "mmssl/e.py": "import mmssl.d\n",
    })  # fmt: skip
    assert found("cycles") == []
    (line,) = count.import_cycles()
    assert line.notes == ["with imports inside functions: mmssl/a.py, mmssl/b.py, mmssl/c.py"]
    repository({"mmssl/c.py": "from mmssl import a\nx = 1\n"})
    assert found("cycles") == ["mmssl/a.py, mmssl/b.py, mmssl/c.py"]
    assert count.main(["--check", "cycles"]) == 1 and count.main(["cycles"]) == 0


def test_a_long_file_is_seen(repository):
    repository({"a.py": "x\n" * 400, "b.cpp": "x\n" * 401, "c.md": "x\n" * 999})
    assert found("lines") == ["b.cpp: 401 lines"]


def test_private_vocabulary_is_seen_in_what_people_read(repository):
    word = "no" + "body"
    repository({
        "a.py": f'{word} = 1\n# for {word}\nx = f"{word} {{{word}}}"\n',
        "b.h": f"int {word}; // {word}\n",
        "c.md": f"A page for {word.title()}.\n",
        "LICENSE": word,
    })  # fmt: skip
    places = [line.rsplit(":", 1)[0] for line in found("vocabulary")]
    assert places == ["a.py:2", "a.py:3", "b.h:1", "c.md:1"]


def test_other_imports_are_seen(repository):
    repository({
        "mmssl/__init__.py": "",
        "mmssl/config.py": "import json, msgspec\n",
        "mmssl/ops/a.py": "import torch\nfrom mmssl import config\n",
        "mmssl/ops/b.py": "import numpy\ndef f():\n    import tqdm\n",
    })  # fmt: skip
    assert found("imports") == ["mmssl/ops/a.py: msgspec"]


def test_files_of_a_step_and_of_an_op(repository):
    repository({
        "mmssl/__init__.py": "",
        "mmssl/ops/__init__.py": "",
        "mmssl/ops/info_nce.py": "",
        "mmssl/ops/_registry.py": "",
        "mmssl/ops/add_normalized.py": "",
        "mmssl/models/mmssl/step.py": "from mmssl import ops\nfrom . import loss\n",
        "mmssl/models/mmssl/loss.py": "from mmssl.ops.info_nce import info_nce\n",
        "csrc/ops/info_nce/cpu.cpp": '#include "gemm/tile.h"\n#include "common/checks.h"\n',
        "csrc/ops/info_nce/emulator_test.cpp": '#include "gemm/other.h"\n',
        "csrc/ops/info_nce/race.cpp": '#include "gemm/other.h"\n',
        "csrc/gemm/tile.h": '#include "gemm/register.h"\n',
        "csrc/gemm/register.h": "",
        "csrc/gemm/other.h": "",
        "csrc/common/checks.h": "",
        "csrc/ops/add_normalized/cpu.cpp": "",
        "csrc/ops/add_normalized/cuda.cpp": "",
        "csrc/library.cpp": "add_normalized",
        "mmssl/models/mmssl/model.py": "add_normalized",
    })  # fmt: skip
    assert found("read-op") == [
        "mmssl/ops/info_nce.py",
        "csrc/ops/info_nce/cpu.cpp",
        "csrc/gemm/register.h",
        "csrc/gemm/tile.h",
    ]
    assert count.read_an_op()[1].found == [
        "csrc/common/checks.h",
        "csrc/library.cpp",
        "mmssl/ops/__init__.py",
        "mmssl/ops/_registry.py",
    ]
    places, callers = count.add_an_op()
    assert places.found == [
        "csrc/library.cpp: csrc/library.cpp",
        "csrc/ops/x/: csrc/ops/add_normalized/cpu.cpp, csrc/ops/add_normalized/cuda.cpp",
        "mmssl/ops/x.py: mmssl/ops/add_normalized.py",
    ]
    assert callers.found == ["mmssl/models/mmssl/model.py"]
    step, boundary = count.training_step()
    assert step.found == ["mmssl/models/mmssl/step.py", "mmssl/models/mmssl/loss.py"]
    assert boundary.found == ["mmssl/ops/__init__.py", "mmssl/ops/info_nce.py"]


def test_what_does_not_exist_misses_its_goal(repository, capsys):
    assert count.main(["--check", "step"]) == 1
    assert "mmssl/models/mmssl/step.py does not exist" in capsys.readouterr().out


def test_without_the_external_command(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert count.main(["--check", "duplicates"]) == 0
    assert "skipped: the command duplicates is not installed" in capsys.readouterr().out


def test_an_unknown_count_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        count.main(["speed"])
    assert ended.value.code == 2 and "got speed" in capsys.readouterr().err
