"""Every malformed file ends in one line of error or in the right result, and changes nothing."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from mmssl.data.catalog import read_members
from mmssl.errors import InputError
from tests.hostile import archives
from tests.hostile.corpus import CASES
from tests.hostile.run import failure, run_isolated
from tests.hostile.world import make_template

DIRECT = [name for name, case in CASES.items() if not case.isolated]
ISOLATED = [name for name, case in CASES.items() if case.isolated]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "template"
    with contextlib.redirect_stdout(io.StringIO()):
        make_template(root)
    return root


@pytest.fixture(scope="module")
def isolated(template) -> dict[str, str]:
    return run_isolated(ISOLATED, template)


@pytest.mark.parametrize("name", DIRECT)
def test_case(name, template, tmp_path):
    why = failure(CASES[name], template, tmp_path / "case")
    assert not why, why


@pytest.mark.slow
@pytest.mark.parametrize("name", ISOLATED)
def test_case_under_limits(name, isolated):
    assert not isolated[name], isolated[name]


@pytest.mark.parametrize("name", archives.REFUSED)
def test_archive_is_refused(name):
    with pytest.raises(InputError) as caught:
        read_members(archives.REFUSED[name]())
    message = str(caught.value)
    assert archives.FILE in message and "\n" not in message and len(message) < 300, message


@pytest.mark.parametrize("name", archives.RIGHT)
def test_archive_is_read(name, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    members = read_members(archives.RIGHT[name]())
    assert members["item"] == "b"
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
    assert not Path("/tmp/mmssl-executed").exists()
