"""Command-line interface: each module parses the arguments of one command and prints its result.

Exit codes: 0 success; 1 internal error; 2 invalid input or usage; 130 or 143 interrupted by SIGINT
or SIGTERM, with the checkpoint saved.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from mmssl import __version__
from mmssl.cli import (
    bench,
    data,
    doctor,
    evaluate,
    export,
    features,
    recommend,
    report,
    train,
    tune,
)
from mmssl.cli.common import Parser, printable
from mmssl.distributed import launched, reports_early
from mmssl.errors import Diverged, InputError, LostProcess, NoKernel

_COMMANDS = (data, features, train, tune, evaluate, recommend, report, export, bench, doctor)


def command() -> NoReturn:
    """Run the command of this process, then end the process.

    If it has failed and torchrun has started it, the process ends at once, without what Python does
    at its end: other processes wait for that, and it takes seconds on a busy machine.
    """
    if not launched():
        sys.exit(main())
    code: Any = 1
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    if code in (0, None) or not isinstance(code, int):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # titles may not be encodable on the terminal
                stream.reconfigure(errors="backslashreplace")
        arguments = _parsed(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (InputError, Diverged, NoKernel) as error:
        message = str(error)
    except BrokenPipeError:  # `mmssl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = f"{error.filename or 'system'}: {error.strerror or error}"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except LostProcess as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["allocation failed"])[0]
        if _IN_OPERATOR in reason:
            reason = "an operator of this package could not allocate its result"
        print(f"error: out of memory: {printable(reason)}", file=sys.stderr)
        return 1
    print(f"error: {printable(message)}", file=sys.stderr)
    return 2


_IN_OPERATOR = '"aten::new_empty"'  # what torch's stable ABI says of a failed allocation


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return build_parser().parse_args(argv)
    except InputError:
        if not reports_early():
            raise SystemExit(2) from None
        raise


def _out_of_memory(error: Exception) -> bool:
    """Detect failed allocations, which torch reports as a plain RuntimeError on the CPU."""
    words = [_IN_OPERATOR, "can't allocate memory", "not enough memory", "out of memory"]
    words.append("size calculation over")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with all commands, in the order in which the help lists them."""
    parser = Parser(
        prog="mmssl", description="Train, evaluate and serve multi-modal recommender models."
    )
    parser.add_argument("--version", action="version", version=f"mmssl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in _COMMANDS:
        command.add(commands)
    return parser
