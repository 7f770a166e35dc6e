"""The records: one frozen dataclass per step of a loop, to and from plain JSON types."""

from __future__ import annotations

import dataclasses
import math
import time
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar

_KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes
    ----------
    time : float
        Wall-clock time of the event, seconds since the epoch. Durations are measured with a
        monotonic clock and stand in fields named ``seconds``.
    """

    #: Class attribute. One of these ends every iteration; `Run.step` counts them.
    is_step: ClassVar[bool] = False
    #: Class attribute. A paused run holds here as well, though no iteration ends.
    may_hold: ClassVar[bool] = False

    time: float = field(default_factory=time.time)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[cls.__name__] = cls

    @property
    def kind(self) -> str:
        """Name of the event's class, as written in logs."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON types; floats that are not finite become ``None``."""
        # Not dataclasses.asdict: it deep-copies, which costs more than the rest of a hook.
        out: dict[str, Any] = {"event": self.kind}
        for name in self.__dataclass_fields__:
            out[name] = _plain(getattr(self, name))
        return out


# ------------------------------------------------------------------------------------ capture


@dataclass(frozen=True, kw_only=True)
class CaptureBegin(Event):
    """A capture starts: what will be done, and what it is estimated to cost."""

    n_prompts: int
    n_prompt_tokens: int
    max_new_tokens: int
    n_batches: int
    batch_tokens: int
    sites: tuple[str, ...]
    n_resumed: int = 0  #: prompts found finished on disk
    estimated_bytes: int = 0
    estimated_seconds: float = math.nan
    memory_total: int = 0  #: bytes of the device (or of the host, on CPU)


@dataclass(frozen=True, kw_only=True)
class BatchEnd(Event):
    """One padded batch was captured (and written, if there is a folder)."""

    is_step: ClassVar[bool] = True

    batch: int  #: index of the batch, from 0
    n_batches: int
    n_prompts: int  #: prompts in this batch
    prompts_done: int
    prompts_total: int
    tokens_real: int  #: prompt and generated tokens of this batch
    tokens_padded: int  #: the same with padding, as the model saw them
    tokens_generated: int
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    bytes_resident: int = 0
    prompt_id: str = ""  #: a prompt of this batch, the one whose projections are shown
    tokens: tuple[str, ...] = ()  #: its tokens
    projections: dict[str, tuple[float, ...]] = field(default_factory=dict)  #: name → one value per token


@dataclass(frozen=True, kw_only=True)
class CaptureEnd(Event):
    """A capture ended, finished or stopped."""

    n_prompts: int
    tokens_real: int
    tokens_padded: int
    tokens_generated: int
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    bytes_peak: int = 0
    stopped: bool = False


# -------------------------------------------------------------------------------------- probe


@dataclass(frozen=True, kw_only=True)
class StageStep(Event):
    """A stage of a probe fit that has no iterations is under way.

    There are two: ``"summary"``, the pass over the rows, before `FitBegin`; and ``"polish"``, the pairs that
    are finished on the raw events, after the last `SlabEnd`. Told about five times a second, so never of a
    shorter stage.
    """

    may_hold: ClassVar[bool] = True

    stage: str  #: "summary" or "polish"
    done: int  #: labelled rows read, or pairs finished
    total: int  #: rows (unlabelled ones too) or pairs that there are; 0 where rows come as a stream
    n_events: int  #: non-zeros of x that those had
    seconds: float  #: since the stage began
    bytes_resident: int


@dataclass(frozen=True, kw_only=True)
class FitBegin(Event):
    """A probe fit starts to solve; its summary (if it uses one) is complete."""

    method: str
    n_rows: int
    n_latents: int
    n_classes: int
    n_events: int  #: non-zeros of x
    n_nodes: int  #: quadrature nodes (or raw events, method="events") that stand for them
    n_slabs: int
    class_slab_size: int
    latent_block_size: int
    row_batch_size: int  #: 0 for "auto"
    max_iter: int
    tol: float
    device: str
    summary_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SlabBegin(Event):
    """The pairs (latents with an event) × (classes ``class_start`` … ``class_stop − 1``) start.

    A latent that never fires is in no slab: ``n_pairs`` here, of `IterationEnd` and of `SlabEnd` leaves its
    pairs out, that of `FitEnd` counts every pair.
    """

    slab: int
    n_slabs: int
    class_start: int
    class_stop: int
    n_pairs: int
    n_inert: int  #: pairs with zero gradient at the start: they never enter a step


