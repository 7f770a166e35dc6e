"""Leakage: texts that occur, or nearly occur, on both sides of a split.

A score on held-out prompts means nothing if the prompts were seen in training. `near_duplicates`
finds the pairs, `audit` raises when one of them, or a group, or a held-out template crosses a split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from interp.lens.samples import Sample

__all__ = ["LeakageError", "audit", "audit_lens", "near_duplicates", "normalise"]

#: Texts whose sets of 4-character shingles overlap this much (Jaccard) are the same text, edited:
#: a plural, an article, a comma; in a short sentence not another noun.
NEAR = 0.8
_SHINGLE = 4
#: Bits of the sketch of a set of shingles, and the number of ones of every 16 bits.
_SKETCH = 256
_ONES = np.array([i.bit_count() for i in range(2**16)], dtype=np.uint8)


class LeakageError(ValueError):
    """Training and held-out prompts are not independent."""


def normalise(text: str) -> str:
    """The words of `text` in lower case, joined by single spaces (the text itself if it has no words)."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def near_duplicates(texts: Sequence[str], threshold: float = NEAR) -> np.ndarray:
    """Pairs of texts that are equal or nearly equal after `normalise`.

    Parameters
    ----------
    texts : sequence of str
    threshold : float
        Jaccard similarity of the sets of 4-character shingles from which a pair counts.

    Returns
    -------
    array, shape [n_pairs, 2], int64
        Indices i < j into `texts`. Of texts that are equal, the first stands for all: each other one is
        paired with it alone.

    Notes
    -----
    Exact, by prefix filtering [1]_: with the shingles of every text ordered from rare to common, two
    sets x, y of Jaccard ≥ t share one of the first ``|x| − ceil(t |x|) + 1`` of x and of y. Only texts that
    share one of those are compared.

    References
    ----------
    .. [1] Bayardo, Ma, Srikant. Scaling up all pairs similarity search. WWW 2007.
    """
    normal = [normalise(t) for t in texts]
    first: dict[str, int] = {}
    twins = [first.setdefault(t, i) for i, t in enumerate(normal)]
    pairs = [(twin, i) for i, twin in enumerate(twins) if twin != i]
    # In an order of their own, so that whoever asks about the same texts again is answered from memory.
    unique = tuple(sorted(first))
    pairs += [(first[unique[a]], first[unique[b]]) for a, b in _similar(unique, threshold)]
    return np.array(sorted((min(p), max(p)) for p in pairs), dtype=np.int64).reshape(-1, 2)


@lru_cache(maxsize=2)
def _similar(texts: tuple[str, ...], threshold: float) -> list[tuple[int, int]]:
    """Pairs of texts (none twice) whose sets of shingles overlap by `threshold`."""
    if len(texts) < 2:
        return []
    owner, rank, n_shingles = _shingles(texts)
    sizes = np.bincount(owner, minlength=len(texts))
    starts = np.cumsum(sizes) - sizes
    prefix = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    head = np.arange(len(owner)) - starts[owner] < prefix[owner]
    full, heads = (
        sp.csr_array((np.ones(len(o), np.float32), (o, r)), shape=(len(texts), n_shingles))
        for o, r in ((owner, rank), (owner[head], rank[head]))
    )
    candidates = (heads @ heads.T).tocoo()
    upper = candidates.row < candidates.col
    a, b = candidates.row[upper], candidates.col[upper]
    near_in_size = np.minimum(sizes[a], sizes[b]) >= threshold * np.maximum(sizes[a], sizes[b]) - 1e-9
    a, b = a[near_in_size], b[near_in_size]
    # Most candidates are dropped by a sketch: sets that differ in few shingles differ in no more bits.
    bits = np.zeros((len(texts), _SKETCH), dtype=bool)
    bits[owner, rank * 40_503 % _SKETCH] = True
    sketch = np.packbits(bits, axis=1).view(np.uint16)
    differing = _ONES[sketch[a] ^ sketch[b]].sum(axis=1, dtype=np.int64)
    allowed = (sizes[a] + sizes[b]) * (1 - threshold) / (1 + threshold)
    a, b = a[differing <= allowed + 1e-9], b[differing <= allowed + 1e-9]
    out: list[tuple[int, int]] = []
    for start in range(0, len(a), 100_000):
        i, j = a[start : start + 100_000], b[start : start + 100_000]
        common = np.asarray(full[i].multiply(full[j]).sum(axis=1)).ravel()
        similar = common >= threshold * (sizes[i] + sizes[j] - common) - 1e-9
        out += list(zip(i[similar].tolist(), j[similar].tolist(), strict=True))
    return out


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """The sets of shingles: the owner of each and its rank (0: the rarest), sorted by both; how many ranks.

    A text that is shorter than a shingle, with a space on either side, is one shingle.
    """
    padded = [f" {t} ".ljust(_SHINGLE, "\0") for t in texts]
    lengths = np.array([len(p) for p in padded])
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    # Two characters make a number, two of those numbers a shingle: exact for every alphabet.
    pairs = np.unique((codes[:-1].astype(np.int64) << 32) | codes[1:], return_inverse=True)[1].ravel()
    n_each = lengths - _SHINGLE + 1
    owner = np.repeat(np.arange(len(texts)), n_each)
    at = np.arange(len(owner)) + np.repeat(np.arange(len(texts)) * (_SHINGLE - 1), n_each)
    kinds, shingle = np.unique((pairs[at] << 32) | pairs[at + 2], return_inverse=True)
    held = np.sort(owner * len(kinds) + shingle.ravel())
    owner, shingle = np.divmod(held[np.diff(held, prepend=-1) > 0], len(kinds))  # a set holds each once
    rank = np.empty(len(kinds), dtype=np.int64)
    rank[np.argsort(np.bincount(shingle), kind="stable")] = np.arange(len(kinds))
    owner, order = np.divmod(np.sort(owner * len(kinds) + rank[shingle]), len(kinds))
    return owner, order, len(kinds)


