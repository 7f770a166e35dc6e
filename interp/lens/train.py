"""Training: all lenses of a pack at once, each on as few samples as it needs (`interp.lens.rounds`)."""

from __future__ import annotations

import logging
import operator
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.events import Emitter, Hook, TrainBegin, TrainEnd, bar
from interp.lens.bank import Bank
from interp.lens.concepts import ConceptPack
from interp.lens.job import plan
from interp.lens.library import Lenses
from interp.lens.rounds import Rounds
from interp.lens.samples import Samples, Templates
from interp.threads import torch_threads

if TYPE_CHECKING:
    from interp.capture.model import Model

__all__ = ["chosen_concepts", "expect_options", "train_lenses"]

logger = logging.getLogger(__name__)


def train_lenses(
    model: Model | str | os.PathLike[str],
    pack: ConceptPack | str | os.PathLike[str],
    *,
    site: str,
    concepts: Iterable[str] | None = None,
    f1_target: float = 0.95,
    f1_rule: str = "lower",
    validation_blocking: bool = False,
    growth: Sequence[int] = (10, 20, 40, 80, 120),
    max_seconds: float | None = None,
    head: str = "linear",
    pooling: str = "span",
    continuation: int = 0,
    templates: Templates | None = None,
    shares: Mapping[str, float] | None = None,
    dtype: Any = None,
    batch_tokens: int | str = "auto",
    bank: Bank | str | os.PathLike[str] | None = None,
    seed: int = 0,
    iteration_hook: Hook | Iterable[Hook] | None = None,
) -> Lenses:
    """Train and grade a lens for every concept of a pack.

    Parameters
    ----------
    model : Model, str or path
        From `interp.load_model`, or what to load.
    pack : ConceptPack, path, or "tiny"
    site : str
        Where the lenses read, such as ``resid_post.2``.
    concepts : iterable of str, optional
        Ids to train; all by default. The others still serve as negatives: a lens comes out the same (but for
        rounding) whichever others are trained with it, so that tasks can share a pack.
    f1_target : float
        F1 on the selection split at which a lens is good enough to stop growing.
    f1_rule : {"lower", "point"}
        Whether the lower 95 % bound of that F1 must reach the target (37 faultless positives for 0.95), or F1
        itself.
    validation_blocking : bool
        If true, a lens that met the target goes on until its grade on the selection split is A or B too. By
        default the grade is advisory.
    growth : sequence of int
        Positive samples of each round; as many negatives.
    max_seconds : float, optional
        Begin no further round after so long.
    head : {"linear", "mlp"}
        L2 logistic, or one with a hidden layer beside it.
    pooling : {"span", "mean", "max", "last"}
        See `interp.lens.bank.Bank`.
    continuation : int
        Tokens to generate behind each prompt; their mean is a second row of the prompt, in its group.
    templates : Templates, optional
    shares : mapping, optional
        Of the kinds of negatives, see `interp.lens.samples.SHARES`.
    dtype : str or torch.dtype, optional
        To load the model in, if `model` is a name. Fits are in float32 whatever it is.
    batch_tokens : int or "auto"
        See `interp.capture`. A `Bank` has its own; beside one, only "auto".
    bank : Bank or path, optional
        Activations to read and add to; a folder outlives the run, and a killed run finds its rows there.
    seed : int
        With a `Bank` that continues its prompts, the bank's.
    iteration_hook : callable or list of callable, optional
        Gets `TrainBegin`, `LensIteration`, `LensEnd`, `TrainEnd`, and `BatchEnd` of the forward passes
        between them. May return True to stop: see Notes.

    Returns
    -------
    Lenses

    Raises
    ------
    ValueError
        For arguments that do not fit each other, the pack or the model.
    LeakageError
        If the splits of the pack leak.
    FloatingPointError
        If the model gives activations that are not finite (named).

    Notes
    -----
    A stop leaves every lens that was fitted, with its latest fit, and ``stop_reason`` "stopped" unless it had
    ended by itself. Those graded before keep everything. Of the others, some are still graded: as many as
    need no forward pass and a few hundredths of a second; they have neither baselines nor thresholds
    (`Lens.threshold` says so). The rest has grade U with the reason in ``why``, as has a concept that had no
    fit yet. A later call with the same `bank` forwards none of the prompts again.
    """
    started = time.perf_counter()
    expect_options(f1_target=f1_target, f1_rule=f1_rule, growth=growth, head=head)
    pack = pack if isinstance(pack, ConceptPack) else ConceptPack.load(pack)
    chosen = chosen_concepts(pack, concepts)
    about_pack = {"name": pack.name, "version": pack.version, "hash": pack.hash}
    emit = Emitter(iteration_hook)
    bank = _bank(model, bank, dtype, site, pooling, continuation, seed, batch_tokens)
    samples = Samples(pack, seed=seed, templates=templates, shares=shares)
    jobs = [plan(samples, pack[c], max(growth) + 1, seed) for c in chosen]
    run = Rounds(
        jobs,
        samples,
        bank,
        emit,
        seed,
        head,
        f1_target=f1_target,
        f1_rule=f1_rule,
        blocking=validation_blocking,
        growth=list(growth),
        deadline=None if max_seconds is None else started + max_seconds,
    )
    if emit:
        emit(
            TrainBegin(
                n_lenses=len(jobs),
                n_prompts=len({s.text for j in jobs for s in [*j.positive, *j.negative, *j.select]}),
                site=site,
                f1_target=f1_target,
                validation_blocking=validation_blocking,
            )
        )
    parameters = {
        "f1_target": f1_target,
        "f1_rule": f1_rule,
        "validation_blocking": validation_blocking,
        "growth": list(growth),
        "head": head,
        "seed": seed,
        "continuation": continuation,
        "templates": {"train": samples.templates.train, "heldout": samples.templates.heldout},
        "shares": samples.shares,
    }
    # Fits are many small products: threads of torch's own would wait for each other longer than they work.
    with torch_threads(1):
        with bar(len(jobs), "lenses", "lens") as progress:
            run.go(progress)
        seconds = time.perf_counter() - started
        lenses = run.lenses(about_pack, parameters, seconds)
    logger.info("%r in %.1f s, %d prompts forwarded", lenses, seconds, bank.n_forwarded)
    if emit:
        emit(TrainEnd(n_lenses=len(lenses), grade_counts=lenses.grades, seconds=seconds, stopped=emit.stop))
        emit.close()
    return lenses


