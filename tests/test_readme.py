"""The Python examples of README and docs run as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code, tiny_directory, tmp_path, monkeypatch, capsys):
    """Only the data set is replaced, since the demo's would have to be downloaded."""
    monkeypatch.chdir(tmp_path)
    code = code.replace("data/ml-100k", str(tiny_directory))
    code = code.replace('variant="plus"', 'variant="plus", epochs=2')
    exec(compile(code, "example", "exec"), {})
    if "mmssl.train" in code:
        recall, recommended = capsys.readouterr().out.splitlines()[-2:]
        assert 0 <= float(recall) <= 1 and recommended.count("RecommendedItem(") == 5
