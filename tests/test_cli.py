"""The command line: quick to answer, files that others can read, and one line for what went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from interp import __version__
from interp.__main__ import app, main


def interp(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interp", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; gives exit code, output and errors."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["interp", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


def test_help_names_every_command_and_imports_nothing_heavy():
    done = interp("--help")
    assert done.returncode == 0
    for command in app.registered_commands:
        assert (command.name or command.callback.__name__) in done.stdout
    code = "import sys, interp.__main__; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"torch", "transformers", "pandas", "scipy", "matplotlib"}.isdisjoint(loaded.split())


def test_version(call):
    assert call("--version") == (0, f"interp {__version__}\n", "")


def test_an_unknown_command_is_an_error():
    done = interp("nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr


# --------------------------------------------------------------------------------------- probe


@pytest.fixture
def code_and_labels(tmp_path: Path) -> tuple[Path, Path, sp.csr_array, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400).astype(np.uint8)
    dense = rng.random((400, 6)).astype(np.float32) * (rng.random((400, 6)) < 0.3)
    dense[:, 1] += 2 * (y == 1)
    x = sp.csr_array(dense)
    code, labels = tmp_path / "token_acts.npz", tmp_path / "labels.bin"
    sp.save_npz(code, x)
    y.tofile(labels)
    return code, labels, x, y


def test_probe_writes_what_its_neighbours_read(call, code_and_labels, tmp_path):
    from interp.events import FitEnd, read

    code, labels, x, y = code_and_labels
    out, log = tmp_path / "probe1d_metrics.npz", tmp_path / "fit.jsonl"
    status, shown, _ = call("probe", code, labels, "--out", out, "--log", log)
    assert status == 0
    assert "18 pairs" in shown
    with np.load(out, allow_pickle=False) as found:
        assert set(found) == {"loss", "weights", "biases", "tp", "fp", "tn", "fn"}
        assert {found[name].shape for name in found} == {(6, 3)}
        # counted again, from the weights that were written
        p = 1 / (1 + np.exp(-(found["biases"][1, 1] + found["weights"][1, 1] * x.toarray()[:, 1])))
        assert found["tp"][1, 1] == ((p >= 0.5) & (y == 1)).sum()
        assert found["fp"][1, 1] == ((p >= 0.5) & (y != 1)).sum()
        assert (found["tp"] + found["fp"] + found["tn"] + found["fn"] == 400).all()
    assert isinstance(read(log)[-1], FitEnd)
    low = tmp_path / "low.npz"
    assert call("probe", code, labels, "--out", low, "--threshold", 0.2)[0] == 0
    with np.load(low, allow_pickle=False) as found:
        p = 1 / (1 + np.exp(-(found["biases"] + found["weights"] * x.toarray()[:, :, None])))
        assert np.array_equal(found["tp"] + found["fp"], (p > 0.2).sum(axis=0))
        assert not np.array_equal(found["tp"] + found["fp"], (p > 0.5).sum(axis=0))


def test_nothing_is_overwritten_unasked(call, code_and_labels, tmp_path):
    code, labels, *_ = code_and_labels
    out = tmp_path / "mine.npz"
    out.write_bytes(b"precious")
    status, _, err = call("probe", code, labels, "--out", out)
    assert status == 1
    assert "--force" in err
    assert out.read_bytes() == b"precious"
    assert call("probe", code, labels, "--out", out, "--force")[0] == 0
    assert out.read_bytes() != b"precious"


def test_a_users_error_is_one_line_on_stderr(call, code_and_labels, tmp_path):
    code, labels, *_ = code_and_labels
    labels.write_bytes(b"\0" * 399)
    status, shown, err = call("probe", code, labels, "--out", tmp_path / "out.npz")
    assert (status, shown) == (1, "")
    assert err.startswith("interp: ")
    assert "399" in err
    assert "400" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


def test_debug_lets_the_traceback_through(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["interp", "--debug", "probe", str(tmp_path / "no.npz"), "labels.bin"])
    with pytest.raises(FileNotFoundError, match=r"no\.npz"):
        main()


def test_a_fault_of_ours_is_named_with_its_type(monkeypatch, call):
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("interp.__main__.app", broken)
    status, _, err = call("demo")
    assert status == 1
    assert err == "interp: KeyError: 'lost'\ninterp --debug … shows where it happened\n"


# -------------------------------------------------------------------------- capture, lenses, profile


def test_capture_runs_a_plan_and_refuses_to_mix_it(call, tmp_path):
    from interp.capture import Activations
    from interp.events import CaptureEnd, read

    folder, log = tmp_path / "experiment", tmp_path / "events.jsonl"
    plan = ["capture", "-e", folder, "-t", "sycophancy", "-f", "sycophancy", "--max-new-tokens", 3]
    status, shown, err = call(*plan, "--save-json", "--check", 2, "--log", log)
    assert status == 0, err
    acts = Activations.load(folder / "tier2" / "sycophancy")
    assert acts.n_prompts == 4
    assert repr(acts) in shown
    assert (folder / "tier2" / "sycophancy" / "sycophancy.json").exists()
    assert isinstance(read(log)[-1], CaptureEnd)

    status, _, err = call(*plan[:-1], 4)  # the same folder, another plan
    assert status == 1
    assert "max_new_tokens" in err or "another" in err


@pytest.mark.parametrize(("args", "message"), [
    (["-f", "no_such_file.txt"], "no_such_file.txt"),
    ([], "no prompts"),
    (["-p", "hello", "-m", "no/such/folder"], "no/such/folder"),
    (["-p", "hello", "-t", "greed"], "greed"),
    (["-p", "hello", "--tier", "4"], "tier must be 2 or 3"),
    (["-p", "is it far? " * 200], "context"),
], ids=["file", "nothing", "model", "trait", "tier", "long"])  # fmt: skip
def test_a_capture_that_cannot_be_says_why_and_leaves_nothing(call, tmp_path, args, message):
    folder = tmp_path / "experiment"
    status, _, err = call("capture", "-e", folder, *args)
    assert status == 1
    lines = [line for line in err.splitlines() if line.startswith("interp: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(folder.rglob("manifest.json"))


def test_lenses_of_one_level(call, tmp_path):
    from interp import Lenses

    folder = tmp_path / "lenses"
    status, shown, err = call("lenses", folder, "--level", 0)
    assert status == 0, err
    trained = Lenses.load(folder / "lenses")
    assert len(trained) == 8
    assert trained.site == "resid_post.3"  # of six layers, as study and demo have it
    assert f"{len(trained)} lenses" in shown


def test_profile_writes_both_flames(call, tmp_path):
    status, shown, err = call("profile", "-o", tmp_path, "--n-rows", 200, "--n-classes", 8, "--n-latents", 64)
    assert status == 0, err
    assert "flame_off.html" in shown
    for name in ("flame_off.html", "flame_debug.html", "hotspots.csv"):
        assert (tmp_path / name).stat().st_size > 0


# ----------------------------------------------------------------------------------- demo, bench


def test_the_demo_is_given_its_folder_and_seed(call, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("interp.demo.demo", lambda out, seed: asked.append((out, seed)))
    assert call("demo", "-o", tmp_path, "--seed", 3)[0] == 0
    assert asked == [(tmp_path, 3)]


@pytest.fixture
def measured(monkeypatch) -> dict[str, tuple]:
    """The measurements of `interp bench`, replaced: what each was asked for."""
    asked: dict[str, tuple] = {}

    class Table:
        def save(self, out: Path) -> None:
            asked["saved"] = (out,)

        def __str__(self) -> str:
            return "numbers"

    def study(*args: object, **options: object) -> Table:
        asked["lenses"] = (args, options)
        return Table()

    def capture(model: object, prompts: object, **options: object) -> Table:
        asked["capture"] = (len(prompts), options)
        return Table()

    def seed_scale(fraction: float, **options: object) -> str:
        asked["seed-scale"] = (fraction, options)
        return "raw"

    monkeypatch.setattr("interp.lens.study.study", study)
    monkeypatch.setattr("interp.capture.measure.measure", capture)
    monkeypatch.setattr("interp.seed_scale.seed_scale", seed_scale)
    monkeypatch.setattr("interp.seed_scale.report", lambda found: f"report of {found}")
    return asked


def test_bench_runs_all_and_the_largest_at_a_hundredth(call, measured, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, shown, err = call("bench")
    assert status == 0, err
    heads = [line.removeprefix("=== interp bench ") for line in shown.splitlines() if line.startswith("===")]
    assert heads == ["capture", "seed-scale", "lenses"]
    assert measured["capture"] == (24, {"max_new_tokens": 50, "repeats": 5})
    assert measured["seed-scale"] == (0.01, {"seed": 0, "out": Path("runs/bench")})
    assert measured["saved"] == (Path("runs/bench/lenses"),)
    assert "report of raw" in shown
    assert shown.count("numbers") == 2


def test_each_bench_alone_takes_its_options(call, measured, tmp_path):
    prompts = tmp_path / "mine.txt"
    prompts.write_text("is it far?\nwhat is a robin?\n")
    call("bench", "capture", "-f", prompts, "-f", "commitment", "--max-new-tokens", 7, "--repeats", 2)
    assert measured["capture"] == (6, {"max_new_tokens": 7, "repeats": 2})
    call("bench", "seed-scale", "--seed", 4, "-o", tmp_path)
    assert measured["seed-scale"] == (1.0, {"seed": 4, "out": tmp_path})
    (tmp_path / "file").touch()
    assert call("bench", "lenses", "-o", tmp_path / "file")[0] == 1
    assert "lenses" not in measured, "the folder is tried before the work"
    call("bench", "lenses", "-o", tmp_path / "new", "-m", "tiny", "--pack", "mine.json")
    assert measured["lenses"] == (("tiny", "mine.json"), {"device": "auto", "seed": 0})


# --------------------------------------------------------------------------------------- cluster

WORLD = Path(__file__).with_name("cluster_world.py")


def test_a_run_is_planned_run_watched_and_cancelled_from_a_shell(call, tmp_path):
    from interp import cluster

    folder = tmp_path / "run"
    seeds = ["--option", "seeds=[0, 1, 2, 3]", "--n-tasks", 2]
    status, shown, err = call("cluster", "plan", f"{WORLD}:shard", folder, *seeds)
    assert status == 0, err
    assert f"2 tasks → {folder}" in shown
    assert "2 waiting" in call("cluster", "status", folder)[1]
    assert call("cluster", "cancel", folder)[0] == 0
    assert (folder / "cancel").exists()
    status, shown, err = call("cluster", "run", folder, "-e", "inline")  # goes on behind it
    assert status == 0, err
    assert "all 2 tasks are done" in shown
    table = call("cluster", "status", folder)[1].splitlines()
    assert [line.split()[:2] for line in table[1:3]] == [["task-0000", "done"], ["task-0001", "done"]]
    assert table[-1] == "2 done"
    assert cluster.merge(folder).n_rows == 1200


def test_tasks_that_fail_are_named_without_a_hint_at_a_fault_of_ours(call, monkeypatch, tmp_path):
    monkeypatch.setenv("CLUSTER_WORLD", str(tmp_path))
    folder, seeds = tmp_path / "run", ["-o", "seeds=[1, 2, 3]"]
    call("cluster", "plan", f"{WORLD}:always_fails", folder, *seeds, "--n-tasks", 3)
    status, _, err = call("cluster", "run", folder, "-e", "inline", "--retries", 0)
    assert status == 1
    assert "interp: 1 of 3 tasks failed in 1 attempt each:" in err
    assert "task-0001: OSError: the disk is gone" in err
    assert "--debug" not in err
    assert "1 failed" in call("cluster", "status", folder)[1]


@pytest.mark.parametrize("option", ["seeds", "=3", "two words=1"])
def test_an_option_of_a_plan_is_a_name_and_a_value(call, tmp_path, option):
    status, _, err = call("cluster", "plan", f"{WORLD}:shard", tmp_path / "run", "-o", option)
    assert (status, err.splitlines()[0]) == (
        1,
        f"interp: --option {option!r}: expected NAME=VALUE, such as timeout_min=120",
    )
    assert not (tmp_path / "run").exists()


def test_what_an_option_means_is_told_by_its_value():
    from interp.__main__ import _named

    given = [
        "seeds=[0, 1]",
        "slurm_partition=cpu",
        "timeout_min=120",
        "stop_at_eos=false",
        "site=resid_post.2",
    ]
    assert _named([*given, "a=b=c"]) == {
        "seeds": [0, 1],
        "slurm_partition": "cpu",
        "timeout_min": 120,
        "stop_at_eos": False,
        "site": "resid_post.2",
        "a": "b=c",
    }
