"""Concept packs: the ontology that lenses are trained from.

A pack is JSON::

    {"name": "birds", "version": "1", "concepts": [
      {"id": "robin", "term": "robin", "definition": "a small bird", "parents": ["bird"], "level": 2,
       "examples": {"positive": ["A robin sings."], "negative": ["Robin Hood robs the rich."]}}]}

An example is a string, or ``{"text": ..., "source": ..., "also": [...]}``. Examples of one source (a
document, a writer, a paraphrased original) stay on one side of every split. ``also`` lists the ids of other
concepts that a positive example shows: it is no negative for them, nor for what is above them.

An ontology *level* (0: the roots) says how special a concept is. It has nothing to do with the layers
of a model, which are part of a *site* (``resid_post.2``).
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NewType

from interp.files import write_text

__all__ = ["Concept", "ConceptPack", "Example", "OntologyLevel"]

#: A depth in the ontology. Not a model layer.
OntologyLevel = NewType("OntologyLevel", int)

_PACK_FIELDS = {"name", "version", "concepts"}
_CONCEPT_FIELDS = {"id", "term", "definition", "parents", "level", "examples"}
_EXAMPLE_KINDS = {"positive", "negative"}
_EXAMPLE_FIELDS = {"text", "source", "also"}


@dataclass(frozen=True, slots=True)
class Example:
    """One text, where it comes from ("" if the pack does not say), and what else it shows."""

    text: str
    source: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept of a pack.

    Attributes
    ----------
    id : str
        Unique in the pack.
    term : str
        The name people read.
    definition : str
    parents : tuple of str
        Ids; empty for a root.
    level : OntologyLevel
        Depth in the ontology, 0 for the most general.
    positive, negative : tuple of Example
        Texts that show the concept, and near misses that do not.
    """

    id: str
    term: str
    definition: str
    parents: tuple[str, ...]
    level: OntologyLevel
    positive: tuple[Example, ...]
    negative: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """The concept as the JSON of a pack."""

        def plain(example: Example) -> Any:
            if not (example.source or example.also):
                return example.text
            found: dict[str, Any] = {"text": example.text}
            if example.source:
                found["source"] = example.source
            if example.also:
                found["also"] = list(example.also)
            return found

        return {
            "id": self.id,
            "term": self.term,
            "definition": self.definition,
            "parents": list(self.parents),
            "level": int(self.level),
            "examples": {
                "positive": [plain(e) for e in self.positive],
                "negative": [plain(e) for e in self.negative],
            },
        }


