"""Folders: atomic, resumable at any moment, checked, flat in memory, plain to read."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_zoo import sequences, tokenizer, zoo
from safetensors.torch import load_file

from interp.capture import Activations, capture, store
from interp.capture.check import relative_error
from interp.capture.report import summary
from interp.events import BatchEnd, CaptureBegin, rss_bytes
from interp.files import write_json

LENGTHS = (5, 12, 1, 9, 20, 3, 7, 7, 15, 2)
OPTIONS: dict[str, Any] = {
    "sites": "embed, resid_pre.*, resid_post.*, attn.1",
    "vectors": {"v": torch.arange(32.0)},
    "max_new_tokens": 3,
    "stop_at_eos": False,
    "batch_tokens": 40,
}
LARGE = "resid_mid.*, resid_post.*, mlp_act.*, attn_out.*, mlp_out.*, q.*, attn.0"


def same(a: Activations, b: Activations, *, exact: bool = True) -> None:
    assert a.prompt_ids == b.prompt_ids
    assert torch.equal(a.offsets, b.offsets)
    assert torch.equal(a.token_ids, b.token_ids)
    assert torch.equal(a.phase, b.phase)
    assert a.sites == b.sites
    for site in a.sites:
        assert torch.equal(a[site], b[site]) if exact else relative_error(a[site], b[site]) < 1e-5
        assert a.projected == b.projected
    for site in a.projected:
        torch.testing.assert_close(a.projection(site), b.projection(site))


def test_memory_and_folder_are_one_thing(tmp_path: Path) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    inside = capture(model, prompts, **OPTIONS)
    on_disk = capture(model, prompts, out=tmp_path / "direct", **OPTIONS)
    saved = inside.save(tmp_path / "saved")
    for other in (on_disk, Activations.load(saved), Activations.load(tmp_path / "direct")):
        same(inside, other)
        assert other.tokens("p2") == inside.tokens("p2")
        assert other.frame().equals(inside.frame())
        for i in (0, "p4"):
            assert torch.equal(other.rows("resid_pre.1", i), inside.rows("resid_pre.1", i))
    # Saving again what was read back, and what was put together in memory, changes nothing.
    same(inside, Activations.load(Activations.load(saved).save(tmp_path / "again")))
    with pytest.raises(FileExistsError, match="not empty"):
        inside.save(saved)


def test_shards_are_plain_safetensors(tmp_path: Path) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    acts = capture(model, prompts, out=tmp_path, **OPTIONS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["complete"]
    assert {k: manifest["model"][k] for k in ("name", "dtype", "attention")} == {
        "name": "llama",
        "dtype": "float32",
        "attention": "eager",
    }
    assert manifest["tokenizer_hash"] == model.tokenizer_hash != ""
    assert {"torch", "transformers", "interp"} <= manifest["versions"].keys()
    assert manifest["report"]["tokens_real"] == acts.n_tokens
    seen = []
    for entry in manifest["shards"]:
        tensors = load_file(tmp_path / entry["file"])
        lengths = tensors["lengths"].tolist()
        for p, rows, ids in zip(
            tensors["prompts"].tolist(),
            tensors[manifest["same_as"]["resid_pre.1"]].split(lengths),
            tensors["token_ids"].split(lengths),
            strict=True,
        ):
            seen.append(p)
            assert torch.equal(rows, acts.rows("resid_pre.1", p))
            assert ids[: LENGTHS[p]].tolist() == prompts[p]["token_ids"]
    assert sorted(seen) == list(range(len(prompts)))
    assert not list(tmp_path.glob("*.tmp"))
    assert not (tmp_path / "journal.jsonl").exists()


@pytest.mark.parametrize("on_disk", [True, False])
def test_batches_stream_what_does_not_fit(on_disk: bool, tmp_path: Path) -> None:
    acts = capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path if on_disk else None, **OPTIONS)
    _ = acts["resid_pre.1"]  # put together in memory: the shards must still be whole
    rows = {}
    for ids, shard in acts.batches():
        rows.update(zip(ids, shard.tensors["resid_pre.2"].split(shard.lengths), strict=True))
    assert torch.equal(torch.cat([rows[id] for id in acts.prompt_ids]), acts["resid_post.1"])


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    whole = capture(model, prompts, **OPTIONS)
    partial = capture(
        model,
        prompts,
        out=tmp_path,
        iteration_hook=lambda e: isinstance(e, BatchEnd) and e.batch == 2,
        **OPTIONS,
    )
    assert 0 < partial.n_prompts < len(prompts)
    assert not Activations.load(tmp_path).complete
    seen: list[Any] = []
    rest = capture(model, prompts, out=tmp_path, iteration_hook=seen.append, **OPTIONS)
    assert next(e for e in seen if isinstance(e, CaptureBegin)).n_resumed == partial.n_prompts
    same(rest, whole, exact=False)
    again: list[Any] = []
    same(capture(model, prompts, out=tmp_path, iteration_hook=again.append, **OPTIONS), rest)
    assert not again, "a finished run was run again"


def test_a_resumed_run_reports_what_it_did_and_what_was_there(tmp_path: Path) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    stop = {"iteration_hook": lambda e: isinstance(e, BatchEnd) and e.batch == 2}
    first = capture(model, prompts, out=tmp_path, **stop, **OPTIONS)
    assert first.meta["report"]["n_resumed"] == 0
    assert "already" not in summary(first.meta["report"])
    rest = capture(model, prompts, out=tmp_path, **OPTIONS)
    assert 0 < first.n_prompts < len(prompts)
    for acts in (rest, Activations.load(tmp_path)):
        assert acts.report.attrs["n_resumed"] == first.n_prompts
        assert acts.report.attrs["tokens_real"] == rest.n_tokens - first.n_tokens
        assert f"{first.n_prompts} prompt(s) were there already" in summary(acts.meta["report"])
    older = {k: v for k, v in rest.meta["report"].items() if k != "n_resumed"}
    assert "already" not in summary(older)


def test_a_check_of_a_finished_run_is_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    capture(model, prompts, out=tmp_path, check=2, **OPTIONS)
    found = capture(model, prompts, out=tmp_path, **OPTIONS).check
    assert found
    assert not caplog.records
    assert capture(model, prompts, out=tmp_path, check=3, **OPTIONS).check == found
    assert "check=3 compared nothing" in caplog.text
    assert str(tmp_path) in caplog.text


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return its exit code, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # forking beside idle threads of torch is fine here
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killing(fn: Callable[..., Any], call: int, *, before: bool) -> Callable[..., Any]:
    """`fn`, but the process dies by SIGKILL around its n-th call."""
    calls = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if before and calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        out = fn(*args, **kwargs)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    return wrapped


@pytest.mark.parametrize(
    ("name", "call", "before"),
    [
        ("write_json", 1, True),  # the folder exists, the manifest does not
        ("os.fsync", 3, False),  # a shard under its temporary name (the manifest's calls come first)
        ("file_hash", 3, False),
        ("os.replace", 3, False),  # a shard renamed (the first call is the manifest's), not in the journal
        ("os.fsync", 8, False),  # a line in the journal
        ("write_json", 2, True),  # all shards done, the manifest not
        ("write_json", 2, False),  # the manifest done, the journal still there
    ],
)
def test_killed_at_every_step(name: str, call: int, before: bool, tmp_path: Path) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    out = tmp_path / "run"

    def work() -> None:
        where = os if name.startswith("os.") else store
        short = name.removeprefix("os.")
        setattr(where, short, killing(getattr(where, short), call, before=before))
        capture(model, prompts, out=out, **OPTIONS)

    assert in_child(work) == -signal.SIGKILL
    acts = capture(model, prompts, out=out, **OPTIONS)
    same(acts, capture(model, prompts, **OPTIONS), exact=False)
    same(Activations.load(out), acts)
    assert not list(out.glob(".*"))
    n_shards = len(list(out.glob("shard-*")))
    assert n_shards == len(json.loads((out / "manifest.json").read_text())["shards"])


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The same folder, killed again and again until it is done."""
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    expected = capture(model, prompts, **OPTIONS)
    add = store.Folder.add

    def work() -> None:
        store.Folder.add = lambda s, x: (time.sleep(0.02), add(s, x))[1]  # type: ignore[method-assign]
        capture(model, prompts, out=tmp_path, **OPTIONS)

    def delayed_kill(seconds: float) -> None:
        signal.signal(signal.SIGALRM, lambda *a: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        work()

    codes = [in_child(lambda s=s: delayed_kill(s)) for s in (0.03, 0.05, 0.08, 0.11)]
    assert -signal.SIGKILL in codes
    same(capture(model, prompts, out=tmp_path, **OPTIONS), expected, exact=False)


def test_another_run_is_refused(tmp_path: Path) -> None:
    prompts = sequences(0, LENGTHS)
    capture(zoo("llama"), prompts, out=tmp_path, **OPTIONS)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    for model, items, change, what in (
        (zoo("mistral"), prompts, {}, "model"),
        (zoo("llama"), prompts[:3], {}, "prompts_hash"),
        (zoo("llama"), prompts, {"sites": "resid_post.0, attn.0"}, "sites"),
        (zoo("llama"), prompts, {"seed": 1}, "seed"),
        (zoo("llama"), prompts, {"max_new_tokens": 4}, "max_new_tokens"),
        (zoo("llama"), prompts, {"vectors": {"v": torch.ones(32)}}, "vectors_hash"),
    ):
        with pytest.raises(FileExistsError, match=f"another run: its {what} is"):
            capture(model, items, out=tmp_path, **{**OPTIONS, **change})
    assert before == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        capture(zoo("llama"), prompts, out=other, **OPTIONS)


def test_what_is_no_folder_of_a_capture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file is a file: give a folder"):
        capture(zoo("llama"), sequences(), out=tmp_path / "file", **OPTIONS)
    write_json(tmp_path / "manifest.json", {"format": "interp-activations 99"})
    with pytest.raises(ValueError, match=r"manifest\.json has format 'interp-activations 99', expected"):
        Activations.load(tmp_path)


def test_what_was_not_captured_is_named_with_what_was() -> None:
    acts = capture(zoo("llama"), sequences(0, (4, 6)), sites="resid_post.0, resid_post.1")
    with pytest.raises(
        KeyError, match=r"site 'q\.1' was not captured; these were: resid_post\.0, resid_post"
    ):
        acts["q.1"]
    for prompt in ("nobody", 2, -1):
        with pytest.raises(KeyError, match="there are 2, with ids"):
            acts.rows("resid_post.0", prompt)
    with pytest.raises(ValueError, match="shards: a prompt is in two shards"):
        Activations(acts.meta, [*acts._shards, *acts._shards])


def test_rows_that_fail_the_check_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next run would find them finished, and trust them."""
    monkeypatch.setattr("interp.capture.check.LIMIT", 1e-12)
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="differ from a single run"):
            capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path, check=len(LENGTHS), **OPTIONS)
        assert not list(tmp_path.glob("shard-*"))


def test_a_stopped_capture_can_be_saved_and_continued(tmp_path: Path) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    partial = capture(model, prompts, iteration_hook=lambda e: isinstance(e, BatchEnd), **OPTIONS)
    again = Activations.load(partial.save(tmp_path / "part"))
    same(again, partial)
    assert not again.complete
    same(
        capture(model, prompts, out=tmp_path / "part", **OPTIONS),
        capture(model, prompts, **OPTIONS),
        exact=False,
    )


def test_a_damaged_shard_is_refused_by_name(tmp_path: Path) -> None:
    prompts = sequences(0, LENGTHS)
    capture(zoo("llama"), prompts, out=tmp_path, **OPTIONS)
    shard = sorted(tmp_path.glob("shard-*"))[1]
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        _ = Activations.load(tmp_path)["resid_post.0"]
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        capture(zoo("llama"), prompts, out=tmp_path, **OPTIONS)
    shard.write_bytes(good[:-10])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged: .* bytes instead of"):
        Activations.load(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        Activations.load(tmp_path)
    shard.write_bytes(good)
    assert Activations.load(tmp_path)["resid_post.0"].shape[1] == 32
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Activations.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no captured activations"):
        Activations.load(tmp_path / "nowhere")


def test_a_full_disk_leaves_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS)
    calls = []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 9:  # two for the manifest, three for each shard
            raise OSError(28, "No space left on device")
        fsync(fd)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"shard-00002.*No space left.*2 shards before it are intact"):
        capture(model, prompts, out=tmp_path, **OPTIONS)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("shard-*"))) == 2
    same(capture(model, prompts, out=tmp_path, **OPTIONS), capture(model, prompts, **OPTIONS), exact=False)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path, **OPTIONS)
    held = store.Folder(tmp_path)
    with pytest.raises(RuntimeError, match=rf"being written by process {os.getpid()} on .* since"):
        capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path, **OPTIONS)
    held.close()
    capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path, **OPTIONS)


def test_json_for_viewers(tmp_path: Path) -> None:
    acts = capture(zoo("llama"), sequences(0, LENGTHS), **OPTIONS)
    content = json.loads(acts.to_json(tmp_path / "view.json").read_text())
    assert [p["id"] for p in content["prompts"]] == acts.prompt_ids
    one = content["prompts"][4]
    assert (len(one["tokens"]), one["n_prompt"]) == (23, 20)
    a, b = acts.offsets[4:6].tolist()
    expected = acts.projection("resid_post.2")[a:b, 0]
    torch.testing.assert_close(
        torch.tensor(one["projections"]["v"]["resid_post.2"]), expected, rtol=1e-4, atol=1e-9
    )
    with pytest.raises(FileExistsError):
        acts.to_json(tmp_path / "view.json")
    part = json.loads(acts.to_json(tmp_path / "part.json", prompts=["p3"]).read_text())
    assert [p["id"] for p in part["prompts"]] == ["p3"]
    zeros = capture(zoo("llama"), sequences(0, (3,)), sites="embed", vectors={"z": torch.zeros(32)})
    (zero,) = json.loads(zeros.to_json(tmp_path / "zero.json").read_text())["prompts"]
    assert zero["projections"] == {"z": {"embed": [0, 0, 0]}}
    with pytest.raises(ValueError, match="nothing to export"):
        capture(zoo("llama"), sequences()).to_json(tmp_path / "no.json")


def test_memory_is_flat(tmp_path: Path) -> None:
    """What 100 batches add to the memory in use is what 10 add: within 10 % of what they write."""
    model, added = zoo("llama"), []
    for batches in (10, 100):
        out, told = tmp_path / str(batches), tmp_path / f"{batches}.txt"
        prompts = sequences(0, (60,) * 16 * batches)

        def work(out: Path = out, told: Path = told, prompts: list[Any] = prompts) -> None:
            before = rss_bytes()  # of whatever tests this process has run
            capture(model, prompts, sites=LARGE, out=out, batch_tokens=960)
            told.write_text(str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))

        assert in_child(work) == 0
        added.append(int(told.read_text()))
        written = sum(p.stat().st_size for p in out.glob("shard-*"))
        assert len(list(out.glob("shard-*"))) == batches
    assert written > 300e6
    assert added[1] < added[0] + 0.1 * written, added


def test_the_tokenizer_is_part_of_the_record() -> None:
    model = zoo("llama")
    before = model.tokenizer_hash
    changed = type(model)(model.hf, tokenizer(), "llama", "", "sdpa", "")
    assert changed.tokenizer_hash == before
    assert changed.fingerprint == model.fingerprint != zoo("mistral").fingerprint
