"""Trait vectors find a planted direction, admit luck, and survive the disk; plans run in one load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_zoo import VOCAB, zoo
from safetensors.torch import save
from scipy.stats import mannwhitneyu
from sklearn.linear_model import LogisticRegression

from interp.capture import Activations, plan, statistics, wrap
from interp.capture.plan import run_plan
from interp.capture.traits import TRAITS, ContrastSet, TraitVectors, contrast


def planted(path: Path, *, signal: bool = True, n: int = 12) -> Path:
    """Answers of positives hold w10 or w11, of negatives w20 or w21, behind questions that a group shares."""
    source = np.random.default_rng(0)
    lines = []
    for g in range(n):
        words = " ".join(f"w{i}" for i in source.integers(30, VOCAB, 6))
        for label in (1, 0):
            mark = (10 if label or not signal else 20) + g % 2
            for kind in ("natural", "instructed"):
                user = f"{words} w{25 + label}" if kind == "instructed" else words
                lines.append(
                    {
                        "messages": [
                            {"role": "user", "content": user},
                            {
                                "role": "assistant",
                                "content": f"w{30 + 2 * g + label * (not signal)} w{mark} w{mark}",
                            },
                        ],
                        "label": label,
                        "group": f"g{g}",
                        "kind": kind,
                        "id": f"{g}{label}{kind}",
                    }
                )
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize("method", ["mean", "logistic"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_planted_trait_is_found(method: str, pool: str, tmp_path: Path) -> None:
    model = zoo("llama")
    sets = contrast("planted", planted(tmp_path / "c.jsonl"))
    assert set(sets) == {"natural", "instructed"}
    found = TraitVectors.fit(model, [sets], method=method, pool=pool)
    trait = found["planted"]
    assert trait.auroc > 0.9
    assert 0.6 < trait.low < trait.auroc <= trait.high <= 1
    assert trait.shuffled < trait.auroc
    assert set(trait.layers) == set(trait.vectors) == {f"resid_post.{i}" for i in range(3)}
    for v in trait.vectors.values():
        torch.testing.assert_close(v.norm(), torch.tensor(1.0))
    assert trait.other["instructed"] > 0.8
    assert list(found.vectors()) == ["planted"]
    assert found.frame().loc["planted", "n"] == 24


def test_luck_is_not_a_trait(tmp_path: Path) -> None:
    sets = contrast("noise", planted(tmp_path / "c.jsonl", signal=False, n=20))
    trait = TraitVectors.fit(zoo("llama"), [sets])["noise"]
    assert trait.low < 0.55
    assert trait.auroc < 0.8


def test_save_and_load(tmp_path: Path) -> None:
    model = zoo("llama")
    traits = TraitVectors.fit(model, [contrast("planted", planted(tmp_path / "c.jsonl"))])
    traits.save(tmp_path / "t")
    again = TraitVectors.load(tmp_path / "t", model)
    for site, v in traits["planted"].vectors.items():
        assert torch.equal(again["planted"].vectors[site], v)
    assert again.frame().equals(traits.frame())
    assert len(again) == 1
    assert repr(again).startswith("<TraitVectors of llama: planted at resid_post.")
    with pytest.raises(FileExistsError):
        traits.save(tmp_path / "t")
    with pytest.raises(ValueError, match="belong to llama"):
        TraitVectors.load(tmp_path / "t", zoo("mistral"))
    with pytest.raises(FileNotFoundError, match=r"x\.json is missing"):
        TraitVectors.load(tmp_path / "x")


def test_what_a_kill_left_is_replaced_and_what_others_wrote_is_not(tmp_path: Path) -> None:
    """The weights are written first: without their description they are nobody's."""
    traits = TraitVectors.fit(zoo("llama"), [contrast("planted", planted(tmp_path / "c.jsonl"))])
    weights = tmp_path / "t.safetensors"
    for foreign in (b"not safetensors at all", save({"x": torch.ones(2)}, {"format": "pt"})):
        weights.write_bytes(foreign)
        with pytest.raises(FileExistsError, match=r"t\.safetensors exists"):
            traits.save(tmp_path / "t")
        assert weights.read_bytes() == foreign
    weights.unlink()
    traits.save(tmp_path / "t")
    (tmp_path / "t.json").unlink()  # as if killed between the two
    traits.save(tmp_path / "t")
    assert list(TraitVectors.load(tmp_path / "t")) == ["planted"]


