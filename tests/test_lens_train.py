"""Training: the whole of it, on a small world."""

from __future__ import annotations

import collections
import random
import time

import lens_world
import numpy as np
import pytest
import torch

from interp import events
from interp.capture.model import load_model
from interp.lens import fit
from interp.lens import grade as g
from interp.lens.bank import Bank
from interp.lens.concepts import ConceptPack
from interp.lens.judge import Judge
from interp.lens.rounds import Rounds
from interp.lens.samples import Samples
from interp.lens.train import train_lenses
from interp.run import start

SITE = "resid_post.1"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return lens_world.model()


@pytest.fixture(scope="module")
def bank(model):
    return Bank(model, SITE)


@pytest.fixture(scope="module")
def shipped():
    """A bank of the shipped model that fills as it is used."""
    return Bank(load_model("tiny"), "resid_post.3")


@pytest.fixture(scope="module")
def trained(model, bank):
    log = []
    return train_lenses(model, lens_world.pack(), site=SITE, bank=bank, iteration_hook=log.append), log


def world_with(change) -> ConceptPack:
    data = lens_world.pack().to_dict()
    change({c["id"]: c for c in data["concepts"]}, data)
    return ConceptPack.from_dict(data)


# ------------------------------------------------------------------------------ the result


def test_lenses_of_a_clear_world_are_good(trained):
    lenses, _ = trained
    frame = lenses.frame().set_index("concept")
    leaves = frame.loc[list(lens_world.LEAVES)]
    assert (leaves.auroc > 0.85).all(), leaves.auroc
    assert leaves.grade.isin(["A", "B"]).all()
    assert (leaves.score_low <= leaves.score).all()
    assert (leaves.score <= leaves.score_high).all()
    assert leaves.score_template.abs().max() < 0.2
    assert leaves.score_shuffled.abs().mean() < 0.25
    assert (leaves.score_text > 0.9).all()  # words tell all in this world
    assert (leaves.n_positive == leaves.n_negative).all()
    assert lenses.ids == [c for c in frame.index if frame.loc[c].fitted]


def test_events(trained):
    lenses, log = trained
    kinds = collections.Counter(e.kind for e in log)
    assert log[0].kind == "TrainBegin"
    assert log[-1].kind == "TrainEnd"
    assert kinds["LensEnd"] == log[0].n_lenses == len(lenses.reports) == 9
    assert kinds["LensIteration"] == sum(r.n_iter for r in lenses.reports) == len(lenses.history())
    ends = [e for e in log if e.kind == "LensEnd"]
    assert [e.n_done for e in ends] == list(range(1, 10))
    by_concept = {r.concept: r for r in lenses.reports}
    for e in ends:
        r = by_concept[e.concept]
        assert (e.grade, e.stop_reason, e.n_samples) == (r.grade, r.stop_reason, r.n_samples)
    assert log[-1].grade_counts == lenses.grades
    assert not log[-1].stopped


def test_the_score_is_that_of_held_out_siblings_alone(trained, model, bank):
    """Recomputed from the saved weights: only test texts, only held-out templates, only siblings."""
    lenses, _ = trained
    samples = Samples(lens_world.pack())
    for concept, siblings in (("bird", {"fish", "insect"}), ("vehicle", {"fish", "bird", "insect"})):
        positive, negative = Judge(samples, bank, 0).test_samples(concept)
        assert {s.origin for s in negative} <= siblings
        assert all(s.split == "test" and s.heldout for s in [*positive, *negative])
        trained_on = {s.group for c in lens_world.LEAVES for s in samples.positives(c, "train")}
        assert not trained_on & {s.group for s in [*positive, *negative]}
        rows = bank.take(bank.index([*positive, *negative]))
        scores = lenses[concept].score(rows, site=SITE).numpy()
        labels = np.arange(len(rows)) < len(positive)
        assert lenses[concept].report.auroc == pytest.approx(float(g.auroc(scores, labels)), abs=1e-6)


