"""Static pictures of a job: what stays in a saved notebook and goes into reports.

Each function takes the events of a job (a list, or a digest of them) and returns a matplotlib
`Figure` on the Agg canvas. pyplot is never used: it keeps figures alive and is not safe outside the
main thread. Colours are those of Okabe and Ito [1]_, told apart by colour-blind readers.

References
----------
.. [1] M. Okabe and K. Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.events import Event
from interp.live.digest import GRADES, CaptureDigest, FitDigest, LensDigest
from interp.live.digest.base import span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "capture_figure",
    "fit_figure",
    "lens_figure",
    "png",
    "projection_figure",
    "tuning_figure",
]

#: The Okabe–Ito colours that read on white and on near-black (yellow does not, black does not).
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#8A8F98",
}
GRADE_COLOURS = dict(zip(GRADES, (COLOURS[c] for c in ("green", "sky", "orange", "grey")), strict=True))


@dataclass(frozen=True)
class _Theme:
    paper: str
    ink: str
    faint: str
    main: str  # the blue that is bright enough on this paper


_LIGHT = _Theme("#ffffff", "#2b2f36", "#d9dce1", COLOURS["blue"])
_DARK = _Theme("#16181d", "#d7dae0", "#3a3f4a", COLOURS["sky"])


def fit_figure(source: FitDigest | Iterable[Event], *, dark: bool = False) -> Figure:
    """Four panels of a probe fit: pairs, lambda, slab timings, loss and gradient.

    Parameters
    ----------
    source : iterable of Event, or FitDigest
        Events of one fit, in order (others are ignored).
    dark : bool
        Light ink on dark paper.

    Returns
    -------
    matplotlib.figure.Figure
        9.6 × 5.6 inches.
    """
    digest, theme = FitDigest.of(source), _DARK if dark else _LIGHT
    fig, axes = _figure(theme, (9.6, 5.6), 2, 2)
    pairs, lam, slabs, loss = axes.flat
    it = digest.iterations
    x = it["x"]

    _label(pairs, "Pairs by iteration", "iteration", "pairs", theme)
    pairs.set_yscale("symlog", linthresh=1, linscale=0.4)
    for name, colour in (("active", theme.main), ("inert", COLOURS["grey"]), ("fail", COLOURS["vermillion"])):
        label = "n_fail" if name == "fail" else name
        pairs.plot(x, it[name], color=colour, lw=1.6, label=label, drawstyle="steps-post")
    pairs.set_ylim(bottom=0)
    _legend(pairs, theme)

    _label(lam, "Damping λ", "iteration", "λ", theme)
    colour = COLOURS["orange"]
    if len(x):
        lam.fill_between(x, it["lam_min"], it["lam_max"], color=colour, alpha=0.15, lw=0, label="min to max")
        lam.fill_between(x, it["lam_q1"], it["lam_q3"], color=colour, alpha=0.35, lw=0, label="quartiles")
        lam.plot(x, it["lam_median"], color=colour, lw=1.6, label="median")
        _log(lam)
        _legend(lam, theme)

    _label(slabs, "Seconds by slab", "class", "seconds", theme)
    bars = digest.slabs
    if len(bars):
        start, width, height = bars["start"], 0.9 * (bars["stop"] - bars["start"]), bars["seconds"]
        slabs.bar(start, height, width=width, align="edge", color=theme.main, label="slab")
        failed = bars["fail"] > 0
        if failed.any():  # marked at the foot, so that the height still reads
            foot = np.full(failed.sum(), 0.03 * height.max())
            red = COLOURS["vermillion"]
            slabs.bar(start[failed], foot, width=width[failed], align="edge", color=red, label="with n_fail")
            _legend(slabs, theme)

    _label(loss, "Loss and gradient", "iteration", "nats, scaled gradient", theme)
    drawn = False
    for name, label, colour in (
        ("loss_mean", "mean loss", COLOURS["green"]),
        ("loss_max", "max loss", COLOURS["sky"]),
        ("grad", "max gradient", COLOURS["purple"]),
    ):
        y = it[name]
        known = ~np.isnan(y) & (y > 0)
        if known.any():
            dots = "." if known.sum() < 0.5 * min(len(x), 120) else None  # rare numbers need dots
            loss.plot(x[known], y[known], color=colour, lw=1.6, marker=dots, ms=5, label=label)
            drawn = True
    if digest.begin is not None:
        loss.axhline(digest.begin.tol, color=theme.ink, lw=0.8, ls=":")
        at = (0.01, digest.begin.tol)  # on the left, where gradients are still large
        where = ("axes fraction", "data")
        loss.annotate("tol", at, xycoords=where, va="bottom", fontsize=7.5, color=theme.ink)
    if drawn:
        _log(loss)
        _legend(loss, theme)
    return fig


def lens_figure(source: LensDigest | Iterable[Event], *, dark: bool = False) -> Figure:
    """Three panels of a lens training: grades, learning curves, scores with their intervals.

    Parameters and return value as in `fit_figure`; 9.6 × 3.4 inches.
    """
    digest, theme = LensDigest.of(source), _DARK if dark else _LIGHT
    fig, axes = _figure(theme, (9.6, 3.4), 1, 3)
    grades, curves, scores = axes.flat

    _label(grades, "Grades", "grade", "lenses", theme)
    counts = [digest.grades[g] for g in GRADES]
    drawn = grades.bar(GRADES, counts, color=[GRADE_COLOURS[g] for g in GRADES], width=0.7)
    grades.bar_label(drawn, color=theme.ink, fontsize=9)
    grades.margins(y=0.15)

    _label(curves, "Learning curves", "samples", "F1 (selection split)", theme)
    for curve in digest.curves.values():
        curves.plot(*zip(*curve, strict=True), color=theme.main, lw=0.8, alpha=0.35)
    if digest.begin is not None:
        target = digest.begin.f1_target
        curves.axhline(target, color=COLOURS["vermillion"], lw=1, ls="--", label=f"target {target:g}")
        _legend(curves, theme)
    curves.set_ylim(top=1.02)
    if digest.curves:
        curves.set_xscale("log")
        low, high = curves.get_xlim()
        round_numbers = [m * 10**k for k in range(8) for m in (1, 2, 5)]
        shown = [n for n in round_numbers if low <= n <= high]
        curves.set_xticks(shown, [f"{n:,}" for n in shown])
        curves.minorticks_off()

    _label(scores, "Scores", "lenses by score", "2·AUROC − 1, 95 % interval", theme)
    rows = [r for r in digest.rows.values() if r["score"] is not None]
    rows.sort(key=lambda r: r["score"])
    for grade, colour in GRADE_COLOURS.items():
        at = [i for i, r in enumerate(rows) if r["grade"] == grade]
        mine = [rows[i] for i in at]
        low = [r["score"] if r["low"] is None else r["low"] for r in mine]
        high = [r["score"] if r["high"] is None else r["high"] for r in mine]
        scores.vlines(at, low, high, color=colour, lw=1.4, alpha=0.5)
        scores.plot(at, [r["score"] for r in mine], ".", color=colour, ms=3.5, label=grade)
    for bound, grade in ((0.5, "A"), (0.2, "B")):
        scores.axhline(bound, color=theme.ink, lw=0.7, ls=":")
        where = ("axes fraction", "data")
        scores.annotate(
            grade, (0.99, bound), xycoords=where, ha="right", va="bottom", fontsize=8, color=theme.ink
        )
    if rows:
        _legend(scores, theme)
    return fig


def capture_figure(source: CaptureDigest | Iterable[Event], *, dark: bool = False) -> Figure:
    """Panels of a capture: tokens/s, memory, seconds by stage, projections of the latest prompt.

    Parameters and return value as in `fit_figure`; 9.6 × 5.6 inches.
    """
    digest, theme = CaptureDigest.of(source), _DARK if dark else _LIGHT
    fig, axes = _figure(theme, (9.6, 5.6), 2, 2)
    speed, memory, stages, shown = axes.flat
    b = digest.batches
    x, seconds = b["x"], np.maximum(b["seconds"], 1e-9)

    _label(speed, "Speed", "batch", "tokens/s", theme)
    if len(x):
        width = 0.86 * _stride(x)
        speed.bar(
            x, b["padded"] / seconds, width=width, color=COLOURS["grey"], alpha=0.45, label="with padding"
        )
        speed.bar(x, b["real"] / seconds, width=width, color=theme.main, label="real")
        _legend(speed, theme)

    total = digest.begin.memory_total if digest.begin else 0
    _label(memory, "Memory", "batch", "GiB", theme)
    if len(x):
        memory.plot(x, b["bytes"] / 2**30, color=COLOURS["purple"], lw=1.6, label="in use")
        if total:
            memory.axhline(total / 2**30, color=theme.ink, lw=0.8, ls=":", label="all there is")
        memory.set_ylim(bottom=0)
        _legend(memory, theme)

    _label(stages, "Time by stage", "seconds", "", theme)
    if digest.stages:
        names = list(digest.stages)[::-1]
        drawn = stages.barh(names, [digest.stages[n] for n in names], color=COLOURS["green"], height=0.7)
        labels = [f" {span(digest.stages[n])}" for n in names]
        stages.bar_label(drawn, labels, color=theme.ink, fontsize=8)
        stages.margins(x=0.15)

    if digest.projections:
        # Rows are named vector@site; a vector that all of them share is named once.
        vectors, sites = zip(*(name.rpartition("@")[::2] for name in digest.projections), strict=True)
        one = len(set(vectors)) == 1 and vectors[0] != ""
        rows = sites if one else tuple(digest.projections)
        title = f"{vectors[0]} · {digest.prompt_id}" if one else digest.prompt_id
        values = np.array(list(digest.projections.values()), float)
        _heat(shown, digest.tokens, values, rows, f"Projections: {title}", theme)
    else:
        _label(shown, "Projections", "token", "", theme)
    return fig


def projection_figure(
    tokens: Sequence[str],
    values: Any,
    rows: Sequence[str] | None = None,
    *,
    title: str = "Projection by layer and token",
    dark: bool = False,
) -> Figure:
    """Heat map of projections, a row per layer (or site, or vector), a column per token.

    Parameters
    ----------
    tokens : sequence of str, length n_tokens
    values : array, shape ``[n_rows, n_tokens]``
        Any unit; the colour scale is symmetric about zero. NaN stays blank.
    rows : sequence of str, length n_rows, optional
        Names of the rows; 0, 1, … by default.
    title : str
    dark : bool

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the shapes do not agree.
    """
    grid = np.asarray(values, float)
    names = [str(i) for i in range(len(grid))] if rows is None else [str(r) for r in rows]
    if grid.ndim != 2 or grid.shape != (len(names), len(tokens)):
        raise ValueError(
            f"projection_figure: values have shape {grid.shape}, expected "
            f"(rows, tokens) = ({len(names)}, {len(tokens)})"
        )
    theme = _DARK if dark else _LIGHT
    size = (min(2.2 + 0.2 * len(tokens), 16.0), min(1.4 + 0.26 * len(names), 9.0))
    fig, axes = _figure(theme, (max(size[0], 4.0), max(size[1], 2.0)), 1, 1)
    _heat(axes.flat[0], tokens, grid, names, title, theme)
    return fig


def tuning_figure(
    cells: Sequence[dict[str, Any]], auto: dict[str, Any] | None = None, *, dark: bool = False
) -> Figure:
    """Heat map of a `SlabTuner`: ns per evaluation by class_slab_size and latent_block_size.

    Parameters
    ----------
    cells : sequence of dict
        class_slab_size, latent_block_size, ns_per_eval.
    auto : dict, optional
        The sizes that "auto" takes, marked ``a``; the fastest is marked ``★``.
    dark : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.colors import LogNorm

    theme = _DARK if dark else _LIGHT
    slabs = sorted({c["class_slab_size"] for c in cells})
    blocks = sorted({c["latent_block_size"] for c in cells})
    grid = np.full((len(slabs), len(blocks)), np.nan)
    for c in cells:
        grid[slabs.index(c["class_slab_size"]), blocks.index(c["latent_block_size"])] = c["ns_per_eval"]
    fig, axes = _figure(theme, (3.0 + 0.7 * len(blocks), 1.6 + 0.42 * len(slabs)), 1, 1)
    ax = axes.flat[0]
    title = 'ns per evaluation (★ fastest, a: what "auto" takes)'
    _label(ax, title, "latent_block_size", "class_slab_size", theme)
    ax.grid(False)
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    norm = LogNorm(low, max(high, low * 1.001))
    image = ax.imshow(grid, aspect="auto", cmap="Blues_r" if not dark else "Blues", norm=norm)
    ax.set_xticks(range(len(blocks)), [f"{b:,}" for b in blocks])
    ax.set_yticks(range(len(slabs)), [f"{s:,}" for s in slabs])
    for (i, j), ns in np.ndenumerate(grid):
        if math.isnan(ns):
            continue
        mark = " ★" if ns == low else ""
        if auto and (slabs[i], blocks[j]) == (auto["class_slab_size"], auto["latent_block_size"]):
            mark += " a"
        colour = "white" if _luminance(image.to_rgba(ns)) < 0.18 else "black"  # where both read equally well
        ax.text(j, i, f"{ns:.2g}{mark}", ha="center", va="center", fontsize=8, color=colour)
    return fig


