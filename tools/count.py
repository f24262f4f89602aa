"""Counts what makes the repository easy or hard to read: ``python -m tools.count [--check]``.

Prints a table of counts and their goals; ``--verbose`` adds what was counted. With ``--check`` the
exit code is 1 if a count is above its goal. `duplicates`, which finds repeated code, is an optional
external command; its line is skipped where it is not installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools import tree

OP = "info_nce"  # is read from its Python function to its kernels
ADDED = "add_normalized"  # counts the places that adding an op touches
STEP = "mmssl/models/mmssl/step.py"
# Read once, for every op.
INFRASTRUCTURE = ("mmssl/ops/_", "csrc/common/", "csrc/library.cpp")
# Not followed from a training step: read once, for every model.
BOUNDARY = ("mmssl.ops", "mmssl.graph", "mmssl.indexing", "mmssl.config", "mmssl.errors")
CORE = ("mmssl/ops", "mmssl/models", "mmssl/training")
CORE_NEEDS = {"torch", "numpy", "safetensors", "tomli"}  # tomli: Python 3.10 has no tomllib
MAX_LINES = 400
VOCABULARY = Path(__file__).with_name("vocabulary.txt")
# LICENSE is not ours to word; the lock file and the results are generated.
NOT_PROSE = ("tools/vocabulary.txt", "benchmarks/results/", "LICENSE", "requirements-lock.txt")


@dataclass
class Count:
    """One line of the table."""

    what: str
    found: list[str]
    """What was counted."""
    goal: int | None
    """The largest number allowed; None for a line that only informs."""
    notes: list[str] = field(default_factory=list)
    """More for ``--verbose``."""
    absent: str = ""
    """What should have been counted and does not exist: the goal is missed."""
    skipped: str = ""
    """Why nothing could be counted here: the goal is not checked."""

    @property
    def holds(self) -> bool:
        """Whether the goal is reached, or can't be checked here."""
        if self.absent or self.skipped:
            return not self.absent
        return self.goal is None or len(self.found) <= self.goal

    def line(self) -> str:
        """The line of the table."""
        if self.absent:
            return f"{self.what:58s} not counted: {self.absent}"
        if self.skipped:
            return f"{self.what:58s} skipped: {self.skipped}"
        goal = "" if self.goal is None else f"goal {self.goal:3d}  "
        state = "" if self.goal is None else ("ok" if self.holds else "ABOVE")
        return f"{self.what:58s} {len(self.found):4d}  {goal}{state}".rstrip()


def _missing(*paths: str) -> str:
    absent = [path for path in paths if not (tree.ROOT / path).exists()]
    return f"{' and '.join(absent)} does not exist" if absent else ""


def read_an_op() -> list[Count]:
    """Files from the Python function to the kernels, and what is read once for all ops."""
    # 10 and, until a GPU has judged between them, the second and the third set of CUDA kernels.
    what, goal = f"files to read for {OP}", 16
    folder = f"csrc/ops/{OP}"
    if absent := _missing(f"mmssl/ops/{OP}.py", folder):
        return [Count(what, [], goal, absent=absent)]
    tests = r"emulat|_test\.|/test_|/race\."
    own = [path for path in tree.under(folder) if not re.search(tests, path)]
    files = [f"mmssl/ops/{OP}.py", *own, *tree.included(own, "csrc/gemm")]
    once = [path for path in tree.tracked() if path.startswith(INFRASTRUCTURE)]
    return [Count(what, files, goal), Count("  read once for all ops", once, None)]


# CONTRIBUTING's places to add an op: what it says -> the paths (patterns) that belong to it.
PLACES = {
    "mmssl/ops/x.py": "mmssl/ops/{op}.py",
    "mmssl/ops/__init__.py": "mmssl/ops/__init__.py",
    "csrc/ops/x/": "csrc/ops/{op}/.*",
    "tests/ops/truth.py": "tests/ops/truth.py",
    "tests/ops/test_x.py and calls past the Python checks": "tests/ops/test_.*",
    "benchmarks": "benchmarks/.*",
    "the page in the docs": "docs/ops/{op}.md|docs/reference/ops.md|docs/cuda.md|mkdocs.yml",
    "generated tables": "README.md|docs/ops/index.md",
    "CHANGELOG.md": "CHANGELOG.md",
}