def test_the_test_split_is_read_once_and_only_at_the_end(model, monkeypatch):
    """No test text is forwarded with training texts, each lens is judged once, and after its last fit."""
    log = []
    ensure, read = Bank.ensure, Judge.read

    def watched_ensure(self, wanted, **options):
        wanted = list(wanted)
        splits = {s.split for s in wanted}
        assert splits <= {"train", "select"} or splits <= {"calibrate", "test"}
        return ensure(self, wanted, **options)

    def watched_read(self, jobs, **options):
        log.extend(("read", j.concept.id) for j in jobs)
        return read(self, jobs, **options)

    monkeypatch.setattr(Bank, "ensure", watched_ensure)
    monkeypatch.setattr(Judge, "read", watched_read)
    pack = lens_world.pack(30)
    lenses = train_lenses(
        model, pack, site=SITE, iteration_hook=lambda e: log.append((e.kind, getattr(e, "concept", "")))
    )
    for concept in lenses.ids:
        assert log.count(("read", concept)) == 1
        last_fit = max(i for i, e in enumerate(log) if e == ("LensIteration", concept))
        assert log.index(("read", concept)) > last_fit
    judge = Judge(Samples(pack), Bank(model, SITE), 0)
    judge._read.add("bird")
    job = type("Job", (), {"concept": pack["bird"]})()
    with pytest.raises(RuntimeError, match="test split of 'bird' has been read"):
        judge.read([job])


def test_numbers_do_not_depend_on_the_order_of_the_pack(trained, model):
    lenses, _ = trained
    data = lens_world.pack().to_dict()
    random.Random(3).shuffle(data["concepts"])
    other = train_lenses(model, ConceptPack.from_dict(data), site=SITE)
    for concept in lenses.ids:
        a, b = lenses[concept].report, other[concept].report
        assert (a.grade, a.n_samples, a.n_iter, a.lam) == (b.grade, b.n_samples, b.n_iter, b.lam)
        assert a.score == pytest.approx(b.score, abs=2e-3)
        torch.testing.assert_close(lenses[concept].weight, other[concept].weight, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_lens_does_not_depend_on_which_others_are_trained_with_it(model, head):
    """So that tasks on a cluster can share a pack: two tasks of their own banks, beside one that does all."""
    pack, growth = lens_world.pack(), (10, 20)
    together = train_lenses(model, pack, site=SITE, head=head, growth=growth)
    for share in (["bird"], ["car", "animal", "boat"]):
        part = train_lenses(model, pack, site=SITE, head=head, growth=growth, concepts=share)
        assert part.ids == share
        torch.testing.assert_close(part.mean, together.mean, rtol=1e-5, atol=1e-6)
        for concept in share:
            ours, theirs = part[concept], together[concept]
            torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-3, atol=1e-5)
            for per in ("text", "token"):
                assert ours.threshold(0.1, per=per) == pytest.approx(theirs.threshold(0.1, per=per), abs=1e-3)
            a, b = ours.report.to_dict(), theirs.report.to_dict()
            assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx(
                {k: v for k, v in b.items() if k != "seconds"}, abs=1e-4, nan_ok=True
            )


def test_twice_is_the_same(trained, model, bank):
    lenses, _ = trained
    again = train_lenses(model, lens_world.pack(), site=SITE, bank=bank)
    assert torch.equal(lenses.weight, again.weight)
    assert [r.score for r in lenses.reports if r.fitted] == [r.score for r in again.reports if r.fitted]


