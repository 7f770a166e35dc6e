"""What a grade must be compared with: shuffled labels, template words alone, a bag of words.

All three are the same L2 logistic fit as the lens, on the same training and test samples:

* *shuffled*: the lens's own features, labels permuted within the training and the test samples. Anything else
  than
  about 0 means that the evaluation leaks.
* *template*: the words of the template, without the example. Anything else than about 0 means that the format
  tells.
* *text*: the text lens, a bag of words of the prompt (or the continuation). What it reaches needs no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch

from interp.lens.fit import choose_lambda, solve

__all__ = ["BagOfWords", "text_logits"]


class BagOfWords:
    """Rows of (1 + log tf) · idf, of norm 1; vocabulary and idf from training texts alone.

    Parameters
    ----------
    train : list of str
    """

    def __init__(self, train: Sequence[str]) -> None:
        documents = Counter(word for text in set(train) for word in set(_words(text)))
        n = len(set(train))
        self._column = {word: i for i, word in enumerate(sorted(documents))}
        self._idf = np.array([np.log((1 + n) / (1 + documents[w])) + 1 for w in self._column])

    def rows(self, texts: Sequence[str]) -> sp.csr_array:
        """One row per text; unknown words are left out."""
        known = self._column
        found = [[known[w] for w in _words(text) if w in known] for text in texts]
        lengths = [len(f) for f in found]
        row = np.repeat(np.arange(len(texts)), lengths)
        column = np.fromiter((c for f in found for c in f), dtype=np.int64, count=sum(lengths))
        width = max(len(known), 1)
        # Adding duplicates up is what counts the words.
        counts = sp.coo_array((np.ones(len(row)), (row, column)), shape=(len(texts), width)).tocsr()
        counts.data = (1 + np.log(counts.data)) * self._idf[counts.indices]
        norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        return sp.csr_array(sp.diags_array(1 / np.where(norms > 0, norms, 1.0)) @ counts)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def text_logits(
    problems: Sequence[tuple[sp.csr_array, np.ndarray, tuple[torch.Tensor, torch.Tensor], sp.csr_array]],
    lam: float | None = None,
) -> list[np.ndarray]:
    """Logits of bag-of-words lenses on their test rows.

    Parameters
    ----------
    problems : list of (train, labels, (training, held), test)
        Rows of `BagOfWords`, 0/1 labels, masks of the folds as in `choose_lambda`, rows.
    lam : float, optional
        Regularisation; by default chosen by grouped cross-validation.

    Returns
    -------
    list of array
    """
    size = max((len(p[1]) for p in problems), default=0)
    out: list[np.ndarray] = []
    for start in range(0, len(problems), 32):
        part = problems[start : start + 32]
        gram = torch.zeros(len(part), size, size)
        y, s = torch.zeros(len(part), size), torch.zeros(len(part), size)
        n_folds = len(part[0][2][0])
        masks = torch.zeros(2, len(part), n_folds, size, dtype=torch.bool)
        for k, (train, labels, (training, held), _) in enumerate(part):
            n = len(labels)
            gram[k, :n, :n] = torch.from_numpy((train @ train.T).toarray()).float()
            y[k, :n] = torch.as_tensor(labels, dtype=torch.float32)
            s[k, :n] = balanced(y[k, :n])
            masks[0, k, :, :n], masks[1, k, :, :n] = training, held
        chosen = choose_lambda(gram, y, s, *masks) if lam is None else lam
        alpha, b = solve(None, y, s, chosen, gram=gram, tol=1e-3)
        for k, (train, _, _, test) in enumerate(part):
            weight = train.T @ alpha[k, : train.shape[0]].numpy().astype(np.float64)
            out.append(np.asarray(test @ weight).ravel() + float(b[k]))
    return out


def balanced(y: torch.Tensor) -> torch.Tensor:
    """Row weights that give both classes half of the total n."""
    n, n_pos = len(y), float(y.sum())
    if not 0 < n_pos < n:
        return torch.ones_like(y)
    return torch.where(y > 0, n / (2 * n_pos), n / (2 * (n - n_pos)))
