"""Models: load once, know what is inside.

>>> model = load_model("tiny")                      # doctest: +SKIP
>>> model.n_layers, model.width, model.attention    # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.capture.sites import Sites, split
from interp.device import pick_device

__all__ = ["Model", "expect_model", "load_model", "wrap"]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Model:
    """A transformers model with its tokenizer and what is known about it.

    Attributes
    ----------
    hf : nn.Module
        The transformers model, in eval mode.
    tokenizer : object or None
        Its tokenizer; without one, prompts must be given as token ids.
    name, revision : str
        What was loaded.
    attention, attention_reason : str
        Attention implementation taken, and why.
    load_seconds : float
        Time that loading took.
    sites : Sites
        Every site of the model (`interp.capture.sites`).
    """

    hf: Any
    tokenizer: Any
    name: str
    revision: str
    attention: str
    attention_reason: str
    load_seconds: float = 0.0
    sites: Sites = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.hf.eval()
        self.config = self.hf.config.get_text_config()
        self.backbone: nn.Module = self.hf.get_decoder() if self.is_causal else self.hf
        self.sites = Sites(self.config, self.backbone)

    def __repr__(self) -> str:
        return (
            f"<Model {self.name}: {self.config.model_type} {self.kind}, {self.n_layers} layers × "
            f"{self.width}, "
            f"context {self.context}, {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"attention {self.attention} ({self.attention_reason})>"
        )

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts the next token and so can generate."""
        return _is_causal(self.config)

    @property
    def kind(self) -> str:
        """``"causal"`` or ``"encoder"``."""
        return "causal" if self.is_causal else "encoder"

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.sites.n_layers

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.sites.width

    @property
    def n_heads(self) -> int:
        """Query heads per block."""
        return self.sites.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads per block (fewer than `n_heads` under grouped queries)."""
        return self.sites.n_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.sites.head_dim

    @cached_property
    def context(self) -> int:
        """Most tokens of a prompt and its response together."""
        limit = getattr(self.config, "max_position_embeddings", None) or 2**31 - 1
        if self.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            limit -= self.pad_id + 1  # positions start behind the padding index
        return int(limit)

    @property
    def device(self) -> torch.device:
        """Where token ids go (with a device map: where the embedding is)."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the weights."""
        return self.hf.dtype

    @cached_property
    def pad_id(self) -> int:
        """Token id put where there is no token: the config's, since encoders may number positions by it."""
        own, tok = getattr(self.config, "pad_token_id", None), getattr(self.tokenizer, "pad_token_id", None)
        for candidate in (own, tok):
            if candidate is not None and 0 <= candidate < self.config.vocab_size:  # id 0 is a fine pad id
                return int(candidate)
        return 0

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end a response."""
        found: list[int] = []
        for source in (getattr(self.hf, "generation_config", None), self.config, self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            if ids is not None:
                found += [ids] if isinstance(ids, int) else list(ids)
                break
        return tuple(dict.fromkeys(int(i) for i in found))

    @cached_property
    def parameters_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(p.numel() * p.element_size() for p in self.hf.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """A hash over names, shapes, dtypes and up to 64 values of every weight: tells models apart."""
        digest = hashlib.sha256()
        for name, p in self.hf.state_dict().items():
            digest.update(f"{name}{tuple(p.shape)}{p.dtype}".encode())
            flat = p.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float64)
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def identity(self) -> dict[str, str]:
        """What manifests say of it: name, revision, architecture, fingerprint of the weights, dtype."""
        return {
            "name": self.name,
            "revision": self.revision,
            "architecture": self.config.model_type,
            "fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @cached_property
    def tokenizer_hash(self) -> str:
        """A hash over the tokenizer's vocabulary and special tokens; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        known = {
            "vocab": sorted(self.tokenizer.get_vocab().items()),
            "special": {k: str(v) for k, v in sorted(self.tokenizer.special_tokens_map.items())},
            "template": str(getattr(self.tokenizer, "chat_template", None)),
        }
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]

    @cached_property
    def _accepts(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.hf.forward).parameters)

    @cached_property
    def _backbone_accepts(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.backbone.forward).parameters)

    def states(self, ids: Tensor, mask: Tensor) -> Any:
        """Run the blocks, without the head, on right-padded ids.

        Parameters
        ----------
        ids, mask : Tensor, shape [n_prompts, n_tokens], int64
            Token ids, and 1 where there is a token.

        Returns
        -------
        object
            The backbone's output.
        """
        extra = {"use_cache": False} if "use_cache" in self._backbone_accepts else {}
        return self.backbone(input_ids=ids, attention_mask=mask, **extra)

    def next_logits(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """One step of generation on left-padded ids.

        Parameters
        ----------
        ids, positions : Tensor, shape [n_prompts, n_new], int64
            New token ids and their positions.
        mask : Tensor, shape [n_prompts, n_past + n_new], int64
            1 where there is a token, past ones included.
        cache : object or None
            What the step before returned.

        Returns
        -------
        logits : Tensor of the model's dtype, shape [n_prompts, vocab_size]
            For the token that follows.
        cache : object
            Keys and values so far.
        """
        extra: dict[str, Any] = {}
        if "position_ids" in self._accepts:
            extra["position_ids"] = positions
        if "logits_to_keep" in self._accepts:
            extra["logits_to_keep"] = 1
        out = self.hf(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return out.logits[:, -1], out.past_key_values

    @contextmanager
    def attention_for(self, sites: Iterable[str]) -> Iterator[None]:
        """Eager attention while `sites` ask for attention weights, which no other kind gives."""
        if self.attention == "eager" or not any(split(s)[0] == "attn" for s in sites):
            yield
            return
        self.hf.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.hf.set_attn_implementation(self.attention)

    def token_strings(self, ids: Tensor) -> dict[int, str]:
        """What the tokens in `ids` look like, as text."""
        if self.tokenizer is None:
            return {}
        unique = ids.unique().tolist()
        raw = self.tokenizer.convert_ids_to_tokens(unique)
        return {i: _readable(t) for i, t in zip(unique, raw, strict=True) if t is not None}

    @cached_property
    def speed(self) -> dict[str, float]:
        """Seconds per prompt token, per decoding step, and per prompt in a step; measured once."""
        n = min(64, self.context // 2)
        ids = (torch.arange(n * 2, device=self.device).view(2, n) * 7 + 3) % self.config.vocab_size
        mask = torch.ones_like(ids)
        found = {"token": 0.0, "step": 0.0, "row": 0.0}
        with torch.no_grad():
            self.states(ids[:, :4], mask[:, :4])  # warm-up
            start = time.perf_counter()
            self.states(ids, mask)
            found["token"] = (time.perf_counter() - start) / ids.numel()
            if self.is_causal:
                steps = {}
                for rows in (1, 8):
                    few = ids[:1, :8].expand(rows, -1)
                    ones = torch.ones(rows, 9, dtype=torch.int64, device=self.device)
                    at = torch.arange(8, device=self.device).expand(rows, -1)
                    _, cache = self.next_logits(few, ones[:, :8], at, None)
                    last = torch.full((rows, 1), 8, device=self.device)
                    start = time.perf_counter()
                    self.next_logits(few[:, :1], ones, last, cache)[0].sum().item()
                    steps[rows] = time.perf_counter() - start
                found["row"] = max((steps[8] - steps[1]) / 7, 0.0)
                found["step"] = max(steps[1] - found["row"], 0.0)
        return found

    def verify_sites(self) -> None:
        """Check the sites of an architecture that the tests do not cover, once, on eight tokens.

        Raises
        ------
        ValueError
            See `Sites.verify`.
        """
        if self.sites.verified:
            return
        n = min(8, self.context)
        ids = (torch.arange(n, device=self.device) * 7 + 3)[None] % self.config.vocab_size

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                mask = torch.ones_like(ids)
                return self.backbone(
                    input_ids=ids, attention_mask=mask, output_hidden_states=True
                ).hidden_states

        self.sites.verify(forward)


def load_model(
    name_or_path: str | os.PathLike[str] = "tiny",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = "auto",
    revision: str | None = None,
    *,
    attention: str = "auto",
    device_map: str | dict[str, Any] | None = None,
) -> Model:
    """Load a causal LM or an encoder, and its tokenizer, once.

    Weights are read from safetensors files alone, never from pickles, and code that comes with a model is not
    run. For a model that needs either, load it with transformers, as far as you trust it, and `wrap` it.

    Parameters
    ----------
    name_or_path : str or path
        A folder, a name on the Hugging Face hub, or ``"tiny"``, the model that ships with the package.
    dtype : str or torch.dtype
        ``"auto"``: bfloat16 on GPUs, float32 on CPUs.
    device : str or torch.device, optional
        ``"auto"`` (or None): cuda, else mps, else cpu.
    revision : str, optional
        Branch, tag or commit on the hub.
    attention : str
        ``"auto"``, ``"sdpa"``, ``"eager"`` or another implementation of transformers.
    device_map : str or dict, optional
        Spread the layers over devices (needs accelerate); `device` is then not used.

    Returns
    -------
    Model

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or the hub has no such model or cannot be reached.
    ValueError
        If the architecture is not supported (an encoder-decoder, or blocks that are not found), needs code of
        its own, or its files are damaged or lack weights (named); if there is no such device or dtype.
    ImportError
        If `device_map` is given without accelerate.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    start = time.perf_counter()
    name, where = str(name_or_path), _locate(name_or_path)
    device = pick_device(device)
    dtype = _pick_dtype(dtype, device if device_map is None else torch.device("cuda"))
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} needs code of its own, which interp does not run: load it with transformers if you "
                "trust it, and give the model to interp.capture.wrap"
            ) from error
        raise FileNotFoundError(
            f"no model {name!r}: it is no folder with a config.json that transformers knows, and the hub "
            f"gave none ({_first_line(error)})"
        ) from error
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name}: {config.model_type} is an encoder-decoder; expected a causal LM or an encoder"
        )
    text_config = config.get_text_config()
    attention, reason = _pick_attention(attention, text_config)
    auto = AutoModelForCausalLM if _is_causal(text_config) else AutoModel
    extra: dict[str, Any] = {}
    if device_map is not None:
        _need_accelerate()
        extra["device_map"] = device_map
    hf = _load_weights(
        auto, name, where, revision=revision, dtype=dtype, attn_implementation=attention, **extra
    )
    if device_map is None:
        torch.nn.Module.to(hf, device)
    model = wrap(hf, _load_tokenizer(where, revision), name=name, revision=revision or "")
    model.attention_reason = reason
    model.load_seconds = time.perf_counter() - start
    return model


def _load_weights(auto: Any, name: str, where: str, **options: Any) -> Any:
    """The model with all its weights, from safetensors; ValueError if some are missing or do not fit."""
    from safetensors import SafetensorError

    try:
        with _quiet():
            hf, found = auto.from_pretrained(
                where,
                use_safetensors=True,
                trust_remote_code=False,
                # Both are checked below: transformers would go on with random numbers.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged: {error}. Get them again") from error
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise ValueError(
            f"{name} has no weights in safetensors, and interp loads no pickles (.bin): save it again with "
            f"transformers' save_pretrained, or load it yourself and give it to wrap ({_first_line(error)})"
        ) from error
    # Poolers of encoders are often not shipped, and nothing is captured behind them.
    missing = [k for k in sorted(found["missing_keys"]) if "pooler" not in k]
    wrong = sorted(k[0] if isinstance(k, tuple) else k for k in found["mismatched_keys"])
    for which, what in ((missing, "lack"), (wrong, "have another shape than config.json says for")):
        if which:
            more = f" and {len(which) - 3} more" if len(which) > 3 else ""
            raise ValueError(f"the weights of {name} {what} {', '.join(which[:3])}{more}: get them again")
    return hf


def wrap(hf: Any, tokenizer: Any = None, *, name: str = "", revision: str = "") -> Model:
    """Make a `Model` of a transformers model that is in memory already.

    Parameters
    ----------
    hf : PreTrainedModel
        A causal LM or an encoder. It is put in eval mode.
    tokenizer : PreTrainedTokenizer, optional
        Without one, prompts must be given as token ids.
    name, revision : str
        What to call it in manifests; the class name by default.

    Returns
    -------
    Model
    """
    attention = hf.config.get_text_config()._attn_implementation or "eager"
    return Model(hf, tokenizer, name or type(hf).__name__, revision, attention, "as the model came")


def expect_model(model: Any) -> None:
    """Raise for a name, or anything else that is not a loaded model.

    Parameters
    ----------
    model : object

    Raises
    ------
    TypeError
        Saying how to come to one.
    """
    if isinstance(model, Model):
        return
    if isinstance(model, (str, os.PathLike)):
        advice = f"load it first, interp.load_model({os.fspath(model)!r})"
    else:
        advice = "expected what interp.load_model returns, or interp.capture.wrap(model, tokenizer)"
    raise TypeError(f"model: got a {type(model).__name__}: {advice}")


def _readable(token: str) -> str:
    """A vocabulary entry as text: word starts of byte-level and sentencepiece vocabularies are spaces."""
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def _locate(name_or_path: str | os.PathLike[str]) -> str:
    if name_or_path == "tiny":
        from interp import tiny

        return str(tiny.path())
    path = Path(name_or_path)
    # Asked of what was given, for a Path of "./x" is "x".
    looks_local = (
        isinstance(name_or_path, os.PathLike) or path.is_absolute() or name_or_path[:1] in (".", "~")
    )
    if looks_local or path.exists():
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise FileNotFoundError(f"model folder {path} {what}: give a folder with config.json and weights")
        if not (path / "config.json").exists():
            raise FileNotFoundError(f"model folder {path} holds no config.json: is it a transformers model?")
    return str(name_or_path)


def _is_causal(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # Encoders such as BERT are listed as causal LMs too: they are if their config says decoder.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(getattr(config, "is_decoder", False))
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    found = getattr(torch, short.get(dtype, dtype), None) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r}: give 'auto', 'float32', 'bfloat16' or 'float16'")
    return found


def _pick_attention(attention: str, config: Any) -> tuple[str, str]:
    if attention != "auto":
        return attention, "asked for"
    if getattr(config, "attn_logit_softcapping", None):
        return "eager", "the model caps attention logits, which sdpa cannot"
    return "sdpa", "the fastest that every device has"


def _load_tokenizer(where: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        # Prompts given as token ids still work, and text says what is missing.
        logger.warning("%s: no tokenizer could be loaded (%s)", where, _first_line(error))
        return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar of transformers where nobody watches a terminal."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    if sys.stderr is None or not sys.stderr.isatty():
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _need_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise ImportError("device_map needs the package accelerate: pip install accelerate") from error
