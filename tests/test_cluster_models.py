"""Scale out with a model: captures and lenses of many tasks are those of one, file by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lens_world
import pytest
import torch
from lens_world import pack as small_pack

from interp import Activations, ConceptPack, Lenses, Prompts, cluster, load_model, train_lenses
from interp.capture.batching import pack as pack_batches
from interp.capture.record import capture
from interp.cluster import activations, models
from interp.cluster.tasks import Cancelled
from interp.events import (
    BatchEnd,
    CaptureBegin,
    CaptureEnd,
    LensEnd,
    TaskBegin,
    TaskEnd,
    TrainBegin,
    TrainEnd,
    read,
)
from interp.lens import train

CAPTURE = {
    "sites": ["resid_post.*", "attn.1"],
    "max_new_tokens": 5,
    "temperature": 0.8,
    "seed": 3,
    "batch_tokens": 48,
}
LENSES = {"site": "resid_post.1", "growth": [10, 20], "seed": 1, "batch_tokens": 512}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    """The folder of a small random model over words."""
    folder = tmp_path_factory.mktemp("model")
    model = lens_world.model()
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    texts = [s for leaf in ("bird", "car") for s in lens_world.sentences(leaf, 10)]
    return Prompts(
        [*(" ".join([s] * (1 + i % 3)) for i, s in enumerate(texts)), {"id": "a/b", "text": "the boy"}]
    )


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"one": torch.randn(48), "two": {"resid_post.0": torch.randn(48)}}


def shards(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.glob("*.safetensors"))}


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest but for its times."""
    found = json.loads((folder / "manifest.json").read_text())
    return {k: v for k, v in found.items() if k not in ("report", "sha256")}


@pytest.fixture(scope="module")
def whole(world, prompts, vectors, tmp_path_factory) -> Path:
    """A plain capture of everything."""
    folder = tmp_path_factory.mktemp("whole") / "capture"
    capture(load_model(world), prompts, vectors=vectors, out=folder, **CAPTURE)
    return folder


# --------------------------------------------------------------------------------------- capture


@pytest.mark.parametrize(
    ("n_tasks", "executor"), [(1, "inline"), (4, "inline"), (16, "inline"), (3, "processes")]
)
def test_a_capture_in_tasks_is_the_plain_capture_file_by_file(
    world, prompts, vectors, whole, tmp_path, n_tasks, executor
):
    tasks = cluster.plan(
        prompts, tmp_path / "run", job="capture", n_tasks=n_tasks, model=world, vectors=vectors, **CAPTURE
    )
    assert len(tasks) == n_tasks
    paths = cluster.run(tasks[::-1], executor, n_workers=2)
    acts = cluster.merge(paths)
    assert acts.complete
    assert acts.folder == tmp_path / "run" / "merged"
    assert len(shards(whole)) > 4
    assert shards(acts.folder) == shards(whole)
    assert manifest(acts.folder) == manifest(whole)
    plain = Activations.load(whole)
    assert acts.report.attrs["tokens_real"] == plain.report.attrs["tokens_real"]
    assert acts.report.attrs["n_batches"] == plain.report.attrs["n_batches"]
    assert torch.equal(acts["resid_post.2"], plain["resid_post.2"])


def test_a_capture_task_that_was_cut_off_goes_on_behind_its_shards(world, prompts, vectors, whole, tmp_path):
    (task,) = cluster.plan(
        prompts, tmp_path / "run", job="capture", n_tasks=1, model=world, vectors=vectors, **CAPTURE
    )
    real = activations.capture

    def cut_off(*args: Any, iteration_hook: Any, **options: Any) -> Any:
        def crash(event: Any) -> None:
            if isinstance(event, BatchEnd) and event.batch == 2:
                raise KeyboardInterrupt

        return real(*args, iteration_hook=[iteration_hook, crash], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "capture", cut_off)
        with pytest.raises(KeyboardInterrupt):
            cluster.run_task(task)
    stamps = {f.name: f.stat().st_mtime_ns for f in (task.path / "activations").glob("shard-*")}
    assert len(stamps) == 3
    merged = cluster.merge(cluster.run([task], "inline")).folder
    after = {f.name: f.stat().st_mtime_ns for f in (task.path / "activations").glob("shard-*")}
    assert {k: after[k] for k in stamps} == stamps  # not done again
    assert shards(merged) == shards(whole)
    assert manifest(merged) == manifest(whole)
    begins = [e for e in read(task.log) if isinstance(e, CaptureBegin)]
    assert [e.n_resumed > 0 for e in begins] == [False, True]


