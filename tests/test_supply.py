"""The files that pin versions agree with each other and contain only packages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FILES = ("requirements-dev.txt", "requirements-lock.txt", "requirements-minimums.txt")


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def allowed() -> list[Requirement]:
    """Every requirement of pyproject.toml."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lists.append(content["build-system"]["requires"])
    found = [Requirement(text) for texts in lists for text in texts]
    return [requirement for requirement in found if requirement.name != "mmssl"]


@pytest.mark.parametrize("name", FILES)
def test_names_packages_and_no_addresses(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--\S*(index|find-links|trusted)|\s@\s", text)
    assert requirements(name)


def test_minimums_are_the_lower_bounds(allowed):
    bounds = {
        (requirement.name, specifier.version)
        for requirement in allowed
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    pinned = requirements("requirements-minimums.txt")
    for requirement in pinned:
        for specifier in requirement.specifier:
            lowest = {version for name, version in bounds if name == requirement.name}
            same = {v for v in lowest if specifier.contains(v) or is_patch_of(specifier.version, v)}
            assert same, f"{requirement} is not a lower bound of pyproject.toml: {lowest}"
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for text in core["project"]["dependencies"]:
        assert Requirement(text).name in {requirement.name for requirement in pinned}


def is_patch_of(version: str, bound: str) -> bool:
    """1.11.1 of 1.11: the first release of a version does not always have wheels."""
    return version.startswith(f"{bound}.")


def test_the_lock_is_within_what_is_allowed(allowed):
    locked = requirements("requirements-lock.txt")
    for requirement in allowed:
        for pin in locked:
            if pin.name == requirement.name:
                (specifier,) = pin.specifier
                assert requirement.specifier.contains(specifier.version), (pin, requirement)
    torch = {r.name: str(r.specifier) for r in requirements("requirements-dev.txt")}["torch"]
    assert {str(pin.specifier) for pin in locked if pin.name == "torch"} == {torch}