@dataclass(frozen=True, kw_only=True)
class IterationEnd(Event):
    """One LM iteration over the active pairs of a slab.

    ``loss_mean`` and ``loss_max`` cost an evaluation of their own. They are taken over about 512 pairs
    (all classes of latents evenly spaced; all pairs of a smaller slab), five times a second, and only while
    that has taken less than 0.5 % of the fit's processor time (the first, which warms up, not counted); in
    between they are NaN. ``bytes_resident`` is read five times a second. All else is of this iteration and of
    every pair, but for the quartiles of lambda, which come from about 512 pairs evenly spaced.
    """

    is_step: ClassVar[bool] = True

    slab: int
    n_slabs: int
    class_start: int
    class_stop: int
    iteration: int  #: from 1
    n_pairs: int
    n_active: int  #: pairs still iterating after this iteration
    n_inert: int
    n_fail: int  #: pairs whose step was rejected after all retries, in this iteration (a fallback follows)
    n_rejected: int  #: steps rejected in this iteration (they are retried with a larger lambda)
    n_clipped: int  #: steps shortened to the logit budget in this iteration
    lam_min: float
    lam_q1: float
    lam_median: float
    lam_q3: float
    lam_max: float
    loss_mean: float
    loss_max: float
    grad_max: float  #: largest scaled gradient among the pairs that were active
    seconds: float
    bytes_resident: int


@dataclass(frozen=True, kw_only=True)
class SlabEnd(Event):
    """A slab is finished."""

    slab: int
    n_slabs: int
    class_start: int
    class_stop: int
    n_pairs: int
    n_iter: int
    n_fail: int  #: steps of the slab that were rejected after all retries
    status_counts: dict[str, int]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FitEnd(Event):
    """A probe fit ended, finished or stopped."""

    n_pairs: int
    n_fail: int
    n_polished: int  #: pairs finished on the raw events because the rule was not exact enough
    status_counts: dict[str, int]
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    stopped: bool = False


# --------------------------------------------------------------------------------------- lens


@dataclass(frozen=True, kw_only=True)
class TrainBegin(Event):
    """A lens training starts."""

    n_lenses: int
    n_prompts: int  #: texts to train on and to select by; those of grades and baselines come on top
    site: str
    f1_target: float
    validation_blocking: bool


@dataclass(frozen=True, kw_only=True)
class LensIteration(Event):
    """One fit of one round: the lens of a concept on its current number of samples."""

    is_step: ClassVar[bool] = True

    concept: str
    term: str
    iteration: int  #: from 1
    n_samples: int
    f1: float  #: on the selection split
    f1_low: float  #: lower 95 % bound of it
    auroc: float
    n_active: int  #: lenses still growing
    n_lenses: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LensEnd(Event):
    """A lens is trained and graded. Scores are on the test split, read once."""

    concept: str
    term: str
    level: int
    grade: str  #: A, B, C or U
    score: float  #: 2·AUROC − 1
    score_low: float  #: lower 95 % bound of the score
    score_high: float
    auroc: float
    f1: float
    n_samples: int
    n_iter: int
    extra_iterations: int  #: iterations that blocking validation added (or would have)
    stop_reason: str
    seconds: float
    n_done: int
    n_lenses: int


@dataclass(frozen=True, kw_only=True)
class TrainEnd(Event):
    """A lens training ended, finished or stopped."""

    n_lenses: int
    grade_counts: dict[str, int]
    seconds: float
    stopped: bool = False


# -------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True, kw_only=True)
class TaskBegin(Event):
    """A task of a job that is shared out (`interp.cluster`) starts, or starts again."""

    job: str  #: "summary", "capture" or "lenses"
    task: int  #: from 0
    n_tasks: int
    attempt: int  #: from 1
    host: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class ShardEnd(Event):
    """One row shard was added to the summary of a task."""

    is_step: ClassVar[bool] = True

    shard: int  #: shards of the task that were done before, from 0
    n_shards: int
    n_rows: int
    n_events: int  #: non-zeros of x
    seconds: float
    bytes_resident: int


@dataclass(frozen=True, kw_only=True)
class TaskEnd(Event):
    """A task ended: done, or with an error (then another attempt may follow)."""

    job: str
    task: int
    seconds: float
    error: str = ""  #: "" if done


# -------------------------------------------------------------------------- to and from JSON


def from_dict(record: dict[str, Any]) -> Event:
    """The event that `Event.to_dict` made.

    Raises
    ------
    ValueError
        If the record names no known event, lacks a field or has one of the wrong type.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected an event as a JSON object, got {type(record).__name__}")
    kind = record.get("event")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown event {kind!r}; known: {', '.join(sorted(_KINDS))}")
    hints = _hints(cls)
    try:
        return cls(**{k: _restore(v, hints[k]) for k, v in record.items() if k in hints})
    except (TypeError, AttributeError) as error:  # a field is missing, or is not what its type says
        raise ValueError(f"incomplete or damaged {kind} event: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return _plain(value.item())
    raise TypeError(f"an event field must be a number, string, list or dict, got {type(value).__name__}")


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        names = {f.name for f in dataclasses.fields(cls)}
        _HINTS[cls] = {k: v for k, v in typing.get_type_hints(cls).items() if k in names}
    return _HINTS[cls]


def _restore(value: Any, hint: Any) -> Any:
    if hint is float:
        return math.nan if value is None else float(value)
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_restore(v, inner) for v in value)
    if origin is dict:
        inner = typing.get_args(hint)[1]
        return {k: _restore(v, inner) for k, v in value.items()}
    return value
