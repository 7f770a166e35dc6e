"""The reference is in the docstrings: what every public name takes, what it gives, and in what shape.

A public name is one in the ``__all__`` of any module, and every public method and property of such a class.
What is asked of its docstring are numpydoc's rules, as far as they serve a reader of `help`:

- a summary on the first line, and every section of numpydoc's under a name that numpydoc knows;
- every parameter of the signature under Parameters with its type, and no other. A docstring without sections
  will do where a sentence or two say it all: if the signature gives the type of every parameter and, where
  people import from (`FACES`), the text names each of them;
- the fields of a record that people import under Attributes or Parameters; those of an event may have a
  comment each, and those of records inside the package have their types where they stand;
- Returns or Yields beside Parameters, with its type, wherever something is returned;
- the shape of every array, in brackets, and the dtype of every array that is returned or an attribute.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import interp
from interp.events import Event

#: Where people import from.
FACES = (
    "interp",
    "interp.capture",
    "interp.cluster",
    "interp.events",
    "interp.lens",
    "interp.live",
    "interp.probe",
    "interp.run",
    "interp.sae",
    "interp.tiny",
)
SECTIONS = (
    "Parameters",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "Notes",
    "References",
    "Examples",
    "See Also",
)
ARRAY = re.compile(r"\b(nd)?arrays?\b|\btensors?\b|\bcs[rc]_(array|matrix)\b", re.I)
#: ``[n_rows, width]``, ``of the same shape``.
SHAPE = re.compile(r"\[[^\]]+\]|\bshapes?\b|\bscalar\b", re.I)
DTYPE = re.compile(r"\b(u?int|float|bfloat)\d*\b|\bbool\b|\bdtype\b|\bobject\b|\bstr\b|\bcodes?\b", re.I)


class Entry(NamedTuple):
    """``name : kind`` and the indented text below it."""

    kind: str
    text: str


class Doc:
    """A docstring, read as numpydoc writes it."""

    def __init__(self, text: str) -> None:
        self.text = inspect.cleandoc(text)
        lines = self.text.splitlines()
        self.summary = lines[0] if lines else ""
        self.sections: dict[str, list[str]] = {}
        inside: list[str] = []
        for line, below in zip(lines, [*lines, ""][1:], strict=True):
            if line and re.fullmatch(r"-{3,}", below):
                inside = self.sections.setdefault(line, [])
            elif not re.fullmatch(r"-{3,}", line):
                inside.append(line)

    def entries(self, *sections: str) -> dict[str, Entry]:
        """The entries of some sections by name; ``a, b : int`` are two."""
        found: dict[str, Entry] = {}
        for section in sections:
            names: list[str] = []
            for line in self.sections.get(section, []):
                if line and not line.startswith(" "):
                    head, _, kind = line.partition(" : ")
                    # Returns may give the type alone.
                    alone = section in ("Returns", "Yields") and not kind
                    names = [line] if alone else [n.strip().lstrip("*") for n in head.split(",")]
                    found.update({n: Entry(line if alone else kind, "") for n in names})
                for n in names if line.startswith(" ") else ():
                    found[n] = Entry(found[n].kind, f"{found[n].text} {line.strip()}")
        return found


# ----------------------------------------------------------------------------------- public names


@cache
def modules() -> tuple[ModuleType, ...]:
    """Every module of the package but the command line, whose help is its documentation."""
    names = ["interp", *(m.name for m in pkgutil.walk_packages(interp.__path__, "interp."))]
    return tuple(importlib.import_module(name) for name in names if name != "interp.__main__")


@cache
def faced() -> frozenset[int]:
    """What can be imported from a face."""
    found = [getattr(m, n) for m in map(importlib.import_module, FACES) for n in getattr(m, "__all__", ())]
    return frozenset(map(id, found))


def members(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods and properties that a class defines itself, as functions."""
    for name, value in vars(cls).items():
        inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        inner = inner.fget if isinstance(inner, property) else inner
        inner = inner.func if isinstance(inner, cached_property) else inner
        if not name.startswith("_") and inspect.isfunction(inner):
            yield name, inner


