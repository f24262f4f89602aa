"""Griffe extension that converts what docstrings have in place of Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Extension that replaces roles (``:func:`x```) with code and ``::`` with a colon.

    ``Example:`` becomes ``Examples:``, the name under which the parser takes ``>>>`` as code, and
    the ``>`` of an argument's range, as in ``temperature: > 0``, no longer begins a quotation.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Convert the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            text = re.sub(r"^( +\w+: )>", r"\1\\>", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
