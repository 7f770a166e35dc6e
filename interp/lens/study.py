"""Precision and batching, answered by measurement: ``interp bench lenses``.

Five questions, each with a table:

1. Does the model load in a 16-bit dtype, and is every site finite?
2. How large may a batch be, and what memory does it take?
3. How fast is each dtype at each batch size?
4. Are lenses trained on one dtype as good on another?
5. Does a lens trained in bfloat16 steer the float32 model, and better than a random direction?
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.events import bar
from interp.files import write_text
from interp.lens import grade as g
from interp.lens.bank import Bank
from interp.lens.concepts import ConceptPack
from interp.lens.judge import Judge
from interp.lens.library import Lenses
from interp.lens.precision import finite_table, memory_table, speed_table
from interp.lens.samples import Sample, Samples
from interp.lens.train import train_lenses

if TYPE_CHECKING:
    import pandas as pd

    from interp.capture.model import Model

__all__ = ["MARGIN", "Study", "study"]

logger = logging.getLogger(__name__)

#: Fixed before any measurement: AUROCs that differ by less than this on average are the same.
MARGIN = 0.02


@dataclass
class Study:
    """Answers as tables.

    Attributes
    ----------
    finite, memory, speed, quality, concepts, steering : DataFrame
        One per question; ``concepts`` holds the AUROC and F1 of every lens behind ``quality``.
    about : dict
        Model, device, site, sizes.
    """

    finite: pd.DataFrame
    memory: pd.DataFrame
    speed: pd.DataFrame
    quality: pd.DataFrame
    concepts: pd.DataFrame
    steering: pd.DataFrame
    about: dict[str, Any]

    def answers(self) -> list[str]:
        """One sentence per question."""
        bad = self.finite[~self.finite.finite]
        best = self.speed.loc[self.speed.groupby("dtype").tokens_per_second.idxmax()]
        out = [
            "Every site is finite in every dtype."
            if bad.empty
            else f"Not finite: {', '.join(f'{r.dtype} {r.site}' for r in bad.itertuples())}.",
            "Largest batch: "
            + ", ".join(self._largest(str(d), part) for d, part in self.memory.groupby("dtype", sort=False))
            + ".",
            "Fastest: "
            + ", ".join(
                f"{r.dtype} {r.tokens_per_second:,.0f} tokens/s at batch {r.batch}" for r in best.itertuples()
            )
            + ".",
        ]
        other = self.quality[~self.quality.reference]
        same = other[other.within_margin]
        out.append(
            f"{len(same)} of {len(other)} combinations of training and evaluation dtype are within {MARGIN} "
            f"AUROC of float32 throughout (largest mean difference {other.auroc_difference.abs().max():.4f})."
            if len(other)
            else "Only one dtype was studied."
        )
        if self.steering.empty:
            out.append("No lens has a grade that allows steering.")
        else:
            most = self.steering[self.steering.scale == self.steering.scale.max()]
            change = most.groupby("direction")[["logit_change", "said_change"]].mean()
            own, other = change.loc["lens"], change.loc["random"]
            told = (
                f"; in what the model then writes by {own.said_change:.2f} and {other.said_change:.2f}"
                if np.isfinite(own.said_change)
                else ""
            )
            out.append(
                f"At dose {most.scale.iloc[0]:g} the lenses' own logit moves by {own.logit_change:.2f} along "
                f"the lens and by {other.logit_change:.2f} along random directions{told}."
            )
        return out

    def _largest(self, dtype: str, table: pd.DataFrame) -> str:
        ran = table[table.fits]
        if len(ran) < len(table):
            return f"{dtype} {ran.batch.max() if len(ran) else 0} (the next one ran out of memory)"
        # Memory of a pass grows with its tokens: a line through the smallest and the largest batch.
        (few, low), (many, high) = ran[["batch", "peak_megabytes"]].iloc[[0, -1]].to_numpy()
        each = (high - low) / max(many - few, 1)
        if each <= 0:
            return f"{dtype} {int(many)} ran, and took no more memory than {int(few)}"
        room = self.about["free_megabytes"] - (low - each * few)
        return (
            f"{dtype} {int(many)} ran; at {each:.3g} MB a prompt of {int(ran.tokens.iloc[-1] / many)} tokens "
            f"about {room / each:,.0f} would fit in {self.about['free_megabytes'] / 1024:.3g} GB"
        )

    def __str__(self) -> str:
        parts = [f"{k}: {v}" for k, v in self.about.items()]
        for name in ("finite", "memory", "speed", "quality", "steering"):
            frame = getattr(self, name)
            if name == "finite" and len(frame) > 12:
                frame = frame.sort_values("relative_error", ascending=False).head(12)
            if name == "steering" and len(frame):
                frame = (
                    frame.groupby(["scale", "direction"])[["logit_change", "said_change", "loss_change"]]
                    .mean()
                    .reset_index()
                )
            parts += ["", name.upper(), frame.to_string(index=False, float_format="%.4g")]
        return "\n".join([*parts, "", *self.answers()])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the tables as CSV and everything as ``study.txt``."""
        folder = Path(folder)
        for name in ("finite", "memory", "speed", "quality", "concepts", "steering"):
            write_text(folder / f"{name}.csv", getattr(self, name).to_csv(index=False))
        write_text(folder / "study.txt", str(self) + "\n")
        return folder


