"""What a grade must be compared with: shuffled labels, template words alone, a bag of words.

All three are the same L2 logistic fit as the lens, on the same training and test samples:

* *shuffled*: the lens's own features, labels permuted within the training and the test samples. Anything else
  than about 0 means that the evaluation leaks.
* *template*: the words of the template, without the example. Anything else than about 0 means that the format
  tells.
* *text*: the text lens, a bag of words of the prompt (or the continuation). What it reaches needs no model at
  all. It is kept with the lens, as the second of a pair (`TextLenses`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from interp.lens.fit import choose_lambda, solve

__all__ = ["BagOfWords", "TextLens", "TextLenses", "fit_text"]


class BagOfWords:
    """Rows of (1 + log tf) · idf, of norm 1; vocabulary and idf from training texts alone.

    Parameters
    ----------
    train : list of str
    """

    def __init__(self, train: Sequence[str]) -> None:
        documents = Counter(word for text in set(train) for word in set(_words(text)))
        n = len(set(train))
        self.words = sorted(documents)
        self.idf = np.array([np.log((1 + n) / (1 + documents[w])) + 1 for w in self.words])

    def rows(self, texts: Sequence[str]) -> sp.csr_array:
        """One row per text; unknown words are left out."""
        counts = _log_counts(texts, {word: i for i, word in enumerate(self.words)})
        counts.data *= self.idf[counts.indices]
        row = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        norms = np.sqrt(np.bincount(row, counts.data**2, minlength=len(texts)))
        return sp.csr_array(sp.diags_array(1 / np.where(norms > 0, norms, 1.0)) @ counts)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _log_counts(texts: Sequence[str], column: Mapping[str, int]) -> sp.csr_array:
    """1 + log of how often each known word occurs, one row per text."""
    found = [[column[w] for w in _words(text) if w in column] for text in texts]
    lengths = [len(f) for f in found]
    row = np.repeat(np.arange(len(texts)), lengths)
    at = np.fromiter((c for f in found for c in f), dtype=np.int64, count=sum(lengths))
    # Adding duplicates up is what counts the words.
    counts = sp.coo_array((np.ones(len(row)), (row, at)), shape=(len(texts), max(len(column), 1))).tocsr()
    counts.data = 1 + np.log(counts.data)
    return counts


@dataclass(frozen=True)
class TextLens:
    """One bag-of-words lens: logit = weight · row + bias, for rows of `bag`."""

    bag: BagOfWords
    weight: np.ndarray
    bias: float

    def logits(self, rows: sp.csr_array) -> np.ndarray:
        """Logits of rows of the bag, ``[n]``."""
        return np.asarray(rows @ self.weight).ravel() + self.bias


def fit_text(
    problems: Sequence[tuple[BagOfWords, sp.csr_array, np.ndarray, tuple[Tensor, Tensor]]],
    lam: float | None = None,
) -> list[TextLens]:
    """Fit bag-of-words lenses.

    Parameters
    ----------
    problems : list of (bag, rows, labels, (training, held))
        Rows of the bag, 0/1 labels, masks of the folds as in `choose_lambda`.
    lam : float, optional
        Regularisation; by default chosen by grouped cross-validation.

    Returns
    -------
    list of TextLens
    """
    size = max((len(p[2]) for p in problems), default=0)
    out: list[TextLens] = []
    for start in range(0, len(problems), 32):
        part = problems[start : start + 32]
        gram = torch.zeros(len(part), size, size)
        y, s = torch.zeros(len(part), size), torch.zeros(len(part), size)
        n_folds = len(part[0][3][0])
        masks = torch.zeros(2, len(part), n_folds, size, dtype=torch.bool)
        for k, (_, rows, labels, (training, held)) in enumerate(part):
            n = len(labels)
            gram[k, :n, :n] = torch.from_numpy((rows @ rows.T).toarray()).float()
            y[k, :n] = torch.as_tensor(labels, dtype=torch.float32)
            s[k, :n] = balanced(y[k, :n])
            masks[0, k, :, :n], masks[1, k, :, :n] = training, held
        chosen = choose_lambda(gram, y, s, *masks) if lam is None else lam
        alpha, b = solve(None, y, s, chosen, gram=gram, tol=1e-3)
        for k, (bag, rows, labels, _) in enumerate(part):
            weight = np.asarray(rows.T @ alpha[k, : len(labels)].numpy().astype(np.float64)).ravel()
            out.append(TextLens(bag, weight, float(b[k])))
    return out


class TextLenses:
    """The text lenses of many concepts over one vocabulary.

    Parameters
    ----------
    words : list of str
        Columns.
    weight : CSR array, shape (n_lenses, n_words)
        Weights times idf.
    idf : CSR array, shape (n_lenses, n_words)
        0 where a lens does not know a word.
    bias : array, shape (n_lenses,)
        NaN for a lens that was never fitted.
    """

    def __init__(
        self, words: Sequence[str], weight: sp.csr_array, idf: sp.csr_array, bias: np.ndarray
    ) -> None:
        self.words, self.weight, self.idf, self.bias = list(words), weight, idf, bias

    @classmethod
    def join(cls, lenses: Sequence[TextLens | None]) -> TextLenses:
        """Lenses of their own vocabularies as one set; None stands for a lens that was not fitted."""
        words = sorted({w for lens in lenses if lens for w in lens.bag.words})
        column = {word: i for i, word in enumerate(words)}
        at = [
            np.array([column[w] for w in lens.bag.words] if lens else [], dtype=np.int64) for lens in lenses
        ]
        start = np.concatenate([[0], np.cumsum([len(a) for a in at])])
        columns = np.concatenate([np.zeros(0, np.int64), *at])
        shape = (len(lenses), max(len(words), 1))

        def matrix(values: Sequence[np.ndarray]) -> sp.csr_array:
            return sp.csr_array((np.concatenate([np.zeros(0), *values]), columns, start), shape=shape)

        fitted = [lens for lens in lenses if lens]
        weight = matrix([lens.weight * lens.bag.idf for lens in fitted])
        bias = np.array([lens.bias if lens else np.nan for lens in lenses])
        return cls(words, weight, matrix([lens.bag.idf for lens in fitted]), bias)

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits of all text lenses on texts, float32 ``[n_texts, n_lenses]``."""
        counts = _log_counts(texts, {word: i for i, word in enumerate(self.words)})
        norms = np.sqrt((counts.multiply(counts) @ self.idf.multiply(self.idf).T).toarray())
        dots = (counts @ self.weight.T).toarray()
        return torch.from_numpy(dots / np.where(norms > 0, norms, 1.0) + self.bias).float()

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds, beside `words`."""
        arrays = {
            "start": self.weight.indptr.astype(np.int64),
            "column": self.weight.indices.astype(np.int64),
            "weight": self.weight.data.astype(np.float32),
            "idf": self.idf.data.astype(np.float32),
            "bias": self.bias.astype(np.float32),
        }
        return {name: torch.from_numpy(a) for name, a in arrays.items()}

    @classmethod
    def from_tensors(cls, words: Sequence[str], tensors: Mapping[str, Tensor]) -> TextLenses:
        """What `tensors` gave."""
        t = {name: tensor.numpy() for name, tensor in tensors.items()}
        shape = (len(t["bias"]), max(len(words), 1))
        weight, idf = (
            sp.csr_array((t[name].astype(np.float64), t["column"], t["start"]), shape=shape)
            for name in ("weight", "idf")
        )
        return cls(words, weight, idf, t["bias"].astype(np.float64))

    @classmethod
    def concat(cls, parts: Sequence[TextLenses]) -> TextLenses:
        """Several sets as one, over the union of their words."""
        words = sorted({w for p in parts for w in p.words})
        column = {word: i for i, word in enumerate(words)}

        def stacked(name: str) -> sp.csr_array:
            blocks = []
            for p in parts:
                m: sp.csr_array = getattr(p, name)
                where = np.array([column[w] for w in p.words], dtype=np.int64)
                shape = (m.shape[0], max(len(words), 1))
                blocks.append(sp.csr_array((m.data, where[m.indices], m.indptr), shape=shape))
            return sp.csr_array(sp.vstack(blocks))

        bias = np.concatenate([p.bias for p in parts])
        return cls(words, stacked("weight"), stacked("idf"), bias)


def balanced(y: Tensor) -> Tensor:
    """Row weights that give both classes half of the total n."""
    n, n_pos = len(y), float(y.sum())
    if not 0 < n_pos < n:
        return torch.ones_like(y)
    return torch.where(y > 0, n / (2 * n_pos), n / (2 * (n - n_pos)))
