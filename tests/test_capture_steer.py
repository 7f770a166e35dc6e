"""Steering: the right sum at the right tokens, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capture_zoo import ALL, sequences, zoo

from interp.capture import capture, steer


def direction(width: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("name", ALL)
def test_every_site_on_every_architecture(name: str, kind: str) -> None:
    model, prompts = zoo(name), sequences()
    site = kind if kind == "embed" else f"{kind}.1"
    v = direction(model.width)
    plain = capture(model, prompts, sites=site)[site]
    with steer(model, {site: v}, scale=3.0):
        steered = capture(model, prompts, sites=site)[site]
    torch.testing.assert_close(steered - plain, (3 * v).expand_as(plain), rtol=0, atol=2e-5)
    torch.testing.assert_close(capture(model, prompts, sites=site)[site], plain, rtol=0, atol=0)


def test_what_follows_is_changed_and_what_precedes_is_not() -> None:
    model, prompts = zoo("llama"), sequences()
    plain = capture(model, prompts, sites="resid_pre.*, resid_post.*")
    with steer(model, {"resid_pre.1": direction(32)}, scale=2.0):
        steered = capture(model, prompts, sites="resid_pre.*, resid_post.*")
    torch.testing.assert_close(steered["resid_pre.0"], plain["resid_pre.0"])
    # resid_pre.1 is resid_post.0: one state, steered as one.
    torch.testing.assert_close(steered["resid_pre.1"], plain["resid_pre.1"] + 2 * direction(32))
    torch.testing.assert_close(steered["resid_post.0"], steered["resid_pre.1"])
    assert (steered["resid_post.2"] - plain["resid_post.2"]).abs().max() > 0.1


def test_positions_in_generation() -> None:
    model, prompts = zoo("llama"), sequences(0, (5, 5))
    v, options = direction(32), {"sites": "resid_post.0", "max_new_tokens": 4, "stop_at_eos": False}
    plain = capture(model, prompts, **options)
    for positions, phase in (("prompt", 0), ("generated", 1)):
        with steer(
            model, {"resid_post.0": v}, scale=1e-3, positions=positions
        ):  # too little to change the text
            acts = capture(model, prompts, **options)
        assert torch.equal(acts.token_ids, plain.token_ids)
        moved = (acts["resid_post.0"] - plain["resid_post.0"]).norm(dim=1) > 5e-4
        assert torch.equal(moved, acts.phase == phase)
    with steer(model, {"resid_post.0": v}, positions=[1, -1]):
        acts = capture(model, prompts, sites="resid_post.0")
    moved = (acts["resid_post.0"] - capture(model, prompts, sites="resid_post.0")["resid_post.0"]).norm(
        dim=1
    ) > 0.1
    assert moved.tolist() == [False, True, False, False, True] * 2


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out"])
@pytest.mark.parametrize("name", ALL)
def test_indices_count_the_tokens_of_each_prompt(name: str, kind: str) -> None:
    """Whatever padding the batch brings, and on whichever side."""
    model, prompts, site = zoo(name), sequences(0, (5, 12, 3)), f"{kind}.1"
    for new in (0, 2) if model.is_causal else (0,):
        options = {"sites": site, "max_new_tokens": new, "stop_at_eos": False, "batch_tokens": 1000}
        plain = capture(model, prompts, **options)
        for positions, expected in (
            ([1, -1], [[1, 4], [1, 11], [1, 2]]),
            (slice(2, None, 4), [[2], [2, 6, 10], [2]]),
            (torch.tensor([0]), [[0], [0], [0]]),
        ):
            with steer(model, {site: direction(model.width)}, scale=0.01, positions=positions):
                acts = capture(model, prompts, **options)
            for i, at in enumerate(expected):
                rows = slice(acts.offsets[i], acts.offsets[i] + len(prompts[i]["token_ids"]))
                added = (acts[site][rows] - plain[site][rows]) @ direction(model.width)
                assert (added > 0.1).nonzero()[:, 0].tolist() == at


def test_a_prompt_of_one_token_is_a_prompt() -> None:
    model, prompts = zoo("llama"), sequences(0, (1, 4))
    options = {"sites": "resid_post.0", "max_new_tokens": 2, "stop_at_eos": False}
    plain = capture(model, prompts, **options)
    for positions, expected in (
        ("prompt", [1, 0, 0, 1, 1, 1, 1, 0, 0]),
        ("generated", [0, 1, 1, 0, 0, 0, 0, 1, 1]),
        ([0], [1, 0, 0, 1, 0, 0, 0, 0, 0]),
    ):
        with steer(model, {"resid_post.0": direction(32)}, scale=1e-3, positions=positions):
            acts = capture(model, prompts, **options)
        moved = (acts["resid_post.0"] - plain["resid_post.0"]).norm(dim=1) > 5e-4
        assert moved.int().tolist() == expected


def test_positions_without_a_mask_and_in_generate_of_transformers() -> None:
    model, kept = zoo("llama"), []
    ids = torch.tensor([p["token_ids"] for p in sequences(0, (4, 4))])

    def run(forward: Callable[[], object]) -> torch.Tensor:
        kept.clear()
        handle = model.sites.blocks[0].register_forward_hook(lambda m, a, out: kept.append(out))
        try:
            forward()
        finally:
            handle.remove()
        return torch.cat(kept, 1)

    generate = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for forward, expected in (
        (lambda: model.backbone(ids), [0, 0, 0, 1]),
        (lambda: model.backbone(inputs_embeds=model.hf.get_input_embeddings()(ids)), [0, 0, 0, 1]),
        (lambda: model.hf.generate(ids, **generate), [0, 0, 0, 1, 0, 0]),
    ):
        with torch.no_grad():
            plain = run(forward)
            with steer(model, {"resid_post.0": direction(32)}, scale=1e-3, positions=[-1]):
                steered = run(forward)
        assert ((steered - plain).norm(dim=2) > 5e-4).int().tolist() == [expected] * 2


def test_a_prompt_without_the_token_is_named_by_its_length() -> None:
    model = zoo("llama")
    message = "positions has 9, but a prompt has 5 tokens: expected -5 to 4"
    with steer(model, {"resid_post.1": direction(32)}, positions=[2, 9]):
        capture(model, sequences(0, (12, 10)), sites="resid_post.1")
        with pytest.raises(ValueError, match=message):
            capture(model, sequences(0, (12, 5)), sites="resid_post.1")


def test_a_monitor_may_watch_a_steered_capture() -> None:
    """The speed that the estimate goes by is not measured on passes that the positions do not fit."""
    model, events = zoo("mistral"), []
    model.__dict__.pop("speed", None)
    with steer(model, {"resid_post.1": direction(32)}, positions=[11]):
        capture(model, sequences(0, (12,)), sites="resid_post.1", iteration_hook=events.append)
    assert events


def test_scales_per_row() -> None:
    model = zoo("gpt2")
    ids = torch.tensor([p["token_ids"] for p in sequences(0, (6, 6, 6))])
    v, scales = direction(32), [0.0, 1.0, -2.5]
    kept: list[torch.Tensor] = []
    handle = None
    with torch.no_grad():
        plain = model.backbone(input_ids=ids, output_hidden_states=True).hidden_states[2]
        with steer(model, {"resid_post.1": v}, scale=scales):
            handle = model.sites.blocks[1].register_forward_hook(lambda m, a, out: kept.append(out))
            model.backbone(input_ids=ids)
            with pytest.raises(ValueError, match="3 numbers, but the batch has 2 rows"):
                model.backbone(input_ids=ids[:2])
    handle.remove()
    expected = torch.tensor(scales)[:, None, None] * v
    torch.testing.assert_close(kept[0] - plain, expected.expand_as(plain), rtol=0, atol=1e-5)


def test_bfloat16_rounds_once() -> None:
    model = zoo("llama", torch.bfloat16)
    prompts, v = sequences(), direction(32) * 0.01
    plain = capture(model, prompts, sites="resid_post.1")["resid_post.1"]
    with steer(model, {"resid_post.1": v}, scale=0.37):
        steered = capture(model, prompts, sites="resid_post.1")["resid_post.1"]
    assert torch.equal(steered, (plain.float() + 0.37 * v).bfloat16())


def test_a_block_that_gets_its_state_by_name() -> None:
    """As other versions and architectures call theirs; what is added is the same."""
    model, prompts, v = zoo("llama"), sequences(), direction(32)
    sites = ["resid_pre.0", "resid_post.2"]
    with steer(model, {"resid_pre.0": v}):
        expected = capture(model, prompts, sites=sites)
    by_name = model.sites.blocks[0].register_forward_pre_hook(
        lambda m, args, kwargs: ((), {**kwargs, "hidden_states": args[0]}), with_kwargs=True
    )
    try:
        with steer(model, {"resid_pre.0": v}):
            steered = capture(model, prompts, sites=sites)
    finally:
        by_name.remove()
    for site in sites:
        assert torch.equal(steered[site], expected[site])


def test_hooks_are_gone_after_an_exception() -> None:
    model = zoo("llama")

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())

    before = hooks()

    def failing() -> None:
        with steer(model, {"resid_post.*": direction(32), "embed": direction(32)}):
            assert hooks() == before + 4
            raise RuntimeError("something in between")

    with pytest.raises(RuntimeError, match="in between"):
        failing()
    assert hooks() == before


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        ({"resid_post.9": torch.ones(32)}, {}, "layers 0 … 2"),
        ({"q.1": torch.ones(32)}, {}, "cannot steer at 'q.1'"),
        ({"resid_post.1": torch.ones(3)}, {}, r"shape \(3,\), expected \(32,\)"),
        ({"resid_post.1": torch.full((32,), torch.inf)}, {}, "not finite"),
        ({"resid_post.1": torch.ones(32)}, {"scale": [[1.0]]}, "scale must be"),
        ({"resid_post.1": torch.ones(32)}, {"positions": "last"}, "positions must be"),
        ({"resid_post.1": torch.ones(32)}, {"positions": 3}, "positions must be"),
        ({"resid_post.1": torch.ones(32)}, {"positions": [0.5]}, "positions must be"),
        ({"resid_post.1": torch.ones(32)}, {"positions": [True, False]}, "positions must be"),
        ({"resid_post.1": torch.ones(32)}, {"positions": torch.tensor([True, False])}, "positions must be"),
        ({"resid_post.1": torch.ones(32)}, {"positions": slice("a", None)}, "no slice of tokens"),
        ({"resid_post.1": torch.ones(32)}, {"positions": slice(0, 9, 0)}, "no slice of tokens"),
        ({"resid_post.1": torch.ones(32)}, {"positions": [1, 64]}, "has 64, but the model's context has 64"),
        ({"resid_post.1": torch.ones(32)}, {"positions": [-65]}, "has -65, but the model's context"),
    ],
)
def test_bad_steering(vectors: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), steer(zoo("llama"), vectors, **options):
        pass
