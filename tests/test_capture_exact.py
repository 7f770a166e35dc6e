"""Batched is single: padding, caches, sampling and memory limits do not change the answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture_zoo import ALL, CAUSAL, VOCAB, sequences, tokenizer, zoo
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.capture import Activations, Model, batching, capture, load_model, record, wrap
from interp.capture.batching import pack, pad
from interp.capture.check import judge, relative_error
from interp.capture.generate import Generator
from interp.capture.tape import Tape
from interp.events import BatchEnd, CaptureBegin, CaptureEnd

LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SITES = "embed, resid_mid.*, resid_post.*, attn_out.*, mlp_out.*, q.1, k.1, v.1, mlp_act.1, resid_pre.1"


@torch.no_grad()
def alone(model: Model, ids: list[int]) -> list[Tensor]:
    """The residual stream by transformers' own means: one sequence, no padding, no cache, no hooks."""
    hidden = model.backbone(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return [h[0] for h in hidden]


def expect_single(model: Model, acts: Activations, limit: float) -> None:
    """Rows of every prompt are those of a run of its exact ids by themselves.

    The residual stream row by row, against transformers' own hidden states. Parts of a block against a single
    run of ours, relative to the largest number of the site: in bfloat16 a small sum of large terms has no
    more digits.
    """
    for i in range(acts.n_prompts):
        a, b = acts.offsets[i : i + 2].tolist()
        ids = acts.token_ids[a:b].tolist()
        for layer, expected in enumerate(alone(model, ids)[:-1]):
            site = "embed" if layer == 0 else f"resid_post.{layer - 1}"
            assert relative_error(acts.rows(site, i), expected) <= limit, (site, i)
        single = capture(model, [{"token_ids": ids}], sites=acts.sites)
        for site in acts.sites:
            error = (acts.rows(site, i) - single[site]).abs().max() / single[site].abs().max()
            assert error <= limit, (site, i)
    if model.dtype == torch.float32:
        assert len(acts.check) == len(acts.sites)
        assert max(acts.check.values()) <= limit


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_batched_is_single(name: str, dtype: torch.dtype) -> None:
    model, prompts = zoo(name, dtype), sequences()
    acts = capture(model, prompts, sites=SITES, batch_tokens=200, check=len(prompts))
    assert acts.offsets.tolist() == np.cumsum([0, 5, 12, 1, 9, 20, 3]).tolist()
    assert acts.token_ids.tolist() == [t for p in prompts for t in p["token_ids"]]
    expect_single(model, acts, LIMIT[dtype])


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("name", CAUSAL)
def test_generated_is_teacher_forced(name: str, dtype: torch.dtype) -> None:
    """Rows captured during batched generation with a cache are those of one plain pass over the same ids."""
    model, prompts = zoo(name, dtype), sequences()
    acts = capture(model, prompts, sites=SITES, max_new_tokens=9, stop_at_eos=False, check=len(prompts))
    for i, prompt in enumerate(prompts):
        a, b = acts.offsets[i : i + 2].tolist()
        n = len(prompt["token_ids"])
        assert acts.token_ids[a : a + n].tolist() == prompt["token_ids"]
        assert acts.phase[a:b].tolist() == [0] * n + [1] * 9
    expect_single(model, acts, LIMIT[dtype])


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_text_is_that_of_transformers(name: str) -> None:
    model, prompts = zoo(name), sequences()
    acts = capture(model, prompts, sites="resid_post.0", max_new_tokens=8)
    for i, prompt in enumerate(prompts):
        a, b = acts.offsets[i : i + 2].tolist()
        with torch.no_grad():
            expected = model.hf.generate(
                input_ids=torch.tensor([prompt["token_ids"]]),
                attention_mask=torch.ones(1, len(prompt["token_ids"]), dtype=torch.int64),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=2,
                pad_token_id=0,
            )[0]
        assert acts.token_ids[a:b].tolist() == expected.tolist()


def responses(acts: Any) -> dict[str, list[int]]:
    out = {}
    for i, id in enumerate(acts.prompt_ids):
        a, b = acts.offsets[i : i + 2].tolist()
        out[id] = acts.token_ids[a:b][acts.phase[a:b] == 1].tolist()
    return out


def test_sampled_text_does_not_depend_on_the_batch() -> None:
    model, prompts = zoo("llama"), sequences()
    options = {"sites": "resid_post.0", "max_new_tokens": 12, "temperature": 1.3, "seed": 5}
    together = responses(capture(model, prompts, **options))
    shuffled = prompts.copy()
    random.Random(0).shuffle(shuffled)
    assert responses(capture(model, shuffled, batch_tokens=64, **options)) == together
    assert {k: v for p in prompts for k, v in responses(capture(model, [p], **options)).items()} == together
    assert responses(capture(model, prompts, **{**options, "seed": 6})) != together


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0]])
    generator = Generator(20_000, temperature=0.7, seed=1)
    u = generator.draws("x")
    tokens = generator.choose(logits.expand(len(u), -1), u)
    counts = np.bincount(tokens.numpy(), minlength=4)
    p = torch.softmax(logits[0].double() / 0.7, -1).numpy()
    chi2 = ((counts - len(u) * p) ** 2 / (len(u) * p)).sum()
    assert chi2 < 16.3  # 99.9 % of chi-square with 3 degrees of freedom
    low = generator.choose(logits, torch.zeros(1, dtype=torch.float64))
    high = generator.choose(logits, torch.full((1,), 1 - 2**-53, dtype=torch.float64))
    assert (int(low), int(high)) == (0, 3)


