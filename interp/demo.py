"""The main job, start to end: capture → sparse code → probes → lenses → a report.

Everything runs on the shipped model and its generated corpus, so nothing is downloaded and the truth is
known: the corpus says to which class every token belongs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.events import Event, JsonlLog
from interp.files import sweep, whole
from interp.lock import lock
from interp.report import Report, Table
from interp.threads import torch_threads

if TYPE_CHECKING:
    import scipy.sparse as sp
    from matplotlib.figure import Figure

    from interp.capture.activations import Activations
    from interp.capture.model import Model

__all__ = ["demo"]

#: Tokens generated behind each prompt.
NEW_TOKENS = 50
#: Corpus tokens: the probes are fitted on the first part and judged on the second.
N_FIT, N_TEST = 210_000, 50_000
#: Padded tokens per batch. Fixed, because "auto" goes by free memory, and other batches round differently.
BATCH_TOKENS = 8192
#: What a demo leaves in its folder. The events come first and go last: they tell its folder from others.
FILES = (
    "labels.bin",
    "lenses",
    "probe1d_metrics.npz",
    "projections.json",
    "report.html",
    "token_acts.npz",
    "events",
)
FIRST = "events/capture.jsonl"
#: Prompt file → the trait that its prompts are about.
TRAITS = {
    "uncertainty": "uncertainty_calibration",
    "commitment": "commitment_strength",
    "cognitive": "cognitive_load",
    "sycophancy": "sycophancy",
}
NEXT = "notebooks/00_tour.ipynb"


class Story:
    """What happened so far: times, events, tables, and a hash of every number that is no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.events: dict[str, list[Event]] = {}
        self.tables: dict[str, Table] = {}
        self.numbers: list[tuple[str, str]] = []
        self.shown: dict[str, str] = {}  # trait → the prompt whose projections are drawn
        self.digest = hashlib.sha256()

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[list[Any]]:
        """Announce and time a stage; gives the hooks that keep its events, here and in a log."""
        print(f"\n{len(self.seconds) + 1}. {doing}", flush=True)
        began = time.perf_counter()
        events = self.events[name] = []
        with JsonlLog(self.folder / "events" / f"{name}.jsonl") as log:
            yield [events.append, log]
        self.seconds[name] = time.perf_counter() - began
        print(f"   {self.seconds[name]:.1f} s", flush=True)

    def table(self, name: str, title: str, columns: list[str], rows: list[list[str]], note: str) -> None:
        """Keep a table, and count its cells among the results."""
        self.tables[name] = Table(title, columns, rows, note)
        self.digest.update(repr((columns, rows)).encode())

    def count(self, *arrays: np.ndarray) -> None:
        """Count arrays among the results."""
        for array in arrays:
            self.digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())


@dataclass
class Code:
    """The corpus as a sparse code with a class per token; rows from `n_fit` on are held out."""

    x: sp.csr_matrix
    y: np.ndarray
    n_fit: int
    site: str
    names: Sequence[str]


