"""The house rules, checked: packages in step, clean notebooks, light imports, arrows that point one way."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "interp"

#: PyPI name → conda-forge name, where they differ.
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}


@cache
def files(*patterns: str) -> tuple[Path, ...]:
    """Files of the repository, new ones included, ignored ones not."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return tuple(p for p in (ROOT / line for line in listed.stdout.splitlines()) if p.is_file())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------- packages


def requirements() -> dict[str, Requirement]:
    """Every dependency of pyproject.toml, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def test_conda_gets_the_packages_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "interp"
    assert environment["channels"][0] == "conda-forge"
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-e ."], "pip installs interp itself and nothing else"

    found = {r.name: r.specifier for r in map(Requirement, conda)}
    found.pop("pip")
    python = found.pop("python")
    assert str(python) == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert found == {CONDA_NAMES.get(name, name): r.specifier for name, r in requirements().items()}


def test_every_dependency_is_pinned_to_a_version_that_pyproject_allows():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    pins: dict[str, str] = {}
    for line in lines:
        (spec,) = Requirement(line).specifier
        assert spec.operator == "==", line
        assert "+" not in spec.version, f"{line}: a local version exists on one index only"
        pins[canonicalize_name(Requirement(line).name)] = spec.version
    assert "interp" not in pins
    for name, requirement in requirements().items():
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not allow {pins[name]}"


def test_ci_is_a_script_that_parses():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)


# ------------------------------------------------------------------------------------ notebooks


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_committed_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    metadata = notebook["metadata"]
    assert "widgets" not in metadata, "saved widget state: clear the outputs and save again"
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"]["name"] == "python"
    for cell in notebook["cells"]:
        assert "id" in cell
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    # nbmake passes a notebook that leaves its thread running, so each one must end by checking its results.
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert "assert" in "".join(code[-1]["source"]), "the last code cell asserts nothing"


# -------------------------------------------------------------------------------------- imports

OPTIONAL = {
    "ipywidgets",
    "anywidget",
    "matplotlib",
    "IPython",
    "sklearn",
    "pyinstrument",
    "typer",
    "submitit",
    "sae_lens",
}


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_interp_is_light():
    heavy = OPTIONAL | {"tqdm"}
    loaded = python("import sys, interp; print(*{m.partition('.')[0] for m in sys.modules})").split()
    assert heavy.isdisjoint(loaded)


def test_the_public_names_need_none_of_the_optional_packages():
    """With the optional packages out of reach, every public name still comes."""
    code = f"""
import importlib.util, sys
closed = {sorted(OPTIONAL)!r}
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in closed:
            raise ImportError(name + ' is closed in this test')
sys.meta_path.insert(0, Closed())
# A library that asks `is it installed?` must hear no, not an error.
real = importlib.util.find_spec
importlib.util.find_spec = lambda n, p=None: None if n.partition('.')[0] in closed else real(n, p)
import interp
for name in interp.__all__:
    getattr(interp, name)
print(len(interp.__all__))
"""
    import interp

    assert int(python(code)) == len(interp.__all__)


def test_interp_capture_is_the_function_and_the_package():
    """Whichever is imported first, both ways of writing work."""
    for first in ("interp.capture", "from interp.capture.traits import TraitVectors", "interp.load_model"):
        code = f"import interp\n{first}\nimport interp.capture.prompts\n"
        code += "print(callable(interp.capture), interp.capture.prompts.Prompts is interp.Prompts)"
        assert python(code) == "True True\n"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """``(module, at the top level)`` for everything a file imports; type-checking imports are left out."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                if child.level:
                    parts = name_of(path).removesuffix(".py").split("/")[: -child.level]
                    module = ".".join([*parts, *module.split(".")]).rstrip(".")
                # `from interp import events` is an import of interp.events
                if module == "interp":
                    yield from ((f"interp.{alias.name}", top) for alias in child.names)
                else:
                    yield module, top
            else:
                yield from walk(child, top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


#: Part → the parts it may import. What is not named here (demo, the command line) may use everything.
ARROWS = {
    "events": set(),
    "run": {"events"},
    "probe": {"events"},
    "capture": {"events"},
    "sae": {"events"},
    "lens": {"events", "capture"},
    "tiny": {"events", "capture", "sae", "lens"},
    "live": {"events", "run"},
    "cluster": {"events", "probe", "capture", "lens"},
    "device": set(),
    "lock": set(),
    "files": set(),
    "threads": set(),
}
#: What every part may stand on, since it knows none of them.
FLOOR = {"device", "files", "lock", "threads"}
#: Part → parts it may import inside functions only: public faces, never internals.
LAZY_ARROWS = {
    "capture": {"interp.tiny"},  # load_model("tiny")
    "lens": {"interp.tiny"},  # ConceptPack.load("tiny")
    # The jobs that it starts, and what the tuner measures on and by.
    "live": {
        "interp.Sparse1DProbe",
        "interp.capture.record",
        "interp.lens.train",
        "interp.probe",
        "interp.probe.data",
        "interp.probe.files",
    },
}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("part", ARROWS)
def test_arrows_point_one_way(part):
    paths = files(f"interp/{part}.py", f"interp/{part}/*.py")
    for path in paths:
        for module, top in imports(path):
            other = part_of(module)
            if module.partition(".")[0] != "interp" or other in (part, "__version__"):
                continue
            lazily = not top and module in LAZY_ARROWS.get(part, ())
            assert other in ARROWS[part] | FLOOR or lazily, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("part", [p for p in ARROWS if p != "live"])
def test_no_solver_imports_a_display_or_a_bar_at_the_top(part):
    for path in files(f"interp/{part}.py", f"interp/{part}/*.py"):
        for module, top in imports(path):
            assert not (top and module.partition(".")[0] in OPTIONAL | {"tqdm"}), f"{name_of(path)}: {module}"


# ------------------------------------------------------------------------------------- the text


def test_no_machine_of_ours_is_named():
    # Put together so that this file does not find itself.
    places = "|".join(("work", "root", "home", "Users", "farm", "tmp"))
    absolute = re.compile(rf"(?:^|[^A-Za-z0-9_.])/(?:{places})/")
    for path in files(
        "*.py", "*.md", "*.toml", "*.txt", "*.yml", "*.ipynb", "*.json", "*.js", "*.css", "Makefile", ".ci"
    ):
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not absolute.search(line), f"{name_of(path)}:{number} holds an absolute path"


# The attacks of test_security need the weapons.
@pytest.mark.parametrize("path", [f for f in files("*.py") if f.name != "test_security.py"], ids=name_of)
def test_nothing_unsafe(path):
    """No pickles in any dress, no code from a model folder, no `except:` that swallows an interrupt."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{name_of(path)}:{getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.Import):
            assert not {a.name.partition(".")[0] for a in node.names} & {
                "pickle",
                "dill",
                "joblib",
                "shelve",
            }, where
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in {"pickle", "dill", "joblib", "shelve"}, where
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Call):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert given.get("allow_pickle") is not True, where
            assert given.get("trust_remote_code") is not True, where
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") is True, f"{where}: torch.load unpickles; use safetensors"
