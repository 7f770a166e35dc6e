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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from interp.lens.fit import choose_lambda, solve
from interp.lens.rows import alike, balanced, stacked

__all__ = ["BagOfWords", "Corpus", "TextLens", "TextLenses", "TextProblem", "fit_text"]


class Corpus:
    """Words of texts as numbers; each text is read once, however many lenses use it."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._number: dict[str, int] = {}
        self._texts: dict[str, np.ndarray] = {}

    def read(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The text (its place) and the number of every word, int64 ``[n_words]`` each, text by text."""
        found = [self._texts[t] if t in self._texts else self._learn(t) for t in texts]
        owner = np.repeat(np.arange(len(texts)), [len(f) for f in found])
        return owner, np.concatenate([np.zeros(0, np.int64), *found])

    def _learn(self, text: str) -> np.ndarray:
        numbers = []
        for word in _words(text):
            number = self._number.setdefault(word, len(self.words))
            if number == len(self.words):
                self.words.append(word)
            numbers.append(number)
        self._texts[text] = np.array(numbers, dtype=np.int64)
        return self._texts[text]


class BagOfWords:
    """Rows of (1 + log tf) · idf, of norm 1; vocabulary and idf from training texts alone.

    Parameters
    ----------
    train : list of str
    corpus : Corpus, optional
        Where the texts have been read.
    """

    def __init__(self, train: Sequence[str], corpus: Corpus | None = None) -> None:
        self._corpus = corpus or Corpus()
        distinct = list(dict.fromkeys(train))
        owner, number = self._corpus.read(distinct)
        size = len(self._corpus.words)
        once = np.unique(owner * size + number) % max(size, 1)
        documents = np.bincount(once, minlength=size)
        known = sorted(np.flatnonzero(documents).tolist(), key=self._corpus.words.__getitem__)
        self.words = [self._corpus.words[i] for i in known]
        self.idf = np.log((1 + len(distinct)) / (1 + documents[known])) + 1
        self._column = np.full(size, -1)
        self._column[known] = np.arange(len(known))

    def rows(self, texts: Sequence[str]) -> sp.csr_array:
        """One row per text, float64 ``[n_texts, n_words]``; unknown words are left out."""
        owner, number = self._corpus.read(texts)
        column = np.full(len(number), -1)
        old = number < len(self._column)  # the corpus may have learnt more since
        column[old] = self._column[number[old]]
        counts = _log_counts(owner[column >= 0], column[column >= 0], len(texts), len(self.words))
        counts.data *= self.idf[counts.indices]
        row = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        norms = np.sqrt(np.bincount(row, counts.data**2, minlength=len(texts)))
        counts.data /= norms[row]
        return counts


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _log_counts(row: np.ndarray, column: np.ndarray, n_rows: int, n_columns: int) -> sp.csr_array:
    """1 + log of how often each word occurs in each text."""
    shape = (n_rows, max(n_columns, 1))
    # Adding duplicates up is what counts the words.
    counts = sp.coo_array((np.ones(len(row)), (row, column)), shape=shape).tocsr()
    counts.data = 1 + np.log(counts.data)
    return counts


@dataclass(frozen=True)
class TextLens:
    """One bag-of-words lens: logit = weight · row + bias, for rows of `bag`."""

    bag: BagOfWords
    weight: np.ndarray
    bias: float

    def logits(self, rows: sp.csr_array) -> np.ndarray:
        """Logits of rows of the bag, float64 ``[n]``."""
        return np.asarray(rows @ self.weight).ravel() + self.bias


@dataclass(frozen=True)
class TextProblem:
    """What a bag-of-words lens is fitted on.

    Attributes
    ----------
    bag : BagOfWords
    rows : CSR array of float64, shape [n, n_words]
        Of `bag`.
    labels, weight : tensors, shape [n], float32
        Share of positives, and weight, of each row.
    folds : (training, held), optional
        Masks as in `choose_lambda`, to choose λ by.
    lam : float
        λ, without folds.
    """

    bag: BagOfWords
    rows: sp.csr_array
    labels: Tensor
    weight: Tensor
    folds: tuple[Tensor, Tensor] | None = None
    lam: float = 0.1

    @classmethod
    def of_distinct(cls, texts: Sequence[str], labels: Tensor, corpus: Corpus, lam: float) -> TextProblem:
        """The problem of texts that repeat, each taken once with the weight of all: the same minimum."""
        distinct = {t: i for i, t in enumerate(dict.fromkeys(texts))}
        at = torch.tensor([distinct[t] for t in texts], dtype=torch.int64)
        each = balanced(labels)
        weight = torch.zeros(len(distinct)).index_add(0, at, each)
        positive = torch.zeros(len(distinct)).index_add(0, at, each * labels)
        bag = BagOfWords(list(distinct), corpus)
        return cls(bag, bag.rows(list(distinct)), positive / weight, weight, lam=lam)


def fit_text(problems: Sequence[TextProblem], threads: int = 1) -> list[TextLens]:
    """Fit bag-of-words lenses (all with folds, or all without), in the order of `problems`."""
    out: dict[int, TextLens] = {}
    for which in alike([len(p.labels) for p in problems]):
        part = [problems[k] for k in which]
        size = len(part[-1].labels)
        gram, y, s = torch.zeros(len(part), size, size), *torch.zeros(2, len(part), size)
        for k, p in enumerate(part):
            n = len(p.labels)
            gram[k, :n, :n] = torch.from_numpy((p.rows @ p.rows.T).toarray()).float()
            y[k, :n], s[k, :n] = p.labels, p.weight
        lam: Tensor | list[float] = [p.lam for p in part]
        folds = [p.folds for p in part if p.folds is not None]
        if folds:
            lam = choose_lambda(gram, y, s, *stacked(folds, size), threads=threads)
        alpha, b = solve(None, y, s, torch.as_tensor(lam), gram=gram, tol=1e-3)
        for k, p in enumerate(part):
            weight = np.asarray(p.rows.T @ alpha[k, : len(p.labels)].numpy().astype(np.float64)).ravel()
            out[which[k]] = TextLens(p.bag, weight, float(b[k]))
    return [out[k] for k in range(len(problems))]


class TextLenses:
    """The text lenses of many concepts over one vocabulary.

    Parameters
    ----------
    words : list of str
        Columns.
    weight : CSR array, shape [n_lenses, n_words]
        Weights times idf.
    idf : CSR array, shape [n_lenses, n_words]
        0 where a lens does not know a word.
    bias : array of float64, shape [n_lenses]
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
        column = {word: i for i, word in enumerate(self.words)}
        found = [[column[w] for w in _words(text) if w in column] for text in texts]
        owner = np.repeat(np.arange(len(texts)), [len(f) for f in found])
        at = np.fromiter((c for f in found for c in f), dtype=np.int64, count=len(owner))
        counts = _log_counts(owner, at, len(texts), len(self.words))
        norms = np.sqrt((counts.multiply(counts) @ self.idf.multiply(self.idf).T).toarray())
        dots = (counts @ self.weight.T).toarray()
        return torch.from_numpy(dots / np.where(norms > 0, norms, 1.0) + self.bias).float()

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds beside `words`: parts of the CSR arrays, ``[n]``, and ``bias``, float."""
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
        for matrix in (weight, idf):  # a column behind the last word would be read all the same
            matrix.check_format(full_check=True)
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
