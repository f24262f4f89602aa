"""``report.md`` and ``report.html`` of result files; the page is one file that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.harness.record import Results, read_all
from benchmarks.report.plots import Picture, pictures
from benchmarks.report.tables import Table, environment_lines, missing, tables
from mmssl.errors import InputError

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1d21;--muted:#676d76;--line:#dfe2e6;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9ec;--muted:#99a0aa;--line:#32363d;--page:#16181c}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:70rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.6rem;margin:0}
h2{font-size:1.25rem;margin:3rem 0 .25rem}h3{font-size:1rem;margin:2rem 0 0}
p,li{max-width:52rem}.muted{color:var(--muted)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85rem;margin:.5rem 0}
th,td{padding:.3rem .75rem .3rem 0;text-align:right;border-bottom:1px solid var(--line)}
th{font-weight:500;color:var(--muted);vertical-align:bottom}
th:first-child,td:first-child{text-align:left;white-space:nowrap}
figure{margin:.75rem 0;background:#fff;border-radius:.5rem;padding:.5rem;overflow-x:auto}
svg{max-width:100%;height:auto}svg text{font-family:system-ui,sans-serif!important}
"""


def write(files: Sequence[Path], out: Path) -> list[Path]:
    """Writes both into a folder.

    Raises:
        InputError: a file is not a result.
    """
    results = read_all(files)
    if not results:
        raise InputError(
            f"bench report: expected result files, got none in {', '.join(map(str, files))}"
        )
    out.mkdir(parents=True, exist_ok=True)
    content = {"report.md": markdown(results), "report.html": html(results)}
    for name, text in content.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in content]


def markdown(results: Sequence[Results]) -> str:
    """Tables only."""
    parts = ["# Benchmark results\n"]
    for file in results:
        parts.append(f"## {_title(file)}\n")
        parts.append("\n".join(f"- {line}" for line in environment_lines(file.environment)) + "\n")
        for table in tables(file):
            parts.append(f"### {table.title}\n\n{table.text}\n\n{table.markdown()}\n")
        if lines := missing(file):
            parts.append("Not measured:\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    return "\n".join(parts)


def html(results: Sequence[Results]) -> str:
    """Tables and pictures."""
    body = ["<h1>Benchmark results</h1>"]
    for file in results:
        body.append(f"<h2>{escape(_title(file))}</h2>")
        lines = "<br>".join(escape(line) for line in environment_lines(file.environment))
        body.append(f'<p class="muted">{lines}</p>')
        body += _figures(file)
        body += [_table(table) for table in tables(file)]
        if lines_ := missing(file):
            items = "".join(f"<li>{escape(line)}</li>" for line in lines_)
            body.append(f"<h3>Not measured</h3><ul>{items}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>mmssl benchmarks</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _figures(file: Results) -> list[str]:
    """Return the pictures, or without matplotlib the reason why they are missing."""
    try:
        return [_figure(picture) for picture in pictures([file])]
    except InputError as reason:
        return [f'<p class="muted">No pictures: {escape(str(reason))}</p>']


def _title(file: Results) -> str:
    smoke = " (smoke: sizes too small to mean anything)" if file.environment.get("smoke") else ""
    return f"{file.suite}, {file.environment['name']}{smoke}"


def _figure(picture: Picture) -> str:
    return (
        f'<h3>{escape(picture.title)}</h3><p class="muted">{escape(picture.text)}</p>'
        f"<figure>{picture.svg}</figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<h3>{escape(table.title)}</h3><p class="muted">{escape(table.text)}</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
