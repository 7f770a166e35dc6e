"""A wheel, built from these sources and unpacked where nothing else is: what is in it, and that it works.

The environments are folders of links: the packages that the wheel's own metadata asks for, and what those ask
for, and nothing more. Python is started without ``site``, so that neither the editable installation nor any
other package can be reached.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
#: What `import interp` and the three jobs may need.
CORE = ("torch", "transformers", "numpy", "scipy", "pandas", "safetensors")
#: What must not be in reach beside them.
CLOSED = ("ipywidgets", "anywidget", "matplotlib", "pyinstrument", "submitit", "sklearn", "playwright")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, caches and all, so that the sources stay as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("interp", "tests", "notebooks"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "interp" / "__pycache__").mkdir(exist_ok=True)
    (source / "interp" / "__pycache__" / "left_over.cpython-311.pyc").write_bytes(b"")
    # Without an index where the build tool is here already.
    here = metadata.version("setuptools").split(".")[0] if _installed("setuptools") else "0"
    options = ["--no-build-isolation"] if int(here) >= 77 else []
    pip(["wheel", "--no-deps", *options, "--wheel-dir", str(folder), str(source)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip(["install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)])
    return folder


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def linked(names: list[str], folder: Path) -> Path:
    """Links to installed distributions and all that they require, without their extras."""
    todo, seen = [*names], set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen or not _installed(name):
            continue
        seen.add(name)
        found = metadata.distribution(name)
        for file in found.files or ():
            top = file.parts[0]
            link = folder / top
            if top not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())
        for line in found.requires or ():
            asked = Requirement(line)
            if asked.marker is None or asked.marker.evaluate({"extra": ""}):
                todo.append(asked.name)
    return folder


def run(code: str, unpacked: Path, packages: Path, where: Path) -> str:
    """What Python prints that sees the standard library, the unpacked wheel and `packages`."""
    start = f"import sys\nsys.path[:0] = {[str(unpacked), str(packages)]!r}\n"
    paths = {sysconfig.get_paths()[k] for k in ("purelib", "platlib")}
    start += f"assert not {paths!r} & set(sys.path), sys.path\nassert {str(ROOT)!r} not in sys.path\n"
    command = [sys.executable, "-I", "-S", "-W", "error::ImportWarning", "-c", start + code]
    done = subprocess.run(
        command,
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(list(CORE), tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def declared(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel's metadata asks for."""
    (found,) = metadata.distributions(name="interp", path=[str(unpacked)])
    asked = [Requirement(line) for line in found.requires or ()]
    names = [r.name for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert set(CORE) <= set(names)
    return linked(names, tmp_path_factory.mktemp("declared"))


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2, f"only the package and its metadata, got {tops}"
    package = {name for name in names if name.startswith("interp/") and not name.endswith(".md")}
    sources = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "interp").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".md"
    }
    assert package == sources, "every file of the package, and nothing else"
    for needed in (
        "interp/tiny/model/model.safetensors",
        "interp/tiny/model/tokenizer.json",
        "interp/tiny/sae/sae_weights.safetensors",
        "interp/tiny/concepts.json",
        "interp/live/monitor.js",
        "interp/live/monitor.css",
        "interp/capture/data/prompts_sycophancy.txt",
    ):
        assert needed in package
    assert not any(name.endswith((".pyc", ".ipynb")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 12e6


def test_its_metadata(unpacked: Path) -> None:
    import interp

    (found,) = metadata.distributions(name="interp", path=[str(unpacked)])
    assert found.version == interp.__version__
    (entry,) = [e for e in found.entry_points if e.group == "console_scripts"]
    assert (entry.name, entry.value) == ("interp", "interp.__main__:main")
    assert found.metadata["License-Expression"] == "MIT"


WORK = """
import importlib.util
closed = {closed!r}
assert not [name for name in closed if importlib.util.find_spec(name)]
import interp
assert interp.__file__.startswith({home!r}), interp.__file__
import numpy as np
model = interp.load_model("tiny")
prompts = interp.Prompts(["A falcon hunts.", "Will it rain tomorrow?"])
acts = interp.capture(model, prompts, sites="resid_post.*", max_new_tokens=3)
from interp.capture.prompts import SHIPPED, shipped
assert sum(len(shipped(name)) for name in SHIPPED) == sum(SHIPPED.values())
from interp.tiny import corpus, sae_path
sae = interp.SAE.load(sae_path())
text = corpus.tokens(1500)
documents = [dict(id=str(i), token_ids=ids.tolist()) for i, (ids, _) in enumerate(text.documents())]
x = sae.encode_csr(interp.capture(model, documents, sites=sae.site)[sae.site])
probe = interp.Sparse1DProbe().fit(x[:, :60], text.classes, n_classes=151)
latent = int(probe.best_latents(1)["latent"].iloc[0])
pack = interp.ConceptPack.load("tiny")
chosen = pack.at_level(max(pack.levels))[:2]
lenses = interp.train_lenses(model, pack, site="resid_post.3", concepts=chosen, growth=(10, 20))
assert len(lenses) == 2
try:
    interp.live.FitMonitor
except ImportError as error:
    assert "ipywidgets" in str(error) or "anywidget" in str(error), error
else:
    raise AssertionError("the monitor came without ipywidgets")
print("done", probe.coef_.shape, len(pack))
"""


def test_the_jobs_run_with_the_core_packages_alone(unpacked: Path, core: Path, tmp_path: Path) -> None:
    code = WORK.format(closed=CLOSED, home=str(unpacked))
    assert run(code, unpacked, core, tmp_path).startswith("done (60, 151)")
    assert not list(tmp_path.iterdir())


def test_the_command_and_the_monitors_run_with_what_the_metadata_ask_for(
    unpacked: Path, declared: Path, tmp_path: Path
) -> None:
    code = """
sys.argv = ["interp", "--help"]
from interp.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
import importlib.util
assert not [name for name in ("submitit", "sklearn", "playwright", "pytest", "jupyterlab")
            if importlib.util.find_spec(name)]
from interp.live import CaptureMonitor, FitMonitor, LensMonitor, SlabTuner
assert all(len(str(m._esm)) > 1000 for m in (CaptureMonitor, FitMonitor, LensMonitor, SlabTuner))
assert len(str(FitMonitor._css)) > 500
"""
    printed = run(code, unpacked, declared, tmp_path)
    for name in ("demo", "capture", "probe", "lenses", "profile", "bench"):
        assert name in printed
