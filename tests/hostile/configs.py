"""Malformed configuration files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.hostile.world import Case, World, cases, naming, no_file_cases, sparse

READ = ("config file",)
CONFIG = ("config",)
ON_THE_COMMAND_LINE = ("not TOML", "control characters", "a field name with a line end")
FILE = "mine.toml"


def _bytes(content: str | bytes) -> Callable[[World], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda w: w.config.write_bytes(data)


_REFUSED: dict[str, tuple[str | bytes, str]] = {
    "not TOML": ("a = [", "not valid TOML"),
    "JSON": ('{"model": {}}', "not valid TOML"),
    "a key twice": ("variant = 'paper'\nvariant = 'paper'\n", "not valid TOML"),
    "a section twice": ("[model]\n[model]\n", "not valid TOML"),
    "not UTF-8": (b"variant = '\xff'", "UTF-8"),
    "UTF-16": ("[model]\n".encode("utf-16"), "UTF-8"),
    "NUL bytes": (b"\0" * 100, "not valid TOML"),
    "a pickle": (b"\x80\x04K\x01.", "UTF-8"),
    "control characters": ("variant = 'a\x1b[2Jb'", "not valid TOML"),
    "5,000 open lists": ("a = " + "[" * 5000, "not valid TOML"),
    "5,000 nested tables": ("a." * 5000 + "b = 1", FILE),
    "a number of 5,000 digits": ("[model]\nembedding_dim = " + "9" * 5000, FILE),
    "a number of 400 digits": ("[model]\nembedding_dim = " + "9" * 400, "an integer"),
    "400 digits for a float": ("[training]\nlr = " + "9" * 400, "a finite number"),
    "NaN": ("[training]\nlr = nan", "a finite number"),
    "infinity": ("[training]\nlr = inf", "a finite number"),
    "an overflowing float": ("[training]\nlr = 1e999", "a finite number"),
    "a boolean for a number": ("[training]\nlr = true", "a finite number"),
    "a float for an integer": ("[training]\nepochs = 1.0", "an integer"),
    "text for a number": ("[training]\nlr = 'fast'", "a finite number"),
    "a date for a number": ("[training]\nlr = 2026-01-01", "a finite number"),
    "a list for a number": ("[training]\nlr = [1]", "a finite number"),
    "a long text for a number": (f"[training]\nlr = '{'x' * 100_000}'", "a finite number"),
    "a negative width": ("[model]\nembedding_dim = -64", ">= 1"),
    "a width of zero": ("[model]\nembedding_dim = 0", ">= 1"),
    "a list of three rates": ("[critic]\ndropout = [0.1, 0.2, 0.3]", "critic.dropout"),
    "an unknown field": ("[model]\nwidth = 3", "model.width"),
    "an unknown section": ("[modle]\nwidth = 3", "modle"),
    "a field name with a line end": ('[model]\n"a\\nb" = 3', "unknown field"),
    "a field name of 100,000 letters": (f"[model]\n{'x' * 100_000} = 3", "unknown field"),
    "a number for a section": ("model = 3", "expected a section"),
    "a list of sections": ("[[model]]\nembedding_dim = 8", "expected a section"),
    "a section for a field": ("[training.lr]\nx = 1", "a finite number"),
    "a private name": ("[model]\n__class__ = 1", "unknown field"),
    "another variant": ("variant = 'best'", "paper, released or plus"),
}


def _touched(w: World) -> Path:
    """Create the optional file, so that a case can replace it."""
    w.config.touch()
    return w.config


CASES = [
    *cases(
        FILE,
        naming(FILE, _REFUSED),
        _bytes,
        reader="config file",
        commands=CONFIG,
        on_command_line=ON_THE_COMMAND_LINE,
    ),
    *no_file_cases(FILE, "config file", _touched),
    Case(
        f"{FILE}: a sparse terabyte",
        lambda w: sparse(2**40)(w.config),
        CONFIG,
        (FILE, "at most"),
        isolated=True,
    ),
    Case(
        f"{FILE}: more weights than there is memory",
        _bytes("[model]\nembedding_dim = 1000000000000"),
        CONFIG,
        ("out of memory",),
        isolated=True,
        code=1,
    ),
    Case(
        f"{FILE}: more weights than there are addresses",
        _bytes("[model]\nembedding_dim = 1000000000000000000"),
        CONFIG,
        ("out of memory",),
        isolated=True,
        code=1,
    ),
    Case(f"{FILE}: byte order mark", _bytes(b"\xef\xbb\xbf[model]\n"), READ, None),
    Case(f"{FILE}: CRLF", _bytes(b"[model]\r\nembedding_dim = 8\r\n"), CONFIG, None),
    Case(f"{FILE}: empty", _bytes(b""), READ, None),
]