def test_torchs_own_threads_do_not_wait_for_each_other_in_the_fits(trained, model, monkeypatch):
    """Fits have one, forward passes those that were there; the lenses are the same."""
    lenses, _ = trained
    seen = collections.defaultdict(set)

    def watch(owner, name):
        real = getattr(owner, name)

        def watched(*args, **options):
            seen[name].add(torch.get_num_threads())
            return real(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((fit, "_newton"), (Judge, "read"), (Rounds, "lenses"), (Bank, "ensure")):
        watch(owner, name)
    torch.set_num_threads(2)
    try:
        again = train_lenses(model, lens_world.pack(), site=SITE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert dict(seen) == {"_newton": {1}, "read": {1}, "lenses": {1}, "ensure": {2}}
    assert [r.lam for r in again.reports] == pytest.approx([r.lam for r in lenses.reports], nan_ok=True)
    torch.testing.assert_close(again.weight, lenses.weight, rtol=1e-3, atol=1e-5)


def test_a_pack_of_nonsense_earns_nothing(model):
    """Texts dealt to the concepts at random: 60 lenses that mean nothing."""
    rng = np.random.default_rng(0)
    letters: collections.Counter = collections.Counter()
    for _ in range(10):
        texts = [t for leaf in lens_world.LEAVES for t in lens_world.sentences(leaf, 60)]
        rng.shuffle(texts)

        def deal(by_id, data, texts=texts):
            for i, leaf in enumerate(lens_world.LEAVES):
                by_id[leaf]["examples"]["positive"] = texts[i::6]

        lenses = train_lenses(
            model, world_with(deal), site=SITE, concepts=list(lens_world.LEAVES), growth=(40,)
        )
        letters += lenses.grades
    assert letters["A"] + letters["B"] <= 1, letters


def test_shuffled_scores_spread_as_luck_does(model, bank):
    """Shuffling training labels alone would not do: a random direction separates true classes by accident."""
    found = []
    for seed in range(8):
        lenses = train_lenses(
            model,
            lens_world.pack(60, seed),
            site=SITE,
            bank=bank,
            seed=seed,
            growth=(40,),
            concepts=list(lens_world.LEAVES),
        )
        found += [r.score_shuffled for r in lenses.reports]
    n, m = lenses.reports[0].n_test_positive, lenses.reports[0].n_test_negative
    luck = 2 * np.sqrt((n + m + 1) / (12 * n * m))
    assert abs(np.mean(found)) < 3 * luck / np.sqrt(len(found))
    assert 0.6 * luck < np.std(found) < 1.3 * luck


# ------------------------------------------------------------------------------ growth and its end


def test_the_target_stops_the_growth(model, bank):
    """By the point rule six leaves meet a modest target early; the bound of 9 prompts never can."""
    leaves = list(lens_world.LEAVES)
    early = train_lenses(
        model, lens_world.pack(), site=SITE, bank=bank, concepts=leaves, f1_target=0.7, f1_rule="point"
    )
    met = [r for r in early.reports if r.stop_reason == "target_met"]
    assert len(met) >= 5
    assert min(r.n_samples for r in met) < 50
    late = train_lenses(model, lens_world.pack(), site=SITE, bank=bank, concepts=leaves)
    assert {r.stop_reason for r in late.reports} == {"no_more_data"}
    assert all(r.n_positive == late.reports[0].n_positive for r in late.reports)
    budget = train_lenses(model, lens_world.pack(), site=SITE, bank=bank, concepts=leaves, growth=(5, 10))
    assert {r.stop_reason for r in budget.reports} == {"budget"}


def test_the_lower_bound_graduates_where_there_is_enough_to_select_on(model):
    lenses = train_lenses(
        model, lens_world.pack(140), site=SITE, concepts=["animal", "vehicle"], f1_target=0.8
    )
    for r in lenses.reports:
        assert r.stop_reason == "target_met"
        assert r.f1_select_low >= 0.8
        assert r.n_samples < 240


@pytest.mark.parametrize("rule", ["lower", "point"])
def test_graduation_by_the_learning_curve(model, bank, rule):
    """The rule read off the history: the first number of samples that meets the target ends it."""
    growth, target = (5, 10, 20, 40), 0.7
    options = {"site": SITE, "bank": bank, "f1_target": target, "f1_rule": rule, "growth": growth}
    lenses = train_lenses(model, lens_world.pack(), **options)
    history = lenses.history()
    for report in (r for r in lenses.reports if r.fitted):
        curve = history[history.concept == report.concept].sort_values("iteration")
        assert curve.iteration.tolist() == list(range(1, report.n_iter + 1))
        expected = ""
        for row, n in zip(curve.itertuples(), growth, strict=False):
            assert not expected, "it should have stopped before"
            assert row.n_samples <= 2 * n
            tp_bound = row.f1_low if rule == "lower" else row.f1
            if tp_bound >= target:
                expected = "target_met"
            elif row.n_samples < 2 * n:
                expected = "no_more_data"
            elif n == growth[-1]:
                expected = report.stop_reason  # the last step: no more data, or no more budget
                assert expected in ("budget", "no_more_data")
        assert report.stop_reason == expected
        assert curve.f1.iloc[-1] == pytest.approx(report.f1_select)
        assert report.n_samples == curve.n_samples.iloc[-1]


def test_max_seconds(model, bank):
    lenses = train_lenses(model, lens_world.pack(), site=SITE, bank=bank, concepts=["bird"], max_seconds=0.0)
    (report,) = lenses.reports
    assert (report.stop_reason, report.n_iter) == ("budget", 1)
    assert report.grade != "U"


def test_blocking_counts_what_it_costs(model, bank, monkeypatch):
    """With validation made impossible, every lens that met the target is forced on to the end of its data."""
    options = {
        "site": SITE,
        "bank": bank,
        "concepts": list(lens_world.LEAVES),
        "f1_target": 0.7,
        "f1_rule": "point",
    }
    monkeypatch.setattr("interp.lens.rounds.Rounds._valid", lambda *a: False)
    advisory = train_lenses(model, lens_world.pack(), **options)
    blocking = train_lenses(model, lens_world.pack(), **options, validation_blocking=True)
    free = {r.concept: r for r in advisory.reports}
    for r in blocking.reports:
        assert r.forced_on
        assert r.stop_reason == "no_more_data"
        if free[r.concept].stop_reason == "target_met":
            assert r.extra_iterations == r.n_iter - free[r.concept].n_iter == free[r.concept].extra_iterations
    table = blocking.blocking_table().iloc[0]
    assert table.forced_on == 6
    assert table.total_wasted == sum(r.extra_iterations for r in blocking.reports)
    assert table.iterations_advisory == pytest.approx(np.mean([r.n_iter for r in advisory.reports]))
    assert table.speed_up == pytest.approx(table.iterations_blocking / table.iterations_advisory)
    assert advisory.blocking_table().iloc[0].speed_up == pytest.approx(table.speed_up)
    monkeypatch.undo()
    passing = train_lenses(model, lens_world.pack(), **options, validation_blocking=True)
    assert sum(r.extra_iterations for r in passing.reports) < table.total_wasted


def test_a_stop_leaves_a_valid_result(model, bank):
    seen = []

    def hook(event):
        seen.append(event)
        return sum(e.kind == "LensIteration" for e in seen) == 3

    train_lenses(model, lens_world.pack(), site=SITE, bank=bank)  # whichever tests ran before
    lenses = train_lenses(model, lens_world.pack(), site=SITE, bank=bank, iteration_hook=hook)
    assert sum(e.kind == "LensIteration" for e in seen) == 3
    assert len(lenses) == 3
    assert len(lenses.reports) == 9
    assert seen[-1].kind == "TrainEnd"
    assert seen[-1].stopped
    assert {r.stop_reason for r in lenses.reports if r.fitted} == {"stopped"}
    assert all(r.grade != "U" for r in lenses.reports if r.fitted)  # the bank held all that grading needs
    assert all(np.isnan(r.score_text) for r in lenses.reports)  # and time was short for baselines
    assert {r.why for r in lenses.reports if not r.fitted and r.term != "<thing>"} == {
        "stopped before it was fitted"
    }
    assert torch.isfinite(lenses.score("the boy saw a robin near the park")).all()


def test_a_stop_in_the_forward_passes(model):
    """Nothing is graded that would need another pass; what was fitted is kept as it was."""
    count = 0

    def hook(event):
        nonlocal count
        count += event.kind == "LensIteration"
        return count >= 8 and event.kind == "BatchEnd"

    small = Bank(model, SITE, batch_tokens=200)
    lenses = train_lenses(model, lens_world.pack(), site=SITE, bank=small, iteration_hook=hook)
    assert len(lenses) == 8
    for r in lenses.reports:
        if r.fitted:
            assert (r.grade, r.why, r.stop_reason) == ("U", "stopped before it was graded", "stopped")
            assert r.n_iter < 4
            assert r.n_samples == 2 * (10, 20, 40)[r.n_iter - 1]


def test_a_stop_within_a_round_leaves_each_lens_with_the_samples_of_its_fit(model, bank):
    seen = 0

    def hook(event):
        nonlocal seen
        seen += event.kind == "LensIteration"
        return seen == 11

    lenses = train_lenses(model, lens_world.pack(), site=SITE, bank=bank, iteration_hook=hook)
    last = lenses.history().groupby("concept").n_samples.last()
    assert sorted(last.unique()) == [20, 40]
    assert {r.concept: r.n_samples for r in lenses.reports if r.fitted} == last.to_dict()


def test_a_stop_with_no_time_left_to_grade(model, bank, monkeypatch):
    """Lenses are kept as they were fitted, and say so; the grades of those that had ended stay."""
    monkeypatch.setattr("interp.lens.rounds._GRACE", 0.0)
    ended = []

    def hook(event):
        ended.extend([event.concept] if event.kind == "LensEnd" and event.grade != "U" else [])
        return len(ended) >= 2

    options = {"site": SITE, "bank": bank, "f1_target": 0.7, "f1_rule": "point"}
    lenses = train_lenses(model, lens_world.pack(), **options, iteration_hook=hook)
    graded = {r.concept for r in lenses.reports if r.grade != "U"}
    assert set(ended) <= graded
    late = [r for r in lenses.reports if r.fitted and r.concept not in graded]
    assert late
    assert np.isfinite([lenses[c].threshold(0.1) for c in ended]).all()
    for r in late:
        with pytest.raises(ValueError, match=f"'{r.concept}' has no thresholds: its training was"):
            lenses[r.concept].threshold(0.1)
    assert {(r.stop_reason, r.why) for r in late} == {("stopped", "stopped before it was graded")}
    assert torch.isfinite(lenses.score("the boy saw a robin near the park")).all()


@pytest.mark.parametrize("at", [1, 150, 400])
def test_a_stop_takes_effect_at_once(shipped, at):
    """On the shipped model and pack: after the hook's True, next to nothing is done."""
    seen = 0
    asked = float("inf")

    def hook(event):
        nonlocal seen, asked
        seen += event.kind == "LensIteration"
        if seen >= at:
            asked = min(asked, time.process_time())
        return seen >= at

    lenses = train_lenses(shipped.model, "tiny", site=shipped.site, bank=shipped, iteration_hook=hook)
    assert time.process_time() - asked < 0.4  # of this process, whatever others do on the machine
    assert len(lenses) >= min(at, 150)


def test_in_the_background_with_stepping(model, bank):
    run = start(train_lenses, model, lens_world.pack(), site=SITE, bank=bank, paused=True)
    assert run.step(until=events.LensIteration, timeout=60).kind == "LensIteration"
    run.resume()
    assert run.wait(timeout=60).grades


# ------------------------------------------------------------------------------ bad input


def test_what_cannot_be_trained_is_u_and_the_rest_goes_on(model):
    def spoil(by_id, data):
        by_id["bird"]["examples"]["positive"] = []
        by_id["boat"]["examples"]["positive"] = by_id["boat"]["examples"]["positive"][:1]
        by_id["insect"]["examples"]["positive"] = by_id["insect"]["examples"]["positive"][:12]
        data["concepts"].append(
            lens_world.concept("lonely", ["car"], 3, lens_world.sentences("car", 60, seed=9))
        )

    lenses = train_lenses(model, world_with(spoil), site=SITE)
    found = {r.concept: r for r in lenses.reports}
    assert found["bird"].grade == found["boat"].grade == found["insect"].grade == found["lonely"].grade == "U"
    assert found["bird"].why.startswith("0 positive examples for training")
    assert found["boat"].why.startswith("1 positive example for training")
    assert found["insect"].why.startswith("6 positive and")
    assert found["lonely"].why == "no held-out prompts of siblings"
    assert found["insect"].fitted
    assert found["lonely"].fitted
    assert found["plane"].grade in "AB"
    with pytest.raises(KeyError, match="'bird' was not fitted: 0 positive examples"):
        lenses["bird"]


def test_near_duplicates_that_leave_one_example_are_said_to(model):
    """Sixty texts that differ in a full stop are one text."""

    def repeat(by_id, data):
        text = by_id["bird"]["examples"]["positive"][0]
        by_id["bird"]["examples"]["positive"] = [text + "." * i for i in range(60)]

    (report,) = train_lenses(model, world_with(repeat), site=SITE, concepts=["bird"]).reports
    assert report.grade == "U"
    assert "(60 are given; near-duplicates, and texts of one source, count as one)" in report.why


def test_a_pack_where_nothing_can_be_trained(model):
    pack = ConceptPack.from_dict({"name": "p", "version": "1", "concepts": [lens_world.concept("a", [], 0)]})
    lenses = train_lenses(model, pack, site=SITE)
    assert (len(lenses), lenses.grades["U"]) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"f1_target": 1.5}, "f1_target must be in"),
        ({"f1_rule": "upper"}, "f1_rule must be"),
        ({"growth": (10, 10)}, "growth must be increasing"),
        ({"growth": ()}, "growth must be increasing"),
        ({"head": "forest"}, "head must be"),
        ({"concepts": ["zebra"]}, "'zebra' is not in pack"),
        ({"site": "resid_post.*"}, "site must name one site"),
        ({"site": "resid_post.9"}, "resid_post"),
        ({"dtype": "bfloat16"}, "the model is loaded in torch.float32"),
    ],
)
def test_bad_arguments(model, options, message):
    with pytest.raises(ValueError, match=message):
        train_lenses(model, lens_world.pack(), **{"site": SITE, **options})


