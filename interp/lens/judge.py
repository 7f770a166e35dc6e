"""The end of a lens: calibration, the one look at the test split, baselines.

Nothing here flows back into training. The test split of a concept is read once, after its training has ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import expit

from interp.lens import grade as g
from interp.lens.bank import Bank
from interp.lens.baselines import BagOfWords, Corpus, TextLens, TextProblem, fit_text
from interp.lens.fit import solve, weights
from interp.lens.job import Job
from interp.lens.rows import alike, apply, areas, balanced, logits_of, problems, rows_of
from interp.lens.samples import Sample, Samples

__all__ = ["Judge", "seed_of"]


#: Calibration samples that thresholds are taken from: enough to resolve a false-positive rate of 0.2 %.
_STRANGERS = 600

#: λ of the words of the template; the text lens chooses its own.
_TEMPLATE_LAMBDA = 0.1


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
    threads : int
        For the choice of λ of the text lenses.
    """

    def __init__(self, samples: Samples, bank: Bank, seed: int, *, threads: int = 1) -> None:
        self.samples, self.bank, self.seed, self.threads = samples, bank, seed, threads
        self._read: set[str] = set()
        self._corpus = Corpus()
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

    def can_read(self, job: Job) -> bool:
        """Whether all that `read` needs of a lens is in the bank."""
        # One look first, for drawing them all takes time.
        first = self.samples.positives(job.concept.id, "test", 1, heldout=True)
        return all(s in self.bank for s in first) and all(s in self.bank for s in self.needs([job]))

    def read(self, jobs: Sequence[Job], *, baselines: bool = True) -> None:
        """Calibrate, grade and compare lenses whose samples are in the bank; fills ``job.found``.

        Parameters
        ----------
        jobs : list of Job
        baselines : bool
            Compare them too, and find what thresholds are taken from: most of the work. `strangers` have to
            be in the bank.

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
        self._calibrate(jobs)
        self._grade(jobs)
        if baselines:
            self._shuffled(jobs)
            self._words(jobs)
            self._negatives(jobs)

    def _labelled(self, job: Job, kind: str = "") -> tuple[list[Sample], np.ndarray]:
        """Samples of a kind ("", "seen_", "calibrate_") and whether each is a positive."""
        positive, negative = (self._test[job.concept.id][kind + name] for name in ("positive", "negative"))
        return [*positive, *negative], np.repeat([True, False], [len(positive), len(negative)])

    def _logits(self, jobs: Sequence[Job], kind: str = "") -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Logits and labels of such samples, one array per lens."""
        parts = [self._labelled(job, kind) for job in jobs]
        return logits_of(jobs, self.bank, [samples for samples, _ in parts]), [labels for _, labels in parts]

    def _calibrate(self, jobs: Sequence[Job]) -> None:
        for job, line in zip(jobs, g.platts(*self._logits(jobs, "calibrate_")), strict=True):
            job.rescale(*line)

    def _grade(self, jobs: Sequence[Job]) -> None:
        logits, labels = self._logits(jobs)
        seen = areas(*self._logits(jobs, "seen_"))
        lines = g.calibrations(logits, labels)
        for job, f, y, area, (slope, intercept) in zip(jobs, logits, labels, seen, lines, strict=True):
            result = g.grade(f, y, [s.group for s in self._labelled(job)[0]])
            job.found.update(
                grade=result.letter,
                why=result.why,
                score=result.score,
                score_low=result.low,
                score_high=result.high,
                auroc=result.auroc,
                auroc_seen=float(area),
                f1=g.balanced_f1(f, y),
                brier=g.brier(f, y),
                calibration_slope=slope,
                calibration_intercept=intercept,
                n_test_positive=result.n_pos,
                n_test_negative=result.n_neg,
            )
            job.test_logits, job.test_labels = f, y

    # ------------------------------------------------------------------ baselines

    def _shuffled(self, jobs: Sequence[Job]) -> None:
        """The lens's own fit on labels that mean nothing: those of training and of test are permuted."""
        logits, labels = [np.zeros(0)] * len(jobs), [np.zeros(0, dtype=bool)] * len(jobs)
        for which in alike([job.n_samples for job in jobs], self.bank.model.width):
            part = [jobs[k] for k in which]
            z, y, s, phases = problems(part, self.bank)
            rngs = [np.random.default_rng(seed_of(self.seed, "shuffle", j.concept.id)) for j in part]
            for k, (job, rng) in enumerate(zip(part, rngs, strict=True)):
                n = job.n_samples
                # Rows of one prompt get one label, as the true ones have.
                order = torch.from_numpy(rng.permutation(n))
                y[k, : n * phases] = job.labels()[order].repeat_interleave(phases)
                s[k, : n * phases] = balanced(y[k, : n * phases])
            coef, b = solve(z, y, s, torch.tensor([job.lam for job in part]), tol=1e-3)
            w = weights(coef, z)
            null = [dataclasses.replace(j, w=w[k], b=float(b[k]), mlp=None) for k, j in enumerate(part)]
            found = logits_of(null, self.bank, [self._labelled(job)[0] for job in part])
            for k, f, rng in zip(which, found, rngs, strict=True):
                logits[k], labels[k] = f, rng.permutation(jobs[k].test_labels)
        for job, area in zip(jobs, areas(logits, labels), strict=True):
            job.found["score_shuffled"] = 2 * float(area) - 1

    def _words(self, jobs: Sequence[Job]) -> None:
        """Words of the template alone, and all words (the text lens)."""

        def template_only(sample: Sample) -> str:
            return sample.text[: sample.start] + sample.text[sample.stop :]

        def told(sample: Sample) -> str:
            if self.bank.continuation:
                return self.bank.reply(int(self.bank.index([sample])[0]))
            return sample.text

        frames, texts = [], []
        for job in jobs:
            train, y = [*job.train_positive, *job.train_negative], job.labels()
            frames.append(
                TextProblem.of_distinct([template_only(s) for s in train], y, self._corpus, _TEMPLATE_LAMBDA)
            )
            # Words and their weights are of this lens's training texts alone, whatever other lenses read.
            words = [told(s) for s in train]
            bag = BagOfWords(words, self._corpus)
            texts.append(TextProblem(bag, bag.rows(words), y, balanced(y), job.folds()))
        # Templates are compared on those of training: words of the held-out ones were never seen.
        frame_areas = areas(*self._read_words(jobs, fit_text(frames), template_only, "seen_"))
        lenses = fit_text(texts, self.threads)
        logits, labels = self._read_words(jobs, lenses, told, "")
        text_areas = areas(logits, labels)
        for k, (job, f) in enumerate(zip(jobs, logits, strict=True)):
            job.text = lenses[k]
            job.found["score_template"] = 2 * float(frame_areas[k]) - 1
            job.found["score_text"] = 2 * float(text_areas[k]) - 1
            if len(f):
                job.found["divergence"] = float(np.abs(expit(job.test_logits) - expit(f)).mean())

    def _read_words(
        self, jobs: Sequence[Job], lenses: Sequence[TextLens], words: Callable[[Sample], str], kind: str
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Logits of text lenses on held-out samples, and their labels."""
        logits, labels = [], []
        for job, lens in zip(jobs, lenses, strict=True):
            samples, y = self._labelled(job, kind)
            logits.append(lens.logits(lens.bag.rows([words(s) for s in samples])))
            labels.append(y)
        return logits, labels

    # ------------------------------------------------------------------ thresholds

    def _negatives(self, jobs: Sequence[Job]) -> None:
        """Sorted logits of each lens on calibration texts (of the whole pack) that do not show its concept.

        Float32 ``[m]`` each. Those of whole texts (``"text"``) and those of one token of each (``"token"``):
        single tokens spread wider than the means that a lens is trained on, so they have thresholds of their
        own.
        """
        if not self.strangers:
            return
        index = self.bank.index(self.strangers)
        texts = apply(jobs, rows_of(self.bank, index)[None]).mean(dim=2)
        tokens = apply(jobs, self.bank.take(index, "tokens")[None, :, None])[:, :, 0]
        for k, job in enumerate(jobs):
            clean = self.samples.excludes(job.concept.id)
            keep = torch.tensor([clean(s) for s in self.strangers])
            job.negatives = {"text": texts[k, keep].sort().values, "token": tokens[k, keep].sort().values}
