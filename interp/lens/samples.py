"""Which prompts a lens is trained and judged on.

A sample is a template filled with an example text. The rules, each of them there because its absence
makes grades worthless:

* Positives and negatives use the same templates in the same proportions, so the format tells nothing.
* A text and its near-duplicates form a *group*; a group is in one split, for every lens. The splits are
  ``train``, ``select`` (is the target met?), ``calibrate`` (probabilities, thresholds) and ``test``
  (read once, for the grade). In the last three a group gives one row, so rows are independent.
* Some templates occur in the test split only.
* Negatives are the pack's own near misses and examples of siblings, cousins and far concepts; ancestors and
  descendants are never negatives, nor are texts that name the concept, or that the pack says show it too
  (``also``).
* Every order is drawn from a hash of the seed and the text: it depends neither on the order of the pack
  nor on which lenses are trained together. Rows of n samples begin with the rows of fewer samples.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from interp.lens.concepts import ConceptPack
from interp.lens.grade import MIN_GROUPS
from interp.lens.leakage import audit, group_texts

__all__ = ["SPLITS", "Sample", "Samples", "Templates"]

#: Where negatives come from, by default.
SHARES = {"given": 0.2, "sibling": 0.4, "cousin": 0.2, "far": 0.2}

#: Templates that a text is used with in training. A third one costs 20 % more forward passes on the shipped
#: pack and raises the mean score by 0.01.
PASSES = 2

_WORD = re.compile(r"\w+")

SPLITS = ("train", "select", "calibrate", "test")

#: Share of a concept's groups that select, calibrate and test get, and the most they need.
#: With 80 positives and 80 negatives a true score of 0.8 earns an A in 99 % of draws.
_FRACTION = {"test": 0.35, "select": 0.15, "calibrate": 0.1}
_MOST = {"test": 80, "select": 60, "calibrate": 40}


@dataclass(frozen=True)
class Templates:
    """What surrounds an example; ``{text}`` stands for it.

    Attributes
    ----------
    train : tuple of str
        For all splits.
    heldout : tuple of str
        For the test split only.
    """

    train: tuple[str, ...] = (
        "{text}",
        "Note: {text}",
        "She said: {text}",
        "This is true. {text}",
        "{text} That is all.",
        "Look at this: {text}",
    )
    heldout: tuple[str, ...] = ("He wrote this. {text}", "Read: {text}", "It is so. {text} The end.")

    def __post_init__(self) -> None:
        if not self.train or not self.heldout:
            raise ValueError("templates: at least one for training and one held out are needed")
        everything = [*self.train, *self.heldout]
        for template in everything:
            if template.count("{text}") != 1:
                raise ValueError(f"template {template!r} must contain {{text}} exactly once")
        if len(set(everything)) != len(everything):
            raise ValueError("templates: one occurs twice; held-out templates must not be training templates")


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and what is known about it.

    Attributes
    ----------
    text : str
        The filled template.
    start, stop : int
        Where the example stands in `text`, in characters.
    template : str
    origin : str
        The concept that it exemplifies (``"not:id"``: a near miss of concept id).
    group : int
        Samples of one group are never on two sides of a split.
    split : str
    heldout : bool
        Whether the template is a held-out one.
    """

    text: str
    start: int
    stop: int
    template: str
    origin: str
    group: int
    split: str
    heldout: bool = False

    @property
    def filler(self) -> str:
        """The example without its template."""
        return self.text[self.start : self.stop]


def _order(seed: int, *parts: str) -> bytes:
    return hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()


