"""The documentation site builds without a warning, and its examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason='the site needs pip install "mmssl[docs]"')
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_built(site):
    """mkdocs.yml is strict: a page outside the menu or a dead link fails the build."""
    pages = {p.relative_to(ROOT / "docs").with_suffix("") for p in ROOT.glob("docs/**/*.md")}
    assert {p.relative_to(site).with_suffix("") for p in site.glob("**/*.html")} >= pages


@pytest.mark.slow
def test_nothing_is_fetched(site):
    """No font, script, style or picture is loaded from another host."""
    fetched = re.compile(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//[^\">]+")
    for page in site.glob("**/*.html"):
        assert not fetched.findall(page.read_text()), page


@pytest.mark.slow
def test_formulas_and_signatures(site):
    model = (site / "model.html").read_text()
    assert model.count("<math") > 20 and "arithmatex" not in model and "$$" not in model
    reference = (site / "reference/ops.html").read_text()
    for op in ("spmm", "info_nce", "masked_topk", "bpr_loss"):
        assert f">{op}</span>" in reference
    assert ":func:" not in reference and "Parameters:" in reference
    for page in site.glob("reference/*.html"):  # doctests are code, not quotations of quotations
        assert "<blockquote>" not in page.read_text(), page


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # seconds; some start several processes, which could wait for each other
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"[0-9]", done.stdout) and not list(tmp_path.iterdir())


def test_the_code_of_every_example_is_in_the_site(site):
    page = unescape(re.sub(r"<[^>]+>", "", (site / "examples.html").read_text()))
    assert EXAMPLES and all(script.read_text().strip() in page for script in EXAMPLES)