def test_a_response_ends_with_its_eos_which_has_a_row() -> None:
    model, prompts = zoo("llama"), sequences()
    free = responses(capture(model, prompts, sites="resid_post.1", max_new_tokens=12, stop_at_eos=False))
    eos = free["p0"][3]
    model.__dict__["eos_ids"] = (eos,)
    try:
        acts = capture(model, prompts, sites="resid_post.1", max_new_tokens=12, check=6)
    finally:
        del model.__dict__["eos_ids"]
    assert max(acts.check.values()) < 1e-5
    lengths = set()
    for id, tokens in responses(acts).items():
        cut = free[id].index(eos) + 1 if eos in free[id] else 12
        assert tokens == free[id][:cut]
        lengths.add(cut)
    assert len(lengths) > 1, "the test needs responses of different lengths"
    assert acts["resid_post.1"].shape[0] == acts.n_tokens == acts.offsets[-1]


def test_check_raises_when_padding_changes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mask an encoder attends to padding; a check of all prompts must see it."""

    states = Model.states
    monkeypatch.setattr(Model, "states", lambda self, ids, mask: states(self, ids, torch.ones_like(mask)))
    capture(zoo("bert"), sequences(0, (6, 6)), check=2)  # no padding: nothing to get wrong
    with pytest.raises(ArithmeticError, match="padding changes the answer"):
        capture(zoo("bert"), sequences(0, (6, 2)), check=2)


def test_check_sees_a_wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows shifted by one token, as in the scripts of old: every shape is right, the numbers are not."""
    original = record.Tape.collect

    def shifted(self: Any, order: Any = None) -> Any:
        states, projections = original(self, order)
        if order is not None:
            states = {k: v.roll(1, 0) for k, v in states.items()}
        return states, projections

    monkeypatch.setattr(record.Tape, "collect", shifted)
    with pytest.raises(ArithmeticError, match=r"resid_post.*differ"):
        capture(zoo("llama"), sequences(), max_new_tokens=3, check=1)


def test_half_precision_that_is_far_off_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "interp"):
        judge({"resid_post.0": 1e-2, "resid_post.1": 2e-2}, torch.bfloat16)
        assert not caplog.records
        judge({"resid_post.0": 1e-2, "resid_post.1": 0.4}, torch.bfloat16)
    assert "rows of resid_post.1 in a batch differ from a single run by 0.4" in caplog.text