def public() -> Iterator[tuple[str, Any, bool]]:
    """Name, object, and whether it is of a face; each once, under the module that defines it."""
    seen: set[int] = set()
    for module in modules():
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            ours = str(getattr(thing, "__module__", "")).partition(".")[0] == "interp"
            if id(thing) in seen or not ours or not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            seen.add(id(thing))
            home, face = f"{thing.__module__}.{thing.__qualname__}", id(thing) in faced()
            yield home, thing, face
            for member, function in members(thing) if inspect.isclass(thing) else ():
                yield f"{home}.{member}", function, face


# ------------------------------------------------------------------------------------- the checks


def parameters(thing: Any) -> list[inspect.Parameter]:
    found = inspect.signature(thing).parameters.values()
    return [p for p in found if p.name not in ("self", "cls") and not p.name.startswith("_")]


def is_array(annotation: Any) -> bool:
    return bool(re.search(r"\b(Tensor|ndarray|csr_array|csc_array)\b", str(annotation)))


def silent(doc: Doc, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", doc.text) is None


def problems(thing: Any, face: bool = True) -> list[str]:
    """What the docstring of a function or class lacks, in words; empty if nothing."""
    doc = Doc(thing.__doc__ or "")
    inherited = not thing.__doc__ and bool(inspect.getdoc(thing))
    if not doc.text:
        return [] if inherited else ["has no docstring"]
    out: list[str] = []
    first = doc.text.split("\n\n")[0].rstrip()
    if doc.summary in doc.sections or not re.search(r"[.:?…]\)?$", first):
        out.append("has no full sentence as its summary")
    out += [f"has a section {s!r}" for s in doc.sections if s not in SECTIONS]
    out += [
        f"{s}: a shape is written [n_rows, width]" for s in re.findall(r"(?i)\bshapes? \(.*?\)", doc.text)
    ]
    out += (
        _class_problems(thing, doc, face) if inspect.isclass(thing) else _function_problems(thing, doc, face)
    )
    for section in ("Parameters", "Attributes", "Returns", "Yields"):
        for name, (kind, text) in doc.entries(section).items():
            if not kind:
                out.append(f"{name}: no type")
            elif ARRAY.search(kind):
                out += [] if SHAPE.search(kind + text) else [f"{name}: an array without a shape"]
                wants = section != "Parameters" and not DTYPE.search(kind + text)
                out += [f"{name}: an array without a dtype"] if wants else []
    return out


def _class_problems(cls: type, doc: Doc, face: bool) -> list[str]:
    documented, named = doc.entries("Parameters", "Attributes"), doc.entries("Parameters")
    is_record = dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    if (
        getattr(cls, "_is_protocol", False)
        or issubclass(cls, (Event, BaseException))
        or not (is_record or "__init__" in vars(cls))
    ):
        return []  # the fields of an event say what they are, with their comments
    names = [p.name for p in parameters(cls)]
    out = [f"{n}: documented, but no parameter" for n in named if n not in names]
    if face or named:
        out += [f"{n}: not documented" for n in names if n not in documented]
    elif not is_record:
        plain = [p.name for p in parameters(cls) if p.annotation in (p.empty, "Any")]
        out += [f"{n}: neither documented nor annotated with a type" for n in plain if n not in documented]
    return out


def _function_problems(function: Any, doc: Doc, face: bool) -> list[str]:
    signature = inspect.signature(function)
    given, named = parameters(function), doc.entries("Parameters")
    returned = str(signature.return_annotation)
    out = []
    if not named:
        for p in given:
            if p.annotation in (p.empty, "Any") or (face and p.kind.name.startswith("VAR")):
                out.append(f"{p.name}: neither documented nor annotated with a type")
            elif face and silent(doc, p.name):
                out.append(f"{p.name}: not named in the text")
        if is_array(returned) and not doc.entries("Returns", "Yields"):
            out += [] if SHAPE.search(doc.text) else ["returns an array without a shape"]
            out += [] if DTYPE.search(doc.text) else ["returns an array without a dtype"]
        return out
    out += [f"{p.name}: not documented" for p in given if p.name not in named]
    out += [f"{n}: documented, but no parameter" for n in named if n not in [p.name for p in given]]
    nothing = returned in ("None", "Iterator[None]", "<class 'inspect._empty'>")
    if not nothing and not doc.entries("Returns", "Yields"):
        out.append(f"returns {returned}, and has no Returns")
    return out


NAMES = [pytest.param(thing, face, id=name) for name, thing, face in public()]


@pytest.mark.parametrize(("thing", "face"), NAMES)
def test_a_public_name_is_documented(thing: Any, face: bool) -> None:
    assert problems(thing, face) == []


def test_the_walk_finds_what_people_use() -> None:
    names = {name for name, _, _ in public()}
    assert len(names) > 400
    assert {
        "interp.capture.record.capture",
        "interp.probe.estimator.Sparse1DProbe.fit",
        "interp.lens.train.train_lenses",
        "interp.run.Run.step",
        "interp.events.records.IterationEnd",
    } <= names


# --------------------------------------------------------------------------- the checker is checked


def good(x: np.ndarray, n: int, *, deep: bool = False) -> torch.Tensor:
    """Do what good functions do.

    Parameters
    ----------
    x : ndarray of float64, shape [n_rows]
        What is taken.
    n : int
    deep : bool
        Whether to go on.

    Returns
    -------
    Tensor of float32, shape [n_rows]
    """
    raise NotImplementedError


def brief(n: int) -> list[str]:
    """The first `n` names."""
    raise NotImplementedError


@pytest.mark.parametrize("thing", [good, brief])
def test_a_good_docstring_has_no_problems(thing: Callable[..., Any]) -> None:
    assert problems(thing) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("Do what good functions do.", "", "has no full sentence"),
        ("n : int\n", "", "n: not documented"),
        ("n : int\n", "n\n", "n: no type"),
        ("n : int\n", "n : int\nm : int\n", "m: documented, but no parameter"),
        (", shape [n_rows]\n    What", "\n    What", "x: an array without a shape"),
        (
            "shape [n_rows]\n    What",
            "shape (n_rows,)\n    What",
            "shape (n_rows,): a shape is written",
        ),
        ("Tensor of float32, shape [n_rows]", "Tensor of float32", "an array without a shape"),
        ("Tensor of float32, shape [n_rows]", "Tensor, shape [n_rows]", "an array without a dtype"),
        ("Returns\n-------\nTensor of float32, shape [n_rows]", "", "has no Returns"),
        ("Returns\n", "Gives\n", "has a section 'Gives'"),
    ],
)
def test_every_fault_of_a_docstring_is_found(old: str, new: str, complaint: str) -> None:
    def bad(x: np.ndarray, n: int, *, deep: bool = False) -> torch.Tensor:
        raise NotImplementedError

    written = inspect.getdoc(good)  # without its indentation, which Python 3.13 leaves out already
    assert written is not None
    assert old in written
    bad.__doc__ = written.replace(old, new)
    assert any(complaint in p for p in problems(bad)), problems(bad)


