"""Trained lenses: score every token with all of them in one matrix product, look, steer, save.

>>> lenses = interp.train_lenses(model, "tiny", site="resid_post.2")     # doctest: +SKIP
>>> lenses.frame().grade.value_counts()                                  # doctest: +SKIP
>>> lenses.score("The robin sings.")                   # tokens × lenses   # doctest: +SKIP
>>> lenses["songbird"].steering_vector()                                 # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.lens.one import Lens
from interp.lens.report import LensReport

if TYPE_CHECKING:
    import pandas as pd

    from interp.capture.activations import Activations
    from interp.capture.model import Model
    from interp.lens.baselines import TextLenses
    from interp.lens.show import Highlight

__all__ = ["Lens", "LensMismatch", "LensReport", "Lenses"]


class LensMismatch(ValueError):
    """Lenses were given activations of another model, site or normalisation."""


class Lenses:
    """All lenses of one training.

    Made by `train_lenses` or `Lenses.load`. ``lenses[id]`` is one `Lens`; iterating gives those with weights;
    ``in`` takes an id, or a `Lens` by its id.
    After a stop some of those have grade U, with the reason in ``why``, and no thresholds (`train_lenses`).

    Parameters
    ----------
    reports : list of LensReport
        Of every concept, those without weights included.
    weight : tensor, shape [n_lenses, width], float32
        Of the fitted ones, in the order of `reports`, for standardised rows.
    bias : tensor, shape [n_lenses], float32
    mean, scale : tensors, shape [width]
        Rows are standardised as (x − mean) / scale.
    negatives : dict of tensors, shape [n_lenses, m]
        Sorted logits of texts that do not show the concept (calibration split), NaN behind the last: of whole
        texts (``text``) and of one token of each (``token``). Thresholds are taken from them; a stopped
        training has none for lenses that it did not finish.
    meta : dict
        Model, site, pooling, pack, parameters and history of the training.
    model : Model, optional
        To score text with.
    mlp : dict of tensors, optional
        The optional MLP heads (shapes in `interp.lens.fit.fit_mlp`), for standardised rows divided by √width.
    text : TextLenses, optional
        The bag-of-words lens of each concept, the second of a pair.

    Attributes
    ----------
    ids : list of str
        Concepts of the columns of `score`.
    """

    def __init__(
        self,
        reports: Sequence[LensReport],
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        negatives: dict[str, Tensor],
        meta: dict[str, Any],
        *,
        model: Model | None = None,
        mlp: dict[str, Tensor] | None = None,
        text: TextLenses | None = None,
    ) -> None:
        self.reports = list(reports)
        self.ids = [r.concept for r in reports if r.fitted]
        if weight.shape != (len(self.ids), len(mean)):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, expected ({len(self.ids)}, {len(mean)})"
            )
        self.weight, self.bias, self.mean, self.scale = weight, bias, mean, scale
        self.negatives, self.meta, self.model, self.mlp, self.text = negatives, meta, model, mlp, text
        self._column = {c: i for i, c in enumerate(self.ids)}
        self._report = {r.concept: r for r in reports}

    # ------------------------------------------------------------------ what is here

    @property
    def site(self) -> str:
        """Where the lenses read."""
        return self.meta["site"]

    @property
    def width(self) -> int:
        """Width of that site."""
        return len(self.mean)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Lens]:
        return (self[c] for c in self.ids)

    def __contains__(self, concept: object) -> bool:
        return (concept.concept if isinstance(concept, Lens) else concept) in self._column

    def __getitem__(self, concept: str) -> Lens:
        if concept in self._column:
            return Lens(self, concept)
        if concept in self._report:
            raise KeyError(f"the lens of {concept!r} was not fitted: {self._report[concept].why}")
        raise KeyError(
            f"no lens for {concept!r}; there are {len(self)}: {', '.join(map(repr, self.ids[:5]))} …"
        )

    @property
    def grades(self) -> dict[str, int]:
        """Number of lenses of each grade."""
        return {g: sum(r.grade == g for r in self.reports) for g in "ABCU"}

    def frame(self) -> pd.DataFrame:
        """One row per concept, one column per field of `LensReport`."""
        import pandas as pd

        return pd.DataFrame([asdict(r) for r in self.reports], columns=[f.name for f in fields(LensReport)])

    def history(self) -> pd.DataFrame:
        """The learning curves: one row per concept and iteration (n_samples, f1, f1_low, auroc)."""
        import pandas as pd

        columns = ["concept", "iteration", "n_samples", "f1", "f1_low", "auroc"]
        return pd.DataFrame(self.meta.get("history", []), columns=columns)

    def blocking_table(self) -> pd.DataFrame:
        """What blocking validation costs (or, advisory, could have cost at most) in this training.

        Returns
        -------
        DataFrame
            One row: concepts, how many were forced on, mean extra iterations of those, total wasted, mean
            iterations with and without, and their ratio. ``bound`` says that the extra iterations are an
            upper bound.
        """
        import pandas as pd

        trained = [r for r in self.reports if r.fitted]
        forced = [r for r in trained if r.forced_on]
        blocking = bool(self.meta["parameters"]["validation_blocking"])
        wasted = sum(r.extra_iterations for r in forced)
        done = sum(r.n_iter for r in trained)
        with_, without = (done, done - wasted) if blocking else (done + wasted, done)
        n = max(len(trained), 1)
        row = {
            "concepts": len(trained),
            "forced_on": len(forced),
            "share_forced_on": len(forced) / n,
            "mean_extra_iterations": wasted / max(len(forced), 1),
            "total_wasted": wasted,
            "iterations_blocking": with_ / n,
            "iterations_advisory": without / n,
            "speed_up": with_ / max(without, 1),
            "bound": not blocking,
        }
        return pd.DataFrame([row])

    def __repr__(self) -> str:
        grades = ", ".join(f"{n} {g}" for g, n in self.grades.items() if n)
        return f"<Lenses: {len(self)} at {self.site} of {self.meta['model']['name']} ({grades})>"

    def _repr_html_(self) -> str:
        from interp.lens.show import lenses_html

        return lenses_html(self)

    # ------------------------------------------------------------------ scoring

    def score(
        self,
        x: str | Sequence[str] | Activations | Tensor | np.ndarray,
        *,
        model: Model | None = None,
        site: str | None = None,
        normalisation: str = "none",
        head: str | None = None,
    ) -> Tensor:
        """Logits of all lenses on all tokens.

        Parameters
        ----------
        x : str, list of str, Activations, or tensor or ndarray of shape [n_tokens, width]
            A tensor does not say where it comes from, so `site` must.
        model : Model, optional
            For text, if the lenses do not know their model (``lenses.model``).
        site : str, optional
            Where a tensor was taken.
        normalisation : str
            What was done to the rows after capture; lenses want them as they are, ``"none"``.
        head : {"linear", "mlp"}, optional
            By default the one that was graded.

        Returns
        -------
        tensor, shape [n_tokens, n_lenses], float32
            Columns as in ``lenses.ids``; probability = sigmoid.

        Raises
        ------
        LensMismatch
            For activations of another model, site or normalisation.
        FloatingPointError
            If rows are not finite.
        """
        rows = self._rows(x, model, site, normalisation)
        bad = ~torch.isfinite(rows).all(dim=1)
        if bool(bad.any()):
            raise FloatingPointError(
                f"{int(bad.sum())} of {len(rows)} rows are not finite, first row {int(bad.nonzero()[0])}"
            )
        standard = (rows - self.mean.to(rows.device)) / self.scale.to(rows.device)
        head = head or ("linear" if self.mlp is None else "mlp")
        if head == "linear":
            return standard @ self.weight.to(rows.device).T + self.bias.to(rows.device)
        if head != "mlp" or self.mlp is None:
            raise ValueError(
                f"head={head!r}: these lenses have {'linear, mlp' if self.mlp else 'linear'} heads"
            )
        m = {k: v.to(rows.device) for k, v in self.mlp.items()}
        hidden = torch.relu(torch.einsum("nd,kdh->nkh", standard / self.width**0.5, m["up"]) + m["shift"])
        return (hidden * m["down"]).sum(dim=2) + m["bias"]

    def text_score(self, texts: Sequence[str]) -> Tensor:
        """Logits of the text lenses, which read words and no model.

        Parameters
        ----------
        texts : list of str
            Prompts; their continuations, if the lenses were trained with ``continuation``.

        Returns
        -------
        tensor, shape [n_texts, n_lenses], float32
            NaN for a lens whose training was stopped before its baselines.

        Raises
        ------
        ValueError
            If no lens was fitted.
        """
        if self.text is None:
            raise ValueError("there are no text lenses here: no lens was fitted")
        return self.text.logits([texts] if isinstance(texts, str) else list(texts))

    def _rows(self, x: Any, model: Model | None, site: str | None, normalisation: str) -> Tensor:
        if normalisation != "none":
            raise LensMismatch(
                f"rows are normalised ({normalisation!r}); these lenses were trained on rows as captured and "
                "standardise them on their own"
            )
        x = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        if isinstance(x, Tensor):
            if site is None:
                raise LensMismatch(
                    f"a tensor does not say where it was taken; pass site={self.site!r} if it was there"
                )
            if site != self.site:
                raise LensMismatch(f"rows were taken at {site!r}, these lenses read {self.site!r}")
            if x.ndim != 2 or x.shape[1] != self.width:
                raise LensMismatch(f"rows have shape {tuple(x.shape)}, expected (n_tokens, {self.width})")
            return x.float()
        acts = x if hasattr(x, "meta") else self._capture(x, model)
        self._check_source(acts.meta)
        if self.site not in acts:
            raise LensMismatch(f"activations hold {', '.join(acts.sites)}; these lenses read {self.site!r}")
        return acts[self.site].float()

    def _capture(self, text: str | Sequence[str], model: Model | None) -> Activations:
        from interp.capture.record import capture

        model = model or self.model
        if model is None:
            raise ValueError("to score text, pass model=, or set lenses.model, to the model of the training")
        self.check_model(model)
        texts = [text] if isinstance(text, str) else list(text)
        # Ids of their own, for the same text may be asked twice.
        prompts = [{"id": str(i), "text": t} for i, t in enumerate(texts)]
        return capture(model, prompts, sites=[self.site])

    def check_model(self, model: Model) -> None:
        """Raise `LensMismatch` unless `model` is the one of the training (its dtype may differ)."""
        from interp.capture.model import expect_model

        expect_model(model)
        self._check_source({"model": model.identity, "tokenizer_hash": model.tokenizer_hash})

    def _check_source(self, meta: dict[str, Any]) -> None:
        mine, other = self.meta["model"], meta["model"]
        if other.get("fingerprint") == mine["fingerprint"]:
            return
        # The fingerprint covers the dtype: the same model in another precision is known by its names.
        names = ("name", "revision", "architecture")
        same = all(other.get(k) == mine[k] for k in names) and meta.get("tokenizer_hash") == mine["tokenizer"]
        if not same or other.get("dtype") == mine["dtype"]:
            raise LensMismatch(
                f"activations are of {other.get('name')!r} (weights {other.get('fingerprint')}), these "
                f"lenses were trained on {mine['name']!r} (weights {mine['fingerprint']}); train lenses "
                "for that model"
            )

    def strength(self, logits: Tensor) -> Tensor:
        """Logits of tokens, made comparable between lenses.

        A lens is trained and calibrated on whole texts; single tokens spread wider, each lens differently.

        Parameters
        ----------
        logits : tensor, shape [n_tokens, n_lenses]
            From `score`.

        Returns
        -------
        tensor, shape [n_tokens, n_lenses], float32
            0 is the median and 1 the 95th percentile of tokens of texts that do not show the concept. Where
            none were kept (a stopped training), the logit itself.
        """
        known = self.negatives.get("token", torch.zeros(len(self), 0))
        if known.shape[1] == 0:
            return logits
        middle, high = torch.nanquantile(known, torch.tensor([0.5, 0.95]), dim=1)
        middle, width = middle.nan_to_num(0.0), (high - middle).nan_to_num(1.0).clamp_min(1e-6)
        return (logits - middle.to(logits.device)) / width.to(logits.device)

    def top(
        self, x: str | Sequence[str] | Activations, k: int = 3, *, model: Model | None = None
    ) -> pd.DataFrame:
        """The `k` strongest lenses of every token, by `strength`.

        Parameters
        ----------
        x : str, list of str or Activations
        k : int
        model : Model, optional
            As in `score`.

        Returns
        -------
        DataFrame
            Columns prompt (number), position, token, rank (from 1), concept, term, grade, logit, strength.
        """
        import pandas as pd

        acts: Any = x if hasattr(x, "meta") else self._capture(x, model)
        logits = self.score(acts)
        strength = self.strength(logits)
        best = strength.topk(min(k, len(self)), dim=1).indices
        rows = []
        for p in range(acts.n_prompts):
            start = int(acts.offsets[p])
            for position, token in enumerate(acts.tokens(p)):
                for rank in range(best.shape[1]):
                    column = int(best[start + position, rank])
                    report = self._report[self.ids[column]]
                    rows.append(
                        {
                            "prompt": p,
                            "position": position,
                            "token": token,
                            "rank": rank + 1,
                            "concept": report.concept,
                            "term": report.term,
                            "grade": report.grade,
                            "logit": float(logits[start + position, column]),
                            "strength": float(strength[start + position, column]),
                        }
                    )
        return pd.DataFrame(rows)

    def highlight(self, text: str, concept: str | None = None, *, model: Model | None = None) -> Highlight:
        """The tokens of a text, coloured by one lens, or each by its strongest lens.

        Parameters
        ----------
        text : str
        concept : str, optional
            The lens; by default each token's strongest.
        model : Model, optional
            As in `score`.

        Returns
        -------
        Highlight
            Shows itself in a notebook.
        """
        from interp.lens.show import Highlight

        acts = self._capture(text, model)
        strength = self.strength(self.score(acts))
        if concept is not None:
            self[concept]  # a KeyError that says what there is
            columns = [self._column[concept]] * len(strength)
        else:
            columns = strength.argmax(dim=1).tolist()
        chosen = strength[torch.arange(len(strength)), torch.tensor(columns)]
        named = [self._report[self.ids[c]] for c in columns]
        return Highlight(acts.tokens(0), chosen.tolist(), named)

    # ------------------------------------------------------------------ joining, saving

    @classmethod
    def concat(cls, parts: Sequence[Lenses]) -> Lenses:
        """Lenses of one model, site and pack as one set (the first part's standardisation is used for all).

        Parameters
        ----------
        parts : sequence of Lenses

        Returns
        -------
        Lenses

        Raises
        ------
        LensMismatch
            If the parts do not read the same rows.
        ValueError
            If there are no parts, a concept occurs twice, or some parts have MLP heads and others not.
        """
        from interp.lens.joining import concat

        return concat(parts)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``lenses.json`` and a safetensors file into a `folder` (see `interp.lens.files`)."""
        from interp.lens.files import save

        return save(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, model: Model | None = None) -> Lenses:
        """Read lenses that `save` wrote.

        Parameters
        ----------
        folder : path
        model : Model, optional
            To score text with; refused if it is not the model of the training.

        Returns
        -------
        Lenses

        Raises
        ------
        FileNotFoundError
            If there are none.
        ValueError
            If the files are of another format or version, or damaged.
        LensMismatch
            If `model` is another one.
        """
        from interp.lens.files import load

        lenses = load(folder)
        if model is not None:
            lenses.check_model(model)
            lenses.model = model
        return lenses