def test_a_bank_of_something_else_is_refused(model, bank):
    with pytest.raises(ValueError, match="the bank's site is"):
        train_lenses(model, lens_world.pack(), site="resid_post.0", bank=bank)


def test_what_a_given_bank_cannot_follow_is_refused(model, bank):
    """Rows are made as the bank was told: another seed or batch would be ignored."""
    with pytest.raises(ValueError, match="batch_tokens=64 has no effect beside a bank"):
        train_lenses(model, lens_world.pack(), site=SITE, bank=bank, batch_tokens=64)
    continued = Bank(model, SITE, continuation=2, temperature=1.0, seed=3)
    options = {"site": SITE, "bank": continued, "continuation": 2, "concepts": ["bird"], "growth": (10,)}
    with pytest.raises(ValueError, match="the bank's seed is 3, the training wants 4"):
        train_lenses(model, lens_world.pack(), seed=4, **options)
    assert continued.n_forwarded == 0
    assert len(train_lenses(model, lens_world.pack(), seed=3, **options)) == 1
    # Without a continuation nothing in a bank is drawn.
    options = {"site": SITE, "bank": bank, "concepts": ["bird"], "growth": (10,)}
    assert len(train_lenses(model, lens_world.pack(), seed=bank.seed + 1, **options)) == 1


