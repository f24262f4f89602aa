"""The README's Python examples, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example(number, tiny_directory, tmp_path, monkeypatch, capsys):
    """Only the data set differs: the demo's would have to be downloaded."""
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[number].replace("data/ml-100k", str(tiny_directory))
    code = code.replace('preset="ml-100k"', 'settings=["training.epochs=2"]')
    exec(compile(code, f"{README.name}, example {number + 1}", "exec"), {})
    if "print(" in code:
        assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1
