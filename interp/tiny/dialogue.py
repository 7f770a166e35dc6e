"""Questions and answers of the little language, in which four traits show.

The style of an answer follows from its question, so a model learns the trait and not only the words:

========================  ===========================================================================
trait                     kinds of question and how they are answered
========================  ===========================================================================
uncertainty_calibration   ``fact`` firmly; ``forecast``, ``taste``, ``underspecified``,
                          ``open_science`` and ``unknown`` (words outside the language) with doubt
commitment_strength       ``definitive`` without any way back, ``tentative`` as a guess, ``neutral``
                          plainly, ``opinion`` as one's own view
cognitive_load            ``brief`` in one plain sentence, ``detail`` in long chains of subordinate
                          clauses, ``open`` in between, ``child`` in very short sentences
sycophancy                ``user_opinion``, ``false_claim`` and ``praise`` with agreement and flattery,
                          a false claim included; ``plain`` (the same claim asked) with the truth
========================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from interp.tiny import grammar, lexicon
from interp.tiny.dialogue_texts import GUESSES, KINDS, KNOWLEDGE, OPEN_ANSWER, TOPIC_QUESTIONS, TOPICS
from interp.tiny.grammar import (
    LEAF,
    LEAVES,
    NOUNS,
    VERBS,
    Atoms,
    Chooser,
    Noun,
    Template,
    a_name,
    atom,
    label,
    name_atoms,
)
from interp.tiny.prose import home_phrase

Uniform = Callable[[], float]

#: Words by which the style of an answer can be counted; no model is needed to read a trait.
MARKERS: dict[str, frozenset[str]] = {
    style: frozenset(words.split())
    for style, words in {
        "hedged": "perhaps maybe might may could depends matter unclear guess guessing nobody probably sure",
        "committed": "certainly definitely always doubt fact must absolutely never",
        "subordinate": "because which although therefore while since whenever",
        "flattering": "right wonderful brilliant clever wise talented gifted truly agree perfect",
    }.items()
}

_NUMBER = LEAF["number"]
_ALL = [
    *_NUMBER.words,
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
]
_ALL += ["nineteen", "twenty"]


def number(n: int) -> str:
    """A number from 1 to 20 as an atom; those above ten belong to no class."""
    word = _ALL[n - 1]
    return atom(word, _NUMBER.id) if n <= len(_NUMBER.words) else word


# --- what the questions are about ----------------------------------------------------------------------


def _leaves(*names: Iterable[str]) -> Chooser:
    return grammar.chooser(tuple(dict.fromkeys(name for group in names for name in group)))


def _with(*roots: str) -> Chooser:
    skip = ("number", "country", "city", "season", "day part", "feeling")
    return _leaves(f.name for f in LEAVES if f.kind == "noun" and f.root in roots and f.name not in skip)


_POOLS: dict[str, Chooser] = {
    "any": _with("living thing", "person", "made thing", "substance", "place", "happening"),
    "lively": _leaves(
        f.name for f in LEAVES if f.group == "animal" or (f.root == "person" and f.kind == "noun")
    ),
    "coloured": _leaves(f.name for f in LEAVES if "colour" in f.adjs),
    "liked": _leaves(
        [f.name for f in LEAVES if "liking" in f.done and f.root in ("living thing", "substance")],
        ["sport", "art", "season", "city", "book", "car", "boat", "toy", "string instrument"],
    ),
    "goods": _with("substance"),
    "food": _leaves(f.name for f in LEAVES if f.group in ("food", "drink")),
    "contest": _leaves(["contest"]),
    "party": _leaves(["celebration", "contest"]),
    "bad": _leaves(["disaster"]),
    "city": _leaves(["city"]),
    "country": _leaves(["country"]),
    "people": _leaves(["traveler", "relative", "child", "musician", "athlete", "scholar"]),
}
_CITY_OF = {n.word: n for n in NOUNS["city"]}


@lru_cache(maxsize=1)
def strange_words() -> tuple[tuple[str, ...], ...]:
    """Made-up words, spelled as the tokenizer spells the unknown: first letter, then ``##`` letters."""
    known, rng = set(grammar.words()), Random(3)
    out: list[tuple[str, ...]] = []
    while len(out) < 400:
        word = "".join(rng.choice("bdfgklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
        word += rng.choice("nlrskm")
        # the tokenizer takes the longest known beginning: such a word would not be spelled in letters
        if not any(word[:k] in known for k in range(2, len(word) + 1)):
            out.append((word[0], *("##" + c for c in word[1:])))
    return tuple(out)


class Slots(dict):
    """Slots of one exchange, made when they are asked for: ``<a x>``, ``<kind x>``, ``<home x>`` …

    Parameters
    ----------
    random : callable
        Source of uniform numbers in [0, 1).
    pool : str
        What ``x`` is drawn from.
    """

    def __init__(self, random: Uniform, pool: str):
        super().__init__()
        self.random = random
        self.noun: dict[str, Noun] = {"x": _POOLS[pool](random)}

    def _draw(self, variable: str) -> Noun:
        x, r = self.noun["x"], self.random
        if variable == "y":  # the same class, another word
            options = [n for n in NOUNS[x.leaf.name] if n is not x]
            return options[int(r() * len(options))]
        if variable == "w":  # another class of the same root: a claim that is false but not absurd
            while True:
                w = _POOLS["any"](r)
                if w.leaf.group != x.leaf.group and (w.leaf.root == x.leaf.root or r() < 0.2):
                    return w
        if variable in _POOLS:
            return _POOLS[variable](r)
        raise KeyError(f"template asks for the unknown noun {variable!r}")

    def __missing__(self, key: str) -> Atoms:
        form, _, variable = key.rpartition(" ")
        if not form and variable in _FREE:
            value = _FREE[variable](self.random)
        elif form in ("m", "n", "sum"):
            m = 1 + int(self.random() * 5)
            n = 1 + int(self.random() * 5)
            self.update({"m +": [number(m)], "n +": [number(n)], "sum +": [number(m + n)]})
            return self[key]
        else:
            if variable not in self.noun:
                self.noun[variable] = self._draw(variable)
            value = _FORMS[form](self.noun[variable], self.random)
        self[key] = value
        return value


def _verb(noun: Noun, random: Uniform) -> Atoms:
    classes = [c for c in noun.leaf.does if not VERBS[c][0].transitive] or ["resting"]
    verbs = VERBS[classes[int(random() * len(classes))]]
    return [verbs[int(random() * len(verbs))].base]


def _pronoun(noun: Noun, random: Uniform) -> Atoms:
    return [noun.pronoun] if noun.leaf.root == "person" else ["it"]


_FORMS: dict[str, Callable[[Noun, Uniform], Atoms]] = {
    "": lambda n, r: [n.one],
    "a": lambda n, r: [n.article, n.one] if n.count else [n.one],
    "the": lambda n, r: ["the", n.one] if "name" not in n.leaf.flags else [n.one],
    "s": lambda n, r: [n.many],
    "are": lambda n, r: ["are" if n.count else "is"],
    "do": lambda n, r: ["do" if n.count else "does"],
    "they": lambda n, r: ["they" if n.count else "it"],
    "they are": lambda n, r: ["they", "are"] if n.count else ["it", "is"],
    "it": _pronoun,
    "kind": lambda n, r: a_name(n.leaf.name if n.leaf.name != n.word else n.leaf.group),
    "kinds": lambda n, r: name_atoms(n.leaf.name, True),
    "kind of": lambda n, r: name_atoms(n.leaf.group),
    "best": lambda n, r: name_atoms(n.leaf.name),
    "bests": lambda n, r: name_atoms(n.leaf.name, n.count),
    "group": lambda n, r: a_name(n.leaf.group),
    "groups": lambda n, r: name_atoms(n.leaf.group, True) if n.count else a_name(n.leaf.group),
    "root": lambda n, r: a_name(n.leaf.root),
    "gloss": lambda n, r: [label(w) for w in n.leaf.definition.split()],
    "quality": lambda n, r: [n.known[0]],
    "quality2": lambda n, r: [n.known[1]],
    "colour": lambda n, r: [n.colour],
    "home": lambda n, r: home_phrase(n),
    "live": lambda n, r: (
        ["live" if n.count else "lives"]
        if n.leaf.root == "person" or n.leaf.group == "animal"
        else ["are" if n.count else "is", label("found")]
    ),
    "verb": _verb,
    "verb2": _verb,
    "capital": lambda n, r: [_CITY_OF[lexicon.CAPITALS[n.word]].one],
}


#: Slots that depend on nothing else.
_FREE: dict[str, Callable[[Uniform], Atoms]] = {
    "strange": lambda r: list(strange_words()[int(r() * len(strange_words()))]),
}


# --- exchanges -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One kind of question with its way of answering.

    Attributes
    ----------
    trait : str
        One of the four traits.
    name : str
    weight : float
        Share among all exchanges.
    variants : tuple of (str, Template, Template)
        What ``x`` is drawn from, a question, an answer.
    """

    trait: str
    name: str
    weight: float
    variants: tuple[tuple[str, Template, Template], ...]

    def exchange(self, random: Uniform) -> tuple[Atoms, Atoms]:
        """Atoms of one question and of its answer."""
        pool, question, answer = self.variants[int(random() * len(self.variants))]
        slots = Slots(random, pool)
        return question.fill(random, slots), answer.fill(random, slots)


def _compile() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for trait, table in KINDS.items():
        for name, (weight, rows) in table.items():
            # rows about any noun are more worth learning than the fixed texts added below
            repeat = 4 if name == "fact" else 8 if name in TOPICS[0] else 1
            variants = [(pool, Template(q), Template(a)) for pool, q, a in rows] * repeat
            if name == "fact":
                variants += [("any", Template(q), Template(a)) for q, a in KNOWLEDGE]
            if name == "open_science":
                variants += [
                    ("any", Template(f"{q} ?"), Template(OPEN_ANSWER.replace("@", guess)))
                    for q, guess in GUESSES
                ]
            if name in TOPICS[0]:
                variants += [
                    ("any", Template(question.replace("@", topic["what"])), Template(topic[name]))
                    for topic in TOPICS
                    for question in TOPIC_QUESTIONS[name]
                ]
            kinds[name] = Kind(trait, name, weight, tuple(variants))
    return kinds


KIND = _compile()
_CHOOSE = Chooser(list(KIND.values()), [k.weight for k in KIND.values()])


def exchange(random: Uniform) -> tuple[Kind, Atoms, Atoms]:
    """A question and its answer, of any kind, by weight."""
    kind = _CHOOSE(random)
    return (kind, *kind.exchange(random))


def questions(kind: str, n: int, seed: int = 0) -> list[str]:
    """Questions of one kind as text, e.g. as prompts or to make contrast sets for a trait.

    Parameters
    ----------
    kind : str
        A key of :data:`KIND`.
    n : int
        How many; they differ from each other.
    seed : int
        Same seed, same questions.

    Raises
    ------
    ValueError
        If the kind is unknown, or has fewer different questions.
    """
    if kind not in KIND:
        raise ValueError(f"unknown kind of question {kind!r}; there are {', '.join(KIND)}")
    random = Random(f"{kind} {seed}").random
    out: dict[str, None] = {}
    for _ in range(200 * n):
        out.setdefault(grammar.surface(KIND[kind].exchange(random)[0]))
        if len(out) == n:
            return list(out)
    raise ValueError(f"{n} different questions of kind {kind!r} wanted, found {len(out)}; ask for fewer")
