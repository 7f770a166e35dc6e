"""Leakage: texts that occur, or nearly occur, on both sides of a split.

A score on held-out prompts means nothing if the prompts were seen in training. `near_duplicates`
finds the pairs, `audit` raises when one of them, or a group, or a held-out template crosses a split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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
    array, shape (n_pairs, 2), int64
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
    unique = sorted(first.values())
    pairs = [(twin, i) for i, twin in enumerate(twins) if twin != i]
    if len(unique) > 1:
        found = _similar([normal[i] for i in unique], threshold)
        pairs += [(unique[a], unique[b]) for a, b in found]
    return np.array(sorted((min(p), max(p)) for p in pairs), dtype=np.int64).reshape(-1, 2)


def _similar(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    ids: dict[str, int] = {}
    sets = [
        np.array(sorted({ids.setdefault(s, len(ids)) for s in _shingles(t)}), dtype=np.int64) for t in texts
    ]
    sizes = np.array([len(s) for s in sets])
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.argsort(np.bincount(np.concatenate(sets), minlength=len(ids)), kind="stable")] = np.arange(
        len(ids)
    )
    ordered = [s[np.argsort(rank[s])] for s in sets]
    prefix = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    full = _membership(ordered, len(ids))
    head = _membership([s[:p] for s, p in zip(ordered, prefix, strict=True)], len(ids))
    candidates = sp.triu(head @ head.T, k=1).tocoo()
    a, b = candidates.row, candidates.col
    near_in_size = np.minimum(sizes[a], sizes[b]) >= threshold * np.maximum(sizes[a], sizes[b]) - 1e-9
    a, b = a[near_in_size], b[near_in_size]
    out: list[tuple[int, int]] = []
    for start in range(0, len(a), 100_000):
        i, j = a[start : start + 100_000], b[start : start + 100_000]
        common = np.asarray(full[i].multiply(full[j]).sum(axis=1)).ravel()
        similar = common >= threshold * (sizes[i] + sizes[j] - common) - 1e-9
        out += list(zip(i[similar].tolist(), j[similar].tolist(), strict=True))
    return out


def _shingles(text: str) -> set[str]:
    padded = f" {text} "
    return {padded[i : i + _SHINGLE] for i in range(max(len(padded) - _SHINGLE + 1, 1))}


def _membership(sets: list[np.ndarray], n: int) -> sp.csr_array:
    indptr = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
    return sp.csr_array(
        (np.ones(indptr[-1], dtype=np.float32), np.concatenate(sets), indptr), shape=(len(sets), n)
    )


def group_texts(texts: Sequence[str], sources: Sequence[str], threshold: float = NEAR) -> np.ndarray:
    """A group per text: near-duplicates, and texts of one named source, belong together.

    Returns
    -------
    array, shape (n_texts,), int64
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
        used = {s.template for s in [*positive, *negative]}

        def shares(samples: Sequence[Sample]) -> np.ndarray:
            return np.array([sum(s.template == t for s in samples) for t in used]) / len(samples)

        distance = 0.5 * np.abs(shares(positive) - shares(negative)).sum()
        if distance > 0.1:
            raise LeakageError(
                f"positives and negatives use the templates in different proportions (total variation "
                f"{distance:.2f}); a lens could learn the format: apply the same templates to both"
            )