def test_a_merge_that_was_cut_off_goes_on(world, prompts, vectors, whole, tmp_path):
    from interp.capture.store import Folder

    tasks = cluster.plan(
        prompts, tmp_path / "run", job="capture", n_tasks=3, model=world, vectors=vectors, **CAPTURE
    )
    cluster.run(tasks, "inline")
    real, left = Folder.add, [3]

    def add(self: Folder, shard: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(self, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "add", add)
        with pytest.raises(KeyboardInterrupt):
            cluster.merge(tmp_path / "run")
    for _ in range(2):  # go on, and open what is complete
        assert shards(cluster.merge(tmp_path / "run").folder) == shards(whole)
    assert manifest(tmp_path / "run" / "merged") == manifest(whole)


def test_more_tasks_than_batches_leaves_some_with_nothing(world, tmp_path):
    tasks = cluster.plan(
        ["the boy", "a girl", "the king"],
        tmp_path / "run",
        job="capture",
        n_tasks=3,
        model=world,
        sites="embed",
    )
    acts = cluster.merge(cluster.run(tasks, "inline"))
    assert (acts.n_prompts, acts.complete) == (3, True)
    assert sum((t.path / "activations").exists() for t in tasks) == 1


def test_shares_are_consecutive_batches_of_like_cost():
    lengths = [7, 3, 3, 12, 5, 5, 5, 9, 2, 30, 4, 4] * 8
    ids = [[0] * n for n in lengths]
    batches = pack_batches(lengths, 40)
    for n in (1, 2, 5, 11, 200):
        parts = [activations._share(batches, ids, k, n) for k in range(n)]
        assert [b for part in parts for b in part] == batches
        costs = [sum(len(b) * len(ids[b[0]]) for b in part) for part in parts]
        assert max(costs) <= sum(costs) / n + 80


def test_checks_of_all_tasks_are_kept(world, prompts, tmp_path):
    options = {**CAPTURE, "sites": "resid_post.1", "check": 2}
    tasks = cluster.plan(prompts, tmp_path / "run", job="capture", n_tasks=3, model=world, **options)
    acts = cluster.merge(cluster.run(tasks, "inline"))
    each = [Activations.load(t.path / "activations").check["resid_post.1"] for t in tasks]
    assert acts.check == {"resid_post.1": max(each)}
    assert 0 < max(each) < 1e-4


def test_a_load_that_tasks_share_is_counted_once(world, prompts, tmp_path):
    tasks = cluster.plan(prompts, tmp_path / "run", job="capture", n_tasks=3, model=world, **CAPTURE)
    whole = cluster.merge(cluster.run(tasks, "inline")).meta["report"]
    each = [Activations.load(t.path / "activations").meta["report"] for t in tasks]
    assert len({r["load_seconds"] for r in each}) == 1
    assert whole["load_seconds"] == each[0]["load_seconds"] > 0
    assert whole["tokens_real"] == sum(r["tokens_real"] for r in each)
    assert whole["n_resumed"] == 0


def test_tasks_that_ran_elsewhere_differently_are_not_merged(world, prompts, tmp_path):
    tasks = cluster.plan(prompts, tmp_path / "run", job="capture", n_tasks=2, model=world, **CAPTURE)
    cluster.run(tasks, "inline")
    about = tasks[1].path / "whole.json"
    content = activations.read_json(about)
    content["manifest"]["model"]["attention"] = "flash"
    activations.write_json(about, content)
    with pytest.raises(ValueError, match=r"task-0001 captured something else than task-0000: model"):
        cluster.merge(tmp_path / "run")


# ---------------------------------------------------------------------------------------- lenses


def lens_files(folder: Path) -> tuple[dict[str, Any], list[bytes]]:
    """``lenses.json`` but for seconds and the name of the tensors, and the tensors."""
    content = json.loads((folder / "lenses.json").read_text())

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "tensors", "sha256")}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    return timeless(content), [f.read_bytes() for f in folder.glob("lenses-*.safetensors")]