def test_faults_of_brief_docstrings_and_of_classes_are_found() -> None:
    def nothing(n: int) -> None: ...

    def untyped(n) -> None:  # type: ignore[no-untyped-def]
        """Take `n`."""

    def unnamed(n: int) -> None:
        """Take a number."""

    def shapeless(n: int) -> torch.Tensor:
        """As many as `n`, float32."""
        raise NotImplementedError

    @dataclasses.dataclass
    class Record:
        """Two numbers.

        Attributes
        ----------
        a : int
        """

        a: int
        b: int

    assert problems(nothing) == ["has no docstring"]
    assert problems(untyped) == ["n: neither documented nor annotated with a type"]
    assert problems(unnamed) == ["n: not named in the text"]
    assert problems(unnamed, face=False) == []
    assert problems(shapeless) == ["returns an array without a shape"]
    assert problems(Record) == ["b: not documented"]


def test_help_of_the_package_is_a_first_page() -> None:
    """Every public name of the package is on it, and its examples name things that exist."""
    page = interp.__doc__ or ""
    assert all(re.search(rf"\b{name}\b", page) for name in interp.__all__)
    for dotted in re.findall(r"\binterp\.([a-z_]+)", page):
        assert hasattr(interp, dotted) or importlib.import_module(f"interp.{dotted}")
