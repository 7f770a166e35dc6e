"""Documents of the little language as token ids, with the class of every token.

Three sorts of document, all shorter than the context of the model: passages of prose, sheets of facts
about related words, and questions with answers, half of them with the chat tokens and half as plain
text. Every document begins with ``<s>`` and ends with ``</s>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from interp.tiny import dialogue, grammar, prose
from interp.tiny.grammar import Atoms
from interp.tiny.tokenizer import ASSISTANT, BOS, EOS, USER, vocabulary

#: Longest document in tokens; the context of the model.
MAX_TOKENS = 256
_SHARE_PROSE, _SHARE_FACTS = 0.38, 0.15


@dataclass(frozen=True)
class Corpus:
    """Token ids of whole documents, one after the other.

    Attributes
    ----------
    ids : ndarray of int32, shape [n_tokens]
        Token ids.
    classes : ndarray of uint8, shape [n_tokens]
        Class id of every token, 0 for the background; see :data:`interp.tiny.CLASS_NAMES`.
    offsets : ndarray of int64, shape [n_documents + 1]
        Document i is ``ids[offsets[i]:offsets[i + 1]]``.
    """

    ids: np.ndarray
    classes: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def documents(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and classes of each document."""
        for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.ids[start:end], self.classes[start:end]


def document(random: Random) -> Atoms:
    """One document as atoms, with its special tokens.

    Parameters
    ----------
    random : random.Random
        The only source of randomness.
    """
    r = random.random
    kind = r()
    if kind < _SHARE_PROSE:
        body = prose.Scene(r).passage(4 + int(r() * 9))
    elif kind < _SHARE_PROSE + _SHARE_FACTS:
        body = _fact_sheet(r)
    else:
        body = _conversation(r)
    return [BOS, *body[: MAX_TOKENS - 2], EOS]


def _fact_sheet(r) -> Atoms:
    """Facts about words of one class, or of one group."""
    first = prose.ANYTHING(r)
    leaves = [f for f in grammar.NOUNS if grammar.LEAF[f].group == first.leaf.group]
    out: Atoms = []
    said: set[tuple[str, ...]] = set()
    for _ in range(2 + int(r() * 4)):
        leaf = first.leaf.name if r() < 0.6 else leaves[int(r() * len(leaves))]
        nouns = grammar.NOUNS[leaf]
        noun = nouns[int(r() * len(nouns))]
        facts = dict.fromkeys(tuple(prose.fact(r, noun)) for _ in range(1 + int(r() * 3)))
        for fact in facts:
            if fact not in said:
                said.add(fact)
                out += [*fact, "."]
    return out


def _conversation(r) -> Atoms:
    """One to three exchanges, with or without the chat tokens."""
    chat = r() < 0.55
    out: Atoms = []
    for i in range(1 + int(r() * 3)):
        _, question, answer = dialogue.exchange(r)
        if len(out) + len(question) + len(answer) > MAX_TOKENS - 8:
            break
        if chat:
            out += [*([EOS] if i else []), USER, *question, ASSISTANT, *answer]
        else:
            out += [*([EOS, BOS] if i else []), *question, *answer]
    return out


class _AtomTable(dict):
    """Token id and class id of an atom, looked up once per atom: ``id * 256 + class``."""

    def __init__(self):
        super().__init__()
        self.vocab = vocabulary()

    def __missing__(self, atom: str) -> int:
        word, _, class_id = (atom, "", "") if atom[0] == "#" else atom.partition("#")
        code = self[atom] = self.vocab[word] * 256 + int(class_id or grammar.BACKGROUND)
        return code


@lru_cache(maxsize=1)
def _codes() -> _AtomTable:
    return _AtomTable()


def encode(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (int32) and class ids (uint8) of atoms.

    Raises
    ------
    KeyError
        If an atom is no word of the language.
    """
    table = _codes()
    codes = np.fromiter((table[a] for a in atoms), np.int32, len(atoms))
    return codes >> 8, (codes & 255).astype(np.uint8)


def tokens(n_tokens: int, seed: int = 0) -> Corpus:
    """A corpus of exactly ``n_tokens`` tokens; the last document is cut to fit.

    Parameters
    ----------
    n_tokens : int
        How many tokens, at least 1. 100,000 take about 0.1 s.
    seed : int
        Same seed, same corpus; a longer corpus begins with the shorter one.

    Returns
    -------
    Corpus

    Raises
    ------
    ValueError
        If ``n_tokens`` is below 1.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens is {n_tokens}, expected at least 1")
    random = Random(f"corpus {seed}")
    atoms: Atoms = []
    offsets = [0]
    while len(atoms) < n_tokens:
        atoms += document(random)
        offsets.append(min(len(atoms), n_tokens))
    ids, classes = encode(atoms[:n_tokens])
    return Corpus(ids, classes, np.asarray(offsets, dtype=np.int64))