def expect_options(*, f1_target: float, f1_rule: str, growth: Sequence[int], head: str) -> None:
    """Refuse options of `train_lenses` that are wrong with any model and pack.

    Parameters
    ----------
    f1_target : float
    f1_rule : str
    growth : sequence of int
    head : str
        As in `train_lenses`.

    Raises
    ------
    ValueError
        Naming the option, what it was and what it may be.
    """
    if not 0 < f1_target <= 1:
        raise ValueError(f"f1_target must be in (0, 1], got {f1_target}")
    if f1_rule not in ("lower", "point"):
        raise ValueError(f"f1_rule must be 'lower' or 'point', got {f1_rule!r}")
    if head not in ("linear", "mlp"):
        raise ValueError(f"head must be 'linear' or 'mlp', got {head!r}")
    try:
        steps = [operator.index(n) for n in growth]
    except TypeError:
        steps = []
    if not steps or min(steps) < 2 or sorted(set(steps)) != steps:
        raise ValueError(f"growth must be increasing whole numbers of samples from 2, got {growth!r}")


def chosen_concepts(pack: ConceptPack, concepts: Iterable[str] | None) -> list[str]:
    """Ids to train, each once.

    Parameters
    ----------
    pack : ConceptPack
    concepts : iterable of str, optional
        As in `train_lenses`.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If there are none, or one is not in the pack (named).
    """
    if isinstance(concepts, str):
        raise ValueError(f"concepts takes a list of ids, got a single one: write [{concepts!r}]")
    chosen = [c.id for c in pack] if concepts is None else list(dict.fromkeys(concepts))
    unknown = [c for c in chosen if c not in pack]
    if unknown or not chosen:
        what = f"{unknown[0]!r} is not in pack {pack.name!r}" if unknown else "there are none to train"
        raise ValueError(f"concepts: {what}")
    return chosen


def _bank(
    model: Any,
    bank: Any,
    dtype: Any,
    site: str,
    pooling: str,
    continuation: int,
    seed: int,
    batch_tokens: int | str,
) -> Bank:
    from interp.capture.model import Model, load_model

    if not isinstance(model, Model):
        model = load_model(model, dtype="auto" if dtype is None else dtype)
    elif dtype is not None and str(dtype).removeprefix("torch.") != str(model.dtype).removeprefix("torch."):
        raise ValueError(
            f"dtype={dtype} but the model is loaded in {model.dtype}: load_model(..., dtype=...)"
        )
    found = model.sites.resolve(site)
    if len(found) != 1:
        raise ValueError(f"site must name one site, {site!r} names {len(found)}: {', '.join(found)}")
    if not isinstance(bank, Bank):
        return Bank(
            model,
            found[0],
            pooling=pooling,
            continuation=continuation,
            seed=seed,
            folder=bank,
            batch_tokens=batch_tokens,
        )
    if batch_tokens != "auto":
        raise ValueError(
            f"batch_tokens={batch_tokens!r} has no effect beside a bank, which was made with "
            f"batch_tokens={bank.batch_tokens!r}: leave it out here, give it to Bank(...)"
        )
    for name, mine, other in (
        ("model", bank.model.fingerprint, model.fingerprint),
        ("site", bank.site, found[0]),
        ("pooling", bank.pooling, pooling),
        ("continuation", bank.continuation, continuation),
        ("seed", bank.seed if continuation else seed, seed),  # of the continuations alone
    ):
        if mine != other:
            raise ValueError(
                f"the bank's {name} is {mine!r}, the training wants {other!r}: give another bank"
            )
    return bank