def test_bad_contrast_sets(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="uncertainty_calibration"):
        contrast("happiness")
    file = tmp_path / "c.jsonl"
    file.write_text('{"text": "w3", "label": 2, "group": "g", "kind": "natural"}')
    with pytest.raises(ValueError, match="example 0: expected 'label'"):
        contrast("x", file)
    file.write_text('{"text": "w3", "label": 1, "group": "g", "kind": "natural"}')
    with pytest.raises(ValueError, match="1 positives and 0 negatives in 1 groups, 0 of which hold both"):
        contrast("x", file)
    lines = [{"text": f"w{3 + i}", "label": i % 2, "group": f"g{i}", "kind": "natural"} for i in range(12)]
    file.write_text("\n".join(map(json.dumps, lines)))  # each group on one side alone
    with pytest.raises(ValueError, match="6 positives and 6 negatives in 12 groups, 0 of which hold both"):
        contrast("x", file)
    with pytest.raises(ValueError, match="method must be"):
        TraitVectors.fit(zoo("llama"), method="guess")
    with pytest.raises(ValueError, match="pool must be 'mean' or 'last', got 'max'"):
        TraitVectors.fit(zoo("llama"), pool="max")
    sets = contrast("planted", planted(file))
    with pytest.raises(ValueError, match="contrast set 'planted' has no kind 'spoken'"):
        TraitVectors.fit(zoo("llama"), [sets], kind="spoken")


def test_shipped_contrast_sets() -> None:
    for trait in TRAITS:
        sets = contrast(trait)
        assert set(sets) == {"natural", "instructed"}
        for s in sets.values():
            assert s.labels.sum() * 2 == len(s.labels)  # every group has both
            for g in set(s.groups):
                mine = [bool(s.labels[i]) for i, x in enumerate(s.groups) if x == g]
                assert sorted(mine) == [False, True]


# --------------------------------------------------------------------------------- statistics


def test_auroc_is_mann_whitney() -> None:
    source = np.random.default_rng(1)
    scores, y = source.integers(0, 9, 60).astype(float), source.random(60) < 0.4
    expected = mannwhitneyu(scores[y], scores[~y]).statistic / (y.sum() * (~y).sum())
    assert statistics.auroc(scores, y) == pytest.approx(expected)


def test_auroc_intervals_cover() -> None:
    """95 % of intervals hold the true value, as far as 400 repetitions tell; perfect samples included."""
    source = np.random.default_rng(2)
    for shift, truth in ((0.0, 0.5), (2.0, 0.9214)):
        inside = 0
        for _ in range(400):
            scores = np.r_[source.normal(shift, 1, 15), source.normal(0, 1, 15)]
            y = np.arange(30) < 15
            low, high = statistics.newcombe(statistics.auroc(scores, y), 15, 15)
            inside += low <= truth <= high
        assert inside >= 0.92 * 400
    low, high = statistics.newcombe(1.0, 16, 16)
    assert 0.8 < low < 0.95
    assert high == 1


def test_logistic_is_that_of_sklearn() -> None:
    source = np.random.default_rng(3)
    x, y = source.normal(size=(40, 6)) * [1, 2, 3, 4, 5, 6], np.arange(40) % 2 == 0
    x[y] += 0.5
    z = (x - x.mean(0)) / x.std(0)
    expected = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(z, y).coef_[0] / x.std(0)
    np.testing.assert_allclose(statistics.logistic(x, y), expected / np.linalg.norm(expected), atol=1e-4)


def test_folds_keep_groups_together() -> None:
    groups = np.repeat([f"g{i}" for i in range(9)], 3)
    tested = np.zeros(27)
    for train, test in statistics.folds(groups, 4, 0):
        assert not set(groups[train]) & set(groups[test])
        tested += test
    assert (tested == 1).all()


def test_groups_of_one_side_are_no_test() -> None:
    """A fold whose test rows are all positive has no AUROC; the others count."""
    groups = np.array([f"g{i // 2}" for i in range(24)])
    y = np.array([True, False] * 6 + [True] * 6 + [False] * 6)  # six groups hold both, six one side
    x = np.random.default_rng(0).standard_normal((24, 4)) + 3 * y[:, None]
    folds = list(statistics.folds(groups, 12, 0))
    assert sum(len(set(y[test])) < 2 for _, test in folds) == 6
    assert statistics.cross_validated(statistics.mean_difference, x, y, groups, 0, k=12)[0] == 1
    for fit in statistics.FITS.values():
        with pytest.raises(ValueError, match="more groups must hold both"):
            statistics.cross_validated(fit, x, np.arange(24) < 12, groups, 0, k=12)


def test_equal_states_have_no_direction() -> None:
    with pytest.raises(ValueError, match="no direction separates"):
        statistics.mean_difference(np.ones((4, 3)), np.array([True, True, False, False]))


