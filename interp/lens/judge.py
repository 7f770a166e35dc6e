"""The end of a lens: calibration, the one look at the test split, baselines.

Nothing here flows back into training. The test split of a concept is read once, after its training has ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.lens import grade as g
from interp.lens.bank import Bank
from interp.lens.baselines import BagOfWords, TextLens, balanced, fit_text
from interp.lens.fit import solve, standardise, weights
from interp.lens.job import Job, rows_of
from interp.lens.samples import Sample, Samples

__all__ = ["Judge", "seed_of"]


#: Calibration samples that thresholds are taken from: enough to resolve a false-positive rate of 0.2 %.
_STRANGERS = 600


def seed_of(seed: int, *parts: str) -> int:
    """A seed that depends on what it is for and on nothing else."""
    return int.from_bytes(hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()[:7], "big")


class Judge:
    """Grades lenses whose training has ended.

    Parameters
    ----------
    samples : Samples
    bank : Bank
    seed : int
    """

    def __init__(self, samples: Samples, bank: Bank, seed: int) -> None:
        self.samples, self.bank, self.seed = samples, bank, seed
        self._read: set[str] = set()
        #: Calibration samples of the whole pack, for thresholds.
        self.strangers = samples.drawn("calibrate", _STRANGERS)
        self._test: dict[str, dict[str, list[Sample]]] = {}

    def needs(self, jobs: Sequence[Job]) -> list[Sample]:
        """The calibration and test samples of lenses: what must be in the bank before `read`."""
        out: list[Sample] = []
        for job in jobs:
            c = job.concept.id
            if c not in self._test:
                seen = self.samples.positives(c, "test", 80)
                positive, negative = self.test_samples(c)
                calibrate = self.samples.positives(c, "calibrate", 40)
                self._test[c] = {
                    "positive": positive,
                    "negative": negative,
                    "seen_positive": seen,
                    "seen_negative": self.samples.negatives(c, "test", seen, siblings_only=True),
                    "calibrate_positive": calibrate,
                    "calibrate_negative": self.samples.negatives(c, "calibrate", calibrate),
                }
            out += [s for part in self._test[c].values() for s in part]
        return out

    def test_samples(self, concept_id: str) -> tuple[list[Sample], list[Sample]]:
        """Held-out positives and examples of siblings, in held-out templates."""
        held = self.samples.positives(concept_id, "test", 80, heldout=True)
        # As many siblings as there can be: they cost little and narrow the interval.
        many = [held[i % len(held)] for i in range(80)] if held else []
        return held, self.samples.negatives(concept_id, "test", many, siblings_only=True)

    def read(self, jobs: Sequence[Job]) -> None:
        """Calibrate, grade and compare lenses whose samples are in the bank; fills ``job.found``.

        Raises
        ------
        RuntimeError
            If the test split of a concept has been read before.
        """
        for job in jobs:
            c = job.concept.id
            if c in self._read:
                raise RuntimeError(f"the test split of {c!r} has been read; it may be read once")
            self._read.add(c)
            self._calibrate_job(job)
            self._grade_job(job)
        self._shuffled(jobs)
        self._words(jobs)

    def _calibrate_job(self, job: Job) -> None:
        parts = self._test[job.concept.id]
        positive, negative = parts["calibrate_positive"], parts["calibrate_negative"]
        if positive and negative:
            labels = np.repeat([True, False], [len(positive), len(negative)])
            job.rescale(*g.platt(job.logits(self.bank, [*positive, *negative]), labels))

    def _grade_job(self, job: Job) -> None:
        parts = self._test[job.concept.id]
        samples = [*parts["positive"], *parts["negative"]]
        labels = np.repeat([True, False], [len(parts["positive"]), len(parts["negative"])])
        logits = job.logits(self.bank, samples)
        result = g.grade(logits, labels, [s.group for s in samples])
        slope, intercept = g.calibration(logits, labels)
        seen = [*parts["seen_positive"], *parts["seen_negative"]]
        seen_labels = np.repeat([True, False], [len(parts["seen_positive"]), len(parts["seen_negative"])])
        job.found.update(
            grade=result.letter,
            why=result.why,
            score=result.score,
            score_low=result.low,
            score_high=result.high,
            auroc=result.auroc,
            auroc_seen=float(g.auroc(job.logits(self.bank, seen), seen_labels)),
            f1=g.balanced_f1(logits, labels),
            brier=g.brier(logits, labels),
            calibration_slope=slope,
            calibration_intercept=intercept,
            n_test_positive=result.n_pos,
            n_test_negative=result.n_neg,
        )
        job.test_logits, job.test_labels = logits, labels

    # ------------------------------------------------------------------ baselines

    def _shuffled(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            rng = np.random.default_rng(seed_of(self.seed, "shuffle", job.concept.id))
            z, y = job.rows(self.bank)
            n = len(job.train_positive) + len(job.train_negative)
            # Rows of one prompt get one label, as the true ones have.
            order = torch.from_numpy(rng.permutation(n))
            y = y.reshape(n, -1)[order].reshape(-1)
            coef, b = solve(z[None], y[None], balanced(y)[None], job.lam, tol=1e-3)
            parts = self._test[job.concept.id]
            test = [*parts["positive"], *parts["negative"]]
            rows = standardise(rows_of(self.bank, test), job.mean, job.scale)
            logits = (rows @ weights(coef, z[None])[0] + b[0]).mean(dim=1)
            labels = rng.permutation(job.test_labels)
            job.found["score_shuffled"] = 2 * float(g.auroc(logits.numpy(), labels)) - 1

    def _words(self, jobs: Sequence[Job]) -> None:
        def template_only(sample: Sample) -> str:
            return sample.text[: sample.start] + sample.text[sample.stop :]

        def prompt(sample: Sample) -> str:
            return sample.text

        def reply(sample: Sample) -> str:
            return self.bank.reply(int(self.bank.index([sample])[0]))

        # Templates are compared on those of training: words of the held-out ones were never seen.
        told = self._bag(jobs, template_only, ("seen_positive", "seen_negative"), lam=0.1)
        texts = self._bag(jobs, reply if self.bank.continuation else prompt, ("positive", "negative"))
        for job, (_, labels, logits), (lens, _, text) in zip(jobs, told, texts, strict=True):
            job.text = lens
            job.found["score_template"] = 2 * float(g.auroc(logits, labels)) - 1
            job.found["score_text"] = 2 * float(g.auroc(text, job.test_labels)) - 1
            if len(text):
                gap = np.abs(1 / (1 + np.exp(-job.test_logits)) - 1 / (1 + np.exp(-text)))
                job.found["divergence"] = float(gap.mean())

    def _bag(
        self,
        jobs: Sequence[Job],
        words: Callable[[Sample], str],
        test: tuple[str, str],
        lam: float | None = None,
    ) -> list[tuple[TextLens, np.ndarray, np.ndarray]]:
        """Per lens: a bag-of-words lens, the labels of its test samples, its logits of them."""
        problems, tests = [], []
        for job in jobs:
            train = [words(s) for s in [*job.train_positive, *job.train_negative]]
            y = np.repeat([1, 0], [len(job.train_positive), len(job.train_negative)])
            parts = self._test[job.concept.id]
            held = [words(s) for s in [*parts[test[0]], *parts[test[1]]]]
            # Words and their weights are of this lens's training texts alone, whatever other lenses read.
            bag = BagOfWords(train)
            problems.append((bag, bag.rows(train), y, job.folds()))
            labels = np.repeat([True, False], [len(parts[test[0]]), len(parts[test[1]])])
            tests.append((labels, bag.rows(held)))
        fitted = fit_text(problems, lam)
        return [(lens, y, lens.logits(rows)) for lens, (y, rows) in zip(fitted, tests, strict=True)]

    # ------------------------------------------------------------------ thresholds

    def negatives(self, jobs: Sequence[Job]) -> list[dict[str, Tensor]]:
        """Sorted logits of each lens on calibration texts (of the whole pack) that do not show its concept.

        Per lens, those of whole texts (``"text"``) and those of one token of each (``"token"``): single
        tokens spread wider than the means that a lens is trained on, so they have thresholds of their own.
        """
        every = [s for s in self.strangers if s in self.bank]  # after a stop, what there is
        out = []
        for job in jobs:
            clean = self.samples.excludes(job.concept.id)
            chosen = [s for s in every if clean(s)]
            if not chosen:
                out.append({"text": torch.zeros(0), "token": torch.zeros(0)})
                continue
            tokens = job.apply(self.bank.take(self.bank.index(chosen), "tokens"))
            texts = torch.from_numpy(job.logits(self.bank, chosen)).float()
            out.append({"text": texts.sort().values, "token": tokens.sort().values})
        return out
