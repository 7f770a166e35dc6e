"""Corners of captures, autoencoders and demos: lines no other test reaches, slips once taken in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cluster_world
import numpy as np
import pytest
import torch
from capture_zoo import sequences, zoo

import interp
from interp import cluster, tiny
from interp.capture import Activations, capture, load_model, steer
from interp.capture.measure import measure
from interp.capture.plan import run_plan
from interp.capture.prompts import Prompt
from interp.capture.store import Folder, StoredShard
from interp.capture.traits import ContrastSet, Trait, TraitVectors
from interp.demo import demo
from interp.device import pick_device
from interp.events import CaptureBegin
from interp.lens import Lenses
from interp.report import Table
from interp.sae import SAE
from interp.tiny import train as train_tiny


def trait(name: str, vectors: dict[str, torch.Tensor]) -> Trait:
    numbers: Any = dict.fromkeys(("auroc", "low", "high", "random", "shuffled"), 0.5)
    return Trait(
        name=name,
        method="mean",
        pool="mean",
        kind="natural",
        site=next(iter(vectors)),
        vectors=vectors,
        layers={},
        other={},
        n=8,
        **numbers,
    )


def test_trait_vectors_are_projected_each_at_home() -> None:
    model = zoo("llama")
    rng = torch.Generator().manual_seed(0)
    homes = {"calm": ["resid_post.0", "resid_post.1"], "sure": ["resid_post.1"]}
    traits = [
        trait(name, {s: torch.randn(model.width, generator=rng) for s in sites})
        for name, sites in homes.items()
    ]
    found = TraitVectors(traits, {"name": "m"})
    acts = capture(model, sequences(), sites="resid_post.*", vectors=found.by_site())
    columns = {"resid_post.0": ["calm"], "resid_post.1": ["calm", "sure"]}
    for site, names in columns.items():
        wanted = acts[site] @ torch.stack([found[n].vectors[site] for n in names], 1)
        torch.testing.assert_close(acts.projection(site), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyError):
        acts.projection("resid_post.2")
    # `vectors` takes each trait's best vector to every layer instead.
    everywhere = capture(model, sequences(), sites="resid_post.*", vectors=found.vectors())
    best = torch.stack([t.vectors[t.site] for t in traits], 1)
    torch.testing.assert_close(
        everywhere.projection("resid_post.2"), everywhere["resid_post.2"] @ best, rtol=1e-5, atol=1e-5
    )


def test_a_vector_for_a_pattern_of_sites_is_projected_at_all_of_them() -> None:
    model, vector = zoo("llama"), torch.ones(32)
    acts = capture(model, sequences(), sites="resid_post.*", vectors={"v": {"resid_post.*": vector}})
    assert acts.projected == {f"resid_post.{i}": ["v"] for i in range(model.n_layers)}
    last = acts[f"resid_post.{model.n_layers - 1}"] @ vector
    got = acts.projection(f"resid_post.{model.n_layers - 1}")[:, 0]
    torch.testing.assert_close(got, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sites", ["resid_pre.1", "resid_pre.*", "resid_pre.1,resid_post.0", "embed,resid_pre.0,resid_post.*"]
)
def test_the_estimate_of_a_capture_is_what_it_stores(sites: str) -> None:
    seen: list[Any] = []
    acts = capture(zoo("llama"), sequences(), sites=sites, iteration_hook=seen.append)
    stored = sum(
        t.nbytes for _, shard in acts.batches() for t in {id(t): t for t in shard.tensors.values()}.values()
    )
    assert isinstance(seen[0], CaptureBegin)
    assert seen[0].estimated_bytes == stored > 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens must be 0 or more, an integer"),
        ({"check": 1.5}, "check must be 0 or more, an integer"),
        ({"vectors": torch.ones(32)}, "vectors must be a mapping"),
    ],
)
def test_options_of_a_capture_that_say_nothing_clear(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        capture(zoo("llama"), sequences(), **options)


def test_a_count_of_numpy_is_a_count(tmp_path: Path) -> None:
    acts = capture(
        zoo("llama"), sequences(), max_new_tokens=np.int64(2), check=np.int64(1), out=tmp_path / "c"
    )
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["max_new_tokens"] == 2
    assert acts.check


def test_the_place_of_a_prompt_is_a_whole_number() -> None:
    acts = capture(zoo("llama"), sequences())
    assert acts.tokens(np.int64(1)) == acts.tokens(1)
    for call in (acts.tokens, lambda p: acts.rows("resid_post.0", p)):
        with pytest.raises(TypeError):
            call(1.7)  # was taken for 1


def test_the_tokens_of_a_prompt_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture(zoo("llama"), sequences(), out=tmp_path / "c")
    acts, opened, real = Activations.load(tmp_path / "c"), [], StoredShard._open
    monkeypatch.setattr(StoredShard, "_open", lambda shard: opened.append(shard) or real(shard))
    assert len(acts.tokens("p4")) == 20
    assert len(opened) <= 2  # the ids, and what they look like: not once for every token


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": 1.5}, "unknown device 1.5"),
        ({"device": "cuda:99"}, "no device 'cuda:99': torch .* sees"),
        ({"dtype": None}, "unknown dtype None"),
    ],
)
def test_a_device_or_dtype_that_is_not_there(option: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_model("tiny", **option)


@pytest.mark.parametrize("path", ["./none-here", "../none-here", "~/none-here"])
def test_a_path_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"model folder .* does not exist"):
        load_model(path)


@pytest.mark.parametrize("option", [{"repeats": 0}, {"batch_tokens": 0}])
def test_nothing_to_measure(option: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
        measure(zoo("llama"), sequences(), max_new_tokens=2, reload=False, **option)


def test_no_device_is_any_device(tmp_path: Path) -> None:
    assert load_model("tiny", device=None).device == load_model("tiny", device="auto").device
    assert SAE.load(tiny.sae_path(), device="auto").W_enc.device == pick_device()
    with pytest.raises(ValueError, match="no device 'cuda:99'"):
        SAE.load(tiny.sae_path(), device="cuda:99")


def test_a_site_is_named_once() -> None:
    model, vector = zoo("llama"), torch.ones(32)
    twice = {"resid_post.*": vector, "resid_post.-1": 2 * vector}
    with pytest.raises(ValueError, match=r"resid_post.2 is named twice, the second time by 'resid_post.-1'"):
        capture(model, sequences(), vectors={"v": twice})
    with pytest.raises(ValueError, match=r"resid_post.2 is named twice"), steer(model, twice):
        pass
    with (
        pytest.raises(ValueError, match="vectors must be a mapping of sites, got list"),
        steer(model, [vector]),
    ):
        pass


def test_a_name_is_no_model() -> None:
    lenses = Lenses([], torch.zeros(0, 4), torch.zeros(0), torch.zeros(4), torch.ones(4), {}, {})
    for call in (
        lambda: steer("tiny", {}).__enter__(),
        lambda: TraitVectors.fit("tiny"),
        lambda: lenses.check_model("tiny"),
    ):
        with pytest.raises(TypeError, match=r"got a str: load it first, interp.load_model\('tiny'\)"):
            call()


# -------------------------------------------------------------------------------- sparse codes


def small_sae(**cfg: Any) -> SAE:
    rng = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    return SAE({name: torch.randn(*shape, generator=rng) for name, shape in shapes.items()}, cfg)


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_a_row_of_zeros_has_a_code(architecture: str) -> None:
    sae = small_sae(architecture=architecture, k=2, normalize_activations="constant_norm_rescale")
    rows = torch.stack([torch.zeros(4), torch.ones(4)])
    dense = sae.encode(rows)
    assert dense.isfinite().all()
    np.testing.assert_allclose(sae.encode_csr(rows).toarray(), dense, rtol=1e-6)
    assert not sae.decode(dense, like=rows)[0].any()  # its norm is 0, and so is what comes back


def test_what_is_no_code_and_no_encoder() -> None:
    sae = small_sae(architecture="standard")
    with pytest.raises(ValueError, match="takes a dense code"):
        sae.decode(sae.encode_csr(torch.ones(2, 4)))
    with pytest.raises(ValueError, match=r"code has shape \(2, 5\), expected \(\.\.\., 6\)"):
        sae.decode(torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"W_enc has shape \(4,\)"):
        SAE({name: torch.ones(4) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}, {})


# ----------------------------------------------------------------- one id for two different texts


def test_two_prompt_files_with_an_id_for_different_texts_are_refused(tmp_path: Path) -> None:
    for name, text in (("a", "w3 w4"), ("b", "w5 w6")):
        lines = [{"id": "1", "text": text}, {"id": "both", "text": "w7"}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with pytest.raises(ValueError, match="a and b have different prompts with the same id '1'"):
        run_plan(tmp_path / "run", prompts_files=files, model=zoo("llama"), max_new_tokens=0)
    files[1].write_text(files[1].read_text().replace('"1"', '"2"'))
    out = run_plan(tmp_path / "run", prompts_files=files, model=zoo("llama"), max_new_tokens=0)
    assert json.loads((out / "sets.json").read_text()) == {"a": ["1", "both"], "b": ["2", "both"]}


def test_contrast_sets_may_number_their_texts_alike() -> None:
    def contrast(trait: str, word: int) -> dict[str, ContrastSet]:
        prompts = tuple(Prompt(str(i), token_ids=(word + i, 3, word + i % 2)) for i in range(16))
        labels, groups = np.arange(16) % 2 == 1, tuple(str(i // 2) for i in range(16))
        return {"natural": ContrastSet(trait, "natural", prompts, labels, groups)}

    one, other = contrast("one", 5), contrast("other", 25)
    together = TraitVectors.fit(zoo("llama"), [one, other], sites="resid_post.1")
    alone = TraitVectors.fit(zoo("llama"), [one], sites="resid_post.1")
    torch.testing.assert_close(together["one"].vectors, alone["one"].vectors, rtol=1e-4, atol=1e-4)
    assert float(together["one"].vectors["resid_post.1"] @ together["other"].vectors["resid_post.1"]) < 0.99


def test_names_of_traits_may_begin_alike(tmp_path: Path) -> None:
    traits = [trait(n, {"resid_post.0": torch.full((4,), v)}) for n, v in (("calm", 1.0), ("calm/very", 2.0))]
    path = TraitVectors(traits, {"name": "m", "fingerprint": "f", "width": 4}).save(tmp_path / "t")
    torch.testing.assert_close(TraitVectors.load(path).by_site(), {t.name: t.vectors for t in traits})


# ------------------------------------------------------------------------------------- the demo


@pytest.mark.parametrize("name", ["token_acts.npz", "lenses"])
def test_a_demo_deletes_no_data_of_yours(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "years of work").write_text("")
    with pytest.raises(FileExistsError, match=f"holds {name}, and not from a demo"):
        demo(tmp_path)
    assert (tmp_path / name / "years of work").exists()


def test_a_training_deletes_no_data_of_yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "years of work").write_text("")
    monkeypatch.setattr("sys.argv", ["train", "--steps", "1", "--out", str(tmp_path)])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with pytest.raises(SystemExit, match="something else than a model"):
        train_tiny.main()
    assert (tmp_path / "years of work").exists()


def test_the_model_that_ships_is_no_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("tiny").name == "tiny"
    cluster.plan(["A falcon hunts."], "run", job="capture", model="tiny")
    assert json.loads(Path("run/plan.json").read_text())["spec"]["model"] == "tiny"


def test_a_run_killed_before_its_manifest_has_nothing_left_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Folder, meta: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            capture(zoo("llama"), sequences(), out=tmp_path / "c")
    seen: list[Any] = []
    acts = capture(zoo("llama"), sequences(), out=tmp_path / "c", iteration_hook=seen.append)
    assert acts.complete
    assert acts.meta["report"]["n_resumed"] == 6
    assert isinstance(seen[0], CaptureBegin)
    assert (seen[0].estimated_bytes, seen[0].estimated_seconds, seen[0].n_batches) == (0, 0.0, 0)


# ---------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("shards", "options", "error", "why"),
    [
        ([], {"temperature": 1.0}, TypeError, "job='summary' takes no option 'temperature'; it takes seeds"),
        (["codes.npz"], {}, ValueError, r"pairs of files, \(codes, labels\); got 'codes.npz'"),
        ([("a", "b", "c")], {}, ValueError, "pairs of files"),
        ([], {"n_classes": 1.5}, ValueError, "n_classes must be at least 1, an integer, got 1.5"),
        ([], {"n_latents": -1}, ValueError, "n_latents must be at least 1, an integer, got -1"),
        ([], {"n_tasks": 2.5}, TypeError, "float"),
    ],
)
def test_plans_that_say_nothing_clear(
    shards: list[Any], options: dict[str, Any], error: type[Exception], why: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=why):
        cluster.plan(shards, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_list_of_tasks(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"give interp.cluster.load\('runs/probe'\)"):
        cluster.run("runs/probe")


def test_a_task_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    (task,) = cluster.plan(cluster_world.shard, tmp_path, seeds=[1], n_tasks=1)
    made = cluster.run_task(task)
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in [*made.iterdir(), task.log]}
    assert cluster.run_task(task) == made
    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in [*made.iterdir(), task.log]} == before


def test_dir_of_the_package_has_what_is_loaded_on_use() -> None:
    assert set(interp.__all__) <= set(dir(interp))


@pytest.mark.parametrize("cell", ["\x0c", "a "])
def test_the_last_cell_of_a_table_is_whole(cell: str) -> None:
    assert Table("Title", [""], [[cell]]).text().endswith(cell)
