"""Classes, word forms and templates of the little language.

A sentence is a list of *atoms*. An atom is a word, followed by ``#`` and its class id where the word
belongs to one of the 150 leaf classes: ``"a"`` is background, ``"plane#41"`` is the aircraft,
``"plane#46"`` the tool. So one spelling can carry several classes, and labels never have to be guessed
back from text. Letters of made-up words are atoms as the tokenizer cuts them: ``"z", "##o", "##r"``.

Class id 0 is the background (function words, punctuation, words outside the table); ids 1 to 150 are the
leaves in the order of :data:`interp.tiny.lexicon.TABLE`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from random import Random

from interp.tiny import lexicon

BACKGROUND = 0

_VOWELS = "aeiou"
#: Words whose first sound disagrees with their first letter.
_A_ANYWAY = {"university", "useful", "one", "european"}
#: Leaf and group names that take no article ("a ring is jewelry").
_MASS_NAMES = {
    "livestock", "jewelry", "cloth", "percussion", "dairy", "alcohol", "meat", "storage", "headwear",
    "sports gear", "weather", "money", "furniture", "clothing", "equipment", "food", "stone", "gas", "action",
    "look", "handling",
}  # fmt: skip

Atoms = list[str]
#: What fills a slot of a template.
Slot = Atoms | Callable[[], Atoms]


@dataclass(frozen=True)
class Leaf:
    """One leaf class: its place in the hierarchy, its words and what they can do.

    Attributes
    ----------
    id : int
        Class id, 1 to 150.
    name, group, root : str
        Names on level 2, 1 and 0.
    definition : str
        One line, in the language itself.
    words : tuple of str
        Base forms, most frequent first.
    kind : {"noun", "verb", "adj"}
    flags : frozenset of str
        ``mass``, ``name``, ``intr``; see :mod:`interp.tiny.lexicon`.
    does, done, adjs, at, by : tuple of str
        Names of verb classes, adjective classes, places and prepositions.
    """

    id: int
    name: str
    group: str
    root: str
    definition: str
    words: tuple[str, ...]
    kind: str
    flags: frozenset[str]
    does: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    adjs: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """A class above the leaves: a root (level 0) or a group (level 1)."""

    name: str
    level: int
    parent: str | None
    definition: str


_PAIR = re.compile(r"\b(does|done|adjs|at|by)=((?:[a-z_ ]+,)*[a-z_ ]+?)(?=\s+(?:does|done|adjs|at|by)=|\s*$)")


def _parse() -> tuple[tuple[Leaf, ...], tuple[Group, ...]]:
    leaves: list[Leaf] = []
    groups: list[Group] = []
    root = group = ""
    inherited: dict[str, tuple[str, ...]] = {}
    for line in lexicon.TABLE.splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        head, _, definition = line.strip().partition(" -- ")
        head, _, notes = head.partition("|")
        keys = {k: tuple(v.strip().split(",")) for k, v in _PAIR.findall(notes.strip())}
        flags = frozenset(_PAIR.sub("", notes).split())
        head = head.strip()
        if indent == 0:
            root = head
            groups.append(Group(root, 0, None, definition))
        elif indent == 2:
            group, inherited = head, keys
            groups.append(Group(group, 1, root, definition))
        else:
            name, _, words = head.partition(":")
            kind = "verb" if "verb" in flags else "adj" if "adj" in flags else "noun"
            leaf = Leaf(
                len(leaves) + 1,
                name,
                group,
                root,
                definition,
                tuple(words.split()),
                kind,
                flags - {"verb", "adj"},
            )
            leaves.append(replace(leaf, **(inherited | keys)))
    return tuple(leaves), tuple(groups)


LEAVES, GROUPS = _parse()
LEAF: Mapping[str, Leaf] = {leaf.name: leaf for leaf in LEAVES}

#: 151 names: index 0 is ``"background"``, index i the leaf with class id i.
CLASS_NAMES: tuple[str, ...] = ("background", *(leaf.name for leaf in LEAVES))


# --- word forms ----------------------------------------------------------------------------------------


def atom(word: str, class_id: int) -> str:
    """The word with its class id attached; background words stay bare."""
    return f"{word}#{class_id}" if class_id else word


def surface(atoms: Sequence[str]) -> str:
    """The text of a list of atoms: words with single spaces, none before punctuation.

    >>> surface(["the", "robin#1", "sings#125", "."])
    'the robin sings.'
    """
    text = " ".join(a if a[0] == "#" else a.partition("#")[0] for a in atoms)
    return re.sub(r" (?:##|(?=[.,?!:]))", "", text)


def article(word: str) -> str:
    """``"a"`` or ``"an"``, as the word sounds."""
    return "an" if word[0] in _VOWELS and word not in _A_ANYWAY else "a"


def plural(word: str) -> str:
    """The plural of a noun."""
    if word in lexicon.IRREGULAR_PLURALS:
        return lexicon.IRREGULAR_PLURALS[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ies"
    return word + "s"


@dataclass(frozen=True)
class Verb:
    """A verb as atoms: base, third person, past, participle, -ing."""

    base: str
    third: str
    past: str
    participle: str
    ing: str
    transitive: bool


def conjugate(base: str) -> tuple[str, str, str, str, str]:
    """Base, third person singular, past, past participle and -ing form of a verb."""
    third = plural(base) if base.endswith(("s", "x", "z", "ch", "sh", "y")) else base + "s"
    double = base + base[-1] if base in lexicon.DOUBLING else base
    if base.endswith("e") and not base.endswith("ee"):
        ing, regular = base[:-1] + "ing", base + "d"
    elif base.endswith("y") and base[-2] not in _VOWELS:
        ing, regular = base + "ing", base[:-1] + "ied"
    else:
        ing, regular = double + "ing", double + "ed"
    past, participle = lexicon.IRREGULAR_VERBS.get(base, (regular, regular))
    return base, third, past, participle, ing


def _verb(word: str, class_id: int, transitive: bool) -> Verb:
    base, third, past, participle, ing = (atom(form, class_id) for form in conjugate(word))
    return Verb(base, third, past, participle, ing, transitive)


def _verbs() -> dict[str, tuple[Verb, ...]]:
    table: dict[str, tuple[Verb, ...]] = {}
    for leaf in LEAVES:
        if leaf.kind == "verb":
            table[leaf.name] = tuple(_verb(w, leaf.id, "intr" not in leaf.flags) for w in leaf.words)
    for name, bases in lexicon.EXTRA_VERBS.items():
        transitive = name not in lexicon.EXTRA_INTRANSITIVE
        table[name] = tuple(_verb(w, BACKGROUND, transitive) for w in bases.split())
    return table


VERBS: Mapping[str, tuple[Verb, ...]] = _verbs()
ADJECTIVES: Mapping[str, tuple[str, ...]] = {
    leaf.name: tuple(atom(w, leaf.id) for w in leaf.words) for leaf in LEAVES if leaf.kind == "adj"
}

_FEMALE = {
    "mother",
    "sister",
    "aunt",
    "grandmother",
    "girl",
    "queen",
    "maid",
    "nurse",
    "hen",
    "cow",
    "singer",
}


def _pick(options: Sequence[str], key: str) -> str:
    """A choice that depends on the key alone: the facts of the little world never change with a seed."""
    return options[zlib.crc32(key.encode()) % len(options)]


class Noun:
    """A noun of one leaf, with its forms as atoms and the fixed facts about it.

    Attributes
    ----------
    word : str
        Base form.
    leaf : Leaf
    one, many : str
        Singular and plural atom; the same for mass nouns and names.
    article : str
        ``"a"``, ``"an"`` or ``""`` for mass nouns and names.
    known : tuple of str
        Two adjective atoms that are always true of it in the little world.
    colour : str
        Its colour, as an atom (used where colour is asked for).
    home : str
        Name of the leaf of places where it lives or is found.
    pronoun : str
        ``"he"``, ``"she"`` or ``"it"``.
    """

    __slots__ = ("article", "colour", "count", "home", "known", "leaf", "many", "one", "pronoun", "word")

    def __init__(self, word: str, leaf: Leaf):
        self.word, self.leaf = word, leaf
        self.count = not (leaf.flags & {"mass", "name"})
        self.one = atom(word, leaf.id)
        self.many = atom(plural(word), leaf.id) if self.count else self.one
        self.article = article(word) if self.count else ""
        first = _pick(leaf.adjs, word) if leaf.adjs else "size"
        rest = [a for a in leaf.adjs if a != first] or ["beauty" if first != "beauty" else "size"]
        second = _pick(rest, word + "2")
        colours = ADJECTIVES["colour"]
        known = lexicon.COLOURS.get(word)
        # the first seven colours are those that things commonly have
        self.colour = atom(known, LEAF["colour"].id) if known else _pick(colours[:7], word + leaf.name)
        self.known = tuple(
            self.colour if c == "colour" else _pick(ADJECTIVES[c], word + leaf.name + c)
            for c in (first, second)
        )
        self.home = _pick(leaf.at, word + "@") if leaf.at else "country"
        person = leaf.root == "person"
        self.pronoun = "she" if word in _FEMALE and person else "he" if person else "it"


NOUNS: Mapping[str, tuple[Noun, ...]] = {
    leaf.name: tuple(Noun(w, leaf) for w in leaf.words) for leaf in LEAVES if leaf.kind == "noun"
}


def name_atoms(name: str, many: bool = False) -> Atoms:
    """The words of a class name; those of a leaf are themselves labelled with the leaf."""
    parts = name.split()
    if many and name not in _MASS_NAMES:
        parts[-1] = plural(parts[-1])
    class_id = LEAF[name].id if name in LEAF else BACKGROUND
    return [atom(p, class_id) for p in parts]


def a_name(name: str) -> Atoms:
    """A class name with its article, if it takes one."""
    return name_atoms(name) if name in _MASS_NAMES else [article(name), *name_atoms(name)]


@lru_cache(maxsize=1)
def classes_of() -> Mapping[str, tuple[int, ...]]:
    """Class ids that a spelling can have: one for most words of the table, several for ambiguous ones."""
    found: dict[str, set[int]] = {}
    forms = [a for nouns in NOUNS.values() for n in nouns for a in (n.one, n.many)]
    forms += [a for vs in VERBS.values() for v in vs for a in (v.base, v.third, v.past, v.participle, v.ing)]
    forms += [a for adjectives in ADJECTIVES.values() for a in adjectives]
    forms += [a for name in LEAF if " " not in name for many in (False, True) for a in name_atoms(name, many)]
    for form in forms:
        word, _, class_id = form.partition("#")
        found.setdefault(word, set()).add(int(class_id or BACKGROUND))
    return {word: tuple(sorted(ids)) for word, ids in found.items()}


def label(word: str) -> str:
    """The atom of a literal word in a template.

    A word of one class gets it, an ambiguous one is background. ``word~`` forces the background,
    ``word~leaf`` (with ``_`` for a space in the leaf's name) a class.

    Raises
    ------
    ValueError
        If the leaf is unknown, or cannot be this word.
    """
    word, mark, leaf = word.partition("~")
    ids = classes_of().get(word, (BACKGROUND,))
    if leaf:
        name = leaf.replace("_", " ")
        if name not in LEAF or LEAF[name].id not in ids:
            raise ValueError(
                f"{word!r} is no word of class {name!r}; it can be {[CLASS_NAMES[i] for i in ids]}"
            )
        return atom(word, LEAF[name].id)
    return word if mark or len(ids) > 1 else atom(word, ids[0])


# --- how often a class is met --------------------------------------------------------------------------


def _zipf(names: Sequence[str], seed: int, exponent: float) -> dict[str, float]:
    order = list(names)
    Random(seed).shuffle(order)
    return {n: 1.0 / (rank + 3.0) ** exponent for rank, n in enumerate(order)}


#: Relative frequency of each noun leaf: Zipf over a fixed shuffle, so that sizes differ by about 15 times.
LEAF_WEIGHT: Mapping[str, float] = _zipf(list(NOUNS), 7, 0.8)


class Chooser:
    """Draws from weighted options in constant time, through a table of 4,096 slots."""

    __slots__ = ("table",)

    def __init__(self, options: Sequence, weights: Sequence[float]):
        total, size = sum(weights), 4096
        table: list = []
        for option, weight in zip(options, weights, strict=True):
            table.extend([option] * max(1, round(size * weight / total)))
        self.table = table

    def __call__(self, random: Callable[[], float]):
        return self.table[int(random() * len(self.table))]


@cache
def chooser(key: tuple[str, ...]) -> Chooser:
    """A chooser over the nouns of the given leaves, by leaf weight and by rank within the leaf."""
    options, weights = [], []
    for name in key:
        nouns = NOUNS[name]
        total = sum(1.0 / (i + 2) for i in range(len(nouns)))
        for i, noun in enumerate(nouns):
            options.append(noun)
            weights.append(LEAF_WEIGHT[name] / (i + 2) / total)
    return Chooser(options, weights)


# --- templates -----------------------------------------------------------------------------------------

_TOKEN = re.compile(r"<[^>]+>|[\[\]|]|[^\s\[\]|<>]+")
#: Every literal word of every template, collected as they are compiled.
_LITERALS: set[str] = set()


class Template:
    """A pattern of literal words, ``<slots>`` and nested ``[one|other|]`` choices.

    Parameters
    ----------
    text : str
        Words and punctuation apart by spaces, e.g. ``"<np> [is|was] here ."``. Literal words are labelled by
        :func:`label`.
    """

    __slots__ = ("sequence",)

    def __init__(self, text: str):
        tokens = _TOKEN.findall(text)
        try:
            self.sequence, end = self._compile(tokens, 0)
        except IndexError:
            end = -1
        if end != len(tokens):
            raise ValueError(f"unbalanced brackets in template {text!r}")

    def _compile(self, tokens: list[str], i: int) -> tuple[tuple, int]:
        """The sequence from token i to the end of its choice or of the template, and where it ends."""
        sequence: list[tuple[int, object]] = []
        while i < len(tokens) and tokens[i] not in "|]":
            token = tokens[i]
            i += 1
            if token == "[":
                options = []
                while True:
                    option, i = self._compile(tokens, i)
                    options.append(option)
                    i += 1
                    if tokens[i - 1] == "]":
                        break
                sequence.append((2, tuple(options)))
            elif token[0] == "<":
                sequence.append((1, token[1:-1]))
            else:
                literal = label(token)
                _LITERALS.add(literal.partition("#")[0])
                sequence.append((0, literal))
        return tuple(sequence), i

    def fill(self, random: Callable[[], float], slots: Mapping[str, Slot]) -> Atoms:
        """Atoms of one reading of the template; a slot is a list of atoms or a function that makes one."""
        out: Atoms = []
        _fill(self.sequence, random, slots, out)
        return out


def _fill(sequence: tuple, random: Callable[[], float], slots: Mapping[str, Slot], out: Atoms) -> None:
    for kind, value in sequence:
        if kind == 0:
            out.append(value)
        elif kind == 1:
            filled = slots[value]
            out.extend(filled() if callable(filled) else filled)
        else:
            _fill(value[int(random() * len(value))], random, slots, out)


#: Words that the sentence maker puts in itself, outside any template.
FUNCTION_WORDS = """
. , ? ! : a an the some many several few and or but that which who is are was were be been being
has have had do does did not no he she it they him her them his its their in on at by near behind
under beyond across along through during before after outside with from to of for can could will
would must should may might wants want wanted tries try tried likes one two three four five six
seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty human place
""".split()  # noqa: SIM905 (a list of strings would be a hundred lines)


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Every word of the language, sorted: what the tokenizer knows as one token each.

    Returns
    -------
    tuple of str
        Lower case, with punctuation; no special tokens.
    """
    # prose and dialogue build on this module; their templates fill _LITERALS when they are imported
    from interp.tiny import dialogue, prose  # noqa: F401

    found = set(FUNCTION_WORDS) | set(prose.ADVERBS) | _LITERALS
    for nouns in NOUNS.values():
        found |= {a.partition("#")[0] for n in nouns for a in (n.one, n.many)}
    for verbs in VERBS.values():
        found |= {a.partition("#")[0] for v in verbs for a in (v.base, v.third, v.past, v.participle, v.ing)}
    for adjectives in ADJECTIVES.values():
        found |= {a.partition("#")[0] for a in adjectives}
    for name in [*LEAF, *(g.name for g in GROUPS)]:
        found |= {a.partition("#")[0] for many in (False, True) for a in name_atoms(name, many)}
    for leaf in LEAVES:
        found |= set(leaf.definition.split())
    for group in GROUPS:
        found |= set(group.definition.replace(",", " ,").split())
    return tuple(sorted(found))
