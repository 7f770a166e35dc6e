"""The bank: once, exactly, whatever the order, and again after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lens_world
import pytest
import torch

from interp.capture.record import capture
from interp.lens.bank import Bank
from interp.lens.pooling import pool
from interp.lens.samples import Samples

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def model():
    return lens_world.model()


@pytest.fixture(scope="module")
def some():
    return Samples(lens_world.pack()).positives("bird", "train", 24)


@pytest.mark.parametrize("how", ["mean", "max", "last"])
def test_pooling_against_a_loop(how):
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 5, generator=g)
    offsets = torch.tensor([0, 7, 8, 25, 40])
    mask = torch.rand(40, generator=g) < 0.5
    mask[7] = True
    got = pool(rows, offsets, mask, how)
    for i in range(4):
        part = rows[offsets[i] : offsets[i + 1]][mask[offsets[i] : offsets[i + 1]]]
        expected = {"mean": part.mean(0), "max": part.amax(0), "last": part[-1]}[how]
        torch.testing.assert_close(got[i], expected)


def test_pooling_nothing_is_refused():
    with pytest.raises(ValueError, match="prompt 1 has no row"):
        pool(torch.ones(4, 2), torch.tensor([0, 2, 4]), torch.tensor([True, True, False, False]), "mean")


@pytest.mark.parametrize("pooling", ["span", "mean", "max", "last"])
def test_rows_are_those_of_a_prompt_run_alone(model, some, pooling):
    bank = Bank(model, SITE, pooling=pooling)
    bank.ensure(some)
    for sample in some[:8]:
        acts = capture(model, [sample.text], sites=[SITE])
        rows = acts[SITE]
        spans = model.tokenizer(sample.text, return_offsets_mapping=True)["offset_mapping"]
        inside = [b > sample.start and a < sample.stop and b > a for a, b in spans]
        content = (
            torch.tensor(inside) if pooling == "span" else acts.token_ids != model.tokenizer.bos_token_id
        )
        part = rows[content]
        expected = {"max": part.amax(0), "last": part[-1]}.get(pooling, part.mean(0))
        torch.testing.assert_close(bank.take(bank.index([sample]))[0], expected, rtol=1e-4, atol=1e-5)


def test_each_prompt_is_forwarded_once(model, some, monkeypatch):
    """Counted where it happens: in the model."""
    seen = []
    real = type(model).states

    def counting(self, ids, mask):
        seen.extend(tuple(row[m.bool()].tolist()) for row, m in zip(ids, mask, strict=True))
        return real(self, ids, mask)

    monkeypatch.setattr(type(model), "states", counting)
    bank = Bank(model, SITE)
    bank.ensure(some[:10])
    bank.ensure([*some, *some[:5]])
    bank.ensure(some)
    assert len(seen) == len(set(seen)) == len({s.text for s in some}) == bank.n_forwarded == len(bank)


def test_prompts_wait_for_their_pooling_in_bounded_number(model):
    """What has been forwarded is pooled after a stop too, which should take no time."""
    texts = [f"{i:05d}" for i in range(5000)]
    chunks = list(Bank(model, SITE)._chunks(texts))
    assert [t for chunk in chunks for t in chunk] == texts
    assert max(map(len, chunks)) <= 2048
    wide = Bank(model, SITE)
    wide.model = SimpleNamespace(width=2560)
    long = ["a" * 3000] * 100  # some 1,000 tokens of 10 kB each
    assert max(map(len, wide._chunks(long))) <= 30


def test_rows_do_not_depend_on_order(model, some):
    a, b = Bank(model, SITE), Bank(model, SITE)
    a.ensure(some)
    for sample in reversed(some):
        b.ensure([sample])
    torch.testing.assert_close(a.take(a.index(some)), b.take(b.index(some)), rtol=1e-5, atol=1e-6)


def test_a_folder_serves_later_runs(model, some, tmp_path):
    first = Bank(model, SITE, folder=tmp_path)
    first.ensure(some[:10])
    second = Bank(model, SITE, folder=tmp_path)
    assert second.n_loaded == len({s.text for s in some[:10]})
    second.ensure(some)
    assert second.n_forwarded == len({s.text for s in some}) - second.n_loaded
    third = Bank(model, SITE, folder=tmp_path)
    third.ensure(some)
    assert third.n_forwarded == 0
    assert torch.equal(third.take(third.index(some)), second.take(second.index(some)))


@pytest.mark.parametrize(
    "other", [{"site": "resid_post.0"}, {"pooling": "mean"}, {"dtype": torch.bfloat16}, {"weights": 1}]
)
def test_another_model_site_pooling_or_dtype_shares_nothing(some, tmp_path, other):
    Bank(lens_world.model(), SITE, folder=tmp_path).ensure(some)
    model = lens_world.model(other.get("weights", 0), dtype=other.get("dtype", torch.float32))
    bank = Bank(model, other.get("site", SITE), pooling=other.get("pooling", "span"), folder=tmp_path)
    assert len(bank) == 0


def test_a_damaged_shard_is_refused_by_name(model, some, tmp_path):
    bank = Bank(model, SITE, folder=tmp_path)
    bank.ensure(some)
    shard = next(bank.folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=shard.name):
        Bank(model, SITE, folder=tmp_path)


def test_a_killed_run_goes_on(model, some, tmp_path):
    """kill −9 between two shards: what was written is whole, and is not forwarded again."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lens_world
