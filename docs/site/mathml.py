"""MkDocs hook that converts formulas to MathML at build time, so that pages need no scripts."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

# The output of pymdownx.arithmatex: \(...\) in a span or \[...\] in a div.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Convert the formulas in the HTML of a page."""
    return _FORMULA.sub(
        lambda m: convert(unescape(m[3]), display="block" if m[2] == "[" else "inline"), html
    )