class Samples:
    """The samples of all concepts of a pack.

    Parameters
    ----------
    pack : ConceptPack
    seed : int
    templates : Templates
    shares : mapping of str to float
        Of the negatives: ``given`` (the pack's own near misses), ``sibling``, ``cousin``, ``far``. What one
        kind lacks, the others give.

    Raises
    ------
    LeakageError
        If the audit of the finished splits finds a leak.
    """

    def __init__(
        self,
        pack: ConceptPack,
        *,
        seed: int = 0,
        templates: Templates | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.pack, self.seed = pack, seed
        self.templates = templates or Templates()
        self.shares = dict(SHARES if shares is None else shares)
        unknown = set(self.shares) - set(SHARES)
        if unknown or min(self.shares.values(), default=0) < 0 or not sum(self.shares.values()) > 0:
            raise ValueError(
                f"shares must give weights ≥ 0 to {', '.join(SHARES)}, got {dict(self.shares)!r}"
            )
        self._made: dict[tuple[str, str, str], Sample] = {}  # (template, origin, text) → sample
        self._origins: dict[tuple[str, bool], dict[str, list[str]]] = {}
        self._naming: dict[str, set[str]] = {}  # term → texts that name it
        self._shown: dict[str, set[int]] = {}  # concept → groups with a text that is said to show it
        self._clean: dict[str, Callable[[Sample], bool]] = {}
        self._fillers = self._split()  # (origin, split) → [(text, group)] in drawing order
        audit([s for origin, split in self._fillers for s in self._rows(origin, split, passes=1)])

    def _split(self) -> dict[tuple[str, str], list[tuple[str, int]]]:
        found: list[tuple[str, str, str]] = []  # origin, text, source
        also: dict[tuple[str, str], tuple[str, ...]] = {}
        for concept in sorted(self.pack, key=lambda c: c.id):
            also.update({(concept.id, e.text): e.also for e in concept.positive})
            found += [(concept.id, e.text, e.source) for e in concept.positive]
            found += [(f"not:{concept.id}", e.text, e.source) for e in concept.negative]
        # Groups must not depend on the order of the pack, nor on which example comes first in it.
        found.sort(key=lambda f: (f[1], f[0]))
        groups = group_texts([f[1] for f in found], [f[2] for f in found])
        members: dict[int, list[tuple[str, str]]] = {}
        for (origin, text, _), group in zip(found, groups.tolist(), strict=True):
            members.setdefault(group, []).append((origin, text))
            for shown in (origin, *also.get((origin, text), ())):
                self._shown.setdefault(shown, set()).add(group)
        # A group's home is its first origin that is a concept; homes get their splits in fixed shares.
        homes: dict[str, list[tuple[bytes, int]]] = {}
        for group, entries in members.items():
            home = min((o.startswith("not:"), o) for o, _ in entries)[1]
            homes.setdefault(home, []).append((_order(self.seed, "split", entries[0][1]), group))
        split_of: dict[int, str] = {}
        for entries_of_home in homes.values():
            ordered = [group for _, group in sorted(entries_of_home)]
            for split, size in allot(len(ordered)).items():
                split_of.update(dict.fromkeys(ordered[:size], split))
                ordered = ordered[size:]
        fillers: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for group, entries in members.items():
            for origin, text in entries:
                fillers.setdefault((origin, split_of[group]), []).append((text, group))
        for key, texts in fillers.items():
            texts.sort(key=lambda t: _order(self.seed, *key, t[0]))
        return fillers

    # ------------------------------------------------------------------ rows of one origin

    def _rows(
        self, origin: str, split: str, *, passes: int | None = None, heldout: bool = False
    ) -> Iterator[Sample]:
        """All samples of an origin: each text with one template, then each with the next, and so on."""
        used = self.templates.heldout if heldout else self.templates.train
        turn = _order(self.seed, "turn", origin)[0]
        fillers = self._fillers.get((origin, split), [])
        for k in range(len(used) if passes is None else passes):
            for i, (text, group) in enumerate(fillers):
                yield self._fill(used[(i + k + turn) % len(used)], text, origin, group, split, heldout)

    def _of_template(self, origin: str, split: str, template: str, heldout: bool) -> Iterator[Sample]:
        """Those rows that have one template, in the same order."""
        used = self.templates.heldout if heldout else self.templates.train
        turn = _order(self.seed, "turn", origin)[0]
        fillers = self._fillers.get((origin, split), [])
        at = used.index(template)
        for k in range(len(used)):
            for text, group in fillers[(at - k - turn) % len(used) :: len(used)]:
                yield self._fill(template, text, origin, group, split, heldout)

    def _fill(self, template: str, text: str, origin: str, group: int, split: str, heldout: bool) -> Sample:
        key = (template, origin, text)
        sample = self._made.get(key)
        if sample is None:
            start = template.index("{text}")
            whole = template.replace("{text}", text)
            sample = Sample(whole, start, start + len(text), template, origin, group, split, heldout)
            self._made[key] = sample
        return sample

    def drawn(self, split: str, n: int) -> list[Sample]:
        """Samples of one split drawn from the whole pack, whichever lenses are trained.

        Parameters
        ----------
        split : str
        n : int
            At most so many. Examples of concepts come before near misses, each text with one template.

        Returns
        -------
        list of Sample
        """
        found: dict[str, Sample] = {}
        origins = sorted(o for o, part in self._fillers if part == split)
        for origin in sorted(origins, key=lambda o: o.startswith("not:")):
            for sample in self._rows(origin, split, passes=1):
                found.setdefault(sample.filler, sample)
        order = sorted(
            found.values(), key=lambda s: (s.origin.startswith("not:"), _order(self.seed, "drawn", s.filler))
        )
        return order[:n]

    # ------------------------------------------------------------------ rows of one lens

    def positives(
        self, concept_id: str, split: str, n: int | None = None, *, heldout: bool = False
    ) -> list[Sample]:
        """Samples that show a concept: its own examples and its descendants', in turn.

        Parameters
        ----------
        concept_id : str
        split : str
        n : int, optional
            At most so many (the first ones); default all.
        heldout : bool
            Use the held-out templates (``test`` only).

        Returns
        -------
        list of Sample
        """
        origins = [concept_id, *self.pack.descendants(concept_id)]
        origins.sort(key=lambda o: _order(self.seed, "positive", concept_id, o))
        passes = min(PASSES, len(self.templates.train)) if split == "train" else 1
        queues = [self._rows(o, split, passes=passes, heldout=heldout) for o in origins]
        out: list[Sample] = []
        used: set[Any] = set()
        while queues and (n is None or len(out) < n):
            for queue in list(queues):
                sample = next((s for s in queue if _identity(s) not in used), None)
                if sample is None:
                    queues.remove(queue)
                elif n is None or len(out) < n:
                    used.add(_identity(sample))
                    out.append(sample)
        return out

    def negatives(
        self, concept_id: str, split: str, like: Sequence[Sample], *, siblings_only: bool = False
    ) -> list[Sample]:
        """Samples that do not show a concept, each with the template of its counterpart in `like`.

        Parameters
        ----------
        concept_id : str
        split : str
        like : list of Sample
            Positives of the same split; the i-th negative takes the i-th template.
        siblings_only : bool
            For the grade: examples of siblings and of what is below them alone.

        Returns
        -------
        list of Sample
            As many as `like` where there are enough.
        """
        kinds = self._kinds(concept_id, siblings_only)
        clean = self.excludes(concept_id)
        decks = {kind: _Deck(self, split, origins, clean) for kind, origins in kinds.items() if origins}
        taken = dict.fromkeys(decks, 0)
        used: set[Any] = set()
        out: list[Sample] = []
        for positive in like:
            shortest = sorted(decks, key=lambda k: ((taken[k] + 1) / max(self.shares.get(k, 0), 1e-9), k))
            for kind in shortest:
                sample = decks[kind].draw(positive, used)
                if sample is not None:
                    taken[kind] += 1
                    used.add(_identity(sample))
                    out.append(sample)
                    break
        return out

    def _kinds(self, concept_id: str, siblings_only: bool) -> dict[str, list[str]]:
        """The origins of each kind of negative, in the order of the draw."""
        if (concept_id, siblings_only) in self._origins:
            return self._origins[concept_id, siblings_only]
        pack = self.pack
        line = {concept_id} | pack.ancestors(concept_id) | pack.descendants(concept_id)

        def family(members: set[str]) -> set[str]:
            return members.union(*(pack.descendants(m) for m in members)) - line

        sibling = family(pack.siblings(concept_id))
        if siblings_only:
            found = {"sibling": sibling}
        else:
            cousin = family(pack.cousins(concept_id)) - sibling
            far = {c.id for c in pack} - line - sibling - cousin
            given = {f"not:{concept_id}"}
            found = {"given": given, "sibling": sibling, "cousin": cousin, "far": far}
            found = {kind: members for kind, members in found.items() if self.shares.get(kind, 0) > 0}
        ordered = {
            kind: sorted(members, key=lambda o: _order(self.seed, "negative", concept_id, o))
            for kind, members in found.items()
        }
        self._origins[concept_id, siblings_only] = ordered
        return ordered

    def excludes(self, concept_id: str) -> Callable[[Sample], bool]:
        """A test whether a sample surely does not show the concept `concept_id`.

        It is of a concept outside the direct line (or a near miss of this one), neither it nor nearly the
        same text is said to show the concept or what is below it, and it does not name them.
        """
        if concept_id in self._clean:
            return self._clean[concept_id]
        below = [concept_id, *self.pack.descendants(concept_id)]
        line = {*below, *self.pack.ancestors(concept_id)}
        shown = set[int]().union(*(self._shown.get(c, ()) for c in below))
        named = set[str]().union(*(self._texts_naming(self.pack[c].term) for c in below))

        def clean(sample: Sample) -> bool:
            if sample.group in shown:
                return False
            if sample.origin.startswith("not:"):
                # A near miss may well name the concept; that is what makes it near. Of others we know
                # nothing.
                return sample.origin == f"not:{concept_id}"
            return sample.origin not in line and sample.filler not in named

        self._clean[concept_id] = clean
        return clean

    def _texts_naming(self, term: str) -> set[str]:
        """Texts that hold a term as words of their own, in whatever case."""
        if term not in self._naming:
            texts, holding = self._corpus
            wanted = term.casefold()
            named = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
            # Only those that hold its rarest word are read; every text, if it is all signs.
            few = min((holding[word] for word in _WORD.findall(wanted)), key=len, default=texts)
            self._naming[term] = {text for text in few if named.search(text.casefold())}
        return self._naming[term]

    @cached_property
    def _corpus(self) -> tuple[list[str], dict[str, list[str]]]:
        """All texts, and for each word of a term those that hold it."""
        texts = list({text for fillers in self._fillers.values() for text, _ in fillers})
        holding: dict[str, list[str]] = {w: [] for c in self.pack for w in _WORD.findall(c.term.casefold())}
        for text in texts:
            for word in holding.keys() & _WORD.findall(text.casefold()):
                holding[word].append(text)
        return texts, holding

    def siblings_of(self, concept_id: str) -> set[str]:
        """Origins that count as siblings of `concept_id`: the siblings and all below them."""
        return set(self._kinds(concept_id, True)["sibling"])


def _identity(sample: Sample) -> Any:
    """What must not occur twice: in training a text in a template, elsewhere a group."""
    return (sample.text, sample.group) if sample.split == "train" else sample.group


class _Deck:
    """Draws samples of several origins in turn, each with a wanted template."""

    def __init__(
        self, samples: Samples, split: str, origins: list[str], clean: Callable[[Sample], bool]
    ) -> None:
        self._samples, self._split, self._origins, self._clean = samples, split, origins, clean
        self._turn = 0
        self._queues: dict[tuple[str, str], Iterator[Sample]] = {}  # of (origin, template)

    def draw(self, like: Sample, used: set[Any]) -> Sample | None:
        for _ in range(len(self._origins)):
            origin = self._origins[self._turn]
            self._turn = (self._turn + 1) % len(self._origins)
            key = (origin, like.template)
            if key not in self._queues:
                self._queues[key] = self._samples._of_template(
                    origin, self._split, like.template, like.heldout
                )
            for sample in self._queues[key]:
                if _identity(sample) not in used and self._clean(sample):
                    return sample
        return None


def allot(n: int) -> dict[str, int]:
    """How many of `n` groups each split gets. Of few, half go to test until it can be graded."""
    sizes = {s: min(round(_FRACTION[s] * n), _MOST[s]) for s in ("test", "select", "calibrate")}
    sizes["test"] = max(sizes["test"], min(MIN_GROUPS, n // 2))
    return {**sizes, "train": n - sum(sizes.values())}
