"""Concept packs: what is refused, what is warned about, and who is related to whom."""

from __future__ import annotations

import copy
import json

import pytest
from lens_world import concept

from interp.lens.concepts import ConceptPack


def pack(*concepts, **more):
    return ConceptPack.from_dict({"name": "p", "version": "1", "concepts": list(concepts), **more})


def diamond():
    """Two roots; a child of both; grandchildren."""
    return pack(
        concept("a", [], 0),
        concept("b", [], 0),
        concept("ab", ["a", "b"], 1),
        concept("a2", ["a"], 1),
        concept("b2", ["b"], 1),
        concept("ab.x", ["ab"], 2),
        concept("a2.x", ["a2"], 2),
        concept("a2.y", ["a2"], 2),
    )


def test_relations():
    p = diamond()
    assert p.siblings("a") == {"b"}
    assert p.siblings("ab") == {"a2", "b2"}
    assert p.siblings("a2.x") == {"a2.y"}
    assert p.cousins("a2.x") == {"ab.x"}
    assert p.ancestors("ab.x") == {"ab", "a", "b"}
    assert p.descendants("a") == {"ab", "a2", "ab.x", "a2.x", "a2.y"}
    assert p.cousins("a2") == {"b2"}
    assert p.at_level(2) == ["ab.x", "a2.x", "a2.y"]
    assert p.levels == [0, 1, 2]


def test_a_relative_in_the_direct_line_is_no_sibling():
    # c is a child of a and of b, and b a child of a: b is c's parent, not its sibling.
    p = pack(concept("a", [], 0), concept("b", ["a"], 1), concept("c", ["a", "b"], 2), concept("d", ["a"], 1))
    assert p.siblings("c") == {"d"}
    assert p.siblings("b") == {"d"}


def test_round_trip(tmp_path):
    p = pack(
        concept("a", [], 0, ["One.", {"text": "Two.", "source": "s"}], ["Three."]),
        concept("b", [], 0, ["Four.", {"text": "Five.", "also": ["a"]}]),
    )
    again = ConceptPack.load(p.save(tmp_path / "p.json"))
    assert again.to_dict() == p.to_dict()
    assert again.hash == p.hash
    assert again["a"].positive[1].source == "s"
    assert again["b"].positive[1].also == ("a",)
    other = pack(*reversed(p.to_dict()["concepts"]))
    assert other.hash == p.hash
    changed = copy.deepcopy(p.to_dict())
    changed["concepts"][0]["examples"]["positive"][0] = "Other."
    assert ConceptPack.from_dict(changed).hash != p.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("name"), "'name' is missing"),
        (lambda d: d.update(concepts=[]), "concepts is empty"),
        (lambda d: d.update(concepts={}), "concepts must be a list"),
        (lambda d: d["concepts"].append(d["concepts"][0]), "'a' occurs twice"),
        (lambda d: d["concepts"][1].update(parents=["zebra"]), "'zebra', which is not in the pack"),
        (lambda d: d["concepts"][1].update(parents=["c"], level=3), "circle: b → c → b"),
        (lambda d: d["concepts"][1].update(parents=["b"]), "circle: b → b"),
        (lambda d: d["concepts"][0].update(id=""), "id must be a string that is not empty"),
        (lambda d: d["concepts"][0].pop("term"), r"concepts\[0\] \('a'\): term"),
        (lambda d: d["concepts"][0].update(level=-1), "level must be an integer ≥ 0"),
        (lambda d: d["concepts"][0].update(level=True), "level must be an integer ≥ 0"),
        (lambda d: d["concepts"][0].update(level=1.5), "level must be an integer ≥ 0"),
        (
            lambda d: d["concepts"][0].update(examples={"positive": "text"}),
            "examples.positive must be a list",
        ),
        (lambda d: d["concepts"][0].update(examples={"positive": [" "]}), r"positive\[0\] is empty"),
        (lambda d: d["concepts"][0].update(examples={"positive": [3]}), r"positive\[0\] must be a string"),
        (
            lambda d: d["concepts"][0].update(examples={"positive": ["x"], "negative": ["x"]}),
            "'x' is both a positive and a negative",
        ),
        (
            lambda d: d["concepts"][0].update(examples={"positive": [{"text": "x", "also": ["zebra"]}]}),
            "'x' of 'a' also shows 'zebra', which is not in the pack",
        ),
        (
            lambda d: d["concepts"][0].update(examples={"positive": [{"text": "x", "also": "b"}]}),
            r"positive\[0\]: also must be a list of ids",
        ),
        (
            lambda d: d["concepts"][0].update(examples={"negative": [{"text": "x", "also": ["b"]}]}),
            "only positive examples can have also",
        ),
    ],
)
def test_refused(change, message):
    data = {
        "name": "p",
        "version": "1",
        "concepts": [concept("a", [], 0), concept("b", ["a"], 1), concept("c", ["b"], 2)],
    }
    change(data)
    with pytest.raises(ValueError, match=message):
        ConceptPack.from_dict(data)


def test_unknown_fields_are_named():
    data = {"name": "p", "version": "1", "author": "?", "concepts": [{**concept("a", [], 0), "synsets": []}]}
    with pytest.warns(UserWarning, match="author"), pytest.warns(UserWarning, match="synsets"):
        p = ConceptPack.from_dict(data)
    assert len(p) == 1


def test_a_parent_of_a_higher_level_is_warned_about():
    with pytest.warns(UserWarning, match="parent's level should be smaller"):
        pack(concept("a", [], 2), concept("b", ["a"], 1))


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no concept pack at"):
        ConceptPack.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        ConceptPack.load(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="must be an object"):
        ConceptPack.load(tmp_path / "list.json")


def test_unknown_concept_is_named():
    with pytest.raises(KeyError, match="no concept 'zebra'"):
        diamond()["zebra"]
