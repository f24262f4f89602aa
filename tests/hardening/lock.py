"""Write requirements-lock.txt: one version of every package of the development environment.

uv resolves it for every supported version of Python; torch is pinned as in requirements-dev.txt. To
install it: ``pip install -c requirements-lock.txt -r requirements-dev.txt``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements-lock.txt"
EXTRAS = ("dev", "fuzz")
HEADER = """\
# One version of every package of the development environment; written by `make lock`.
# pip install -c requirements-lock.txt -r requirements-dev.txt
# pip install -c requirements-lock.txt --no-build-isolation -e ".[dev]"
"""


def main() -> int:
    """Resolve and write; return 1 if uv fails."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.10", "--no-header", "--no-annotate"]
    command += [f"--extra={extra}" for extra in EXTRAS]
    command += ["pyproject.toml", "requirements-dev.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"error: uv could not resolve: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return 1
    # Index addresses are left out: they depend on where the file was made.
    lines = [line for line in done.stdout.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{LOCK.name}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
