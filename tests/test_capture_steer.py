"""Steering: the right sum at the right tokens, and nothing left behind."""

from __future__ import annotations

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
    ],
)
def test_bad_steering(vectors: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), steer(zoo("llama"), vectors, **options):
        pass