def add_an_op() -> list[Count]:
    """Places that name an existing op: those of CONTRIBUTING, and any other; callers apart."""
    what = f"places to add an op, counted for {ADDED}"
    if absent := _missing(f"mmssl/ops/{ADDED}.py", f"csrc/ops/{ADDED}"):
        return [Count(what, [], 9, absent=absent)]
    places: dict[str, list[str]] = {}
    callers = []
    for path in tree.tracked():
        if path.startswith(("benchmarks/results/", "tools/")):
            continue
        if ADDED not in tree.text(path) and ADDED not in path:
            continue
        outside = ("mmssl/", "tests/")
        if path.startswith(outside) and not path.startswith(("mmssl/ops/", "tests/ops/")):
            callers.append(path)
            continue
        patterns = ((place, form.format(op=ADDED)) for place, form in PLACES.items())
        place = next((place for place, form in patterns if re.fullmatch(form, path)), path)
        places.setdefault(place, []).append(path)
    found = [f"{place}: {', '.join(paths)}" for place, paths in places.items()]
    return [Count(what, found, 9), Count("  that call it", callers, None)]


def training_step() -> list[Count]:
    """Files that a training step of the model MMSSL is read in."""
    what = "files of a training step"
    if absent := _missing(STEP):
        return [Count(what, [], 12, absent=absent)]
    files, boundary = tree.reached(STEP, boundary=BOUNDARY)
    return [Count(what, files, 12), Count("  ops, graph and configuration", boundary, None)]


def duplicates() -> list[Count]:
    """Pairs of places that share code, but for boilerplate."""
    what = "pairs of duplicates"
    command = shutil.which("duplicates")
    if command is None:
        return [Count(what, [], 15, skipped="the command duplicates is not installed")]
    arguments = [command, "--repo", str(tree.ROOT), "--most", "200", "--seconds", "120"]
    lines = subprocess.run(arguments, capture_output=True, text=True).stdout.splitlines()
    pairs = [line for line in lines if re.match(r"D\d+ ", line)]
    return [Count(what, [pair for pair in pairs if "boilerplate" not in pair], 15)]


def long_files() -> list[Count]:
    """Files of code above the limit."""
    found = []
    for path in tree.tracked():
        if Path(path).suffix in tree.CODE or Path(path).name == "Makefile":
            lines = tree.text(path).count("\n")
            if lines > MAX_LINES:
                found.append(f"{path}: {lines} lines")
    return [Count(f"files of code over {MAX_LINES} lines", found, 0)]


def import_cycles() -> list[Count]:
    """Modules that import each other when they are loaded."""
    found = [", ".join(group) for group in tree.cycles("mmssl")]
    lazy = [", ".join(group) for group in tree.cycles("mmssl", lazy=True)]
    notes = [f"with imports inside functions: {group}" for group in lazy if group not in found]
    return [Count("import cycles", found, 0, notes)]


def vocabulary() -> list[Count]:
    """Words of private vocabulary in comments, strings and pages."""
    lines = VOCABULARY.read_text(encoding="utf-8").splitlines()
    words = [line for line in lines if line and not line.startswith("#")]
    pattern = re.compile("|".join(words), re.IGNORECASE)
    found = []
    for path in tree.tracked():
        if path.startswith(NOT_PROSE):
            continue
        for number, line in tree.prose(path):
            found += [f"{path}:{number}: {match[0]}" for match in pattern.finditer(line)]
    return [Count("words of private vocabulary", sorted(set(found)), 0)]


def heavy_imports() -> list[Count]:
    """Files of the core that need more than torch, numpy and safetensors when they are imported."""
    found = []
    for path in tree.under(*CORE, suffix=".py"):
        more = tree.third_party(path) - CORE_NEEDS
        if more:
            found.append(f"{path}: {', '.join(sorted(more))}")
    return [Count("files of ops, models, training with other imports", found, 0)]


COUNTS: dict[str, Callable[[], list[Count]]] = {
    "read-op": read_an_op,
    "add-op": add_an_op,
    "step": training_step,
    "duplicates": duplicates,
    "lines": long_files,
    "cycles": import_cycles,
    "vocabulary": vocabulary,
    "imports": heavy_imports,
}


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 if ``--check`` finds a count above its goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", nargs="*", metavar="COUNT", help=f"of {', '.join(COUNTS)}")
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    parser.add_argument("--verbose", action="store_true", help="list what was counted")
    options = parser.parse_args(argv)
    unknown = [name for name in options.counts if name not in COUNTS]
    if unknown:
        parser.error(f"expected counts among {', '.join(COUNTS)}, got {unknown[0]}")
    missed = False
    for name in options.counts or COUNTS:
        for count in COUNTS[name]():
            print(count.line())
            if options.verbose or (options.check and not count.holds):
                print("".join(f"    {line}\n" for line in [*count.found, *count.notes]), end="")
            missed |= not count.holds
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
