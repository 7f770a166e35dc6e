"""Lenses in use: scores, refusals, thresholds, HTML, steering, files."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import lens_world
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from interp.capture.model import load_model
from interp.capture.record import capture
from interp.capture.steer import steer
from interp.files import read_json, write_json
from interp.lens import grade
from interp.lens.bank import Bank
from interp.lens.baselines import BagOfWords, Corpus, TextLenses, TextProblem, fit_text
from interp.lens.concepts import ConceptPack
from interp.lens.judge import Judge
from interp.lens.library import Lenses, LensMismatch
from interp.lens.rows import balanced
from interp.lens.samples import Samples
from interp.lens.steering import next_token_loss, random_direction
from interp.lens.train import train_lenses

SITE = "resid_post.1"
TEXT = "the boy saw a robin near the park"


@pytest.fixture(scope="module")
def model():
    return lens_world.model()


@pytest.fixture(scope="module")
def lenses(model):
    return train_lenses(model, lens_world.pack(), site=SITE)


@pytest.fixture(scope="module")
def acts(model):
    return capture(model, [TEXT, "the king lost a truck near the hall"], sites=[SITE, "resid_post.0"])


def regraded(lenses, letter):
    reports = [dataclasses.replace(r, grade=letter) for r in lenses.reports]
    return Lenses(
        reports, lenses.weight, lenses.bias, lenses.mean, lenses.scale, lenses.negatives, lenses.meta
    )


# ------------------------------------------------------------------------------ scoring


def test_scores_of_all_lenses_on_all_tokens(lenses, acts):
    scores = lenses.score(acts)
    assert scores.shape == (acts.n_tokens, len(lenses))
    assert scores.dtype == torch.float32
    for k, lens in enumerate(lenses):
        one_by_one = acts[SITE].double() @ lens.weight.double() + lens.bias
        torch.testing.assert_close(scores[:, k].double(), one_by_one, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(lens.score(acts), scores[:, k])


def test_what_iterating_gives_is_in_them(lenses):
    assert all(lens in lenses for lens in lenses)
    assert all(c in lenses for c in lenses.ids)
    one = lenses.ids[0]
    others = Lenses(
        [r for r in lenses.reports if r.concept != one],
        lenses.weight[1:],
        lenses.bias[1:],
        lenses.mean,
        lenses.scale,
        {k: v[1:] for k, v in lenses.negatives.items()},
        lenses.meta,
    )
    assert lenses[one] not in others
    assert one not in others
    pack = lens_world.pack()
    assert all(concept in pack for concept in pack)
    assert pack["bird"].id in pack
    assert dataclasses.replace(pack["bird"], id="zebra") not in pack


def test_text_tensor_and_activations_agree(lenses, acts):
    scores = lenses.score(acts)
    torch.testing.assert_close(lenses.score(acts[SITE], site=SITE), scores)
    n = int(acts.offsets[1])
    torch.testing.assert_close(lenses.score(TEXT), scores[:n], rtol=1e-4, atol=1e-4)
    assert lenses.score([TEXT, TEXT]).shape[0] == 2 * n


def test_top(lenses, acts):
    table = lenses.top(TEXT, 2)
    logits = lenses.score(TEXT)
    first = table[table["rank"] == 1]
    strength = lenses.strength(logits)
    assert first.concept.tolist() == [lenses.ids[i] for i in strength.argmax(1).tolist()]
    np.testing.assert_allclose(first.strength, strength.amax(1), rtol=1e-4)
    columns = [lenses.ids.index(c) for c in first.concept]
    np.testing.assert_allclose(first.logit, logits[torch.arange(len(logits)), columns], rtol=1e-4)
    assert table.token.tolist()[::2] == acts.tokens(0)


def test_a_lens_is_strong_where_its_concept_is(lenses, model):
    """At the word itself, over all words of a leaf, beside the words of its siblings."""
    strengths = {}
    for leaf in ("bird", "fish", "insect"):
        texts = [f"the boy saw a {word} near the park" for word in lens_world.LEAVES[leaf].split()]
        acts = capture(model, texts, sites=[SITE])
        at = acts.offsets[:-1] + 5  # <s> the boy saw a WORD
        strengths[leaf] = lenses.strength(lenses.score(acts))[at].mean(dim=0)
    for leaf, own in strengths.items():
        k = lenses.ids.index(leaf)
        assert float(own[k]) > 0.5 + max(float(v[k]) for o, v in strengths.items() if o != leaf)


def test_strength_is_measured_in_tokens_without_the_concept(lenses):
    known = lenses.negatives["token"]
    for k in range(len(lenses)):
        own = known[k][~torch.isnan(known[k])]
        logits = torch.zeros(len(own), len(lenses))
        logits[:, k] = own
        strength = lenses.strength(logits)[:, k]
        assert float(strength.quantile(0.5)) == pytest.approx(0, abs=0.05)
        assert 0.03 < float((strength > 1).float().mean()) < 0.07
        # Tokens spread wider than texts: a threshold of one does not serve for the other.
        assert lenses[lenses.ids[k]].threshold(0.1) != lenses[lenses.ids[k]].threshold(0.1, per="text")


def test_activations_of_something_else_are_refused(lenses, acts, model):
    with pytest.raises(LensMismatch, match=r"these lenses read 'resid_post\.1'"):
        lenses.score(capture(model, [TEXT], sites=["resid_post.0"]))
    with pytest.raises(LensMismatch, match=r"pass site='resid_post\.1'"):
        lenses.score(acts[SITE])
    with pytest.raises(LensMismatch, match=r"taken at 'resid_post\.0'"):
        lenses.score(acts["resid_post.0"], site="resid_post.0")
    with pytest.raises(LensMismatch, match=r"shape \(3, 5\), expected \(n_tokens, 48\)"):
        lenses.score(torch.zeros(3, 5), site=SITE)
    with pytest.raises(LensMismatch, match="normalised"):
        lenses.score(acts[SITE], site=SITE, normalisation="unit")
    other = lens_world.model(seed=1)
    with pytest.raises(LensMismatch, match="train lenses for that model"):
        lenses.score(capture(other, [TEXT], sites=[SITE]))
    with pytest.raises(LensMismatch, match="train lenses for that model"):
        lenses.score(TEXT, model=other)
    with pytest.raises(FloatingPointError, match="1 of 2 rows are not finite, first row 1"):
        lenses.score(torch.tensor([[0.0] * 48, [float("nan")] * 48]), site=SITE)


def test_the_same_model_in_another_precision_is_accepted(lenses):
    half = lens_world.model(dtype=torch.bfloat16)
    scores = lenses.score(TEXT, model=half)
    exact = lenses.score(TEXT)
    assert scores.dtype == torch.float32
    assert (scores - exact).abs().max() < 0.1 * exact.abs().max()


# ------------------------------------------------------------------------------ thresholds, HTML


def test_thresholds_keep_the_false_positive_rate(model):
    """On texts that no lens has seen, on average over lenses."""
    pack = lens_world.pack(140)
    lenses = train_lenses(model, pack, site=SITE, growth=(40,))
    bank = Bank(model, SITE)
    samples = Samples(pack)
    rates = []
    for concept in ("bird", "fish", "car", "boat"):
        others = [c for c in lens_world.LEAVES if c != concept]
        fresh = [s for c in others for s in samples.positives(c, "test")]
        bank.ensure(fresh)
        logits = lenses[concept].score(bank.take(bank.index(fresh)), site=SITE)
        rates.append(float((logits > lenses[concept].threshold(0.1, per="text")).float().mean()))
        assert lenses[concept].threshold(0.05) >= lenses[concept].threshold(0.1)
    assert 0.03 < np.mean(rates) < 0.16, rates


def test_token_thresholds_keep_the_rate_of_tokens(model):
    pack = lens_world.pack(140)
    lenses = train_lenses(model, pack, site=SITE, growth=(40,))
    samples = Samples(pack)
    rates = []
    for concept in ("bird", "fish", "car", "boat"):
        others = [c for c in lens_world.LEAVES if c != concept]
        fresh = [s.filler for c in others for s in samples.positives(c, "test")[:30]]
        acts = capture(model, fresh, sites=[SITE])
        content = acts.token_ids != model.tokenizer.bos_token_id
        logits = lenses[concept].score(acts)[content]
        rates.append(float((logits > lenses[concept].threshold(0.1)).float().mean()))
    assert 0.05 < np.mean(rates) < 0.17, rates


def test_the_threshold_is_the_conformal_one(lenses):
    """Of m logits the ⌈(1 − fpr)(m + 1)⌉-th smallest, whatever is padding."""
    negatives = {kind: torch.arange(1.0, 20.0).repeat(len(lenses), 1) for kind in ("text", "token")}
    negatives["text"][:, 9:] = float("nan")
    some = Lenses(
        lenses.reports, lenses.weight, lenses.bias, lenses.mean, lenses.scale, negatives, lenses.meta
    )["bird"]
    assert [some.threshold(fpr) for fpr in (0.05, 0.1, 0.25, 0.26, 0.5)] == [19, 18, 15, 15, 10]
    assert [some.threshold(fpr, per="text") for fpr in (0.1, 0.5)] == [9, 5]
    with pytest.raises(ValueError, match=r"smallest possible is 0\.05"):
        some.threshold(0.049)


def test_thresholds_that_cannot_be_found(lenses):
    with pytest.raises(ValueError, match="cannot resolve a false-positive rate of 1e-05"):
        lenses["bird"].threshold(1e-5)
    with pytest.raises(ValueError, match="per must be"):
        lenses["bird"].threshold(0.1, per="word")
    with pytest.raises(ValueError, match="between 0 and 1"):
        lenses["bird"].threshold(0)


def test_html_is_escaped(model, lenses):
    data = lens_world.pack().to_dict()
    for c in data["concepts"]:
        c["term"] = f"<script>{c['id']}\"'</script>"
    bad = train_lenses(model, ConceptPack.from_dict(data), site=SITE, concepts=["bird"], growth=(10,))
    shown = bad.highlight(TEXT, "bird")
    shown.tokens[1] = "<img src=x onerror=alert(1)>"
    for html in (shown._repr_html_(), bad._repr_html_()):
        assert "<script" not in html
        assert "<img" not in html
        assert "&lt;script&gt;" in html
    assert "&lt;img" in shown._repr_html_()
    assert lenses.highlight(TEXT)._repr_html_().count("<span") == len(shown.tokens)
    with pytest.raises(KeyError, match="no lens for 'zebra'"):
        lenses.highlight(TEXT, "zebra")


def test_highlight_shows_the_strengths(lenses):
    shown = lenses.highlight(TEXT, "bird")
    expected = lenses.strength(lenses.score(TEXT))[:, lenses.ids.index("bird")]
    np.testing.assert_allclose(shown.strengths, expected, rtol=1e-4)


# ------------------------------------------------------------------------------ steering


def test_who_may_steer(lenses):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector = regraded(lenses, "A")["bird"].steering_vector()
    assert vector.dtype == torch.float32
    assert float(vector.norm()) == pytest.approx(1, abs=1e-6)
    with pytest.warns(UserWarning, match="'bird' has grade B"):
        regraded(lenses, "B")["bird"].steering_vector()
    for letter in "CU":
        with pytest.raises(PermissionError, match="force=True"):
            regraded(lenses, letter)["bird"].steering_vector()
        assert torch.equal(regraded(lenses, letter)["bird"].steering_vector(force=True), vector)


def test_the_steering_vector_raises_its_own_logit_most(lenses, model):
    lens = regraded(lenses, "A")["bird"]
    lens.lenses.model = model
    vector = lens.steering_vector()
    before = lens.score(TEXT)
    with steer(model, {SITE: vector}, scale=2.0):
        after = lens.score(TEXT)
    torch.testing.assert_close(
        after - before, torch.full_like(before, float(2 * lens.weight.norm())), rtol=1e-3, atol=1e-3
    )


def test_dose_response(lenses, model):
    lens = regraded(lenses, "A")["bird"]
    texts = [TEXT, "the king lost a truck near the hall"]
    table = lens.dose_response(model, texts, scales=(0.2, 0.4), n_random=4)
    assert sorted(table.scale.unique()) == [0.0, 0.2, 0.4]
    assert (table[table.scale == 0][["logit_change", "loss_change"]] == 0).all().all()
    own = table[table.direction == "lens"].set_index("scale").logit_change
    random = table[table.direction == "random"].groupby("scale").logit_change.apply(lambda x: x.abs().max())
    assert own[0.4] == pytest.approx(2 * own[0.2], rel=1e-2)
    assert own[0.4] > 2 * random[0.4]
    # What is said is written with steering, behind the first half of each text, and read without.
    with steer(model, {SITE: lens.steering_vector()}, scale=0.4 * lens.lenses.meta["typical_norm"]):
        ids = [model.tokenizer(t)["input_ids"] for t in texts]
        written = [
            capture(model, [{"token_ids": i[: len(i) // 2]}], sites=[SITE], max_new_tokens=12) for i in ids
        ]
    lens.lenses.model = model
    after = [lens.score(capture(model, [{"token_ids": w.token_ids}], sites=[SITE])) for w in written]
    new = [s[w.phase == 1] for s, w in zip(after, written, strict=True)]
    said = table[(table.direction == "lens") & (table.scale == 0.4)].said.item()
    assert said == pytest.approx(float(torch.cat(new).mean()), rel=1e-4)
    unsteered = table[table.scale == 0].loss.iloc[0]
    assert unsteered == pytest.approx(next_token_loss(model, texts))
    again = lens.dose_response(model, texts, scales=(0.2, 0.4), n_random=4)
    np.testing.assert_allclose(again.logit, table.logit, rtol=1e-6)
    with pytest.raises(LensMismatch):
        lens.dose_response(lens_world.model(seed=1), texts)
    with pytest.raises(PermissionError):
        regraded(lenses, "C")["bird"].dose_response(model, texts)
    with pytest.raises(ValueError, match="texts is empty"):
        lens.dose_response(model, [])


def test_steering_changes_what_a_trained_model_says():
    """On the shipped model, by words that the lens has no part in: those of the concept's class."""
    from interp.tiny import grammar
    from interp.tiny.concepts import class_ids

    tiny, pack = load_model("tiny"), ConceptPack.load("tiny")
    concepts = ["soldier", "boat", "medicine"]
    lenses = train_lenses(tiny, pack, site="resid_post.3", concepts=concepts, growth=(40,))
    texts = [c.positive[0].text for c in list(pack)[::8]]
    norm = lenses.meta["typical_norm"]

    def share(words: list[int]) -> float:
        logits = [tiny.hf(torch.tensor([tiny.tokenizer(t)["input_ids"]])).logits[0] for t in texts]
        return float(torch.cat(logits).softmax(-1)[:, words].sum(-1).mean())

    for concept in concepts:
        lens = lenses[concept]
        own = [w for w, ids in grammar.classes_of().items() if set(ids) & class_ids(concept)]
        words = [i for i in tiny.tokenizer.convert_tokens_to_ids(own) if i != tiny.tokenizer.unk_token_id]
        with torch.no_grad():
            plain = share(words)
            shares = []
            for vector in (
                lens.steering_vector(force=True),
                *(random_direction(128, seed=i) for i in range(3)),
            ):
                with steer(tiny, {"resid_post.3": vector}, scale=0.8 * norm):
                    shares.append(share(words))
        assert shares[0] > 2 * plain
        assert shares[0] > 2 * max(shares[1:])
        dose = lens.dose_response(tiny, texts, scales=(0.8,), force=True)
        said = dose[dose.scale == 0.8].groupby("direction").said_change.max()
        assert said["lens"] > 1 + said["random"]


