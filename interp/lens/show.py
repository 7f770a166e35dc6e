"""Lenses in a notebook: coloured text, a table of grades. Plain HTML, everything escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.lens.library import Lenses, LensReport

__all__ = ["Highlight", "lenses_html"]


class Highlight:
    """Tokens coloured by the strength of a lens each; shows itself in a notebook.

    Parameters
    ----------
    tokens : list of str
    strengths : list of float
        See `Lenses.strength`: 1 is exceeded by 5 % of the tokens of texts without the concept.
    reports : list of LensReport
        Of the lens behind each colour; its name and grade are the tooltip.
    """

    def __init__(
        self, tokens: Sequence[str], strengths: Sequence[float], reports: Sequence[LensReport]
    ) -> None:
        self.tokens, self.strengths, self.reports = list(tokens), list(strengths), list(reports)

    def __repr__(self) -> str:
        return " ".join(
            f"{t}({r.term} {s:.1f})" if s >= 1 else t
            for t, s, r in zip(self.tokens, self.strengths, self.reports, strict=True)
        )

    def _repr_html_(self) -> str:
        spans = []
        for token, strength, report in zip(self.tokens, self.strengths, self.reports, strict=True):
            # Nothing below 1, full from 3; a translucent colour reads on light and dark pages alike.
            alpha = min(max((strength - 1) / 2, 0.0), 1.0) * 0.75
            title = html.escape(f"{report.term} ({report.grade}): {strength:.1f}", quote=True)
            shown = html.escape(token.replace("Ġ", " ").replace("▁", " ").removeprefix("##"))
            spans.append(
                f'<span title="{title}" style="background:rgba(255,140,0,{alpha:.2f});border-radius:3px;'
                f'padding:1px 2px;white-space:pre-wrap">{shown or "&nbsp;"}</span>'
            )
        return f'<div style="line-height:1.9">{" ".join(spans)}</div>'


def lenses_html(lenses: Lenses, n: int = 12) -> str:
    """A head line with the grades, and the `n` best lenses as a table."""
    best = sorted((r for r in lenses.reports if r.fitted), key=lambda r: -_finite(r.score_low))[:n]
    rows = "".join(
        f"<tr><td>{html.escape(r.term)}</td><td>{r.level:d}</td><td>{html.escape(r.grade)}</td>"
        f"<td>{r.score:.2f} [{r.score_low:.2f}, {r.score_high:.2f}]</td><td>{r.f1:.2f}</td>"
        f"<td>{r.n_samples:d}</td><td>{html.escape(r.stop_reason)}</td></tr>"
        for r in best
    )
    head = "".join(
        f"<th>{name}</th>" for name in ("concept", "level", "grade", "score [95 %]", "F1", "samples", "stop")
    )
    more = f"<p>… and {len(lenses) - len(best)} more: <code>.frame()</code></p>" if len(lenses) > n else ""
    return f"<p>{html.escape(repr(lenses))}</p><table><tr>{head}</tr>{rows}</table>{more}"


def _finite(value: float) -> float:
    return value if value == value else -2.0
