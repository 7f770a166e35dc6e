"""Corners of lenses: lines that no other test reaches, and slips that once were taken in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lens_world
import numpy as np
import pytest
import torch

from interp import cluster
from interp.capture import wrap
from interp.capture.traits import TraitVectors
from interp.lens import ConceptPack, Lenses, LensMismatch, grade, rows, train_lenses
from interp.lens.bank import Bank
from interp.lens.leakage import LeakageError, audit
from interp.lens.levels import train_by_level
from interp.lens.report import LensReport
from interp.lens.samples import Sample
from interp.lens.show import Highlight
from interp.lens.steering import next_token_loss
from interp.lens.study import study


def test_an_audit_reads_all_samples_however_they_come() -> None:
    held = Sample("Read: A dog.", 6, 12, "Read: {text}", "dog", 1, "test", heldout=True)
    used = Sample("Read: My cat sat.", 6, 17, "Read: {text}", "cat", 2, "train")
    with pytest.raises(LeakageError, match="held-out template"):
        audit(s for s in (held, used))


def test_one_name_is_no_list_of_letters(tmp_path: Path) -> None:
    model, pack = lens_world.model(), lens_world.pack(4)
    with pytest.raises(ValueError, match=r"write \['bird'\]"):
        train_lenses(model, pack, site="resid_post.1", concepts="bird")
    with pytest.raises(ValueError, match=r"write \['bird'\]"):
        cluster.plan(pack, tmp_path, job="lenses", model="tiny", site="resid_post.1", concepts="bird")
    with pytest.raises(ValueError, match="none to train"):
        train_lenses(model, pack, site="resid_post.1", concepts=[])
    with pytest.raises(ValueError, match="traits takes a list"):
        TraitVectors.fit(model, "sycophancy")


class _Slow:
    is_fast = False


def test_models_that_lenses_cannot_read() -> None:
    model = lens_world.model()
    bare, slow = wrap(model.hf, None, name="bare"), wrap(model.hf, _Slow(), name="slow")
    with pytest.raises(ValueError, match="bare has no tokenizer"):
        Bank(bare, "resid_post.1")
    with pytest.raises(ValueError, match="slow tokenizer of slow does not give; use pooling='mean'"):
        Bank(slow, "resid_post.1")


def test_a_bank_without_continuations_has_none() -> None:
    bank, sample = (
        Bank(lens_world.model(), "resid_post.1"),
        Sample("A dog.", 0, 6, "{text}", "dog", 1, "train"),
    )
    assert bank.ensure([sample])
    with pytest.raises(ValueError, match="holds no replies"):
        bank.take(bank.index([sample]), "replies")
    assert repr(bank) == "<Bank: 1 prompts at resid_post.1 (span), 1 forwarded>"


def test_a_span_without_a_token_is_named() -> None:
    blank = Sample("the dog ", 7, 8, "{text}", "dog", 1, "train")
    with pytest.raises(ValueError, match="no token of 'the dog ' lies in ' '"):
        Bank(lens_world.model(), "resid_post.1").ensure([blank])


def test_a_pack_of_one_concept_has_nothing_to_tell_it_from() -> None:
    bird = lens_world.concept("bird", [], 0, lens_world.sentences("bird", 30))
    alone = ConceptPack.from_dict({"name": "one", "version": "1", "concepts": [bird]})
    lenses = train_lenses(lens_world.model(), alone, site="resid_post.1", growth=(10,))
    assert lenses.grades == {"A": 0, "B": 0, "C": 0, "U": 1}
    assert "no other concepts with examples" in lenses.reports[0].why


def test_lenses_of_the_wrong_shape_or_head() -> None:
    model, pack = lens_world.model(), lens_world.pack(30)
    lenses = train_lenses(model, pack, site="resid_post.1", concepts=["bird", "car"], growth=(10,))
    with pytest.raises(ValueError, match=r"head='mlp': these lenses have linear heads"):
        lenses.score("the boy saw a robin", head="mlp")
    parts = (lenses.reports, lenses.weight, lenses.bias, lenses.mean, lenses.scale)
    with pytest.raises(ValueError, match=r"weight has shape \(1, 48\), expected \(2, 48\)"):
        Lenses(parts[0], lenses.weight[:1], *parts[2:], {}, lenses.meta)
    rows = torch.ones(2, 48)
    assert torch.equal(
        lenses.score(rows.numpy(), site="resid_post.1"), lenses.score(rows, site="resid_post.1")
    )
    with pytest.raises(ValueError, match="texts takes a list"):
        lenses["bird"].dose_response(model, "the boy", force=True)
    bare = Lenses(*parts, {}, lenses.meta)
    logits = bare.score("the boy saw a robin", model=model)
    assert torch.equal(bare.strength(logits), logits)  # without thresholds, the logit itself
    flat = Lenses(parts[0], torch.zeros_like(lenses.weight), *parts[2:], {}, lenses.meta)
    with pytest.raises(ValueError, match="has no direction: all its weights are 0"):
        flat["bird"].steering_vector(force=True)
    assert repr(flat["bird"]).startswith("<Lens 'bird': ")
    other = Lenses(*parts, lenses.negatives, {**lenses.meta, "site": "resid_post.0"})
    with pytest.raises(LensMismatch, match="site differs"):
        Lenses.concat([lenses, other])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"growth": [10.5]}, "growth must be increasing whole numbers"),
        ({"growth": 5}, "growth must be increasing whole numbers"),
        ({"growth": "10"}, "growth must be increasing whole numbers"),
        ({"continuation": 1.5}, "continuation must be 0 or more, an integer"),
        ({"site": "attn.1"}, r"lenses cannot read attn\.1"),
    ],
)
def test_options_of_a_training_that_say_nothing_clear(options: dict[str, Any], why: str) -> None:
    options = {"site": "resid_post.1", "concepts": ["bird"], **options}
    with pytest.raises(ValueError, match=why):
        train_lenses(lens_world.model(), lens_world.pack(4), **options)


def test_a_lens_on_one_text_knows_that_it_knows_nothing() -> None:
    labels, scores = np.array([True, True, False, False]), np.array([0.1, 0.4, 0.2, 0.0])
    one_group = grade.auroc_interval(scores, labels, ["a", "a", "b", "c"])
    assert one_group[1] < 0.05
    assert one_group[2] > 0.95


def test_rows_of_one_class_weigh_one() -> None:
    assert rows.balanced(torch.ones(3)).tolist() == [1, 1, 1]
    assert rows.balanced(torch.tensor([1.0, 0, 0, 0])).tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])


def test_lenses_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = LensReport(concept="a", term="a", level=0)
    lenses = Lenses([report], torch.zeros(0, 4), torch.zeros(0), torch.zeros(4), torch.ones(4), {}, {})

    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("interp.lens.files.write_json", full)
    with pytest.raises(OSError, match="No space"):
        lenses.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_highlight_in_a_terminal() -> None:
    report = LensReport(concept="a", term="bird", level=0)
    assert repr(Highlight(["a", "robin"], [0.2, 2.5], [report, report])) == "a robin(bird 2.5)"


def test_texts_of_one_token_have_no_next() -> None:
    with pytest.raises(ValueError, match="no text has two tokens"):
        next_token_loss(_wordwise(lens_world.model()), ["robin", "cat"])


def _wordwise(model: Any) -> Any:
    """The model, without the token that its tokenizer puts first."""
    tokenizer = model.tokenizer
    return wrap(model.hf, lambda text: tokenizer(text, add_special_tokens=False))


def test_nothing_to_study() -> None:
    empty = ConceptPack.from_dict(
        {"name": "none", "version": "1", "concepts": [lens_world.concept("a", [], 0)]}
    )
    with pytest.raises(ValueError, match="'none' has no positive examples"):
        study(lens_world.model(), empty, dtypes=["float32"])


@pytest.mark.parametrize(
    ("levels", "error", "why"),
    [([], ValueError, "levels is empty: pack 'world' has"), ([1.7], TypeError, "float")],
)
def test_levels_that_say_nothing_clear(
    levels: list[Any], error: type[Exception], why: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=why):
        train_by_level(
            lens_world.model(), lens_world.pack(4), site="embed", out=tmp_path / "t", levels=levels
        )
    assert not (tmp_path / "t").exists()
