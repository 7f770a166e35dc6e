"""Samples: what is in which split, and that nothing leaks."""

from __future__ import annotations

import dataclasses
import random
import re

import lens_world
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.lens.concepts import ConceptPack
from interp.lens.leakage import LeakageError, audit, audit_lens, group_texts, near_duplicates, normalise
from interp.lens.samples import SPLITS, Sample, Samples, Templates, allot


@pytest.fixture(scope="module")
def samples():
    return Samples(lens_world.pack())


# ------------------------------------------------------------------------------ near-duplicates


def slow_pairs(texts, threshold):
    def shingles(text):
        padded = f" {normalise(text)} "
        return {padded[i : i + 4] for i in range(max(len(padded) - 3, 1))}

    sets = [shingles(t) for t in texts]
    return [
        (i, j)
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold - 1e-12
    ]


@given(
    st.lists(
        st.lists(
            st.sampled_from(["the", "a", "cat", "cats", "dog", "sat", "sits", "on", "mat"]),
            min_size=1,
            max_size=7,
        ),
        max_size=12,
    ),
    st.sampled_from([0.5, 0.8, 0.9]),
)
def test_near_duplicates_are_found_exactly(sentences, threshold):
    texts = [" ".join(words) for words in sentences]
    # Of verbatim copies only the first is paired with others.
    first = {}
    copies = {i for i, t in enumerate(texts) if first.setdefault(normalise(t), i) != i}
    expected = [
        (i, j)
        for i, j in slow_pairs(texts, threshold)
        if (i not in copies and j not in copies) or i == first[normalise(texts[j])]
    ]
    assert [tuple(p) for p in near_duplicates(texts, threshold).tolist()] == expected


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [
        ("The cat sat on the mat.", "the cat  sat on the MAT", True),
        ("The quick brown fox jumps over the lazy dog", "The quick brown fox jumps over the lazy dogs", True),
        ("The robin sings in the park at noon.", "A robin sings in the park at noon.", True),
        ("The robin sings in the park at noon.", "The whale sings in the park at noon.", False),
        ("!!!", "???", False),
        ("日本語の文です", "日本語の文です。", True),
    ],
)
def test_what_counts_as_near(a, b, near):
    assert (len(near_duplicates([a, b])) == 1) == near


def test_groups_join_sources_and_duplicates_transitively():
    texts = ["One robin sings.", "one robin sings", "Quite another text.", "A third one here."]
    assert group_texts(texts, ["", "s", "s", ""]).tolist() == [0, 0, 0, 3]


# ------------------------------------------------------------------------------ the audit


def sample(text, split, group, template="{text}", origin="bird", heldout=False):
    return Sample(template.replace("{text}", text), template.index("{"), template.index("{") + len(text),
                  template, origin, group, split, heldout)  # fmt: skip


def test_audit_raises():
    a = sample("The cat sat on the mat.", "train", 1)
    long = sample("Before noon the old captain sold two green boats to a judge.", "train", 3)
    with pytest.raises(LeakageError, match="nearly occurs in select"):
        audit([long, sample("Before noon the old captain sold two green boats to the judge.", "select", 4)])
    audit([a, sample("A dog barked all night.", "test", 2)])
    with pytest.raises(LeakageError, match="occurs verbatim in test"):
        audit([a, sample("the cat sat on the mat", "test", 2)])
    with pytest.raises(LeakageError, match="group 1 is in two splits"):
        audit([a, sample("Something else entirely.", "calibrate", 1)])
    held = sample("A dog barked all night.", "test", 2, "Read: {text}", heldout=True)
    with pytest.raises(LeakageError, match=r"held-out template 'Read: .*' is used in the train"):
        audit([held, sample("Nothing of the kind.", "train", 3, "Read: {text}")])


def test_the_template_does_not_hide_a_duplicate():
    with pytest.raises(LeakageError, match="verbatim"):
        audit(
            [
                sample("Hi.", "train", 1, "A very long template that hides what is in it: {text}"),
                sample("Hi.", "test", 2, "{text}"),
            ]
        )


def test_audit_of_one_lens():
    words = [f"text number {i}" for i in range(40)]
    positive = [sample(w, "train", i, "{text}") for i, w in enumerate(words[:20])]
    negative = [sample(w, "train", 100 + i, "Note: {text}") for i, w in enumerate(words[20:])]
    with pytest.raises(LeakageError, match="templates in different proportions"):
        audit_lens(positive, negative)
    with pytest.raises(LeakageError, match="both a positive and a negative"):
        audit_lens(positive, positive[:1])


# ------------------------------------------------------------------------------ the plan


