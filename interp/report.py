"""A report as one HTML file: text, tables and pictures inline, light and dark, no scripts, no network.

>>> page = Report("Demo", "What was run.")                                  # doctest: +SKIP
>>> page.section("Probe", "A probe for every pair.")                         # doctest: +SKIP
>>> page.figure(fit_figure(events), fit_figure(events, dark=True), "The fit.")  # doctest: +SKIP
>>> page.write("runs/demo/report.html")                                      # doctest: +SKIP
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "Table"]

_CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #22262d; --soft: #646b76; --line: #e2e5ea;
        --panel: #f6f7f9; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #d7dae0; --soft: #99a1ad; --line: #31353e;
          --panel: #1d2026; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
header { border-bottom: 3px solid var(--accent); padding-bottom: 1.2rem; margin-bottom: 1.6rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .4rem; letter-spacing: -.005em; }
p { max-width: 46rem; margin: .5rem 0 1rem; }
header p { color: var(--soft); margin: 0; max-width: none; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--panel);
       border-radius: .25rem; padding: .1em .35em; }
dl.numbers { display: grid; gap: .8rem; margin: 1.6rem 0;
             grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
dl.numbers div { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
                 padding: .8rem 1rem; display: flex; flex-direction: column-reverse;
                 justify-content: flex-end; }
dl.numbers dt { color: var(--soft); font-size: .82rem; line-height: 1.3; }
dl.numbers dd { margin: 0; font-size: 1.5rem; font-weight: 650; font-variant-numeric: tabular-nums; }
figure { margin: 1.4rem 0; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line);
             border-radius: .5rem; }
figcaption, .note { color: var(--soft); font-size: .9rem; margin-top: .5rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { text-align: left; padding: .38rem 1.4rem .38rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
footer { margin-top: 3.2rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
         font-size: .9rem; }
@media print { main { padding: 0; } h2, figure, table { break-inside: avoid; } }
"""


@dataclass
class Table:
    """A short table, for the terminal and for the report.

    Raises
    ------
    ValueError
        If a row has another number of cells than there are columns.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table: got a row of {len(row)} cells for {len(self.columns)} columns: {row}"
                )

    def text(self) -> str:
        """Aligned columns: the first to the left, the others to the right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        out = [self.title]
        for first, *rest in lines:
            cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
            out.append("  " + "  ".join(cells))
        return "\n".join([*out, self.note] if self.note else out)


class Report:
    """Collects the parts of a page, in order, and writes them as one file.

    Parameters
    ----------
    title : str
    lead : str
        One sentence under the title.

    Notes
    -----
    All text is escaped. Words between backticks are set as code.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self._parts = [f"<header><h1>{_text(title)}</h1><p>{_text(lead)}</p></header>"]

    def numbers(self, pairs: Iterable[tuple[str, str]]) -> None:
        """A row of key numbers, as ``(number, what it counts)``."""
        cells = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(n)}</dd></div>" for n, name in pairs)
        self._parts.append(f'<dl class="numbers">{cells}</dl>')

    def section(self, title: str, text: str = "") -> None:
        """A heading, with a paragraph under it."""
        self._parts.append(f"<h2>{_text(title)}</h2>")
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{_text(text)}</p>")

    def table(self, table: Table) -> None:
        """A table with its title and note under it; columns of numbers are aligned to the right."""
        columns, body = table.columns, table.rows
        right = [bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(columns))]

        def line(tag: str, cells: Sequence[str]) -> str:
            kinds = [' class="number"' if r else "" for r in right]
            return "<tr>" + "".join(f"<{tag}{k}>{_text(c)}</{tag}>" for k, c in zip(kinds, cells)) + "</tr>"

        rows_html = "".join(line("td", row) for row in body)
        self._parts.append(
            f'<div class="scroll"><table><thead>{line("th", columns)}</thead>'
            f"<tbody>{rows_html}</tbody></table></div>"
        )
        below = f"{table.title}. {table.note}".strip()
        self._parts.append(f'<p class="note">{_text(below)}</p>')

    def figure(self, light: Figure, dark: Figure, caption: str) -> None:
        """A picture in two versions; the reader's theme decides which one is seen."""
        bright, night = (_data_url(fig) for fig in (light, dark))
        width = round(light.get_figwidth() * 100)
        self._parts.append(
            f'<figure><picture><source srcset="{night}" media="(prefers-color-scheme: dark)">'
            f'<img src="{bright}" width="{width}" alt="{html.escape(caption, quote=True)}"></picture>'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )

    def footer(self, text: str) -> None:
        """Small print at the end."""
        self._parts.append(f"<footer><p>{_text(text)}</p></footer>")

    def html(self) -> str:
        """The page."""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body><main>\n"
            + "\n".join(self._parts)
            + "\n</main></body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`, whole or not at all; its folder is made."""
        return write_text(path, self.html())


def _text(text: str) -> str:
    """Escaped text, with `code` between backticks."""
    pieces = html.escape(text, quote=False).split("`")
    if len(pieces) % 2 == 0:  # a lone backtick stays what it is
        return "`".join(pieces)
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number; a dash stands for one that is not there."""
    bare = cell.strip().replace(",", "").removesuffix(" s").removesuffix("%").replace("−", "-").strip()
    if bare in ("–", ""):
        return True
    try:
        float(bare)
    except ValueError:
        return False
    return True


def _data_url(fig: Figure) -> str:
    from interp.live.plots import png

    return "data:image/png;base64," + base64.b64encode(png(fig, dpi=160)).decode()
