"""Trait vectors: directions of the residual stream along which a trait shows, fitted on contrast sets.

A contrast set holds texts in which a trait shows (label 1) and texts in which it does not (label 0), in
groups that share a question. Texts that *show* a trait (``natural``) and instructions to show it
(``instructed``) are different sets: a vector fitted on instructions follows instructions. They are never
mixed.

>>> traits = TraitVectors.fit(model, ["uncertainty_calibration", "sycophancy"])     # doctest: +SKIP
>>> capture(model, prompts, tier=2, vectors=traits.vectors())                       # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.capture import statistics as stats
from interp.capture.model import Model, expect_model
from interp.capture.prompts import Prompt, Prompts, content_id
from interp.capture.record import capture
from interp.files import file_hash, read_json, whole, write_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TRAITS", "ContrastSet", "Trait", "TraitVectors", "contrast"]

#: Traits whose contrast sets ship with the package.
TRAITS = ("uncertainty_calibration", "commitment_strength", "cognitive_load", "sycophancy")
FORMAT = "interp-traits 1"


@dataclass(frozen=True)
class ContrastSet:
    """Texts with and without a trait.

    Attributes
    ----------
    trait : str
        Name of the trait.
    kind : str
        ``"natural"`` or ``"instructed"``.
    prompts : tuple of Prompt
        The texts. Where a chat ends with the assistant's message, states are pooled over that message alone.
    labels : array of bool, shape [n]
        Whether the trait shows.
    groups : tuple of str
        Texts of one group never stand on both sides of a split. Labels are shuffled within groups for a
        control, so at least 4 groups hold texts with and without the trait.
    """

    trait: str
    kind: str
    prompts: tuple[Prompt, ...]
    labels: np.ndarray
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        sides = set(zip(self.groups, self.labels.tolist(), strict=True))
        n_groups = len(set(self.groups))
        if len(sides) - n_groups < 4:
            raise ValueError(
                f"contrast set {self.trait!r} ({self.kind}): got {int(self.labels.sum())} positives and "
                f"{int((~self.labels).sum())} negatives in {n_groups} groups, {len(sides) - n_groups} of "
                "which hold both; expected both in 4 groups at least"
            )


def contrast(trait: str, source: str | os.PathLike[str] | None = None) -> dict[str, ContrastSet]:
    """Read a contrast set.

    Parameters
    ----------
    trait : str
        One of `TRAITS`, or any name together with `source`.
    source : path, optional
        A .jsonl file; each line has ``text`` or ``messages``, ``label`` (1 or 0), ``group`` and ``kind``.

    Returns
    -------
    dict of str to ContrastSet
        By kind.

    Raises
    ------
    FileNotFoundError
        If there is none, listing those that ship.
    ValueError
        If a line lacks a field, or a set is too small.
    """
    if source is None:
        if trait not in TRAITS:
            raise FileNotFoundError(
                f"no contrast set {trait!r} ships with the package: {', '.join(TRAITS)} do"
            )
        with resources.as_file(
            resources.files("interp.capture") / "data" / f"contrast_{trait}.jsonl"
        ) as path:
            return contrast(trait, path)
    found: dict[str, list[Prompt]] = {}
    for i, prompt in enumerate(Prompts.from_file(source)):
        if not {"label", "group", "kind"} <= prompt.meta.keys() or prompt.meta["label"] not in (0, 1):
            raise ValueError(
                f"{source}, example {i}: expected 'label' (0 or 1), 'group' and 'kind', got {prompt.meta}"
            )
        found.setdefault(prompt.meta["kind"], []).append(prompt)
    return {
        kind: ContrastSet(
            trait,
            kind,
            tuple(prompts),
            np.array([p.meta["label"] == 1 for p in prompts]),
            tuple(str(p.meta["group"]) for p in prompts),
        )
        for kind, prompts in found.items()
    }


@dataclass(frozen=True)
class Trait:
    """One trait's vectors and how well they do.

    Attributes
    ----------
    name, method, pool, kind : str
        How it was fitted.
    site : str
        Where it separates best, chosen by grouped cross-validation.
    vectors : dict of str to Tensor, shape [width], float32
        Site → unit vector; larger projections mean more of the trait.
    layers : dict of str to float
        Cross-validated AUROC per site, the numbers that the choice was made on.
    auroc, low, high : float
        On groups that neither the vector nor the choice of its site has seen, with a 95 % interval.
    random, shuffled : float
        95th percentile of the AUROC of random vectors (either sign), and of vectors fitted on labels shuffled
        within groups: what luck reaches.
    other : dict of str to float
        Other kind → AUROC of this vector on it, and ``"cosine <kind>"`` with the vector fitted there.
    n : int
        Texts.
    """

    name: str
    method: str
    pool: str
    kind: str
    site: str
    vectors: dict[str, Tensor] = field(repr=False)
    layers: dict[str, float]
    auroc: float
    low: float
    high: float
    random: float
    shuffled: float
    other: dict[str, float]
    n: int


class TraitVectors(Mapping[str, Trait]):
    """Traits by name.

    Parameters
    ----------
    traits : iterable of Trait
        The traits.
    model : dict
        ``name``, ``fingerprint`` and ``width`` of the model that they belong to.
    """

    def __init__(self, traits: Iterable[Trait], model: Mapping[str, Any]) -> None:
        self._traits = {t.name: t for t in traits}
        self.model = dict(model)

    def __getitem__(self, name: str) -> Trait:
        return self._traits[name]

    def __iter__(self) -> Any:
        return iter(self._traits)

    def __len__(self) -> int:
        return len(self._traits)

    def __repr__(self) -> str:
        each = ", ".join(f"{t.name} at {t.site} (AUROC {t.auroc:.2f})" for t in self.values())
        return f"<TraitVectors of {self.model['name']}: {each}>"

    @classmethod
    def fit(
        cls,
        model: Model,
        traits: Sequence[str | Mapping[str, ContrastSet]] = TRAITS,
        *,
        sites: str | Iterable[str] = "resid_post.*",
        method: str = "mean",
        pool: str = "mean",
        kind: str = "natural",
        batch_tokens: int | str = "auto",
        seed: int = 0,
    ) -> TraitVectors:
        """Fit vectors for traits; all their texts are forwarded together, once.

        Parameters
        ----------
        model : Model
            From `interp.load_model`.
        traits : sequence of str or mapping
            Names that ship with the package, or what `contrast` returned.
        sites : str or iterable of str
            Candidates for the best site.
        method : {"mean", "logistic"}
            Difference of the means, or L2-regularised logistic regression on standardised states.
        pool : {"mean", "last"}
            Mean over the tokens of a text (of the assistant's message, in a chat that ends with one), or the
            last.
        kind : str
            Which of the sets is fitted; the vector is scored on the others, too.
        batch_tokens : int or "auto"
            As in `capture`.
        seed : int
            Of the splits and the controls.

        Returns
        -------
        TraitVectors

        Raises
        ------
        ValueError
            If an option or a set does not fit.
        """
        expect_model(model)
        if method not in stats.FITS:
            raise ValueError(f"method must be one of {', '.join(stats.FITS)}, got {method!r}")
        if pool not in ("mean", "last"):
            raise ValueError(f"pool must be 'mean' or 'last', got {pool!r}")
        if isinstance(traits, (str, Mapping)):
            raise ValueError("traits takes a list of traits, got a single one: write [...] around it")
        resolved = model.sites.resolve(sites)
        sets = [contrast(t) if isinstance(t, str) else dict(t) for t in traits]
        flat = [s for by_kind in sets for s in by_kind.values()]
        pooled = iter(_pooled(model, flat, resolved, pool, batch_tokens))
        fitted = []
        for by_kind in sets:
            if kind not in by_kind:
                raise ValueError(f"contrast set {next(iter(by_kind.values())).trait!r} has no kind {kind!r}")
            states = {k: next(pooled) for k in by_kind}
            fitted.append(_fit_trait(by_kind, states, resolved, method, pool, kind, seed))
        about = {"name": model.name, "fingerprint": model.fingerprint, "width": model.width}
        return cls(fitted, about)

    def vectors(self) -> dict[str, Tensor]:
        """Trait → its vector at its site, float32 ``[width]``, for ``capture(vectors=…)``: on every layer."""
        return {t.name: t.vectors[t.site] for t in self.values()}

    def by_site(self) -> dict[str, dict[str, Tensor]]:
        """Trait → {site: the vector fitted there, float32 ``[width]``}, for ``capture(vectors=…)``."""
        return {t.name: t.vectors for t in self.values()}

    def frame(self) -> pd.DataFrame:
        """One line per trait: site, AUROC with interval, controls, AUROC on other kinds."""
        import pandas as pd

        rows = []
        for t in self.values():
            row = {k: v for k, v in asdict(t).items() if k not in ("vectors", "layers", "other")}
            rows.append({**row, **t.other})
        return pd.DataFrame(rows).set_index("name")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``path.safetensors`` (``trait/site`` → vector) and ``path.json`` (everything else).

        Parameters
        ----------
        path : path
            Without a suffix.

        Returns
        -------
        Path
            The same.

        Raises
        ------
        FileExistsError
            If one of them exists.
        """
        from safetensors.torch import save_file

        path = Path(path)
        weights = path.with_name(path.name + ".safetensors")
        about = path.with_name(path.name + ".json")
        for file in (about, weights):
            # Weights of ours without the description, which is written last, are what a kill left.
            if file.exists() and not (file == weights and _is_ours(weights)):
                raise FileExistsError(f"{file} exists: give another name, or remove it")
        tensors = {f"{t.name}/{s}": v.contiguous() for t in self.values() for s, v in t.vectors.items()}
        with whole(weights) as part:
            save_file(tensors, part, metadata={"format": FORMAT})
        traits = [{k: v for k, v in vars(t).items() if k != "vectors"} for t in self.values()]
        content = {"format": FORMAT, "model": self.model, "traits": traits, "weights": file_hash(weights)}
        write_json(about, content)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model | None = None) -> TraitVectors:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
            Without the suffix.
        model : Model, optional
            Refuse vectors that belong to another one.

        Returns
        -------
        TraitVectors

        Raises
        ------
        FileNotFoundError, ValueError
            If a file is missing, not ours, or of another model.
        """
        from safetensors.torch import load_file

        path = Path(path)
        weights, about = (path.with_name(path.name + end) for end in (".safetensors", ".json"))
        for file in (about, weights):
            if not file.is_file():
                raise FileNotFoundError(f"no trait vectors at {path}: {file.name} is missing")
        content = read_json(about)
        if content.get("format") != FORMAT:
            raise ValueError(f"{about} has format {content.get('format')!r}, expected {FORMAT!r}")
        if file_hash(weights) != content.get("weights"):
            raise ValueError(f"{weights} is damaged: its hash is not the one in {about.name}. Fit again")
        try:
            fingerprint, name = content["model"]["fingerprint"], content["model"]["name"]
            tensors = load_file(weights)
            traits = []
            for t in content["traits"]:
                parts = ((k.rpartition("/"), v) for k, v in tensors.items())  # a name may hold a slash
                mine = {site: v for (name_of, _, site), v in parts if name_of == t["name"]}
                if t["site"] not in mine:
                    raise KeyError(f"no vector of {t['name']!r} at {t['site']!r}")
                traits.append(Trait(**t, vectors=mine))
            found = cls(traits, content["model"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{about} is not what `save` wrote ({error}): fit again") from error
        if model is not None and fingerprint != model.fingerprint:
            raise ValueError(
                f"the trait vectors at {path} belong to {name} ({fingerprint}), not to {model.name} "
                f"({model.fingerprint}): fit them again"
            )
        return found


def _is_ours(weights: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except SafetensorError:
        return False


def _pooled(
    model: Model, sets: Sequence[ContrastSet], sites: Sequence[str], pool: str, batch_tokens: int | str
) -> list[dict[str, np.ndarray]]:
    """Per set: site → pooled states, float64 ``[n, width]``."""
    # By content: a text may stand in two sets, and two sets may give different texts the same id.
    texts = [replace(p, id=_content(p)) for s in sets for p in (_as_text(p, model) for p in s.prompts)]
    unique = {p.id: p for p in texts}
    acts = capture(model, Prompts(unique.values()), sites=sites, batch_tokens=batch_tokens)
    starts = [_response_start(p, model) for p in unique.values()]
    spans = {}
    for i, id in enumerate(acts.prompt_ids):
        a, b = int(acts.offsets[i]), int(acts.offsets[i + 1])
        spans[id] = slice(b - 1 if pool == "last" else a + starts[i], b)
    rows = {site: acts[site].double().numpy() for site in sites}
    out, at = [], 0
    for s in sets:
        mine = [spans[p.id] for p in texts[at : at + len(s.prompts)]]
        out.append({site: np.stack([x[span].mean(0) for span in mine]) for site, x in rows.items()})
        at += len(s.prompts)
    return out


def _content(prompt: Prompt) -> str:
    return content_id(prompt.text or prompt.messages or prompt.token_ids)


def _as_text(prompt: Prompt, model: Model) -> Prompt:
    """A chat as plain text, for models that have no template."""
    if prompt.messages is None or getattr(model.tokenizer, "chat_template", None):
        return prompt
    return Prompt(prompt.id, text="\n".join(m["content"] for m in prompt.messages), meta=prompt.meta)


def _response_start(prompt: Prompt, model: Model) -> int:
    """Where the assistant's last message begins, in tokens; 0 if there is none."""
    if prompt.messages is None or len(prompt.messages) < 2 or prompt.messages[-1]["role"] != "assistant":
        return 0
    before = Prompts([Prompt("before", messages=prompt.messages[:-1])]).encode(model)[0]
    whole = Prompts([prompt]).encode(model)[0]
    # Templates may end a turn differently when another follows: count what is the same.
    same = 0
    while same < min(len(before), len(whole) - 1) and before[same] == whole[same]:
        same += 1
    return same


