"""Turns the formulas of a page into MathML while the site is built, so that no script is needed."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves: \(...\) in a span, \[...\] in a div.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with the HTML of every page."""
    return _FORMULA.sub(
        lambda m: convert(unescape(m[3]), display="block" if m[2] == "[" else "inline"), html
    )