def png(fig: Figure, *, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, as WCAG has it."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour[:3]]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def _stride(x: np.ndarray) -> float:
    """Distance of neighbouring bars (1 where there is only one)."""
    return float(np.median(np.diff(x))) if len(x) > 1 else 1.0


def _figure(theme: _Theme, size: tuple[float, float], rows: int, cols: int) -> tuple[Figure, np.ndarray]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    fig = Figure(figsize=size, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, cols, squeeze=False)
    for ax in axes.flat:
        ax.set_facecolor(theme.paper)
        ax.grid(True, color=theme.faint, lw=0.6, alpha=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(colors=theme.ink, labelsize=8, length=3)
        for side, spine in ax.spines.items():
            spine.set_color(theme.faint)
            spine.set_visible(side in ("left", "bottom"))
    return fig, axes


def _label(ax: Axes, title: str, x: str, y: str, theme: _Theme) -> None:
    # A dollar in a title, a token or a name is a dollar: it starts no formula.
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=theme.ink, parse_math=False)
    ax.set_xlabel(x, fontsize=8, color=theme.ink)
    ax.set_ylabel(y, fontsize=8, color=theme.ink)


def _legend(ax: Axes, theme: _Theme) -> None:
    """A legend in one line above the panel, right of its title, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles,
        labels,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        borderaxespad=0.0,
        ncols=len(labels),
        fontsize=7.5,
        frameon=False,
        labelcolor=theme.ink,
        handlelength=1.1,
        columnspacing=1.0,
        handletextpad=0.5,
    )


def _log(ax: Axes) -> None:
    """A log scale, if there is something positive to show on it."""
    top = [float(np.nanmax(line.get_ydata(), initial=0)) for line in ax.get_lines()]
    if max(top, default=0) > 0:
        ax.set_yscale("log")


def _heat(
    ax: Axes, tokens: Sequence[str], grid: np.ndarray, names: Sequence[str], title: str, theme: _Theme
) -> None:
    _label(ax, title, "token", "", theme)
    ax.grid(False)
    top = float(np.nanmax(np.abs(grid), initial=0.0)) if grid.size else 0.0
    top = top if math.isfinite(top) and top > 0 else 1.0
    image = ax.imshow(grid, aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
    every = max(1, math.ceil(len(tokens) / 40))
    at = range(0, len(tokens), every)
    words = [tokens[i].strip().replace("\n", "⏎")[:12] for i in at]
    ax.set_xticks(list(at), words, rotation=90, fontsize=6.5, parse_math=False)
    rows_every = max(1, math.ceil(len(names) / 24))
    rows_at = range(0, len(names), rows_every)
    ax.set_yticks(list(rows_at), [names[i] for i in rows_at], fontsize=6.5, parse_math=False)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.01, fraction=0.05)
    bar.ax.tick_params(colors=theme.ink, labelsize=7, length=2)
    bar.outline.set_visible(False)
