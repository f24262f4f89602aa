"""Tries the corpus on readers and on the command line: ``python -m tests.hostile.run [NAME...]``.

Each case has a folder of its own. A case holds when the reader or command ends in the one line it
should, or with the right result, and when nothing was executed, written or changed on the way. What
could exhaust memory or wait forever is tried in a process whose memory and time are limited.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmssl.cli import main as mmssl
from mmssl.errors import InputError
from tests.hostile.corpus import CASES
from tests.hostile.world import COMMANDS, READERS, Case, World, make_template, make_world, snapshot

SECONDS = 60
"""Time limit of one command."""
MEMORY = 2**30
"""Memory that an isolated process may take in addition to what its imports need."""
_UNPRIVILEGED = 65534


class TooLong(Exception):
    """A command that did not end in time."""


def failure(case: Case, template: Path, root: Path) -> str:
    """Return why a case fails, in one line; empty if it passes."""
    for number, name in enumerate(case.meets):
        # New for every attempt: a file that was recovered is no longer malformed.
        world = make_world(template, root / str(number))
        case.spoil(world)
        before = snapshot(world.root)
        with _unprivileged(world, "unreadable" in case.name):
            code, out, err = _attempt(name, world)
        why = _fault(case, world, before, code, out, err)
        if why:
            return f"{case.name} ({name}): {why}"
    return ""


def _fault(
    case: Case,
    world: World,
    before: dict[str, tuple[int, int]],
    code: int | None,
    out: str,
    err: str,
) -> str:
    if world.trap.exists():
        return "a payload was executed"
    if code is None:
        return err
    if any(not (c.isprintable() or c == "\n") for c in out + err):
        return "a control character reached the terminal"
    if case.words is None:
        return "" if code == 0 else f"expected the right result, got {code}: {err.strip()}"
    line = err.strip("\n").split("\n")[-1]
    if code != case.code or not line.startswith("error: "):
        return f"expected code {case.code} and a line, got {code}: {(err or out).strip()[-300:]}"
    if err.count("\n") != 1 + err.count("warning: ") or len(line) > 1000:
        return f"expected one line, got {err.count(chr(10))} of {len(err)} characters"
    missing = [word for word in case.words if word not in line]
    if missing:
        return f"expected {missing[0]!r} in the line, got {line}"
    if world.out.exists() or snapshot(world.root) != before:
        now = snapshot(world.root)
        changed = [name for name in {*before, *now} if before.get(name) != now.get(name)]
        return f"files were written or changed: {', '.join(sorted(changed)[:5])}"
    return ""


def _attempt(name: str, world: World) -> tuple[int | None, str, str]:
    """Return exit code, output and errors; code None and the reason if it raised."""
    out, err = io.StringIO(), io.StringIO()

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = mmssl(COMMANDS[name](world)) if name in COMMANDS else _read(READERS[name], world)
    except TooLong:
        return None, "", f"still running after {SECONDS} s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return None, "", f"{type(error).__name__} at {place}: {error!s:.200}".replace("\n", " ")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, out.getvalue(), err.getvalue()


def _read(reader: Callable[[World], object], world: World) -> int:
    """A reader instead of a command, which would print its `InputError` as the one line."""
    try:
        reader(world)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _unprivileged(world: World, wanted: bool) -> Iterator[None]:
    """A user whom permissions bind, where root is running the tests."""
    if not wanted or os.geteuid() != 0:
        yield
        return
    for folder in [world.root, *world.root.parents]:
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(_UNPRIVILEGED)
    try:
        yield
    finally:
        os.seteuid(0)


def run_isolated(names: Sequence[str], template: Path) -> dict[str, str]:
    """Try cases in one limited process; return case -> why it fails."""
    command = [sys.executable, "-m", "tests.hostile.run", "--template", str(template), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=SECONDS * 10
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    for name in names:
        found.setdefault(
            name, f"{name}: the process ended ({done.returncode}): {done.stderr[-300:]}"
        )
    return found


def _limit_memory() -> None:
    import torch  # everything is imported before the limit is set

    import mmssl.report
    import mmssl.training.trainer  # noqa: F401

    torch.ones(8).sum()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Try the named cases under limits, or the whole corpus; print one line of counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--template", type=Path, help="of another process: try the named cases")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmssl-hostile-") as scratch:
        root = Path(scratch)
        if arguments.template:
            _limit_memory()
            for number, name in enumerate(arguments.names):
                why = failure(CASES[name], arguments.template, root / str(number))
                print(json.dumps([name, why]), flush=True)
            return 0
        return _whole(root, arguments.names or list(CASES))


def _whole(root: Path, names: list[str]) -> int:
    import torch

    torch.set_num_threads(1)
    template = root / "template"
    with contextlib.redirect_stdout(io.StringIO()):
        make_template(template)
    isolated = [name for name in names if CASES[name].isolated]
    found = run_isolated(isolated, template) if isolated else {}
    for number, name in enumerate(names):
        if name not in found:
            found[name] = failure(CASES[name], template, root / str(number))
            shutil.rmtree(root / str(number), ignore_errors=True)
    failures = [why for why in found.values() if why]
    print("\n".join(failures), file=sys.stderr)
    on_command_line = sum(not READERS.keys() >= {*CASES[name].meets} for name in names)
    print(
        f"corpus: {len(names)} malformed files, {on_command_line} of them on the command line, "
        f"{len(isolated)} in a limited process; {len(failures)} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