def test_nan_activations_are_named(tmp_path):
    broken = lens_world.model()
    with torch.no_grad():
        broken.hf.model.layers[0].mlp.down_proj.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="near the"):
        train_lenses(broken, lens_world.pack(), site=SITE)


# ------------------------------------------------------------------------------ options


def test_mlp_heads(model, bank):
    lenses = train_lenses(
        model, lens_world.pack(), site=SITE, bank=bank, concepts=["bird", "car"], head="mlp"
    )
    assert set(lenses.grades) == set("ABCU")
    rows = bank.take(torch.arange(5))
    assert lenses.score(rows, site=SITE, head="mlp").shape == (5, 2)
    alone = train_lenses(model, lens_world.pack(), site=SITE, bank=bank, concepts=["car"], head="mlp")
    assert alone["car"].report.score == pytest.approx(lenses["car"].report.score, abs=0.1)


def test_continuations_are_rows_of_their_prompts_group(model):
    lenses = train_lenses(
        model, lens_world.pack(40), site=SITE, concepts=["bird", "fish"], continuation=3, growth=(10, 20)
    )
    (bird, _) = lenses.reports
    assert bird.n_test_positive == 14  # groups, not rows
    assert np.isfinite(bird.score)
    assert np.isfinite(bird.score_text)


def test_an_encoder():
    """No next token, so no continuation and no loss under steering; everything else as ever."""
    encoder = lens_world.encoder()
    lenses = train_lenses(encoder, lens_world.pack(), site=SITE)
    assert sum(r.grade in "AB" for r in lenses.reports) >= 6
    best = max((r for r in lenses.reports if r.grade == "A"), key=lambda r: r.score_low)
    dose = lenses[best.concept].dose_response(encoder, lens_world.sentences("bird", 4), scales=(0.2,))
    assert dose[["loss", "said"]].isna().all().all()
    assert dose[(dose.direction == "lens") & (dose.scale > 0)].logit_change.item() > 0
    with pytest.raises(ValueError, match="is an encoder and cannot continue"):
        train_lenses(encoder, lens_world.pack(), site=SITE, continuation=3)
