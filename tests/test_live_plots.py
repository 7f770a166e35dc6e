"""Static pictures: right numbers, labelled axes, no pyplot."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from live_fakes import capture_events, fit_events, lens_events

from interp import events as ev
from interp.live import plots
from interp.live.digest import FitDigest

FIGURES = [
    (plots.fit_figure, fit_events),
    (plots.lens_figure, lens_events),
    (plots.capture_figure, capture_events),
]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("figure", "events"), FIGURES)
def test_pictures_are_drawn_and_their_axes_named(figure, events, dark):
    fig = figure(list(events()), dark=dark)
    data = plots.png(fig)
    assert data.startswith(b"\x89PNG")
    assert len(data) < 200_000
    for ax in fig.axes:
        if ax.get_label() != "<colorbar>":
            assert ax.get_title(loc="left")
            assert ax.get_xlabel()


@pytest.mark.parametrize(("figure", "events"), FIGURES)
def test_a_job_that_has_hardly_begun_can_be_drawn(figure, events):
    events = list(events())
    for n in (0, 1, 2, 3, 4):
        assert plots.png(figure(events[:n])).startswith(b"\x89PNG")


def test_the_fit_figure_shows_the_digest_and_the_events_alike():
    events = list(fit_events())
    a, b = plots.fit_figure(events), plots.fit_figure(FitDigest.of(events))
    for one, other in zip(a.axes, b.axes, strict=True):
        for p, q in zip(one.get_lines(), other.get_lines(), strict=True):
            np.testing.assert_array_equal(p.get_xydata(), q.get_xydata())
    active = [e.n_active for e in events if isinstance(e, ev.IterationEnd)]
    np.testing.assert_array_equal(a.axes[0].get_lines()[0].get_ydata(), active)


def test_the_capture_figure_names_what_is_short_and_what_is_shared():
    _, _, stages, shown, _ = plots.capture_figure(list(capture_events())).axes
    assert {t.get_text().strip() for t in stages.texts} >= {"900 ms", "4 ms", "200 µs", "30 µs"}
    assert shown.get_title(loc="left") == "Projections: uncertainty_calibration · uncertainty/5"
    assert [t.get_text() for t in shown.get_yticklabels()] == [f"resid_post.{i}" for i in range(5)]
    several = [ev.BatchEnd(**{**e.__dict__, "projections": {"a@s": (1.0,), "b@s": (2.0,)}, "tokens": ("t",)})
               for e in capture_events() if isinstance(e, ev.BatchEnd)]  # fmt: skip
    shown = plots.capture_figure(several).axes[3]
    assert [t.get_text() for t in shown.get_yticklabels()] == ["a@s", "b@s"]


def test_the_lens_figure_says_where_grades_begin_and_counts_samples_in_round_numbers():
    _, curves, scores = plots.lens_figure(list(lens_events())).axes
    assert [(t.get_text(), t.xy[1]) for t in scores.texts] == [("A", 0.5), ("B", 0.2)]
    assert [t.get_text() for t in curves.get_xticklabels()] == ["20", "50", "100", "200", "500", "1,000"]


def test_projections_need_matching_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4\), expected .* = \(2, 5\)"):
        plots.projection_figure(list("abcde"), np.zeros((3, 4)), ["r", "s"])


def test_projections_take_any_token_text():
    tokens = ["$x$", "\n", "_{", "\\frac", "é", " "]
    fig = plots.projection_figure(tokens, np.random.default_rng(0).normal(size=(3, 6)))
    assert plots.png(fig).startswith(b"\x89PNG")
    assert plots.png(plots.projection_figure(tokens, np.full((3, 6), np.nan))).startswith(b"\x89PNG")


def test_the_tuning_figure_takes_gaps():
    cells = [
        {"class_slab_size": s, "latent_block_size": b, "ns_per_eval": s + b} for s, b in ((1, 2), (4, 8))
    ]
    auto = {"class_slab_size": 4, "latent_block_size": 8}
    assert plots.png(plots.tuning_figure(cells, auto)).startswith(b"\x89PNG")


@pytest.mark.parametrize("dark", [False, True])
def test_the_numbers_of_the_tuning_figure_read_on_their_cells(dark):
    """A contrast of 4.5 on the lightest, the darkest, and every blue between."""
    cells = [{"class_slab_size": 1, "latent_block_size": k, "ns_per_eval": 1.1**k} for k in range(1, 30)]
    (ax,) = plots.tuning_figure(cells, dark=dark).axes
    (image,) = ax.get_images()
    for text, cell in zip(ax.texts, cells, strict=True):
        paper = plots._luminance(image.to_rgba(cell["ns_per_eval"]))
        ink = {"white": 1.0, "black": 0.0}[text.get_color()]
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5


def test_pyplot_is_never_imported():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from live_fakes import fit_events\nfrom interp.live import plots\n"
        "plots.png(plots.fit_figure(fit_events()))\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=plots.__file__.rsplit("/interp/", 1)[0])