def group_texts(texts: Sequence[str], sources: Sequence[str], threshold: float = NEAR) -> np.ndarray:
    """A group per text: near-duplicates, and texts of one named source, belong together.

    Returns
    -------
    array, shape [n_texts], int64
        The smallest index of each text's group.
    """
    n = len(texts)
    pairs = [near_duplicates(texts, threshold)] if n else []
    first: dict[str, int] = {}
    links = [(first.setdefault(s, i), i) for i, s in enumerate(sources) if s]
    if links:
        pairs.append(np.array(links, dtype=np.int64))
    joined = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    graph = sp.coo_array((np.ones(len(joined)), (joined[:, 0], joined[:, 1])), shape=(n, n))
    _, label = sp.csgraph.connected_components(graph, directed=False)
    smallest = np.full(label.max(initial=-1) + 1, n, dtype=np.int64)
    np.minimum.at(smallest, label, np.arange(n))
    return smallest[label]


def audit(samples: Iterable[Sample], threshold: float = NEAR) -> None:
    """Raise if anything crosses a split: a group, a text, nearly a text, or a held-out template.

    Parameters
    ----------
    samples : iterable of Sample
        Of all splits; their texts are compared without their templates.
    threshold : float
        As in `near_duplicates`.

    Raises
    ------
    LeakageError
        Naming the two texts and their splits.
    """
    samples = list(samples)
    kept = {(s.filler, s.split): s for s in samples}
    heldout: dict[str, Sample] = {}
    for s in samples:
        if s.heldout:
            heldout.setdefault(s.template, s)
    for s in samples:
        if s.split != "test" and s.template in heldout:
            raise LeakageError(
                f"the held-out template {s.template!r} is used in the {s.split} split too; "
                "held-out templates may occur in the test split only"
            )
    unique = list(kept.values())
    home: dict[int, Sample] = {}
    for s in unique:
        other = home.setdefault(s.group, s)
        if other.split != s.split:
            raise LeakageError(
                f"group {s.group} is in two splits: {other.filler!r} in {other.split}, {s.filler!r} in "
                f"{s.split}; split by group"
            )
    for i, j in near_duplicates([s.filler for s in unique], threshold):
        a, b = unique[i], unique[j]
        if a.split != b.split:
            how = "occurs verbatim" if normalise(a.filler) == normalise(b.filler) else "nearly occurs"
            raise LeakageError(
                f"{a.filler!r} ({a.split}) {how} in {b.split} as {b.filler!r}; "
                "give both the same source, or remove one"
            )


def audit_lens(positive: Sequence[Sample], negative: Sequence[Sample]) -> None:
    """Raise if the format tells positives from negatives, or a text is both.

    Raises
    ------
    LeakageError
        If a text has both labels, or the classes use their templates in proportions that differ by more
        than 0.1 (total variation) in 20 rows or more of each.
    """
    both = {s.group for s in positive} & {s.group for s in negative}
    if both:
        text = next(s.filler for s in positive if s.group in both)
        raise LeakageError(f"{text!r} (or a near-duplicate) is both a positive and a negative sample")
    if min(len(positive), len(negative)) >= 20:
        mine, other = (Counter(s.template for s in samples) for samples in (positive, negative))
        distance = 0.5 * sum(
            abs(mine[t] / len(positive) - other[t] / len(negative)) for t in mine.keys() | other.keys()
        )
        if distance > 0.1:
            raise LeakageError(
                f"positives and negatives use the templates in different proportions (total variation "
                f"{distance:.2f}); a lens could learn the format: apply the same templates to both"
            )