def test_a_pass_that_misses_a_site_is_an_error() -> None:
    """As when another thread runs the model, or a block is skipped: its rows would be wrong."""
    with Tape(zoo("llama"), ["resid_post.0", "resid_post.1"]) as tape:
        mask = torch.ones(1, 3, dtype=torch.int64)
        tape.prompts_pass(mask, "right", 3)
        with pytest.raises(RuntimeError, match="0 of 2 sites were recorded in one pass"):
            tape.run(lambda: None)


def test_memory_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    cpu, real = torch.device("cpu"), builtins.open

    def no_proc(file: object, *args: object, **kwargs: object) -> object:
        if str(file).startswith("/proc"):
            raise FileNotFoundError(file)
        return real(file, *args, **kwargs)  # type: ignore[call-overload]

    total = batching.memory_total(cpu)
    monkeypatch.setattr(builtins, "open", no_proc)  # macOS
    assert batching.memory_total(cpu) == pytest.approx(total, rel=0.01)
    assert batching.memory_free(cpu) == batching.memory_total(cpu) // 2
    monkeypatch.delattr(batching.os, "sysconf")  # Windows
    assert batching.memory_free(cpu) == 8 << 30
    assert [batching.describe(x) for x in (999, 1.5e6, 2.25e13)] == ["999 B", "1.5 MB", "22.5 TB"]


def test_not_finite_is_refused_by_name() -> None:
    model = zoo("gpt2")
    site = model.sites.blocks[1].register_forward_hook(
        lambda m, a, out: out.masked_fill(torch.tensor(out.shape[1] == 9), torch.nan)
    )
    try:
        with pytest.raises(FloatingPointError, match="'p3'"):
            capture(model, sequences(), batch_tokens=1)
    finally:
        site.remove()


@pytest.mark.parametrize("vectors", [None, {"v": torch.ones(32)}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sites", ["resid_post.1, embed", ["attn_out.0", "mlp_out.1", "mlp_out.0"]])
def test_not_finite_is_seen_at_every_site(sites: Any, value: float, vectors: Any) -> None:
    """Whatever order they are asked for in: what is wrong at one has not reached all the others."""
    model = zoo("gpt2")

    def plant(m: Any, a: Any, out: torch.Tensor) -> torch.Tensor:
        if out.shape[1] != 9:
            return out
        out = out.clone()
        out[0, 4, 7] = value
        return out

    planted = model.sites.module("mlp_out", 1).register_forward_hook(plant)
    wrong = "resid_post.1" if "resid_post" in sites else "mlp_out.1"
    options = {} if vectors is None else {"vectors": vectors, "keep_states": False}
    try:
        with pytest.raises(FloatingPointError, match=rf"'p3' \(and 0 others .* at {wrong} are not finite"):
            capture(model, sequences(), sites=sites, batch_tokens=1, **options)
    finally:
        planted.remove()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 32), (7, 4, 9), (1, 1)])
def test_numbers_of_every_dtype_are_finite_or_not(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rows = torch.full(shape, torch.finfo(dtype).max, dtype=dtype)  # their sum would not be finite
    assert record._finite(rows)
    assert record._finite(-rows)
    for value in (torch.nan, torch.inf, -torch.inf):
        for at in (0, -1):
            rows.fill_(1).view(-1)[at] = value
            assert not record._finite(rows)


# ------------------------------------------------------------------------------------ batches


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 300),
    st.integers(0, 20),
    st.booleans(),
)
def test_packing(lengths: list[int], budget: int, new: int, sort: bool) -> None:
    batches = pack(lengths, budget, new_tokens=new, sort=sort)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for b in batches:
        assert len(b) == 1 or len(b) * (max(lengths[i] for i in b) + new) <= budget
    if sort:
        flat = [lengths[i] for b in batches for i in b]
        assert flat == sorted(lengths, reverse=True)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padding(ids: list[list[int]]) -> None:
    for side in ("left", "right"):
        tokens, mask, positions = pad(ids, 7, side)
        for row, seq in enumerate(ids):
            assert tokens[row][mask[row] == 1].tolist() == seq
            assert positions[row][mask[row] == 1].tolist() == list(range(len(seq)))
            edge = 0 if side == "right" else -1
            assert mask[row, edge] == 1
        assert (tokens[mask == 0] == 7).all()