def plan_lenses(world: str, folder: Path, n_tasks: int) -> list[cluster.Task]:
    return cluster.plan(
        small_pack(), folder, job="lenses", n_tasks=n_tasks, shard_size=3, model=world, **LENSES
    )


@pytest.fixture(scope="module")
def one_task(world, tmp_path_factory) -> tuple[dict[str, Any], list[bytes]]:
    folder = tmp_path_factory.mktemp("lenses") / "run"
    cluster.merge(cluster.run(plan_lenses(world, folder, 1), "inline"))
    return lens_files(folder / "merged")


@pytest.mark.parametrize(("n_tasks", "executor"), [(2, "inline"), (16, "inline"), (3, "processes")])
def test_lenses_of_many_tasks_are_those_of_one_file_by_file(world, tmp_path, one_task, n_tasks, executor):
    tasks = plan_lenses(world, tmp_path / "run", n_tasks)
    assert len(tasks) == min(n_tasks, 3)  # nine concepts, three at a time
    lenses = cluster.merge(cluster.run(tasks[::-1], executor, n_workers=2))
    assert [r.concept for r in lenses.reports] == [c.id for c in small_pack()]
    assert lens_files(tmp_path / "run" / "merged") == one_task
    assert Lenses.load(tmp_path / "run" / "merged").grades == lenses.grades
    assert not list((tmp_path / "run").glob("tasks/*/bank-*"))


def test_lenses_in_shards_are_the_plain_lenses_but_for_rounding(world, tmp_path):
    lenses = cluster.merge(cluster.run(plan_lenses(world, tmp_path / "run", 2), "inline"))
    plain = train_lenses(load_model(world), small_pack(), **LENSES)
    assert plain.ids == lenses.ids
    assert [r.grade for r in plain.reports] == [r.grade for r in lenses.reports]
    rows = torch.randn(200, 48)
    mine, theirs = (x.score(rows, site=LENSES["site"]) for x in (lenses, plain))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert set(lenses.meta) == set(plain.meta)


def test_a_lens_task_that_was_cut_off_goes_on_and_its_events_count_on(world, tmp_path, one_task):
    (task,) = plan_lenses(world, tmp_path / "run", 1)
    real, forwarded = train.Bank._forward, [0]

    def forward(self: Any, *args: Any) -> bool:
        forwarded[0] += 1
        if forwarded[0] == 6:
            raise KeyboardInterrupt
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Bank, "_forward", forward)
        with pytest.raises(KeyboardInterrupt):
            cluster.run_task(task)
    assert len(list(task.path.glob("lenses-*/lenses.json"))) >= 1
    assert len(list(task.path.glob("bank-*"))) == 1
    cluster.merge(cluster.run([task], "inline"))
    assert lens_files(tmp_path / "run" / "merged") == one_task
    events = read(task.log)
    again = events[max(i for i, e in enumerate(events) if isinstance(e, TaskBegin)) :]
    assert [e.n_lenses for e in again if isinstance(e, (TrainBegin, TrainEnd))] == [9, 9]
    ends = [e for e in again if isinstance(e, LensEnd)]
    assert [(e.n_done, e.n_lenses) for e in ends] == [(i + 1, 9) for i in range(9)]
    assert [e.concept for e in sorted(ends, key=lambda e: e.n_done)[:3]] == [c.id for c in small_pack()][:3]