def study(
    model: Model | str | os.PathLike[str] = "tiny",
    pack: ConceptPack | str | os.PathLike[str] = "tiny",
    *,
    site: str | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    batches: Sequence[int] = (1, 4, 16, 64, 256),
    n_prompts: int = 256,
    repeats: int = 5,
    n_concepts: int = 60,
    n_steered: int = 5,
    device: str = "auto",
    seed: int = 0,
) -> Study:
    """Measure precision and batching on a model.

    Parameters
    ----------
    model : Model, str or path
        A name is loaded once per dtype; a `Model` is copied and cast.
    pack : ConceptPack, path, or "tiny"
    site : str, optional
        Of the lenses; the middle ``resid_post`` by default.
    dtypes : sequence of str
        The first is the reference. One that the device cannot compute in is left out, and named in
        ``about``.
    batches : sequence of int
        Prompts per forward pass.
    n_prompts : int
        For memory and speed.
    repeats : int
        Timed runs per dtype and batch after a warm-up, interleaved; at least 5.
    n_concepts : int
        Lenses compared, at least 50 where the pack has them.
    n_steered : int
        Best A lenses to steer with.
    device : str
        For a model that is loaded here.
    seed : int

    Returns
    -------
    Study

    Raises
    ------
    ValueError
        For fewer than 5 repeats, a pack without examples, or a device that runs none of the dtypes.
    """
    from interp.capture.batching import memory_free

    if repeats < 5:
        raise ValueError(f"repeats must be at least 5 for a median with a spread, got {repeats}")
    pack = pack if isinstance(pack, ConceptPack) else ConceptPack.load(pack)
    models, lacking = _models(model, dtypes, device)
    dtypes = list(models)
    first = models[dtypes[0]]
    site = site or f"resid_post.{first.n_layers // 2}"
    samples = Samples(pack, seed=seed)
    texts = [s.text for c in pack for s in samples.positives(c.id, "train", 20)]
    texts = list(dict.fromkeys(texts))[:n_prompts]
    if not texts:
        raise ValueError(f"pack {pack.name!r} has no positive examples: nothing to measure with")
    encoded = sorted((first.tokenizer(t)["input_ids"] for t in texts), key=len)
    with bar(5, "study", "question") as progress:
        finite = finite_table(models, texts)
        progress.update(1)
        memory = memory_table(models, encoded, batches)
        progress.update(1)
        speed = speed_table(models, encoded, batches, repeats)
        progress.update(1)
        ids = [c.id for c in pack if samples.positives(c.id, "test", 8)]
        chosen = sorted(ids, key=lambda c: (-int(pack[c].level), c))[:n_concepts]
        lenses, concepts = _lens_quality(models, pack, samples, site, chosen, seed)
        quality = _compare(concepts, dtypes[0], seed)
        progress.update(1)
        steering = _steering(lenses[dtypes[-1]], first, texts[:32], n_steered, seed)
        progress.update(1)
    about = {
        "model": first.name,
        "device": str(first.device),
        "site": site,
        "prompts": len(texts),
        "concepts": concepts.concept.nunique(),
        "margin": MARGIN,
        "torch threads": torch.get_num_threads(),
        "left out": ", ".join(lacking) or "no dtype",
        "free_megabytes": round(memory_free(first.device) / 2**20),
    }
    return Study(finite, memory, speed, quality, concepts, steering, about)