@pytest.mark.parametrize("new", [0, 4])
def test_out_of_memory_halves_the_batch(new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = zoo("llama"), sequences()
    expected = capture(model, prompts, max_new_tokens=new, stop_at_eos=False)
    sizes: list[int] = []
    alive: list[int] = []

    def limited(self: Any, mask: Tensor, side: str, longest: int) -> None:
        sizes.append(mask.numel())
        if mask.numel() > 24:
            alive.append(len(mask))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        original(self, mask, side, longest)

    original = record.Tape.prompts_pass
    monkeypatch.setattr(record.Tape, "prompts_pass", limited)
    seen: list[Any] = []
    acts = capture(model, prompts, max_new_tokens=new, stop_at_eos=False, iteration_hook=seen.append)
    assert alive, "the limit was never met"
    assert relative_error(acts["resid_post.2"], expected["resid_post.2"]) < 1e-5
    assert acts.prompt_ids == expected.prompt_ids
    ends = [e for e in seen if isinstance(e, BatchEnd)]
    assert [e.batch for e in ends] == list(range(len(ends)))
    assert ends[-1].n_batches == len(ends)
    assert ends[-1].prompts_done == len(prompts)


def test_a_prompt_too_large_for_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, *args: Any) -> None:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(record.Tape, "prompts_pass", full)
    with pytest.raises(MemoryError, match=r"'p4' \(20 tokens.*alone"):
        capture(zoo("llama"), sequences())


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not batching.is_out_of_memory(ValueError("out of memory"))
    assert not batching.is_out_of_memory(RuntimeError("shape mismatch"))
    assert batching.is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated …)"))


def test_auto_budget_is_a_power_of_two_that_follows_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo("llama")
    options = {"longest": 60, "new_tokens": 0, "kept": True}
    monkeypatch.setattr(batching, "memory_free", lambda device: 1 << 40)
    large = batching.auto_batch_tokens(model, ("resid_post.0",), **options)
    monkeypatch.setattr(batching, "memory_free", lambda device: 3_000_000)
    small = batching.auto_batch_tokens(model, ("resid_post.0",), **options)
    assert small < large == 2048
    assert small & (small - 1) == 0


# ------------------------------------------------------------------------------------- results


def test_projections_equal_rows_times_vectors() -> None:
    model, prompts = zoo("llama"), sequences()
    torch.manual_seed(3)
    vectors: dict[str, Any] = {
        "a": torch.randn(32),
        "b": torch.randn(32, dtype=torch.float64),
        "c": {"resid_post.1": torch.randn(32)},
    }
    options: dict[str, Any] = {"tier": 2, "vectors": vectors, "max_new_tokens": 5, "stop_at_eos": False}
    kept = capture(model, prompts, keep_states=True, **options)
    lean = capture(model, prompts, **options)
    assert "resid_post.1" not in lean
    with pytest.raises(KeyError, match="keep_states=True"):
        lean["resid_post.1"]
    assert len(lean.projected) == 9
    for site, names in lean.projected.items():
        assert names == (["a", "b", "c"] if site == "resid_post.1" else ["a", "b"])
        columns = torch.stack(
            [v[site] if isinstance(v, dict) else v.float() for n, v in vectors.items() if n in names], 1
        )
        torch.testing.assert_close(lean.projection(site), kept[site] @ columns)
        torch.testing.assert_close(kept.projection(site), lean.projection(site))
    frame = lean.frame()
    assert len(frame) == lean.n_tokens
    assert frame["phase"].value_counts()["response"] == 5 * len(prompts)
    np.testing.assert_allclose(frame["c@resid_post.1"], lean.projection("resid_post.1")[:, 2])
    last = frame[frame["prompt_id"] == "p5"]
    assert last["position"].tolist() == list(range(8))
    assert last["token"].iloc[0] == f"w{prompts[5]['token_ids'][0]}"