def demo(out: str | os.PathLike[str] = "runs/demo", *, seed: int = 0) -> Path:
    """Run the main job on the shipped model and write a report.

    Parameters
    ----------
    out : path
        Folder for ``report.html``, the event logs, and the files that other programs read:
        ``token_acts.npz``, ``labels.bin``, ``probe1d_metrics.npz``, ``projections.json`` and ``lenses/``.
        What an earlier demo left there is replaced.
    seed : int
        Of the corpus and of the lenses' samples. The same seed gives the same numbers.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    FileNotFoundError
        If the shipped model is not there.
    FileExistsError
        If the folder holds files of these names that no demo wrote.
    LockedError
        If another demo is under way there.
    OSError
        If the folder cannot be written in.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        return _demo(folder, seed)


def _demo(folder: Path, seed: int) -> Path:
    from interp.capture.model import load_model

    sweep(folder)
    left = [name for name in FILES if (folder / name).exists()]
    if left and not (folder / FIRST).is_file():
        raise FileExistsError(f"{folder} holds {left[0]}, and not from a demo: give another folder")
    for name in left:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    story = Story(folder)
    model = load_model("tiny")
    print(f"{model!r}\nseed {seed}; files go to {folder}", flush=True)

    # On so small tensors more threads gain little, and on a busy machine lose manyfold; and sums come out
    # the same on every number of cores.
    with torch_threads(1):
        acts = _capture(story, model, seed)
        code = _encode(story, model, seed)
        _probe(story, code)
        _train_lenses(story, model, code.site, seed)

    for table in story.tables.values():
        print(f"\n{table.text()}")
    report = _report(story, acts, seed).write(folder / "report.html")
    print(f"\ndigest of all results, times left out: {story.digest.hexdigest()[:16]}")
    print(f"{sum(story.seconds.values()):.0f} s. Open {report}, then {NEXT} (make lab).")
    return report


# ------------------------------------------------------------------------------------- the jobs


def _capture(story: Story, model: Model, seed: int) -> Activations:
    """The six prompt files: 20 prompts at tier 2, projected on the trait vectors, and 4 at tier 3."""
    from interp.capture.prompts import SHIPPED, shipped
    from interp.capture.record import capture
    from interp.capture.traits import TraitVectors

    # A user's message each, which is how the shipped model is asked.
    files = {name: shipped(name).as_chat() for name in SHIPPED}
    tiers = {name: 3 if name.startswith("tier3") else 2 for name in files}
    n_prompts = sum(map(len, files.values()))
    doing = (
        f"capture: {n_prompts} prompts from {len(files)} files, {NEW_TOKENS} new tokens each, one model load"
    )
    captured: dict[int, Activations] = {}
    with story.stage("capture", doing) as hooks:
        traits = TraitVectors.fit(model, batch_tokens=BATCH_TOKENS, seed=seed)
        for tier in (2, 3):
            captured[tier] = capture(
                model,
                [prompt for name, prompts in files.items() if tiers[name] == tier for prompt in prompts],
                tier=tier,
                vectors=traits.vectors(),
                max_new_tokens=NEW_TOKENS,
                stop_at_eos=False,  # exactly so many, as in a measured plan
                batch_tokens=BATCH_TOKENS,
                check=2,
                seed=seed,
                iteration_hook=hooks,
            )
        captured[2].to_json(story.folder / "projections.json")
    rows = []
    for name, prompts in files.items():
        acts, trait = captured[tiers[name]], traits[TRAITS[name.removeprefix("tier3_")]]
        phases = np.concatenate([acts.phase[_rows(acts, p.id)].numpy() for p in prompts])
        counts = (tiers[name], len(prompts), (phases == 0).sum(), phases.sum(), len(acts.sites))
        rows.append([name, *map(str, counts), trait.site, f"{trait.auroc:.3f}"])
    story.shown = {TRAITS[name]: files[name][0].id for name in TRAITS}
    story.numbers.append((str(n_prompts), "prompts captured, each with its answer"))
    story.count(*(acts.token_ids.numpy() for acts in captured.values()))
    worst = max(error for acts in captured.values() for error in acts.check.values())
    story.table(
        "capture",
        "Captured prompts, and how well the vector of their trait does on held-out texts",
        ["prompt file", "tier", "prompts", "tokens", "generated", "sites", "vector from", "AUROC"],
        rows,
        f"Batched against alone: largest relative difference {worst:.0e}.",
    )
    return captured[2]


def _rows(acts: Activations, prompt: str) -> slice:
    i = acts.prompt_ids.index(prompt)
    return slice(int(acts.offsets[i]), int(acts.offsets[i + 1]))


def _encode(story: Story, model: Model, seed: int) -> Code:
    """Corpus tokens through the model and the sparse autoencoder."""
    import scipy.sparse as sp

    from interp import tiny
    from interp.capture.record import capture
    from interp.sae import SAE
    from interp.tiny import corpus

    text = corpus.tokens(N_FIT + N_TEST, seed)
    # The first token of a document is the same everywhere; the autoencoder was never shown its state.
    shown = np.ones(len(text.ids), bool)
    shown[text.offsets[:-1]] = False
    documents = [
        {"id": f"document {i}", "token_ids": ids.tolist()} for i, (ids, _) in enumerate(text.documents())
    ]
    sae = SAE.load(tiny.sae_path())
    site = sae.site or f"resid_post.{model.n_layers // 2}"
    doing = f"sparse code: {shown.sum():,} corpus tokens at {site}, {sae.n_latents:,} latents"
    with story.stage("encode", doing) as hooks:
        states = capture(
            model, documents, sites=site, batch_tokens=BATCH_TOKENS, seed=seed, iteration_hook=hooks
        )[site]
        x, y = sae.encode_csr(states[shown]), text.classes[shown]
        with whole(story.folder / "token_acts.npz") as part, open(part, "wb") as file:
            sp.save_npz(file, x, compressed=False)
        with whole(story.folder / "labels.bin") as part:
            y.tofile(part)
    # Whole documents are held out, so that no sentence is on both sides.
    n_fit = int(shown[: text.offsets[np.searchsorted(text.offsets, N_FIT)]].sum())
    story.count(x.indptr, x.indices)
    story.numbers.append((f"{x.nnz / 1e6:.1f} M", f"events in the code of {len(y):,} tokens"))
    return Code(x, y, n_fit, site, tiny.CLASS_NAMES)


def _probe(story: Story, code: Code) -> None:
    """A probe for every (latent, class) pair, judged on held-out documents."""
    from interp.probe import Sparse1DProbe
    from interp.probe.files import write_metrics_npz

    n_latents, n_classes = code.x.shape[1], len(code.names)
    fit, test = slice(code.n_fit), slice(code.n_fit, None)
    with story.stage("probe", f"probes: all {n_latents:,} × {n_classes} pairs") as hooks:
        probe = Sparse1DProbe()
        probe.fit(code.x[fit], code.y[fit], n_classes=n_classes, iteration_hook=hooks)
        seen = probe.metrics(code.x[fit], code.y[fit])
        held_out = probe.metrics(code.x[test], code.y[test])
        gradient = float(np.nanmax(probe.certify(code.x[fit], code.y[fit]).scaled))
        write_metrics_npz(
            story.folder / "probe1d_metrics.npz",
            loss=seen.nll,
            weights=probe.coef_,
            biases=probe.intercept_,
            **{name: seen[name] for name in ("tp", "fp", "tn", "fn")},
        )
    story.numbers.append((f"{probe.coef_.size:,}", "probes fitted"))
    # The latent of a class is chosen where the probes were fitted, and shown where they were not.
    latents = seen.nll.argmin(axis=0)
    f1 = held_out.f1[latents, np.arange(n_classes)]
    best = [c for c in np.argsort(-np.nan_to_num(f1), kind="stable") if c][:10]
    story.table(
        "probe",
        f"Best latents of ten classes, on {code.x.shape[0] - code.n_fit:,} held-out tokens",
        ["class", "latent", "AUROC", "AP", "F1", "weight"],
        [
            [
                code.names[c],
                str(latents[c]),
                *(f"{held_out[m][latents[c], c]:.3f}" for m in ("auroc", "ap", "f1")),
                f"{probe.coef_[latents[c], c]:.2f}",
            ]
            for c in best
        ],
        f"{_counts(probe.status_)}; largest exact gradient {gradient:.0e}.",
    )


def _train_lenses(story: Story, model: Model, site: str, seed: int) -> None:
    """A lens for every concept of the shipped pack, graded on held-out prompts."""
    from interp.lens.concepts import ConceptPack
    from interp.lens.train import train_lenses

    pack = ConceptPack.load("tiny")
    with story.stage("lenses", f"lenses: {len(pack)} concepts at {site}, trained and graded") as hooks:
        lenses = train_lenses(
            model, pack, site=site, batch_tokens=BATCH_TOKENS, seed=seed, iteration_hook=hooks
        )
        lenses.save(story.folder / "lenses")
    frame = lenses.frame()
    rows = []
    for level, group in frame.groupby("level"):
        grades = group["grade"].value_counts()
        rows.append(
            [
                str(level),
                str(len(group)),
                *(str(int(grades.get(g, 0))) for g in "ABCU"),
                f"{group['score'].median():.3f}",
                f"{group['f1'].median():.3f}",
                f"{group['n_samples'].median():.0f}",
            ]
        )
    a, *rest = (f"{n} {g}" for g, n in lenses.grades.items())
    story.numbers.append((a, f"and {', '.join(rest)} of {len(frame)} lenses"))
    advice = lenses.blocking_table().iloc[0]
    story.table(
        "lenses",
        "Lenses by level of the ontology",
        ["level", "lenses", "A", "B", "C", "U", "median score", "median F1", "median samples"],
        rows,
        f"Advisory grades; blocking would have cost at most {advice['total_wasted']:.0f} more iterations.",
    )


def _counts(status: np.ndarray) -> str:
    names, counts = np.unique(status, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{counts[i]:,} {str(names[i]).replace('_', ' ')}" for i in order)


# ----------------------------------------------------------------------------------- the report


def _report(story: Story, acts: Activations, seed: int) -> Report:
    import torch

    from interp import __version__
    from interp.live.plots import capture_figure, fit_figure, lens_figure

    page = Report(
        "interp: the main job on the shipped model",
        "Captured prompts, a probe for every latent and class, and graded lenses: one run of `interp demo`.",
    )
    page.numbers([*story.numbers, (f"{sum(story.seconds.values()):.0f} s", "for everything")])

    page.section(
        "1. Capture",
        "Six prompt files went through one loaded model. Row t of a prompt is the state at token t, for the "
        "prompt and for what the model wrote. The traits' vectors were learned from contrast sets, and the "
        "states were projected on them as they were made.",
    )
    page.table(story.tables["capture"])
    for trait, prompt in story.shown.items():
        _show_projection(page, acts, prompt, trait)
    _show_events(page, capture_figure, story.events["encode"], "The capture of the corpus, batch by batch.")

    page.section(
        "2. Probes",
        "For each latent of the sparse code and each class of the corpus, a logistic probe with one feature. "
        "The labels enter through two sums, so the fit reads the tokens once; then each iteration works on a "
        "few hundred values per latent, however many tokens there are.",
    )
    page.table(story.tables["probe"])
    _show_events(
        page, fit_figure, story.events["probe"], "The fit: pairs, damping, seconds by slab, gradient."
    )

    page.section(
        "3. Lenses",
        "A lens per concept, told apart from its siblings. A, B and C go by the lower 95 % bound of "
        "2·AUROC − 1 on held-out prompts (A from 0.5, B from 0.2), so that luck earns no A; U is for too few "
        "prompts.",
    )
    page.table(story.tables["lenses"])
    _show_events(
        page, lens_figure, story.events["lenses"], "Grades, growth of the samples, scores with intervals."
    )

    page.section("Where to go on", f"Open `{NEXT}` (`make lab`): the same jobs, live, one slab at a time.")
    page.footer(
        f"interp {__version__}, torch {torch.__version__}, one thread, seed {seed}. "
        f"Digest of all results: `{story.digest.hexdigest()[:16]}`. The events of every job are beside this "
        "page, in `events/`."
    )
    return page


def _show_projection(page: Report, acts: Activations, prompt: str, trait: str) -> None:
    """Layers × tokens of one prompt and its answer, on one trait vector."""
    from interp.live.plots import projection_figure

    tokens, rows = acts.tokens(prompt), _rows(acts, prompt)
    n_given = int((acts.phase[rows] == 0).sum())
    # The answer ends where the model says so. The first token, an attention sink, would hide the rest.
    end = tokens.index("</s>", n_given) if "</s>" in tokens[n_given:] else len(tokens)
    sites = [s for s in acts.projected if s.startswith("resid_post.") and trait in acts.projected[s]][::-1]
    grid = [acts.projection(s)[rows, acts.projected[s].index(trait)][1:end].numpy() for s in sites]
    names = [s.replace("resid_post.", "layer ") for s in sites]
    name = trait.replace("_", " ")

    def picture(dark: bool) -> Figure:
        fig = projection_figure(tokens[1:end], grid, names, title=f"Projection on {name}", dark=dark)
        fig.axes[0].axvline(n_given - 1.5, color="#8a8f98", lw=1.5, ls="--")
        return fig

    caption = f"By layer and token, on the vector of {name}. The answer begins at the dashed line."
    page.figure(picture(False), picture(True), caption)


def _show_events(page: Report, draw: Any, events: list[Event], caption: str) -> None:
    page.figure(draw(events), draw(events, dark=True), caption)