def _models(model: Any, dtypes: Sequence[str], device: str) -> tuple[dict[str, Model], dict[str, str]]:
    """The model in every dtype that its device computes in; of the others, why not."""
    from interp.capture.batching import is_out_of_memory

    models: dict[str, Model] = {}
    lacking: dict[str, str] = {}
    for dtype in dtypes:
        try:
            loaded = _load(model, dtype, device)
            x = torch.ones(8, 8, dtype=loaded.dtype, device=loaded.device)
            torch.nn.functional.silu(x @ x).isfinite().all().item()
            models[dtype] = loaded
        except (RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            lacking[dtype] = str(error).split("\n")[0]
            logger.warning("%s is left out: %s", dtype, lacking[dtype])
    if not models:
        raise ValueError(
            f"the device computes in none of the dtypes ({lacking}): give others, or another device"
        )
    return models, lacking


def _load(model: Any, dtype: str, device: str) -> Model:
    from interp.capture.model import Model, load_model, wrap

    if not isinstance(model, Model):
        return load_model(model, dtype=dtype, device=device)
    if str(model.dtype) == f"torch.{dtype}":
        return model
    cast = copy.deepcopy(model.hf).to(getattr(torch, dtype))
    return wrap(cast, model.tokenizer, name=model.name, revision=model.revision)


def _lens_quality(
    models: dict[str, Model], pack: ConceptPack, samples: Samples, site: str, chosen: list[str], seed: int
) -> tuple[dict[str, Lenses], pd.DataFrame]:
    """Train in every dtype, evaluate every lens on the test samples in every dtype."""
    import pandas as pd

    banks = {d: Bank(m, site, seed=seed) for d, m in models.items()}
    lenses = {
        d: train_lenses(m, pack, site=site, concepts=chosen, bank=banks[d], seed=seed)
        for d, m in models.items()
    }
    judge = Judge(samples, banks[next(iter(banks))], seed)
    tests = {c: judge.test_samples(c) for c in chosen}
    rows = []
    for concept, (positive, negative) in tests.items():
        if min(len(positive), len(negative)) < g.MIN_GROUPS:
            continue
        both: list[Sample] = [*positive, *negative]
        labels = np.arange(len(both)) < len(positive)
        for evaluated, bank in banks.items():
            bank.ensure(both)  # they are there, unless the lens was not fitted
            x = bank.take(bank.index(both))
            for trained, these in lenses.items():
                if concept not in these:
                    continue
                logits = these[concept].score(x, site=site).double().numpy()
                rows.append(
                    {
                        "concept": concept,
                        "train": trained,
                        "evaluate": evaluated,
                        "auroc": float(g.auroc(logits, labels)),
                        "f1": g.balanced_f1(logits, labels),
                    }
                )
    return lenses, pd.DataFrame(rows, columns=["concept", "train", "evaluate", "auroc", "f1"])


def _compare(concepts: pd.DataFrame, reference: str, seed: int, draws: int = 2000) -> pd.DataFrame:
    """Mean paired differences against the reference, percentile bootstrap intervals over concepts."""
    import pandas as pd

    auroc = concepts.pivot(index="concept", columns=["train", "evaluate"], values="auroc")
    f1 = concepts.pivot(index="concept", columns=["train", "evaluate"], values="f1")
    rng = np.random.default_rng(seed)
    resampled = rng.integers(0, len(auroc), (draws, len(auroc)))
    rows = []
    for cell in auroc.columns:
        row: dict[str, Any] = {
            "train": cell[0],
            "evaluate": cell[1],
            "reference": cell == (reference, reference),
        }
        row |= {"concepts": len(auroc), "auroc": auroc[cell].mean(), "f1": f1[cell].mean()}
        for name, table in (("auroc", auroc), ("f1", f1)):
            difference = (table[cell] - table[reference, reference]).to_numpy()
            low, high = np.percentile(difference[resampled].mean(axis=1), [2.5, 97.5])
            row |= {f"{name}_difference": difference.mean(), f"{name}_low": low, f"{name}_high": high}
        row["within_margin"] = row["auroc_low"] > -MARGIN and row["auroc_high"] < MARGIN
        rows.append(row)
    return pd.DataFrame(rows)


def _steering(lenses: Lenses, model: Model, texts: list[str], n: int, seed: int) -> pd.DataFrame:
    """Dose–response of the best A lenses of the last dtype on the model in the first."""
    import pandas as pd

    best = sorted((r for r in lenses.reports if r.grade == "A"), key=lambda r: (-r.score_low, r.concept))[:n]
    frames = [lenses[r.concept].dose_response(model, texts, seed=seed) for r in best]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