def test_bfloat16_projects_in_float32() -> None:
    model = zoo("llama", torch.bfloat16)
    acts = capture(model, sequences(), sites="resid_post.2", vectors={"a": torch.ones(32) / 32})
    assert acts["resid_post.2"].dtype == torch.bfloat16
    exact = acts["resid_post.2"].double().mean(1)
    np.testing.assert_allclose(acts.projection("resid_post.2")[:, 0], exact, rtol=1e-5, atol=1e-6)


def test_tiers() -> None:
    model, prompts = zoo("llama"), sequences()
    two = capture(model, prompts, tier=2)
    assert set(two.sites) == {f"resid_{p}.{i}" for p in ("pre", "mid", "post") for i in range(3)}
    torch.testing.assert_close(two["resid_pre.2"], two["resid_post.1"])
    three = capture(model, prompts, tier=3, layer=2)
    assert {s.split(".")[0] for s in three.sites} == set(model.sites.kinds()) - {"embed"}
    assert three["attn.2"].shape == (three.n_tokens, 4, 20)
    assert three["k.2"].shape == (three.n_tokens, 16)
    assert capture(model, prompts, tier=3).sites[0].endswith(".1")


def test_events_tell_the_whole_story() -> None:
    seen: list[Any] = []
    prompts = sequences()
    capture(
        zoo("llama"),
        prompts,
        tier=2,
        vectors={"v": torch.ones(32)},
        max_new_tokens=4,
        stop_at_eos=False,
        batch_tokens=60,
        iteration_hook=seen.append,
    )
    begin, ends, end = seen[0], seen[1:-1], seen[-1]
    assert isinstance(begin, CaptureBegin)
    assert isinstance(end, CaptureEnd)
    assert all(isinstance(e, BatchEnd) for e in ends)
    assert begin.n_batches == len(ends) > 1
    assert begin.estimated_bytes == 4 * 9 * (50 + 24)
    assert begin.estimated_seconds > 0
    assert sum(e.tokens_real for e in ends) == end.tokens_real == 50 + 24
    assert sum(e.tokens_generated for e in ends) == end.tokens_generated == 24
    assert sum(e.tokens_padded for e in ends) == end.tokens_padded >= end.tokens_real
    first = ends[0]
    assert first.prompt_id == "p4"
    assert len(first.tokens) == 24
    assert set(first.projections) == {f"v@resid_{p}.{i}" for p in ("pre", "mid", "post") for i in range(3)}
    assert all(len(v) == 24 for v in first.projections.values())
    assert set(first.stage_seconds) >= {"prefill", "decode", "record", "project"}


def test_an_event_of_a_long_prompt_and_many_projections_is_small() -> None:
    seen: list[Any] = []
    model = load_model("tiny")
    prompts = [{"id": "long", "token_ids": [5 + i % 40 for i in range(250)]}]
    vectors = {f"vector {i}": torch.randn(model.width) for i in range(5)}
    capture(model, prompts, tier=2, vectors=vectors, iteration_hook=seen.append)
    (batch,) = (e for e in seen if isinstance(e, BatchEnd))
    assert len(json.dumps(batch.to_dict())) < 80_000
    assert batch.tokens_real == 250
    assert len(batch.tokens) == 120
    assert len(batch.projections) == 24
    assert all(len(values) == 120 for values in batch.projections.values())
    sites = [name.split("@")[1] for name in batch.projections]
    assert (sites[0], sites[-1]) == ("resid_pre.0", f"resid_post.{model.n_layers - 1}")  # from all depths


def test_a_hook_stops_after_the_batch_under_way() -> None:
    prompts = sequences()
    acts = capture(
        zoo("llama"),
        prompts,
        batch_tokens=20,
        iteration_hook=lambda e: isinstance(e, BatchEnd) and e.batch == 1,
    )
    assert not acts.complete
    assert acts.prompt_ids == ["p1", "p4"]
    whole = capture(zoo("llama"), prompts)
    torch.testing.assert_close(
        acts["resid_post.0"], torch.cat([whole.rows("resid_post.0", p) for p in ("p1", "p4")])
    )
    nothing = capture(zoo("llama"), prompts, iteration_hook=lambda e: True)
    assert nothing.n_prompts == nothing.n_tokens == 0


