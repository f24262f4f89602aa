"""``make hardening``: run the long checks and print one table of their counts.

Each part is a command whose last line of output is its count. Results are kept in
``build/hardening``, so that parts can be run one by one (``python -m tests.hardening corpus fuzz``)
and the table still shows all of them. The exit code is 1 if a part failed, 2 for an unknown part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "hardening"


class Part(NamedTuple):
    """One line of the table."""

    what: str
    command: list[str]


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _pytest(*files: str) -> list[str]:
    return _python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files)


PARTS = {
    "corpus": Part("malformed files", _python("-m", "tests.hostile.run")),
    "fuzz": Part("fuzzed readers", _python("-m", "tests.hostile.fuzz", "--seconds", "15")),
    "ops": Part(
        "bad arguments and extreme numbers",
        _pytest(*(f"tests/ops/test_{name}.py" for name in ("all_ops", "schemas"))),
    ),
    "threads": Part("callers, forks, exits", _pytest("tests/ops/test_threads.py")),
    "races": Part("kernels under ThreadSanitizer", ["bash", "csrc/tsan.sh"]),
    "sanitize": Part("ops under ASan and UBSan", ["bash", "csrc/sanitize.sh"]),
    "kills": Part("kills survived", _python("-m", "tests.hardening.kills", "--count", "100")),
    "soak": Part("memory of a long run", _python("-m", "tests.hardening.soak", "--steps", "10000")),
}


def run(name: str) -> dict[str, object]:
    """Run one part and keep its result and its output."""
    part = PARTS[name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    start = time.monotonic()
    with (KEPT / f"{name}.log").open("w+", encoding="utf-8", errors="replace") as log:
        code = subprocess.run(
            part.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        ).returncode
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    result = {
        "code": code,
        "seconds": round(time.monotonic() - start),
        "line": lines[-1][:160] if lines else "",
        "commit": _commit(),
    }
    (KEPT / f"{name}.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Run the named parts or all of them; print the table of all kept results."""
    names = sys.argv[1:] or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"error: parts are {' '.join(PARTS)}, got {unknown[0]}", file=sys.stderr)
        return 2
    KEPT.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in names:
        print(f"{name}: {PARTS[name].what} ...", flush=True)
        failed |= run(name)["code"] != 0
    print()
    for name, part in PARTS.items():
        try:
            result = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            print(f"{name:9s} {'not run':7s} {part.what}")
            continue
        state = "ok" if result["code"] == 0 else "FAILED"
        print(f"{name:9s} {state:7s} {result['seconds']:4d} s  {result['line']}")
        if result["code"] != 0 and name in names:
            print(f"          see {KEPT.relative_to(ROOT) / name}.log")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
