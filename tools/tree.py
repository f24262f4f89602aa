"""The tracked files of the repository, and what they import and include."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CODE = {".py", ".pyi", ".c", ".cpp", ".h", ".cu", ".cuh", ".sh", ".css"}
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


class Import(NamedTuple):
    """One imported module, as far as it can be told without running anything."""

    module: str
    lazy: bool
    """Inside a function, so that it runs when the function is called."""


@functools.cache
def tracked() -> list[str]:
    """Paths of all tracked files and of new files that git does not ignore, sorted."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(name for name in set(done.stdout.splitlines()) if (ROOT / name).is_file())


def text(path: str) -> str:
    """The content of a file; empty if it is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def under(*folders: str, suffix: str = "") -> list[str]:
    """Tracked files in the folders, by the end of their name."""
    prefixes = tuple(f"{folder}/" for folder in folders)
    return [path for path in tracked() if path.startswith(prefixes) and path.endswith(suffix)]


def file_of(module: str) -> str | None:
    """The file of a module of this repository, e.g. of ``mmssl.ops.spmm``."""
    base = module.replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


@functools.cache
def imports(path: str) -> tuple[Import, ...]:
    """What a Python file imports at run time.

    ``from package import name`` is the submodule ``package.name`` if that is a file, which also
    covers the case of a function that has its module's name, and ``package`` otherwise. Imports
    under ``if TYPE_CHECKING`` do not run and are left out.
    """
    found = dict.fromkeys(_walk(ast.parse(text(path)), path, lazy=False))
    return tuple(found)


def _walk(node: ast.AST, path: str, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _walk(other, path, lazy)
        elif isinstance(child, ast.Import):
            yield from (Import(alias.name, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _base(child, path)
            for alias in child.names:
                submodule = f"{base}.{alias.name}"
                yield Import(submodule if file_of(submodule) else base, lazy)
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _walk(child, path, lazy or function)


def _base(node: ast.ImportFrom, path: str) -> str:
    """The package that ``from ... import`` names, with relative names resolved."""
    if not node.level:
        return node.module or ""
    package = list(Path(path).parent.parts)
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def reached(
    start: str, follow: Iterable[str] = ("mmssl",), boundary: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Files that a file imports, directly or not, itself included.

    Args:
        start: the first file.
        follow: packages whose modules are followed.
        boundary: modules or packages that are listed and not followed.

    Returns:
        The files followed, and the files of the boundary.
    """
    follow, boundary = tuple(follow), tuple(boundary)
    found: dict[str, None] = {}
    stopped: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        found[path] = None
        for module, _ in imports(path):
            file = file_of(module)
            if file is None or not _within(module, follow):
                continue
            if _within(module, boundary):
                stopped.add(file)
            else:
                waiting.append(file)
    return list(found), sorted(stopped)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def third_party(path: str) -> set[str]:
    """Distributions that importing a file loads, beyond the standard library and this repository.

    Only imports at module level count, those of the modules it imports included.
    """
    seen, waiting, found = set(), [path], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for module, lazy in imports(current):
            top = module.split(".")[0]
            file = file_of(module)
            if lazy or top in sys.stdlib_module_names:
                continue
            if file is not None:
                waiting.append(file)
            elif top not in ("mmssl", ""):
                found.add(top)
    return found


def cycles(package: str, *, lazy: bool = False) -> list[list[str]]:
    """Groups of files of a package that import each other.

    Args:
        package: its folder.
        lazy: count imports inside functions, too.
    """
    files = under(package, suffix=".py")
    edges = {
        path: {
            file
            for module, is_lazy in imports(path)
            if (lazy or not is_lazy) and (file := file_of(module)) and file != path
        }
        for path in files
    }
    reach = {path: _reach(path, edges) for path in files}
    groups: list[list[str]] = []
    for path in files:
        group = sorted(other for other in reach[path] if path in reach.get(other, ()))
        if group and group not in groups:
            groups.append(group)
    return groups


def _reach(start: str, edges: dict[str, set[str]]) -> set[str]:
    """What a path leads to; itself only if it leads back."""
    found: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(edges.get(path, ()))
    return found


def included(paths: Iterable[str], folder: str) -> list[str]:
    """Files of a folder that C++ or CUDA files include, directly or by way of that folder."""
    found: set[str] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        for name in _INCLUDE.findall(text(path)):
            for base in ("csrc", str(Path(path).parent)):
                file = f"{base}/{name}"
                if file.startswith(f"{folder}/") and (ROOT / file).is_file() and file not in found:
                    found.add(file)
                    waiting.append(file)
    return sorted(found)


def prose(path: str) -> Iterator[tuple[int, str]]:
    """Lines of a file that people read: comments and strings of code, everything elsewhere."""
    content = text(path)
    suffix = Path(path).suffix
    if suffix in (".py", ".pyi"):
        yield from _python_prose(content)
    elif suffix in CODE:
        pattern = (
            r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"' if suffix != ".sh" else r"#[^\n]*|\"[^\"]*\""
        )
        for match in re.finditer(pattern, content, re.DOTALL):
            first = content.count("\n", 0, match.start()) + 1
            yield from enumerate(match[0].split("\n"), first)
    else:
        yield from enumerate(content.split("\n"), 1)


def _python_prose(content: str) -> Iterator[tuple[int, str]]:
    import io
    import tokenize

    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in kinds:
            yield from enumerate(token.string.split("\n"), token.start[0])