def test_forward_only_ends_after_the_deepest_site() -> None:
    model = zoo("llama")
    ran: list[int] = []
    handle = model.sites.blocks[1].register_forward_pre_hook(lambda m, a: ran.append(1))
    try:
        capture(model, sequences(), sites="resid_post.0, attn_out.0, attn.0")
        assert not ran
        capture(model, sequences(), sites="resid_mid.1")
        assert ran
    finally:
        handle.remove()


def test_report_accounts_for_the_time() -> None:
    acts = capture(zoo("llama"), sequences(), max_new_tokens=6, stop_at_eos=False, check=1)
    report = acts.report
    assert list(report.index[:3]) == ["load", "tokenise", "prefill"]
    np.testing.assert_allclose(report["share"].iloc[1:-1].sum(), 1)
    assert report.loc["decode", "real"] > 0
    assert report.attrs["tokens_real"] == 50 + 36
    assert report.attrs["bytes_peak"] > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": "resid_post.7"}, ValueError, "layers 0 … 2"),
        ({"tier": 4}, ValueError, "tier must be 2 or 3"),
        ({"tier": 2, "sites": "embed"}, ValueError, "not both"),
        ({"layer": 1}, ValueError, "tier=3"),
        ({"tier": 3, "layer": 9}, ValueError, "layers 0 … 2"),
        ({"vectors": {"v": torch.ones(31)}}, ValueError, r"'v' has shape \(31,\).*width 32"),
        ({"vectors": {"v": torch.full((32,), torch.nan)}}, ValueError, "not finite"),
        ({"vectors": {"v": {"resid_pre.0": torch.ones(32)}}}, ValueError, "none of the sites"),
        ({"sites": "q.0", "vectors": {"v": torch.ones(32)}}, ValueError, "none of the sites"),
        (
            {"sites": "q.0", "vectors": {"v": {"q.0": torch.ones(32)}}},
            ValueError,
            r"'v': rows of q\.0 are not states of the residual stream",
        ),
        ({"keep_states": False}, ValueError, "keeps nothing"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens"),
        ({"max_new_tokens": 60}, ValueError, r"'p0' is too long: 5 tokens and 60 new ones.*64"),
        ({"temperature": -0.1}, ValueError, "temperature"),
        ({"batch_tokens": 0}, ValueError, "batch_tokens"),
        ({"check": -1}, ValueError, "check"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        capture(zoo("llama"), sequences(), **options)


@pytest.mark.parametrize("name", ["tiny", Path("tiny")])
def test_a_name_is_not_a_model(name: Any) -> None:
    with pytest.raises(TypeError, match=rf"got a {type(name).__name__}: load .*load_model\('tiny'\)"):
        interp.capture(name, ["Hello."])
    with pytest.raises(TypeError, match=r"got a GPT2\w+: expected what .*wrap\(model"):
        interp.capture(zoo("gpt2").hf, ["Hello."])


def test_encoders_do_not_generate() -> None:
    with pytest.raises(ValueError, match="encoder and cannot generate"):
        capture(zoo("bert"), sequences(), max_new_tokens=1)


def test_a_model_without_a_tokenizer_takes_token_ids() -> None:
    model = wrap(zoo("llama").hf)
    assert capture(model, sequences()).tokens(0)[0].isdigit()
    with pytest.raises(ValueError, match="no tokenizer"):
        capture(model, ["w3"])


def test_pad_id_zero_is_a_pad_id_and_roberta_keeps_its_own() -> None:
    assert zoo("llama").pad_id == 0
    assert zoo("roberta").pad_id == 1
    assert zoo("roberta").context == 64
    assert tokenizer().pad_token_id == 0
    assert max(t for p in sequences() for t in p["token_ids"]) < VOCAB
