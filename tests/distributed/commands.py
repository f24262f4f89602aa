"""Several commands, one after the other, in every process that torchrun has started.

``torchrun ... -m tests.distributed.commands FOLDER`` runs the lists of arguments of
``FOLDER/commands.json`` and writes the exit code and the output of each to ``NUMBER.RANK.json``.
The word RANK in an argument stands for the process's own.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from mmssl.cli import main


def run_all(folder: Path) -> None:
    rank = os.environ["RANK"]
    for number, arguments in enumerate(json.loads((folder / "commands.json").read_text())):
        # A group of its own in the store that torchrun keeps for all.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([argument.replace("RANK", rank) for argument in arguments])
            except SystemExit as error:
                code = error.code
        result = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        (folder / f"{number}.{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
