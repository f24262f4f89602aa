"""Coverage-guided fuzzing of the readers: ``python -m tests.hostile.fuzz [--seconds N] [GROUP]``.

Needs atheris (the ``fuzz`` extra). A group starts from valid files and from mutations of single
values; libFuzzer changes bytes from there, towards code that was not reached yet. A reader may
raise InputError; every other exception is a finding, kept in ``build/fuzz/GROUP``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOUND = Path("build/fuzz")
INSTRUMENTED = ["mmssl", "json", "tomllib", "tomli", "zipfile", "numpy.lib"]


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one group in this process, which ends with it."""
    import atheris

    # Only these modules report the branches that an input took.
    with atheris.instrument_imports(include=INSTRUMENTED):
        import mmssl.config
        import mmssl.data.catalog
        import mmssl.data.importing.importer
        import mmssl.data.readers
        import mmssl.report.log
        import mmssl.training.checkpoint  # noqa: F401
    from tests.hostile.targets import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="mmssl-fuzz-") as scratch:
        run = target(Path(scratch))
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(run.seeds):
            (corpus / str(number)).write_bytes(seed)
        found = FOUND / name
        found.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={seconds}", "-max_len=65536", "-rss_limit_mb=4096"]
        options += [f"-artifact_prefix={found}/", "-timeout=25", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], run.check)
        atheris.Fuzz()


def run_group(name: str, seconds: int) -> tuple[int, str]:
    """Run one group in a subprocess; return its executions and why it ended early."""
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--child", name]
    command += ["--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    text = done.stdout + done.stderr
    executions = re.findall(r"stat::number_of_executed_units: (\d+)|^#(\d+)\s", text, re.MULTILINE)
    count = max((int(a or b) for a, b in executions), default=0)
    if done.returncode == 0 and count:
        return count, ""
    error = re.search(r"=== Uncaught Python exception: ===\n(.*)", text)
    reason = error[1] if error else text.strip()[-300:]
    return count, f"{name}: {reason} (input in {FOUND / name})"


def main() -> int:
    """Fuzz the groups one after the other and print one line of counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "groups", nargs="*", help="targets of tests/hostile/targets.py; default: all"
    )
    parser.add_argument("--seconds", type=int, default=20, help="seconds for each group")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        fuzz(arguments.groups[0], arguments.seconds)
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        print('fuzz: atheris is not installed: pip install "mmssl[fuzz]"', file=sys.stderr)
        return 2
    from tests.hostile.targets import TARGETS

    total, failures = 0, []
    for name in arguments.groups or TARGETS:
        count, why = run_group(name, arguments.seconds)
        total += count
        failures += [why] if why else []
        print(f"  {name}: {count:,} executions{', FOUND SOMETHING' if why else ''}", flush=True)
    print("\n".join(failures), file=sys.stderr)
    groups = len(arguments.groups or TARGETS)
    print(f"fuzz: {total:,} executions over {groups} groups of readers; {len(failures)} findings")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
