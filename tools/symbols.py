"""What a compiled module imports and exports, and whether it loads on older systems and torches.

``python -m tools.symbols FILE...`` prints one line per violation of the rules of :func:`violations`
and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PLATFORM = "manylinux_2_28"
# The newest versions that the policy of PLATFORM (PEP 600) allows.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
# All that mmssl._C and mmssl._C_cuda may ask of Python: it is in the limited API of every version.
LIMITED_API = {"PyModule_Create2"}
_TORCH_CPP = re.compile(r"_Z[A-Z]*K?(2at|3c10|5torch)")
_STANDARD_CPP = re.compile(r"_ZN?[A-Z]*K?S[a-z]|_ZN?K?St")


class Symbol(NamedTuple):
    """An entry of the dynamic symbol table."""

    name: str
    version: str
    """``LIBRARY_1.2.3``; empty for a symbol without a version."""
    defined: bool


def symbols(module: Path) -> list[Symbol]:
    """Return the dynamic symbols of a module, by ``readelf`` of binutils."""
    command = ["readelf", "--wide", "--dyn-syms", str(module)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit() or fields[4] == "LOCAL":
            continue
        name, _, version = fields[7].replace("@@", "@").partition("@")
        found.append(Symbol(name, version, fields[6] != "UND"))
    return found


def violations(module: Path) -> list[str]:
    """Return what would keep a module from loading where its wheel says that it loads.

    The rules: no version of glibc, libstdc++ or libgcc that is newer than those of PLATFORM; no C++
    symbol of torch, whose C++ interface changes with every version; no symbol of the C++ standard
    library without a version, since the linker found it in one of torch's libraries; no function of
    Python outside the limited API in a module named ``*.abi3.so``; no export but ``PyInit_*``.
    """
    found = []
    for symbol in symbols(module):
        if symbol.defined:
            if not symbol.name.startswith(("PyInit_", "_init", "_fini")):
                found.append(f"exports {symbol.name}")
            continue
        library, _, number = symbol.version.rpartition("_")
        newest = NEWEST.get(library)
        if newest and tuple(map(int, number.split("."))) > newest:
            found.append(f"needs {symbol.name} of {symbol.version}, newer than {PLATFORM}")
        if _TORCH_CPP.match(symbol.name):
            found.append(f"imports {symbol.name} of torch's C++ interface")
        elif _STANDARD_CPP.match(symbol.name) and not symbol.version:
            found.append(f"imports {symbol.name} from another library than libstdc++")
        if module.name.endswith(".abi3.so") and re.match("_?Py", symbol.name):
            if symbol.name not in LIMITED_API:
                found.append(f"imports {symbol.name}, which is outside the limited API")
    return found


def main() -> int:
    """Check the modules given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.symbols", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("modules", nargs="+", type=Path)
    lines = [
        f"{module}: {violation}"
        for module in parser.parse_args().modules
        for violation in violations(module)
    ]
    print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
