"""The concepts of the little language, with example sentences: ``python -m interp.tiny.concepts``.

Every class of the hierarchy is a concept: 8 roots (level 0), 33 groups (level 1), 150 leaves (level 2).
A positive example holds a word of the concept, a negative one does not; both are sentences of the same
prose, so that their form tells nothing. A sentence shows several classes (who does what where): the pack says
which, so that none of them takes it for a negative.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

from interp.files import write_text
from interp.tiny import concept_pack_path, grammar, prose
from interp.tiny.grammar import GROUPS, LEAF, LEAVES, NOUNS, Atoms, Leaf, Noun

#: Positive and as many negative examples per concept in the shipped pack.
N_EXAMPLES = 60
#: Of the negatives: half from sister classes, a quarter from the same root, a quarter from anywhere.
_NEAR, _COUSIN = 0.5, 0.75


def concept_id(name: str) -> str:
    """Id of a class name: ``"kitchen tool"`` becomes ``"kitchen_tool"``."""
    return name.replace(" ", "_")


@cache
def leaves_of(concept: str) -> tuple[Leaf, ...]:
    """The leaf classes that belong to a concept.

    Parameters
    ----------
    concept : str
        Id of a root, a group or a leaf.

    Raises
    ------
    ValueError
        If there is no such concept.
    """
    name = concept.replace("_", " ")
    found = tuple(leaf for leaf in LEAVES if name in (leaf.name, leaf.group, leaf.root))
    if not found:
        raise ValueError(
            f"no concept has the id {concept!r}; ids are names of classes such as 'songbird' or 'tool'"
        )
    return found


@cache
def class_ids(concept: str) -> frozenset[int]:
    """Class ids of the words of a concept, as in :data:`interp.tiny.CLASS_NAMES`."""
    return frozenset(leaf.id for leaf in leaves_of(concept))


@cache
def _topics(leaf: Leaf) -> tuple[Noun, ...]:
    """Nouns whose passages are likely to hold a word of the leaf."""
    if leaf.kind == "noun":
        return NOUNS[leaf.name]
    field = {"verb": "does", "adj": "adjs"}[leaf.kind]
    return tuple(n for nouns in NOUNS.values() for n in nouns if leaf.name in getattr(n.leaf, field))


def _classes(sentence: Atoms) -> set[int]:
    return {int(a.partition("#")[2] or 0) for a in sentence}


def _sentence_with(leaf: Leaf, without: frozenset[int], random: Random) -> Atoms | None:
    """A sentence that holds a word of the leaf and none of the classes ``without``; None if tries run out."""
    topics = _topics(leaf)
    for _ in range(20):
        scene = prose.Scene(random.random, random.choice(topics))
        for _ in range(6):
            sentence = scene.sentence()
            found = _classes(sentence)
            if leaf.id in found and not found & without:
                return sentence
    return None


def examples(concept: str, n: int, positive: bool = True, seed: int = 0) -> list[str]:
    """Sentences with a word of a concept, or without any.

    Parameters
    ----------
    concept : str
        Id of a concept.
    n : int
        How many; all different.
    positive : bool
        Whether they hold a word of the concept. Negatives are about sister classes, cousins or anything else.
    seed : int
        Same seed, same sentences.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If the concept is unknown or too few different sentences are found.
    """
    return [grammar.surface(sentence) for sentence in _sentences(concept, n, positive, seed)]


def _sentences(concept: str, n: int, positive: bool, seed: int) -> list[Atoms]:
    own, ids = leaves_of(concept), class_ids(concept)
    random = Random(f"{concept} {positive} {seed}")
    pools = [own] if positive else _strangers(own)
    without: frozenset[int] = frozenset() if positive else ids
    out: dict[str, Atoms] = {}
    for _ in range(40 * n):
        if len(out) == n:
            return list(out.values())
        x = random.random()
        pool = pools[0] if x < _NEAR or len(pools) == 1 else pools[1] if x < _COUSIN else pools[2]
        sentence = _sentence_with(random.choice(pool), without, random)
        if sentence is not None:
            out.setdefault(grammar.surface(sentence), sentence)
    raise ValueError(f"{n} different sentences for {concept!r} wanted, found {len(out)}; ask for fewer")


def _strangers(own: tuple[Leaf, ...]) -> list[tuple[Leaf, ...]]:
    """Leaves outside the concept: of the same group, of the same root, all; an empty pool takes the next."""
    outside = tuple(leaf for leaf in LEAVES if leaf not in own)
    cousins = tuple(leaf for leaf in outside if leaf.root == own[0].root) or outside
    sisters = tuple(leaf for leaf in outside if leaf.group == own[0].group) or cousins
    return [sisters, cousins, outside]


def pack(n_examples: int = N_EXAMPLES) -> dict:
    """The concept pack: a JSON object with ``name``, ``version`` and ``concepts``.

    Parameters
    ----------
    n_examples : int
        Positive, and as many negative examples per concept.
    """
    concepts = []
    for group in GROUPS:
        parents = [concept_id(group.parent)] if group.parent else []
        concepts.append(_concept(group.name, group.definition, parents, group.level, n_examples))
    for leaf in LEAF.values():
        concepts.append(_concept(leaf.name, leaf.definition, [concept_id(leaf.group)], 2, n_examples))
    return {"name": "tiny", "version": "2", "concepts": concepts}


def _concept(name: str, definition: str, parents: list[str], level: int, n: int) -> dict:
    key = concept_id(name)
    return {
        "id": key,
        "term": name,
        "definition": definition,
        "parents": parents,
        "level": level,
        "examples": {
            "positive": [_with_also(s, class_ids(key)) for s in _sentences(key, n, True, 0)],
            "negative": examples(key, n, positive=False),
        },
    }


def _with_also(sentence: Atoms, own: frozenset[int]) -> dict:
    """A sentence, and the leaves beside the concept's own that it has words of."""
    also = [concept_id(leaf.name) for leaf in LEAVES if leaf.id in _classes(sentence) - own]
    return {"text": grammar.surface(sentence), "also": also}


def main(out: Path | None = None) -> None:
    """Write the shipped pack."""
    out = out or concept_pack_path()
    content = pack()
    # A concept is a line: small, and a change shows where it is.
    lines = ",\n".join(json.dumps(c) for c in content.pop("concepts"))
    write_text(out, f'{json.dumps(content)[:-1]}, "concepts": [\n{lines}\n]}}\n')
    print(f"{out}: {len(json.loads(out.read_text())['concepts'])} concepts")


if __name__ == "__main__":
    main()