class ConceptPack:
    """Concepts and how they are related.

    Iterating gives the concepts in the order of the file; ``pack[id]`` one of them. ``in`` takes an id, or a
    `Concept` by its id.

    Parameters
    ----------
    name, version : str
    concepts : list of Concept

    Raises
    ------
    ValueError
        For duplicate ids, a parent or an ``also`` that is not in the pack, a cycle, or text that no file can
        hold; each is named.
    """

    def __init__(self, name: str, version: str, concepts: list[Concept]) -> None:
        self.name, self.version = name, version
        _expect_text([name, version], f"the name or version of pack {name!r}")
        self._concepts: dict[str, Concept] = {}
        self._reached: dict[tuple[str, str], set[str]] = {}  # asked for again and again by the samples
        for concept in concepts:
            if concept.id in self._concepts:
                raise ValueError(
                    f"pack {name!r}: the id {concept.id!r} occurs twice; ids must be unique, rename one"
                )
            self._concepts[concept.id] = concept
            _expect_text(concept.to_dict(), f"pack {name!r}: {concept.id!r}")
        self._children: dict[str, list[str]] = {c: [] for c in self._concepts}
        for concept in concepts:
            for parent in concept.parents:
                if parent not in self._concepts:
                    raise ValueError(
                        f"pack {name!r}: {concept.id!r} names the parent {parent!r}, which is not in the "
                        "pack; add it or remove it from parents"
                    )
                self._children[parent].append(concept.id)
            for example in concept.positive:
                for other in example.also:
                    if other not in self._concepts:
                        raise ValueError(
                            f"pack {name!r}: the example {example.text[:60]!r} of {concept.id!r} also shows "
                            f"{other!r}, which is not in the pack; add it or remove it from also"
                        )
        self._refuse_cycles()
        for concept in concepts:
            for parent in concept.parents:
                if self._concepts[parent].level >= concept.level:
                    warnings.warn(
                        f"pack {name!r}: {concept.id!r} has level {concept.level}, its parent {parent!r} has "
                        f"{self._concepts[parent].level}; a parent's level should be smaller",
                        stacklevel=3,
                    )

    # ------------------------------------------------------------------ reading and writing

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConceptPack:
        """Read a pack from a JSON file.

        Parameters
        ----------
        path : path
            ``"tiny"`` is the pack that ships with the package.

        Returns
        -------
        ConceptPack

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is no valid pack: what is wrong, and where.
        """
        if str(path) == "tiny":
            from interp.tiny import concept_pack_path

            path = concept_pack_path()
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f'no concept pack at {file}; give the path of a JSON file, or "tiny"')
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        try:
            return cls.from_dict(data, where=str(file))
        except ValueError as error:
            raise error if str(file) in str(error) else ValueError(f"{file}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any, *, where: str = "pack") -> ConceptPack:
        """Check and read a pack that is already parsed.

        Unknown fields are warned about by name and ignored.

        Parameters
        ----------
        data : dict
        where : str
            What to call the pack in messages.

        Returns
        -------
        ConceptPack

        Raises
        ------
        ValueError
            If `data` is no valid pack.
        """
        _expect(data, dict, where, "an object with name, version and concepts")
        for name in ("name", "version", "concepts"):
            if name not in data:
                raise ValueError(f"{where}: the field {name!r} is missing")
        _warn_unknown(set(data) - _PACK_FIELDS, where)
        _expect(data["concepts"], list, f"{where}: concepts", "a list")
        if not data["concepts"]:
            raise ValueError(f"{where}: concepts is empty; a pack needs at least one concept")
        concepts = [_read_concept(c, f"{where}: concepts[{i}]") for i, c in enumerate(data["concepts"])]
        return cls(str(data["name"]), str(data["version"]), concepts)

    def to_dict(self) -> dict[str, Any]:
        """The pack as plain JSON types."""
        return {"name": self.name, "version": self.version, "concepts": [c.to_dict() for c in self]}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the pack as JSON to `path`, whole or not at all."""
        return write_text(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the content (16 hex digits), the same for any order of the concepts."""
        plain = self.to_dict()
        plain["concepts"].sort(key=lambda c: c["id"])
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ relations

    def __len__(self) -> int:
        return len(self._concepts)

    def __iter__(self) -> Iterator[Concept]:
        return iter(self._concepts.values())

    def __contains__(self, concept: object) -> bool:
        return (concept.id if isinstance(concept, Concept) else concept) in self._concepts

    def __getitem__(self, concept_id: str) -> Concept:
        try:
            return self._concepts[concept_id]
        except KeyError:
            raise KeyError(f"no concept {concept_id!r} in pack {self.name!r} of {len(self)}") from None

    @property
    def levels(self) -> list[OntologyLevel]:
        """The ontology levels that occur, ascending."""
        return sorted({c.level for c in self})

    def at_level(self, level: int) -> list[str]:
        """Ids of the concepts of one ontology level, in the order of the file."""
        return [c.id for c in self if c.level == level]

    def children(self, concept_id: str) -> list[str]:
        """Direct descendants of `concept_id`."""
        return list(self._children[self[concept_id].id])

    def ancestors(self, concept_id: str) -> set[str]:
        """Everything above `concept_id`, up to the roots."""
        return self._reach("up", concept_id, lambda c: self._concepts[c].parents)

    def descendants(self, concept_id: str) -> set[str]:
        """Everything below `concept_id`."""
        return self._reach("down", concept_id, lambda c: self._children[c])

    def siblings(self, concept_id: str) -> set[str]:
        """Concepts with a parent in common with `concept_id` (a root: the other roots), none in its line."""
        concept = self[concept_id]
        if concept.parents:
            found = {child for parent in concept.parents for child in self._children[parent]}
        else:
            found = {c.id for c in self if not c.parents}
        return found - self._line(concept_id)

    def cousins(self, concept_id: str) -> set[str]:
        """Children of the siblings of `concept_id`'s parents, without its siblings and its own line."""
        found = {
            child
            for parent in self[concept_id].parents
            for uncle in self.siblings(parent)
            for child in self._children[uncle]
        }
        return found - self.siblings(concept_id) - self._line(concept_id)

    def _line(self, concept_id: str) -> set[str]:
        return {concept_id} | self.ancestors(concept_id) | self.descendants(concept_id)

    def _reach(self, way: str, start: str, neighbours: Any) -> set[str]:
        if (way, start) not in self._reached:
            found: set[str] = set()
            todo = list(neighbours(start))
            while todo:
                node = todo.pop()
                if node not in found:
                    found.add(node)
                    todo.extend(neighbours(node))
            self._reached[way, start] = found
        return set(self._reached[way, start])

    def _refuse_cycles(self) -> None:
        # Kahn: take away concepts whose parents are gone; what cannot be taken away is on or below a cycle.
        missing = {c.id: len(set(c.parents)) for c in self}
        ready = [c for c, n in missing.items() if not n]
        while ready:
            node = ready.pop()
            del missing[node]
            for child in set(self._children[node]):
                missing[child] -= 1
                if not missing[child]:
                    ready.append(child)
        if missing:
            node = min(missing)
            path: list[str] = []
            while node not in path:
                path.append(node)
                node = next(p for p in self._concepts[node].parents if p in missing)
            cycle = [*path[path.index(node) :], node]
            raise ValueError(
                f"pack {self.name!r}: parents run in a circle: {' → '.join(cycle)}; remove one of them"
            )

    def __repr__(self) -> str:
        per_level = ", ".join(f"{len(self.at_level(k))} at level {k}" for k in self.levels)
        return f"<ConceptPack {self.name!r} {self.version}: {len(self)} concepts ({per_level})>"


# ------------------------------------------------------------------------------ the schema


def _read_concept(data: Any, where: str) -> Concept:
    _expect(data, dict, where, "an object with id, term and level")
    if isinstance(data.get("id"), str) and data["id"]:
        where = f"{where} ({data['id']!r})"
    _warn_unknown(set(data) - _CONCEPT_FIELDS, where)
    for name in ("id", "term"):
        if not isinstance(data.get(name), str) or not data[name].strip():
            raise ValueError(f"{where}: {name} must be a string that is not empty, got {data.get(name)!r}")
    level = data.get("level")
    if not isinstance(level, int) or isinstance(level, bool) or level < 0:
        raise ValueError(f"{where}: level must be an integer ≥ 0, got {level!r}")
    definition = data.get("definition", "")
    _expect(definition, str, f"{where}: definition", "a string")
    parents = data.get("parents", [])
    _expect(parents, list, f"{where}: parents", "a list of ids")
    for parent in parents:
        _expect(parent, str, f"{where}: parents", "a list of ids")
    examples = data.get("examples", {})
    _expect(examples, dict, f"{where}: examples", 'an object with "positive" and "negative"')
    _warn_unknown(set(examples) - _EXAMPLE_KINDS, f"{where}: examples")
    positive = _read_examples(examples.get("positive", []), f"{where}: examples.positive")
    negative = _read_examples(examples.get("negative", []), f"{where}: examples.negative")
    if any(e.also for e in negative):
        raise ValueError(f"{where}: examples.negative: only positive examples can have also")
    both = {e.text for e in positive} & {e.text for e in negative}
    if both:
        raise ValueError(f"{where}: {min(both)!r} is both a positive and a negative example; keep one")
    return Concept(
        id=data["id"],
        term=data["term"],
        definition=definition,
        parents=tuple(dict.fromkeys(parents)),
        level=OntologyLevel(level),
        positive=positive,
        negative=negative,
    )


def _read_examples(data: Any, where: str) -> tuple[Example, ...]:
    _expect(data, list, where, "a list of texts")
    found: dict[str, Example] = {}
    for i, item in enumerate(data):
        if isinstance(item, str):
            example = Example(item.strip())
        else:
            _expect(item, dict, f"{where}[{i}]", "a string or an object with text")
            _warn_unknown(set(item) - _EXAMPLE_FIELDS, f"{where}[{i}]")
            _expect(item.get("text"), str, f"{where}[{i}]: text", "a string")
            also = item.get("also", [])
            _expect(also, list, f"{where}[{i}]: also", "a list of ids")
            for other in also:
                _expect(other, str, f"{where}[{i}]: also", "a list of ids")
            example = Example(item["text"].strip(), str(item.get("source", "")), tuple(also))
        if not example.text:
            raise ValueError(f"{where}[{i}] is empty; write a text or remove it")
        found.setdefault(example.text, example)
    return tuple(found.values())


def _expect(value: Any, kind: type, where: str, wanted: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{where} must be {wanted}, got {type(value).__name__} {str(value)[:60]!r}")


def _expect_text(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a surrogate pair, which is no text: {error}") from error


def _warn_unknown(names: set[Any], where: str) -> None:
    if names:
        listed = ", ".join(sorted(map(str, names)))
        warnings.warn(f"{where}: unknown fields ignored: {listed}", stacklevel=4)