from interp.lens.bank import Bank
from interp.lens.samples import Samples
some = Samples(lens_world.pack()).positives("bird", "train", 24)
bank = Bank(lens_world.model(), {SITE!r}, folder={str(tmp_path)!r})
bank.ensure(some[:12])
real = os.replace
def killed(a, b):
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed
bank.ensure(some)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    bank = Bank(model, SITE, folder=tmp_path)
    assert bank.n_loaded == len({s.text for s in some[:12]})
    bank.ensure(some)
    alone = Bank(model, SITE)
    alone.ensure(some)
    torch.testing.assert_close(
        bank.take(bank.index(some)), alone.take(alone.index(some)), rtol=1e-5, atol=1e-6
    )
    assert os.listdir(tmp_path)


def test_a_stop_keeps_what_is_finished(model, some):
    bank = Bank(model, SITE, batch_tokens=40)
    assert not bank.ensure(some, iteration_hook=lambda e: True)
    assert 0 < len(bank) < len({s.text for s in some})
    before = bank.n_forwarded
    assert bank.ensure(some)
    assert bank.n_forwarded == before + len({s.text for s in some}) - before


def test_continuations_depend_on_the_prompt_alone(model, some):
    unique = list({s.text: s for s in some}.values())
    options = {"continuation": 4, "temperature": 1.0, "seed": 3}
    a, b = Bank(model, SITE, **options), Bank(model, SITE, **options)
    a.ensure(unique)
    for sample in reversed(unique[:6]):
        b.ensure([sample])
    for sample in unique[:6]:
        i, j = int(a.index([sample])[0]), int(b.index([sample])[0])
        assert a.reply(i) == b.reply(j)
        torch.testing.assert_close(
            a.take(torch.tensor([i]), "replies"),
            b.take(torch.tensor([j]), "replies"),
            rtol=1e-4,
            atol=1e-5,
        )
    other = Bank(model, SITE, **{**options, "seed": 4})
    other.ensure(unique)
    same = [a.reply(int(a.index([s])[0])) == other.reply(int(other.index([s])[0])) for s in unique]
    assert not all(same)


def test_numbers_that_are_not_finite_are_named(some):
    model = lens_world.model()
    with torch.no_grad():
        model.hf.model.layers[0].mlp.down_proj.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="near the"):
        Bank(model, SITE).ensure(some)


def test_bad_arguments(model, some):
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        Bank(model, SITE, pooling="median")
    with pytest.raises(KeyError, match="24 of 24 samples are not in the bank"):
        Bank(model, SITE).index(some)