def test_no_group_crosses_a_split_and_all_are_audited(samples):
    split_of = {}
    for (_, split), fillers in samples._fillers.items():
        for _, group in fillers:
            assert split_of.setdefault(group, split) == split
    assert set(split_of.values()) == set(SPLITS)


def test_a_leak_in_the_plan_is_found(monkeypatch):
    """With the grouping switched off, copies of a text are in several splits: refused."""
    texts = [f"{t}{mark}" for t in lens_world.sentences("bird", 20) for mark in (".", "!")]
    p = ConceptPack.from_dict(
        {"name": "p", "version": "1", "concepts": [lens_world.concept("bird", [], 0, texts)]}
    )
    Samples(p)
    monkeypatch.setattr("interp.lens.samples.group_texts", lambda texts, sources: np.arange(len(texts)))
    with pytest.raises(LeakageError, match="verbatim"):
        Samples(p)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("concept", ["bird", "animal"])
def test_positives_and_negatives(samples, concept, split):
    pack = samples.pack
    positive = samples.positives(concept, split, 40)
    negative = samples.negatives(concept, split, positive)
    assert len(positive) == len(negative) > 5
    line = {concept} | pack.ancestors(concept) | pack.descendants(concept)
    assert all(s.origin in {concept} | pack.descendants(concept) for s in positive)
    assert not any(s.origin in line for s in negative)
    assert [s.template for s in positive] == [s.template for s in negative]
    assert all(s.split == split for s in [*positive, *negative])
    audit_lens(positive, negative)
    if split != "train":  # one row per group: rows are independent
        for side in (positive, negative):
            assert len({s.group for s in side}) == len(side)


def test_more_samples_begin_with_the_fewer(samples):
    many = samples.positives("bird", "train", 40)
    few = samples.positives("bird", "train", 15)
    assert many[:15] == few
    assert samples.negatives("bird", "train", many)[:15] == samples.negatives("bird", "train", few)


def test_samples_do_not_depend_on_the_order_of_the_pack(samples):
    data = lens_world.pack().to_dict()
    shuffled = random.Random(1)
    shuffled.shuffle(data["concepts"])
    for c in data["concepts"]:
        shuffled.shuffle(c["examples"]["positive"])
    other = Samples(ConceptPack.from_dict(data))
    for c in ("bird", "vehicle"):
        a, b = samples.positives(c, "train", 40), other.positives(c, "train", 40)
        assert [s.text for s in a] == [s.text for s in b]
        assert [s.text for s in samples.negatives(c, "train", a)] == [
            s.text for s in other.negatives(c, "train", b)
        ]
    seeded = Samples(lens_world.pack(), seed=1).positives("bird", "train", 40)
    assert {s.text for s in seeded} != {s.text for s in samples.positives("bird", "train", 40)}


def test_shares_of_the_negatives():
    s = Samples(lens_world.pack(), shares={"sibling": 0.5, "cousin": 0.25, "far": 0.25})
    positive = s.positives("bird", "train", 40)
    origins = [n.origin for n in s.negatives("bird", "train", positive)]
    siblings = sum(o in ("fish", "insect") for o in origins)
    # The world has no far concepts: siblings and cousins (car, boat, plane) take over, two to one.
    assert siblings == 27
    assert len(origins) == 40
    only = s.negatives("bird", "test", s.positives("bird", "test"), siblings_only=True)
    assert {n.origin for n in only} == {"fish", "insect"}
    with pytest.raises(ValueError, match="shares must give weights"):
        Samples(lens_world.pack(), shares={"uncles": 1})


def test_given_near_misses_are_used_for_their_concept_alone():
    data = lens_world.pack().to_dict()
    bird = next(c for c in data["concepts"] if c["id"] == "bird")
    bird["examples"]["negative"] = [
        f"a {w} is no <bird> at all, said number {i}" for i, w in enumerate("abcdefghijklmnop")
    ]
    s = Samples(ConceptPack.from_dict(data))
    positive = s.positives("bird", "train", 40)
    assert any(n.origin == "not:bird" for n in s.negatives("bird", "train", positive))
    for c in ("fish", "animal", "car"):
        positive = s.positives(c, "train", 40)
        assert not any(n.origin.startswith("not:") for n in s.negatives(c, "train", positive))


@pytest.mark.parametrize(
    "term", ["Robin", "near the park", "a robin", "rob", "the", "++", "c++", "-robin", "."]
)
def test_texts_that_name_a_term(term):
    """As many as a look at every text finds."""
    data = lens_world.pack(20).to_dict()
    given = next(c for c in data["concepts"] if c["id"] == "bird")
    given["term"] = term
    given["examples"]["positive"] += [
        "I like C++ more",
        "c++11 is new",
        "a ++ sign",
        "(robin)",
        "a-robin.",
        "Robins",
    ]
    samples = Samples(ConceptPack.from_dict(data))
    texts = {text for fillers in samples._fillers.values() for text, _ in fillers}
    whole = re.compile(rf"(?<!\w){re.escape(term)}(?!\w)", re.IGNORECASE)
    assert samples._texts_naming(term) == {text for text in texts if whole.search(text)}