def test_a_cancelled_lens_task_stops_between_batches(world, tmp_path):
    (task,) = plan_lenses(world, tmp_path / "run", 1)

    def forward(self: Any, *args: Any) -> bool:
        cluster.cancel(tmp_path / "run")
        return real(self, *args)

    real = train.Bank._forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Bank, "_forward", forward)
        with pytest.raises(Cancelled):
            cluster.run_task(task)
    assert not task.done
    assert read(task.log)[-1].error.startswith("Cancelled")


# ------------------------------------------------------------------------------------------ both


def test_the_events_of_a_task_are_those_of_its_job(world, prompts, tmp_path):
    tasks = cluster.plan(prompts, tmp_path / "run", job="capture", n_tasks=2, model=world, **CAPTURE)
    cluster.run(tasks, "inline")
    for task in tasks:
        kinds = [type(e) for e in read(task.log)]
        assert kinds[:2] == [TaskBegin, CaptureBegin]
        assert kinds[-2:] == [CaptureEnd, TaskEnd]
        assert set(kinds[2:-2]) == {BatchEnd}


def test_monitors_of_captures_and_lenses_show_their_tasks(world, prompts, tmp_path):
    from test_cluster import until

    from interp.live import CaptureMonitor, LensMonitor

    captured = cluster.plan(prompts, tmp_path / "a", job="capture", n_tasks=2, model=world, **CAPTURE)
    trained = plan_lenses(world, tmp_path / "b", 2)
    for monitor, tasks in ((CaptureMonitor, captured), (LensMonitor, trained)):
        cluster.run(tasks, "inline")
        shown = monitor(tasks[0].log.parent)
        try:
            until(lambda: {k: d.state for k, d in shown.jobs.items()} == {t.name: "done" for t in tasks})  # noqa: B023
            assert all(d.fraction == 1.0 for d in shown.jobs.values())
        finally:
            shown.close()


def test_lenses_that_come_back_in_the_middle_are_counted_once(world, tmp_path, one_task):
    """The folder of an earlier shard was damaged and deleted; those behind it stay."""
    (task,) = plan_lenses(world, tmp_path / "run", 1)
    cluster.run([task], "inline")
    first, *others = sorted(task.path.glob("lenses-*"))
    kept = {f: f.stat().st_mtime_ns for folder in others for f in folder.iterdir()}
    shutil.rmtree(first)
    (task.path / "done.json").unlink()
    cluster.run([task], "inline")
    assert kept == {f: f.stat().st_mtime_ns for folder in others for f in folder.iterdir()}
    cluster.merge(tmp_path / "run")
    assert lens_files(tmp_path / "run" / "merged") == one_task
    events = read(task.log)
    again = events[max(i for i, e in enumerate(events) if isinstance(e, TaskBegin)) :]
    assert [(e.n_done, e.n_lenses) for e in again if isinstance(e, LensEnd)] == [(i + 1, 9) for i in range(9)]


def test_a_process_loads_its_model_once(world, tmp_path, monkeypatch):
    import interp.capture.model as home

    loads = []
    real = home.load_model
    monkeypatch.setattr(home, "load_model", lambda *a, **k: loads.append(a) or real(*a, **k))
    tasks = cluster.plan(["the boy", "a girl"], tmp_path / "run", job="capture", n_tasks=2, model=world)
    models.forget()  # that of a task that an earlier test ran by itself
    cluster.run(tasks, "inline")
    assert len(loads) == 1
    assert models._load.cache_info().currsize == 0  # and lets go of it