# --------------------------------------------------------------------------------------- plan


@pytest.fixture
def prompt_files(tmp_path: Path) -> list[Path]:
    files = []
    for name, lines in (("first", "w3 w4\nw5 w6 w7\n"), ("second", "w8\nw3 w4\n")):
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text(lines)
    return files


def with_traits(root: Path, tmp_path: Path) -> list[str]:
    for name in ("bravery", "kindness"):
        sets = contrast(name, planted(tmp_path / f"{name}.jsonl"))
        TraitVectors.fit(zoo("llama"), [sets]).save(root / "traits" / name)
    return ["bravery", "kind"]


def test_a_plan_in_one_load(
    tmp_path: Path, prompt_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "exp"
    traits = with_traits(root, tmp_path)
    loads = []
    monkeypatch.setattr(plan, "load_model", lambda *a, **k: (loads.append(a), zoo("llama"))[1])
    options = {"model": "somewhere", "max_new_tokens": 5, "save_json": True, "check": 2}
    out = run_plan(root, traits, ["w9 w10"], prompt_files, **options)
    assert len(loads) == 1
    assert out.parent == root / "tier2"
    acts = Activations.load(out)
    assert acts.n_prompts == 4  # "w3 w4" is in both files
    assert acts.projected["resid_mid.1"] == ["bravery", "kindness"]
    assert len(acts.projected) == 9
    sets = json.loads((out / "sets.json").read_text())
    assert set(sets) == {"first", "second", "prompts"}
    assert sets["first"][0] == sets["second"][1]
    view = json.loads((out / "second.json").read_text())
    assert [p["id"] for p in view["prompts"]] == sets["second"]
    assert acts.meta["prompt_ids"][0] == sets["first"][0]
    assert acts.token_ids[0] == 1
    assert acts.tokens(0)[1] == "w5"  # through the chat template: the user's turn
    again = run_plan(root, traits, ["w9 w10"], prompt_files, **options)
    assert again == out
    assert "4 prompts" in plan.summarise(out)
    with pytest.raises(FileExistsError, match="another run"):
        run_plan(root, traits, ["w9 w10"], prompt_files, **{**options, "max_new_tokens": 6})
    three = run_plan(
        root, traits, (), prompt_files[:1], model=zoo("llama"), tier=3, layer=1, max_new_tokens=2
    )
    assert three == root / "tier3" / "first"
    assert Activations.load(three)["attn.1"].ndim == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, f: run_plan(r, ["x"], (), f), ValueError, "unknown trait 'x'"),
        (lambda r, f: run_plan(r, ["sy", "sycophancy"], (), f), ValueError, "given twice"),
        (lambda r, f: run_plan(r), ValueError, "no prompts"),
        (lambda r, f: run_plan(" "), ValueError, "needs a name"),
        (lambda r, f: run_plan(r, (), (), [f[0], f[0]]), ValueError, "two prompt files"),
        (lambda r, f: run_plan(r, (), (), ["none.txt"]), FileNotFoundError, r"none\.txt"),
        (
            lambda r, f: run_plan(r, (), (), f, model=zoo("llama"), save_json=True),
            ValueError,
            "at least one trait",
        ),
    ],
)
def test_bad_plans(
    call: Callable, error: type[Exception], message: str, tmp_path: Path, prompt_files: list[Path]
) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path / "exp", prompt_files)
    assert not (tmp_path / "exp").exists()


def test_a_plan_that_was_stopped_says_so_and_goes_on(
    prompt_files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"model": zoo("llama"), "tier": 3, "layer": 1, "max_new_tokens": 2}
    with caplog.at_level("WARNING", "interp"):
        out = run_plan(tmp_path, (), (), prompt_files, iteration_hook=lambda e: True, **options)
    assert "stopped after 0 of 3 prompts: run again to go on" in caplog.text
    assert not (out / "sets.json").exists(), "nothing says that it is complete"
    assert run_plan(tmp_path, (), (), prompt_files, **options) == out
    assert Activations.load(out).n_prompts == 3


def test_traits_without_a_chat_template(tmp_path: Path) -> None:
    plain = wrap(
        zoo("gpt2").hf, zoo("gpt2").tokenizer.__class__(tokenizer_object=zoo("gpt2").tokenizer._tokenizer)
    )
    sets = contrast("planted", planted(tmp_path / "c.jsonl"))
    assert isinstance(sets["natural"], ContrastSet)
    assert TraitVectors.fit(plain, [sets], pool="last")["planted"].auroc > 0.8