def test_a_text_that_names_the_concept_is_no_negative():
    data = lens_world.pack().to_dict()
    for c in data["concepts"]:
        c["term"] = c["id"]
        if c["id"] == "fish":
            c["examples"]["positive"] += [
                f"a bird watched carp number {i} in the {p}" for i, p in enumerate("abcdefgh")
            ]
    s = Samples(ConceptPack.from_dict(data))
    for split in SPLITS:
        positive = s.positives("bird", split)
        for n in s.negatives("bird", split, positive):
            assert "bird" not in n.filler.split()


def test_polysemous_texts_are_no_negatives():
    """A text listed under two siblings is a positive of both and a negative of neither."""
    data = lens_world.pack().to_dict()
    by_id = {c["id"]: c for c in data["concepts"]}
    shared = by_id["fish"]["examples"]["positive"][:20]
    by_id["bird"]["examples"]["positive"] += shared
    s = Samples(ConceptPack.from_dict(data))
    for split in SPLITS:
        negative = s.negatives("bird", split, s.positives("bird", split))
        assert not {n.filler for n in negative} & set(shared)


def test_a_text_that_also_shows_a_concept_is_no_negative_for_it():
    """Nor for what is above the concept; for the others it is one as ever."""
    data = lens_world.pack().to_dict()
    by_id = {c["id"]: c for c in data["concepts"]}
    texts = by_id["car"]["examples"]["positive"]
    texts[:30] = [{"text": t, "also": ["bird"]} for t in texts[:30]]
    also, every = {e["text"] for e in texts[:30]}, {t if isinstance(t, str) else t["text"] for t in texts}
    s = Samples(ConceptPack.from_dict(data))
    for split in SPLITS:
        drawn = {
            c: {n.filler for n in s.negatives(c, split, s.positives(c, split) * 3)} & every
            for c in ("bird", "animal", "boat")
        }
        assert not drawn["bird"] & also
        assert not drawn["animal"] & also
        assert drawn["boat"] & also
        assert drawn["animal"]
    assert {n.filler for n in s.positives("car", "train")} & also


def test_negatives_of_the_shipped_pack_do_not_show_their_concept():
    """By the words of the language, not by what the pack says."""
    from interp.tiny import grammar
    from interp.tiny.concepts import class_ids

    pack = ConceptPack.load("tiny")
    samples = Samples(pack)
    # "a hand tool" has no hand
    names = {part for name in grammar.LEAF if " " in name for part in name.split()}
    classes = {word: set(ids) for word, ids in grammar.classes_of().items() if word not in names}
    for concept in [*pack.at_level(0), *pack.at_level(1)[::3], *pack.at_level(2)[::10]]:
        own = class_ids(concept)
        like = samples.positives(concept, "test", heldout=True)
        for sample in samples.negatives(concept, "test", like * 3, siblings_only=True):
            words = set(normalise(sample.filler).split())
            surely = {w for w in words if classes.get(w) and classes[w] <= own}
            assert not surely, (concept, sample.filler)


def test_heldout_templates_are_in_the_test_split_only(samples):
    held = samples.positives("bird", "test", heldout=True)
    assert {s.template for s in held} <= set(samples.templates.heldout)
    assert not {s.template for s in samples.positives("bird", "train")} & set(samples.templates.heldout)
    assert {s.filler for s in held} == {s.filler for s in samples.positives("bird", "test")}


def test_the_filler_is_where_it_says(samples):
    for s in samples.positives("bird", "train", 60):
        assert s.filler in lens_world.sentences("bird", 60)
        assert s.text == s.template.replace("{text}", s.filler)


@pytest.mark.parametrize(
    "bad",
    [
        {"train": ()},
        {"train": ("no place",)},
        {"train": ("{text}", "Read: {text}"), "heldout": ("Read: {text}",)},
    ],
)
def test_bad_templates(bad):
    with pytest.raises(ValueError, match="template"):
        dataclasses.replace(Templates(), **bad)


@given(st.integers(0, 2000))
def test_allotment(n):
    sizes = allot(n)
    assert sum(sizes.values()) == n
    assert min(sizes.values()) >= 0
    if n >= 16:
        assert sizes["test"] >= 8
    if n >= 4:
        assert sizes["train"] >= sizes["select"]
