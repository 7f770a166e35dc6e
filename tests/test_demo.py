"""The demo does its whole job, says what it found, and finds the same when it is run again."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from interp import demo as module
from interp.events import CaptureEnd, FitEnd, LensEnd, TrainEnd, read
from interp.lens import train
from interp.lens.concepts import ConceptPack


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> list[tuple[Path, str]]:
    """Two runs with the same seed, on fewer tokens and concepts: folder, and what was printed."""
    import contextlib
    import io

    roots = [c.id for c in ConceptPack.load("tiny") if c.level == 0]
    out = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "N_FIT", 6_000)
        patch.setattr(module, "N_TEST", 2_000)
        patch.setattr(train, "train_lenses", partial(train.train_lenses, concepts=roots))
        for i in range(2):
            screen = io.StringIO()
            with contextlib.redirect_stdout(screen):
                report = module.demo(tmp_path_factory.mktemp("demo") / f"run{i}")
            out.append((report.parent, screen.getvalue()))
    return out


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(demos):
    (_, first), (_, second) = demos
    digests = [re.search(r"times left out: ([0-9a-f]{16})$", text, re.M)[1] for text in (first, second)]
    assert digests[0] == digests[1]
    tables = [re.sub(r"[\d.]+ s\b|\S*run\d\S*", "", text) for text in (first, second)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_it_prints_three_tables_and_what_to_open_next(demos):
    _, text = demos[0]
    for title in ("Captured prompts", "Best latents of ten classes", "Lenses by level"):
        assert text.count(title) == 1
    assert "24 prompts from 6 files, 50 new tokens each" in text
    for file, n_prompts in [("uncertainty", 8), ("commitment", 4), ("cognitive", 4), ("sycophancy", 4),
                            ("tier3_uncertainty", 2), ("tier3_cognitive", 2)]:  # fmt: skip
        tier = 3 if file.startswith("tier3") else 2
        row = re.search(rf"^  {file} +{tier} +{n_prompts} +\d+ +(\d+) ", text, re.M)
        assert int(row[1]) == 50 * n_prompts
    assert text.rstrip().splitlines()[-1].endswith("then notebooks/00_tour.ipynb (make lab).")
    assert (Path(module.__file__).parents[1] / "notebooks/00_tour.ipynb").exists()


@pytest.mark.slow
def test_the_report_has_every_figure_in_both_themes(demos):
    folder, _ = demos[0]
    page = (folder / "report.html").read_text(encoding="utf-8")
    # four prompts, the capture, the fit, the lenses
    assert page.count("<figure>") == 7
    assert page.count("data:image/png;base64,") == 14
    assert page.count("<table>") == 3
    assert "http" not in re.sub(r"data:[^\"]*", "", page)


@pytest.mark.slow
def test_the_files_are_what_they_say(demos):
    folder, _ = demos[0]
    x = sp.load_npz(folder / "token_acts.npz")
    y = np.fromfile(folder / "labels.bin", np.uint8)
    assert x.shape == (len(y), 2048)
    assert 0 < np.diff(x.indptr).max() <= 64
    with np.load(folder / "probe1d_metrics.npz", allow_pickle=False) as metrics:
        assert metrics["weights"].shape == metrics["tp"].shape == (2048, 151)
    ends = {
        name: read(folder / "events" / f"{name}.jsonl") for name in ("capture", "encode", "probe", "lenses")
    }
    assert isinstance(ends["capture"][-1], CaptureEnd)
    assert isinstance(ends["encode"][-1], CaptureEnd)
    assert isinstance(ends["probe"][-1], FitEnd)
    assert isinstance(ends["lenses"][-1], TrainEnd)
    assert sum(isinstance(e, LensEnd) for e in ends["lenses"]) == 8


@pytest.mark.slow
def test_it_only_replaces_what_it_wrote(demos, monkeypatch):
    folder, _ = demos[0]
    (folder / "mine.txt").write_text("keep me")

    def stop(*args: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(module, "_capture", stop)
    with pytest.raises(InterruptedError):
        module.demo(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["mine.txt"]
