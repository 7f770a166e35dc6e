"""The ratios of the table as a picture: dots with their spread, on a logarithmic axis, group by group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from table import Row

__all__ = ["picture"]

#: On paper of its own, so that it reads on light and on dark pages alike.
_PAPER, _INK, _SOFT, _LINE = "#ffffff", "#22262d", "#646b76", "#d9dce1"


def picture(rows: list[Row], path: Path) -> None:
    """Draw ratios, one line each, and write a PNG file."""
    from matplotlib.figure import Figure
    from table import number

    from interp.live.plots import COLOURS

    colours = [COLOURS[c] for c in ("blue", "vermillion", "green", "purple", "orange")]
    groups = list(dict.fromkeys(row.group for row in rows))
    n_lines = len(rows) + len(groups)
    height = 0.27 * n_lines + 1.0
    fig = Figure(figsize=(10.5, height), facecolor=_PAPER)
    top, bottom = 1 - 0.2 / height, 0.62 / height
    ax = fig.add_axes((0.5, bottom, 0.4, top - bottom), facecolor=_PAPER)
    ax.set_xscale("log")
    y = 0.0
    side = ax.get_yaxis_transform()
    for k, group in enumerate(groups):
        ax.text(-1.2, y, group, transform=side, ha="left", va="center", weight="bold", color=_INK, size=9)
        y -= 1
        colour = colours[k % len(colours)]
        for row in (r for r in rows if r.group == group):
            assert row.value is not None
            if row.low is not None and row.high is not None:
                ax.plot([row.low, row.high], [y, y], color=colour, lw=2.4, alpha=0.45, solid_capstyle="round")
            ax.plot([row.value], [y], "o", color=colour, ms=5.5)
            ax.text(-0.02, y, row.what, transform=side, ha="right", va="center", color=_INK, size=8.5)
            ax.text(
                1.02, y, f"{number(row.value)}×", transform=side, ha="left", va="center", color=_INK, size=8.5
            )
            y -= 1
    ax.axvline(1.0, color=_SOFT, lw=1.0, ls=(0, (4, 3)), zorder=0)
    ax.set_ylim(y + 0.4, 0.6)
    ax.set_yticks([])
    ax.tick_params(axis="x", colors=_SOFT, labelsize=8.5, which="both")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}×" if v >= 1 else f"{v:g}×")
    ax.grid(axis="x", color=_LINE, lw=0.7)
    ax.set_axisbelow(True)
    for name, spine in ax.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_LINE)
    ax.set_xlabel("A ÷ B: times as long, with the least and the most of the turns", color=_SOFT, size=8.5)
    fig.savefig(path, dpi=150, facecolor=_PAPER)