def test_what_a_plan_cannot_keep_is_refused(world, tmp_path):
    out, model = tmp_path / "run", load_model(world)
    with pytest.raises(TypeError, match="which each task loads by itself; got <"):
        cluster.plan(["hello"], out, job="capture", model=model)
    with pytest.raises(ValueError, match="batch_tokens must be a number, got 'auto'"):
        cluster.plan(["hello"], out, job="capture", model=world, batch_tokens="auto")
    with pytest.raises(TypeError, match="takes no option 'max_seconds'"):
        cluster.plan(small_pack(), out, job="lenses", model=world, site="embed", max_seconds=3)
    with pytest.raises(TypeError, match="needs site="):
        cluster.plan(small_pack(), out, job="lenses", model=world)
    with pytest.raises(TypeError, match=r"dtype=torch\.float32 cannot be kept in a plan"):
        cluster.plan(["hello"], out, job="capture", model=world, dtype=torch.float32)
    with pytest.raises(ValueError, match="'unicorn' is not in pack"):
        cluster.plan(small_pack(), out, job="lenses", model=world, site="embed", concepts=["unicorn"])
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        cluster.plan(small_pack(), out, job="lenses", model=world, site="embed", shard_size=0)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be 0 or more"),
        ({"check": -1}, "check must be 0 or more"),
        ({"tier": 4}, "tier must be 2 or 3, got 4"),
        ({"tier": 2, "sites": "embed"}, "sites or tier, not both"),
        ({"layer": 1}, "layer belongs to tier=3"),
        ({"keep_states": False}, "keeps nothing"),
        ({"sites": "embed, resid_pots.1"}, "'resid_pots.1': the kinds of sites are embed, resid_pre"),
        ({"sites": ["embed", "resid"]}, "unknown site 'resid'"),
    ],
)
def test_a_capture_that_cannot_be_is_refused_when_it_is_planned(world, tmp_path, options, message):
    """Not by every task, once it has loaded the model, and twice again."""
    with pytest.raises(ValueError, match=message):
        cluster.plan(["hello"], tmp_path / "run", job="capture", model=world, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"f1_target": 7}, "f1_target must be in"),
        ({"f1_rule": "upper"}, "f1_rule must be 'lower' or 'point', got 'upper'"),
        ({"head": "tree"}, "head must be 'linear' or 'mlp', got 'tree'"),
        ({"growth": [20, 10]}, "growth must be increasing"),
        ({"site": "resid_pots.1"}, "unknown site 'resid_pots.1'"),
    ],
)
def test_lenses_that_cannot_be_are_refused_when_they_are_planned(world, tmp_path, options, message):
    options = {"site": "embed", **options}
    with pytest.raises(ValueError, match=message):
        cluster.plan(small_pack(), tmp_path / "run", job="lenses", model=world, **options)
    assert not (tmp_path / "run").exists()


def test_prompts_and_model_by_path_are_those_themselves(world, tmp_path):
    (tmp_path / "prompts.txt").write_text("the boy\na girl\n")
    options = {"job": "capture", "n_tasks": 2}
    tasks = cluster.plan(tmp_path / "prompts.txt", tmp_path / "a", model=Path(world), **options)
    assert tasks == cluster.plan(["the boy", "a girl"], tmp_path / "a", model=world, **options)
    with pytest.raises(ValueError, match="a plan of job 'capture'; rows are those of 'summary'"):
        cluster.Rows(tmp_path / "a")


def test_the_plan_keeps_prompts_vectors_and_concepts_as_they_were(world, prompts, vectors, tmp_path):
    cluster.plan(prompts, tmp_path / "a", job="capture", model=world, vectors=vectors, **CAPTURE)
    kept = Prompts(activations.read_json(tmp_path / "a" / "inputs" / "prompts.json")["prompts"])
    assert list(kept) == list(prompts)
    numbers = activations.read_json(tmp_path / "a" / "inputs" / "vectors.json")
    assert torch.equal(activations._tensors(numbers["one"]), vectors["one"])
    assert torch.equal(activations._tensors(numbers["two"])["resid_post.0"], vectors["two"]["resid_post.0"])
    plan_lenses(world, tmp_path / "b", 2)
    kept_pack = ConceptPack.from_dict(activations.read_json(tmp_path / "b" / "inputs" / "pack.json"))
    assert kept_pack.hash == small_pack().hash
    with pytest.raises(FileExistsError, match="differs in: inputs"):
        cluster.plan(
            prompts[1:], tmp_path / "a", job="capture", model=world, vectors=vectors, n_tasks=8, **CAPTURE
        )