def test_next_token_loss_is_transformers_own(model):
    texts = [TEXT, "the king lost"]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            total += float(model.hf(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert next_token_loss(model, texts) == pytest.approx(total / count, rel=1e-5)


# ------------------------------------------------------------------------------ files


def test_files_are_read_in_another_process(lenses, tmp_path, model):
    lenses.save(tmp_path / "l")
    code = f"""
import sys, json
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lens_world
from interp.lens import Lenses
lenses = Lenses.load({str(tmp_path / "l")!r}, model=lens_world.model())
bird = lenses["bird"]
print(json.dumps([lenses.score({TEXT!r}).double().sum().item(), bird.report.why, bird.threshold(0.1),
                  lenses.frame().shape, lenses.history().shape]))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    total, why, threshold, frame, history = json.loads(out.splitlines()[-1])
    assert total == pytest.approx(float(lenses.score(TEXT).double().sum()), rel=1e-4)
    assert (why, threshold) == (lenses["bird"].report.why, lenses["bird"].threshold(0.1))
    assert tuple(frame) == lenses.frame().shape
    assert tuple(history) == lenses.history().shape


def test_round_trip_is_exact(lenses, tmp_path):
    again = Lenses.load(lenses.save(tmp_path))
    for name in ("weight", "bias", "mean", "scale"):
        assert torch.equal(getattr(again, name), getattr(lenses, name))
    assert repr(again.reports) == repr(lenses.reports)  # NaN included
    # What is known of a lens is on it, in the frame and in the file alike.
    stored = {r["concept"]: r for r in read_json(tmp_path / "lenses.json")["reports"]}
    frame = again.frame().set_index("concept", drop=False)
    for report in lenses.reports:
        names = {f.name for f in dataclasses.fields(report)}
        assert names == set(stored[report.concept]) == set(frame.columns)
        for name in names & {"auroc_seen", "brier", "score_text", "divergence", "stop_reason", "seconds"}:
            np.testing.assert_equal(frame.loc[report.concept, name], getattr(report, name))
    texts = [*lens_world.sentences("bird", 5), "", "nothing known"]
    torch.testing.assert_close(again.text_score(texts), lenses.text_score(texts))
    with pytest.raises(ValueError, match="pass model="):
        again.score(TEXT)
    again.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the tensors of the first save are gone


@pytest.mark.parametrize(
    ("field", "value"), [("version", 2), ("version", "1"), ("format", "other"), ("normalisation", "unit")]
)
def test_files_of_another_version_are_refused(lenses, tmp_path, field, value):
    file = lenses.save(tmp_path) / "lenses.json"
    write_json(file, read_json(file) | {field: value})
    with pytest.raises(ValueError, match="this version of interp"):
        Lenses.load(tmp_path)


def field_of(content, path):
    """The container of a field, given as ``a.b[2].c``, and its name in there."""
    *first, last = [int(k) if k.isdigit() else k for k in re.findall(r"\w+", path)]
    for key in first:
        content = content[key]
    return content, last


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("meta", []),
        ("meta.site", 3),
        ("meta.model", "tiny"),
        ("meta.model.fingerprint", None),
        ("meta.pack.hash", 1),
        ("meta.parameters", None),
        ("meta.parameters.validation_blocking", "no"),
        ("meta.parameters.growth[1]", "20"),
        ("meta.parameters.templates.train", "{text}"),
        ("meta.typical_norm", "1"),
        ("meta.history[2]", ["bird", 1, 20, 0.5, 0.4]),
        ("meta.history[2][2]", 20.5),
        ("words", "robin"),
        ("words[4]", 4),
        ("reports", {}),
        ("reports[1]", "animal"),
        ("reports[1].grade", "D"),
        ("reports[1].grade", ["A"]),
        ("reports[1].score", "0.9"),
        ("reports[1].score_low", True),
        ("reports[1].n_iter", 2.0),
        ("reports[1].n_samples", None),
        ("reports[1].stop_reason", None),
        ("reports[1].forced_on", 0),
        ("reports[1].fitted", "yes"),
    ],
)
def test_an_edited_field_of_another_type_is_named(lenses, tmp_path, field, value):
    """Edited and sealed again, so that no hash tells."""
    file = lenses.save(tmp_path) / "lenses.json"
    content = read_json(file)
    where, name = field_of(content, field)
    assert type(where[name]) is not type(value) or field.endswith(("grade", "history[2]"))
    where[name] = value
    write_json(file, content)
    with pytest.raises(ValueError, match=rf"damaged \({re.escape(field)} (is|has) .*, expected "):
        Lenses.load(tmp_path)


@pytest.mark.parametrize("field", ["meta.site", "meta.model", "reports[1].term"])
def test_a_missing_field_is_named(lenses, tmp_path, field):
    file = lenses.save(tmp_path) / "lenses.json"
    content = read_json(file)
    where, name = field_of(content, field)
    del where[name]
    write_json(file, content)
    with pytest.raises(ValueError, match=rf"damaged .*{name}"):
        Lenses.load(tmp_path)


@pytest.mark.parametrize("name", ["bias", "scale", "negatives.token"])
def test_tensors_that_do_not_fit_the_reports_are_named(lenses, tmp_path, name):
    spoilt = regraded(lenses, "A")
    if name.startswith("negatives."):
        spoilt.negatives = lenses.negatives | {"token": lenses.negatives["token"][:-1]}
    else:
        setattr(spoilt, name, getattr(lenses, name)[:-1])
    with pytest.raises(ValueError, match=rf"{name} has shape .*, expected"):
        Lenses.load(spoilt.save(tmp_path))


def test_words_that_were_cut_off_are_found(lenses, tmp_path):
    """Their columns would be read behind the end of a matrix."""
    file = lenses.save(tmp_path) / "lenses.json"
    content = read_json(file)
    content["words"] = content["words"][:3]
    write_json(file, content)
    with pytest.raises(ValueError, match="damaged"):
        Lenses.load(tmp_path)


def test_damaged_or_missing_files(lenses, tmp_path):
    with pytest.raises(FileNotFoundError, match="no lenses at"):
        Lenses.load(tmp_path)
    lenses.save(tmp_path)
    tensors = next(tmp_path.glob("*.safetensors"))
    content = tensors.read_bytes()
    tensors.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Lenses.load(tmp_path)
    tensors.unlink()
    with pytest.raises(ValueError, match="damaged"):
        Lenses.load(tmp_path)
    (tmp_path / "lenses.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Lenses.load(tmp_path)


def test_loading_for_another_model_is_refused(lenses, tmp_path):
    with pytest.raises(LensMismatch):
        Lenses.load(lenses.save(tmp_path), model=lens_world.model(seed=1))


def test_concat_is_exact(model, lenses):
    pack = lens_world.pack()
    options = {"site": SITE, "growth": (10, 20), "head": "mlp"}
    a = train_lenses(model, pack, concepts=["bird", "car"], **options)
    b = train_lenses(model, pack, concepts=["animal"], seed=1, **options)
    assert not torch.equal(a.scale, b.scale)
    both = Lenses.concat([a, b])
    rows = capture(model, [TEXT], sites=[SITE])
    for head in ("linear", "mlp"):
        apart = torch.cat([part.score(rows, head=head) for part in (a, b)], dim=1)
        torch.testing.assert_close(both.score(rows, head=head), apart, rtol=1e-3, atol=1e-3)
    assert both["animal"].threshold(0.2) == b["animal"].threshold(0.2)
    texts = lens_world.sentences("bird", 5)
    torch.testing.assert_close(
        both.text_score(texts), torch.cat([part.text_score(texts) for part in (a, b)], dim=1)
    )
    with pytest.raises(ValueError, match="'bird' is in two parts"):
        Lenses.concat([a, a])
    with pytest.raises(ValueError, match="MLP heads"):
        Lenses.concat([a, lenses])


def test_a_part_without_lenses_takes_nothing_from_the_others(model, lenses):
    nothing = train_lenses(
        model, lens_world.pack(), site=SITE, concepts=["bird"], iteration_hook=lambda e: True
    )
    some = train_lenses(model, lens_world.pack(), site=SITE, concepts=["car"], growth=(10,), head="mlp")
    assert len(nothing) == 0
    both = Lenses.concat([nothing, some])
    assert (len(both), len(both.reports)) == (1, 2)
    assert torch.equal(both.score(TEXT), some.score(TEXT))
    assert both.meta["typical_norm"] == some.meta["typical_norm"]
    with pytest.raises(ValueError, match="parts is empty"):
        Lenses.concat([])
    with pytest.raises(ValueError, match="no lens was fitted"):
        nothing.text_score([TEXT])


def test_text_lenses_are_what_was_graded(lenses):
    """Read back from the one matrix of all lenses: the area of each on its test samples."""
    samples = Samples(lens_world.pack())
    judge = Judge(samples, Bank(lens_world.model(), SITE), 0)
    for lens in lenses:
        positive, negative = judge.test_samples(lens.concept)
        logits = lenses.text_score([s.text for s in [*positive, *negative]])[
            :, lenses.ids.index(lens.concept)
        ]
        area = float(grade.auroc(logits, np.arange(len(logits)) < len(positive)))
        assert 2 * area - 1 == pytest.approx(lens.report.score_text, abs=1e-6)


def test_text_lenses_are_scikit_learns():
    """The same rows as TfidfVectorizer's, and the same logits as a logistic regression on them."""
    train = [t for leaf in ("bird", "fish") for t in lens_world.sentences(leaf, 40)]
    y = np.arange(80) < 40
    tfidf = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit(train)
    bag = BagOfWords(train)
    fresh = [*lens_world.sentences("bird", 60)[40:], "a robin a robin", "zebra"]
    np.testing.assert_allclose(bag.rows(fresh).toarray(), tfidf.transform(fresh).toarray(), atol=1e-12)
    labels = torch.from_numpy(y).float()
    (lens,) = fit_text([TextProblem(bag, bag.rows(train), labels, torch.ones(80), lam=0.1)])
    model = LogisticRegression(C=10, tol=1e-10, max_iter=1000).fit(tfidf.transform(train), y)
    expected = model.decision_function(tfidf.transform(fresh))
    np.testing.assert_allclose(
        TextLenses.join([None, lens]).logits(fresh)[:, 1], expected, rtol=1e-3, atol=1e-3
    )
    assert torch.isnan(TextLenses.join([None, lens]).logits(fresh)[:, 0]).all()


def test_repeated_texts_are_taken_once_with_the_weight_of_all():
    """The template baseline sees few distinct texts: the fit on those is the fit on every row."""
    rng = np.random.default_rng(0)
    kinds = ["Note:", "She said:", "", "That is all.", "She said: Note:"]
    texts = [kinds[i] for i in rng.integers(0, len(kinds), 60)]
    y = torch.from_numpy(rng.random(60) < 0.5).float()
    corpus = Corpus()
    corpus.read(["words of other lenses come first"])
    (few,) = fit_text([TextProblem.of_distinct(texts, y, corpus, 0.1)])
    bag = BagOfWords(texts)
    (many,) = fit_text([TextProblem(bag, bag.rows(texts), y, balanced(y), lam=0.1)])
    assert few.bag.words == many.bag.words
    np.testing.assert_allclose(few.bag.rows(texts).toarray(), bag.rows(texts).toarray())
    np.testing.assert_allclose(few.weight, many.weight, atol=2e-3)
    assert few.bias == pytest.approx(many.bias, abs=2e-3)