def _fit_trait(
    by_kind: Mapping[str, ContrastSet],
    states: Mapping[str, dict[str, np.ndarray]],
    sites: Sequence[str],
    method: str,
    pool: str,
    kind: str,
    seed: int,
) -> Trait:
    mine, x = by_kind[kind], states[kind]
    labels, groups = mine.labels, np.array(mine.groups)
    fit = stats.FITS[method]
    layers = {s: stats.cross_validated(fit, x[s], labels, groups, seed) for s in sites}
    best = stats.best(layers)
    auroc, scores = stats.nested(fit, x, labels, groups, seed)
    low, high = stats.newcombe(auroc, int(labels.sum()), int((~labels).sum()))
    vectors = {s: fit(x[s], labels) for s in sites}
    other: dict[str, float] = {}
    for k, there in by_kind.items():
        if k != kind:
            other[k] = stats.auroc(states[k][best] @ vectors[best], there.labels)
            other[f"cosine {k}"] = float(vectors[best] @ fit(states[k][best], there.labels))
    return Trait(
        name=mine.trait,
        method=method,
        pool=pool,
        kind=kind,
        site=best,
        vectors={s: torch.from_numpy(v).float() for s, v in vectors.items()},
        layers={s: a for s, (a, _) in layers.items()},
        auroc=auroc,
        low=low,
        high=high,
        random=stats.random_control(x[best], labels, seed),
        shuffled=stats.shuffled_control(fit, x[best], labels, groups, seed),
        other=other,
        n=len(scores),
    )
