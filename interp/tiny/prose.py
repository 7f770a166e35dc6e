"""Plain prose of the little language: passages about who does what where.

A :class:`Scene` holds a place, a few actors and the things around them, and tells a passage about them.
What nouns can do and be is fixed by their class (:mod:`interp.tiny.lexicon`), who is met again is called
by a pronoun, by its noun or by the name of its class: so what comes next depends on classes, on the
whole passage, and on known facts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from interp.tiny import grammar
from interp.tiny.grammar import (
    ADJECTIVES,
    LEAF,
    LEAVES,
    NOUNS,
    VERBS,
    Atoms,
    Chooser,
    Noun,
    Template,
    Verb,
    a_name,
    atom,
    label,
    name_atoms,
)

Random = Callable[[], float]

ADVERBS = ("slowly", "quickly", "quietly", "happily", "again", "alone", "together", "there")
_NUMBERS = [atom(w, LEAF["number"].id) for w in LEAF["number"].words]
_MODALS = ("can", "will", "would", "must", "should", "may", "might", "could")


# --- who meets whom ------------------------------------------------------------------------------------


def _actor_leaves() -> tuple[str, ...]:
    return tuple(leaf.name for leaf in LEAVES if leaf.kind == "noun" and leaf.does)


@cache
def actors_at(place: str) -> Chooser:
    """Nouns that can be subjects and are found at a class of places (any, where nobody lives there)."""
    here = tuple(name for name in _actor_leaves() if place in LEAF[name].at)
    return grammar.chooser(here or _actor_leaves())


@cache
def things_at(place: str) -> Chooser:
    """Nouns that are found at a class of places."""
    here = tuple(leaf.name for leaf in LEAVES if leaf.kind == "noun" and place in leaf.at)
    return grammar.chooser(here or ("book", "toy"))


@cache
def people_at(place: str) -> Chooser:
    """Persons found at a class of places (anybody where nobody lives)."""
    people = tuple(leaf.name for leaf in LEAVES if leaf.root == "person")
    return grammar.chooser(tuple(name for name in people if place in LEAF[name].at) or people)


@cache
def objects_of(verb_class: str) -> Chooser:
    """Nouns that a class of verbs takes as its object."""
    names = tuple(leaf.name for leaf in LEAVES if leaf.kind == "noun" and verb_class in leaf.done)
    return grammar.chooser(names or ("book", "toy"))


@cache
def takes(noun_leaf: str, verb_class: str) -> bool:
    """Whether nouns of a leaf are objects of a class of verbs."""
    return verb_class in LEAF[noun_leaf].done


PLACES = grammar.chooser(tuple(leaf.name for leaf in LEAVES if leaf.by and leaf.root == "place"))
ANYTHING = grammar.chooser(tuple(NOUNS))
PEOPLE = grammar.chooser(tuple(leaf.name for leaf in LEAVES if leaf.root == "person"))


class Entity:
    """A noun in a passage: its number and whether it has been named already."""

    __slots__ = ("many", "noun", "seen")

    def __init__(self, noun: Noun, many: bool):
        self.noun, self.many, self.seen = noun, many and noun.count, False


class Scene:
    """One passage: a place, actors, things, a tense.

    Parameters
    ----------
    random : callable
        Source of uniform numbers in [0, 1); the only randomness.
    topic : Noun, optional
        A noun that must be in the passage, as its first actor or thing.
    """

    def __init__(self, random: Random, topic: Noun | None = None):
        self.random = random
        r = random
        if topic is not None and topic.leaf.root == "place":
            self.place = topic
        elif topic is not None and topic.leaf.at and r() < 0.8:
            self.place = self.pick(NOUNS[self.pick(topic.leaf.at)])
        else:
            self.place = PLACES(r)
        self.past = r() < 0.5
        here = actors_at(self.place.leaf.name)
        self.actors = [Entity(here(r), r() < 0.3) for _ in range(2 + int(r() * 2))]
        self.things = [Entity(things_at(self.place.leaf.name)(r), r() < 0.35) for _ in range(2)]
        if topic is not None and topic.leaf.root != "place":
            target = self.actors if topic.leaf.does else self.things
            target[0] = Entity(topic, r() < 0.3)
        # somebody who acts on the things around: passages of fog, fire and ruins alone say little
        if r() < 0.55 and all(a.noun.leaf.root != "person" for a in self.actors):
            self.actors[-1] = Entity(people_at(self.place.leaf.name)(r), r() < 0.2)
        self.place_seen = self.place_said = False
        self.subject: Entity | None = None
        self.said: set[tuple[str, ...]] = set()
        self.slots = {
            "clause": self.clause, "again": self.again, "other": self.other, "pp": self.place_phrase,
            "time": self.time, "new": self.new, "is": self.is_adjective, "passive": self.passive,
            "fact": self.fact, "list": self.listing, "person": self.person, "modal": self.modal,
            "doing": self.doing, "adj": self.adjective, "deny": self.deny, "who": self.who,
            "be thing": self.be_thing, "it": self.it,
        }  # fmt: skip

    # -- small parts

    def pick(self, options):
        """One of the options, each as likely."""
        return options[int(self.random() * len(options))]

    def choose_actor(self) -> Entity:
        """An actor of the scene; the first one is the one it is mostly about."""
        return self.actors[0] if self.random() < 0.5 else self.pick(self.actors)

    def noun_phrase(self, entity: Entity) -> Atoms:
        """``a brown robin`` at first, ``the robin``, ``the songbird`` later."""
        r, noun = self.random, entity.noun
        body = [noun.many if entity.many else noun.one]
        if "name" in noun.leaf.flags:
            return body
        x = r()
        if entity.seen:
            if x < 0.1 and noun.leaf.name != noun.word:
                return ["the", *name_atoms(noun.leaf.name, entity.many)]
            if x < 0.2:
                body = [self.quality(noun), *body]
            return ["the", *body]
        entity.seen = True
        if x < 0.45:
            body = [self.quality(noun), *body]
        if not noun.count:
            return ["the", *body] if x > 0.8 else body
        if entity.many:
            y = r()
            if y < 0.4:
                return [self.pick(("some", "many", "several", "the", "few")), *body]
            return [_NUMBERS[1 + int(r() * 6)], *body] if y < 0.7 else body
        return [grammar.article(body[0].partition("#")[0]), *body] if r() < 0.8 else ["the", *body]

    def quality(self, noun: Noun) -> str:
        """An adjective atom for a noun: two times in three one that is known to be true of it."""
        r = self.random
        if r() < 0.67 or not noun.leaf.adjs:
            return noun.known[int(r() * 2)]
        return self.pick(ADJECTIVES[self.pick(noun.leaf.adjs)])

    def place_phrase(self) -> Atoms:
        """Preposition and place."""
        place, self.place_said = self.place, True
        preposition = self.pick(place.leaf.by)
        if not place.count:
            return [preposition, place.one]
        if self.place_seen or self.random() < 0.5:
            self.place_seen = True
            return [preposition, "the", place.one]
        self.place_seen = True
        quality = self.quality(place)
        return [preposition, grammar.article(quality), quality, place.one]

    def name(self, entity: Entity) -> Atoms:
        """The subject of a clause: a pronoun if it is the one just spoken of."""
        if entity is self.subject and self.random() < 0.7:
            return ["they" if entity.many else entity.noun.pronoun]
        self.subject = entity
        return self.noun_phrase(entity)

    def be(self, many: bool) -> str:
        """Form of *to be*."""
        return ("were" if many else "was") if self.past else ("are" if many else "is")

    def finite(self, verb: Verb, many: bool) -> str:
        """Form of a verb in the tense of the passage."""
        return verb.past if self.past else verb.base if many else verb.third

    def object_for(self, verb_class: str, subject: Entity) -> Entity:
        """Something the verb can be done to: rather something that is there already."""
        r = self.random
        known = [
            e
            for e in (*self.things, *self.actors)
            if e is not subject and takes(e.noun.leaf.name, verb_class)
        ]
        if known and r() < 0.75:
            return self.pick(known)
        entity = Entity(objects_of(verb_class)(r), r() < 0.3)
        self.things[int(r() * len(self.things))] = entity
        return entity

    def predicate(self, subject: Entity, form: Callable[[Verb], str], place: float = 0.35) -> Atoms:
        """Verb, object, adverb and place that fit a subject."""
        r = self.random
        verb_class = self.pick(subject.noun.leaf.does)
        verb = self.pick(VERBS[verb_class])
        out = [form(verb)]
        if verb.transitive:
            out += self.noun_phrase(self.object_for(verb_class, subject))
        elif verb_class == "speaking" and r() < 0.5:
            other = self.pick(self.actors)
            if other is not subject and other.noun.leaf.root == "person":
                out += ["with", *self.noun_phrase(other)]
        elif verb_class == "thinking" and r() < 0.7:
            out += ["that", *self.state(self.pick(self.actors))]
        x = r()
        if x < place and not self.place_said:
            out += self.place_phrase()
        elif x < place + 0.12:
            out.append(self.pick(ADVERBS))
        elif x < place + 0.2:
            out += self.time()
        return out

    def state(self, entity: Entity) -> Atoms:
        """``the robin is brown``."""
        return [*self.name(entity), self.be(entity.many), self.quality(entity.noun)]

    # -- slots of the patterns

    def clause(self) -> Atoms:
        """A full clause about an actor."""
        actor = self.choose_actor()
        return [*self.name(actor), *self.predicate(actor, lambda v: self.finite(v, actor.many))]

    def again(self) -> Atoms:
        """A second predicate for the same subject."""
        actor = self.subject or self.actors[0]
        return self.predicate(actor, lambda v: self.finite(v, actor.many))

    def other(self) -> Atoms:
        """A clause about somebody else."""
        rest = [a for a in self.actors if a is not self.subject] or self.actors
        actor = self.pick(rest)
        return [*self.name(actor), *self.predicate(actor, lambda v: self.finite(v, actor.many))]

    def time(self) -> Atoms:
        """A season or a part of the day."""
        noun = self.pick(NOUNS[self.pick(("season", "day part"))])
        if noun.leaf.name == "season":
            return [self.pick(noun.leaf.by), noun.one]
        return (
            ["at", noun.one]
            if noun.word in ("night", "noon")
            else [self.pick(("in", "before")), "the", noun.one]
        )

    def be_thing(self) -> Atoms:
        """``is the cup``: asks for a thing of the scene."""
        self.subject = thing = self.pick(self.things)
        return [self.be(thing.many), *self.noun_phrase(thing)]

    def it(self) -> Atoms:
        """``it is``: answers for the current subject."""
        subject = self.subject or self.actors[0]
        return ["they" if subject.many else subject.noun.pronoun, self.be(subject.many)]

    def new(self) -> Atoms:
        """Existence of somebody or something: ``is a robin``, ``are three robins``."""
        entity = self.pick((*self.actors, *self.things))
        if "name" in entity.noun.leaf.flags:
            entity = self.actors[0]
        entity.seen = False
        self.subject = entity
        phrase = self.noun_phrase(entity)
        if phrase[0] == "the":
            phrase = phrase[1:] if entity.many or not entity.noun.count else [
                grammar.article(phrase[1]), *phrase[1:]
            ]  # fmt: skip
        return [self.be(entity.many), *phrase]

    def is_adjective(self) -> Atoms:
        """``the robin is brown and shy``: what has not been said yet, or else what it does."""
        entity = self.pick((*self.actors, *self.things))
        known = [q for q in entity.noun.known if (entity.noun.one, q) not in self.said]
        if not known:
            return self.clause()
        first = known.pop(int(self.random() * len(known)))
        self.said.add((entity.noun.one, first))
        out = [*self.name(entity), self.be(entity.many), first]
        if known and self.random() < 0.35:
            self.said.add((entity.noun.one, known[0]))
            out += [self.pick(("and", "but")), known[0]]
        return out

    def passive(self) -> Atoms:
        """``the bread is made by the baker``."""
        actor = self.choose_actor()
        for verb_class in actor.noun.leaf.does:
            verb = self.pick(VERBS[verb_class])
            if verb.transitive:
                entity = self.object_for(verb_class, actor)
                self.subject = entity
                phrase = [*self.noun_phrase(entity), self.be(entity.many), verb.participle]
                return phrase + (["by", *self.noun_phrase(actor)] if self.random() < 0.7 else [])
        return self.is_adjective()

    def fact(self) -> Atoms:
        """Something always true, once: ``a robin is a songbird``, ``robins are brown``."""
        for _ in range(4):
            nearby = self.random() < 0.8
            noun = self.pick((*self.actors, *self.things)).noun if nearby else ANYTHING(self.random)
            found = fact(self.random, noun)
            if tuple(found) not in self.said:
                break
        self.said.add(tuple(found))
        return found

    def listing(self) -> Atoms:
        """``apples , pears and onions``: things of one place."""
        r, chooser = self.random, things_at(self.place.leaf.name)
        names = list(dict.fromkeys(chooser(r).many for _ in range(2 + int(r() * 3))))
        out: Atoms = []
        for i, name in enumerate(names):
            out += [] if i == 0 else ["and"] if i == len(names) - 1 else [","]
            out.append(name)
        return out

    def person(self) -> Atoms:
        """Somebody who can speak."""
        people = [a for a in self.actors if a.noun.leaf.root == "person"]
        if not people:
            people = [Entity(PEOPLE(self.random), False)]
            self.actors.append(people[0])
        return self.noun_phrase(people[0])

    def modal(self) -> Atoms:
        """``the robin can fly``."""
        actor = self.choose_actor()
        name = self.name(actor)
        modal = self.pick(_MODALS) if self.random() < 0.6 else None
        if modal is None:
            wants = self.pick((("want", "wants", "wanted"), ("try", "tries", "tried")))
            return [
                *name,
                wants[2] if self.past else wants[0 if actor.many else 1],
                "to",
                *self.predicate(actor, lambda v: v.base),
            ]
        return [*name, modal, *self.predicate(actor, lambda v: v.base)]

    def doing(self) -> Atoms:
        """``the robin is singing``."""
        actor = self.choose_actor()
        return [*self.name(actor), self.be(actor.many), *self.predicate(actor, lambda v: v.ing)]

    def adjective(self) -> Atoms:
        """A quality of the current subject."""
        return [self.quality((self.subject or self.actors[0]).noun)]

    def deny(self) -> Atoms:
        """``the robin does not sleep``."""
        actor = self.choose_actor()
        name = self.name(actor)
        return [
            *name,
            "did" if self.past else "do" if actor.many else "does",
            "not",
            *self.predicate(actor, lambda v: v.base),
        ]

    def who(self) -> Atoms:
        """``the robin that sings in the forest``."""
        actor = self.choose_actor()
        self.subject = actor
        phrase = self.noun_phrase(actor)
        relative = "who" if actor.noun.leaf.root == "person" else "that"
        return [*phrase, relative, *self.predicate(actor, lambda v: self.finite(v, actor.many), 0.2)]

    # -- the passage

    def sentence(self) -> Atoms:
        """One sentence of the passage."""
        self.place_said = False
        return PATTERNS(self.random).fill(self.random, self.slots)

    def passage(self, n_sentences: int) -> Atoms:
        """Several sentences that belong together."""
        out: Atoms = []
        for _ in range(n_sentences):
            out += self.sentence()
        return out


_WEIGHTED = {
    "<clause> .": 16,
    "<pp> , <clause> .": 6,
    "<time> , <clause> .": 4,
    "<clause> and <again> .": 7,
    "<clause> [and|but|while|because|when|although|so|until] <other> .": 9,
    "[while|when|because|although|after|before|if] <clause> , <other> .": 6,
    "there <new> <pp> .": 7,
    "<is> .": 9,
    "<who> <again> .": 5,
    "<passive> .": 5,
    "<passive> <pp> .": 2,
    "<fact> .": 8,
    "<list> can be [seen|found] <pp> .": 2,
    "<modal> .": 5,
    "<doing> .": 5,
    "<deny> .": 3,
    "where <be thing> ? [nobody knows|<it> <pp>] .": 2,
    "how <adj> it is <pp> !": 1,
    "<person> said that <is> .": 3,
    "<person> asked : where <be thing> ?": 1,
    "[suddenly|then|later|soon|at last] , <clause> .": 5,
    "it is [true|clear|known] that <fact> .": 1,
    "[perhaps|maybe] <is> .": 1,
}
PATTERNS = Chooser([Template(text) for text in _WEIGHTED], list(_WEIGHTED.values()))


# --- facts ---------------------------------------------------------------------------------------------


def generic(noun: Noun) -> tuple[Atoms, bool]:
    """The noun in general, and whether it is plural: ``robins``, ``gold``, ``france``."""
    return [noun.many], noun.count


def home_phrase(noun: Noun) -> Atoms:
    """Where a noun is found, always the same: ``in the forest``."""
    leaf = LEAF[noun.home]
    places = [n for n in NOUNS[leaf.name] if n.word != noun.word]
    place = places[sum(map(ord, noun.word)) % len(places)]
    preposition = leaf.by[0] if leaf.by else "in"
    return [preposition, place.one] if not place.count else [preposition, "the", place.one]


def kind_fact(noun: Noun) -> Atoms:
    """``a robin is a songbird``; for the word that names its class, the group: ``a book is equipment``."""
    name = noun.leaf.name if noun.leaf.name != noun.word else noun.leaf.group
    subject = [noun.article, noun.one] if noun.count else [noun.one]
    return [*subject, "is", *a_name(name)]


def fact(random: Random, noun: Noun) -> Atoms:
    """One of the things that are always true of a noun."""
    x = random()
    subject, many = generic(noun)
    be = "are" if many else "is"
    if x < 0.3:
        return kind_fact(noun)
    if x < 0.45:
        return (
            [*subject, be, *name_atoms(noun.leaf.group, True)]
            if many
            else [*subject, be, *a_name(noun.leaf.group)]
        )
    if x < 0.75:
        return [*subject, be, noun.known[int(random() * 2)]]
    if noun.leaf.root == "person" or noun.leaf.group == "animal":
        verb = "live" if many else "lives"
    else:
        verb = f"{be} found"
    return [*subject, *map(label, verb.split()), *home_phrase(noun)]
