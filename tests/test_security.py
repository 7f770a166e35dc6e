"""Nothing from outside is run, becomes a path of its own choosing, or is taken for markup."""

from __future__ import annotations

import ast
import html
import json
import os
import pickle
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from capture_zoo import zoo

import interp
from interp import tiny
from interp.capture import Activations, Prompts, capture, load_model
from interp.capture import plan as plan_module
from interp.files import read_json, safe_name, write_json
from interp.lens.files import load as load_lenses
from interp.lens.report import LensReport
from interp.lens.show import Highlight, lenses_html
from interp.live.flame import flame
from interp.live.plots import png, projection_figure
from interp.live.still import still_html
from interp.probe.files import load_csr
from interp.report import Report, Table

HERE = Path(interp.__file__).parent

# --------------------------------------------------------------------------- what the code may call


def _calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _forbidden(source: str) -> list[str]:
    """Whatever in a module would run what a file says."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        bad = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
        found += [f"import {n}" for n in names if n.split(".")[0] in bad or n == "torch.load"]
    for name, call in _calls(tree):
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name in ("eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen"):
            found.append(name)
        if name.endswith(("np.load", "numpy.load")) and given.get("allow_pickle") != "False":
            found.append(f"{name} without allow_pickle=False")
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            found.append(f"{name}({given})")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"{name}(trust_remote_code={given['trust_remote_code']})")
        if name.endswith(".from_pretrained") and name.split(".")[0] in (
            "AutoConfig",
            "AutoTokenizer",
            "auto",
        ):
            if given.get("trust_remote_code") != "False":
                found.append(f"{name} without trust_remote_code=False")
            if name.startswith("auto.") and given.get("use_safetensors") != "True":
                found.append(f"{name} without use_safetensors=True")
        if name in ("sp.load_npz", "scipy.sparse.load_npz", "pd.read_pickle"):
            found.append(name)
    return found


def test_no_module_runs_what_a_file_says() -> None:
    files = [f for f in HERE.rglob("*.py") if f.parent.name != "tiny"]  # which reads what it wrote itself
    assert len(files) > 50
    found = {str(f.relative_to(HERE)): _forbidden(f.read_text(encoding="utf-8")) for f in files}
    assert not {k: v for k, v in found.items() if v}


def test_the_search_finds_what_it_is_for() -> None:
    for bad in (
        "import pickle",
        "from torch import load",
        "x = torch.load(p)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "eval(s)",
        "subprocess.run(c, shell=True)",
        "AutoConfig.from_pretrained(p)",
        "f(trust_remote_code=asked)",
        "import yaml",
    ):
        assert _forbidden(bad), bad
    assert not _forbidden("np.load(p, allow_pickle=False); m.eval(); subprocess.run(c)")


MARKUP = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function")


def test_no_script_writes_markup() -> None:
    for file in HERE.rglob("*.js"):
        text = file.read_text(encoding="utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ):
            assert word not in text, f"{word} in {file.name}"


# ------------------------------------------------------------------------------------- pickles


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    struck = tmp_path / "struck"
    bomb = np.array([Evil(struck)], dtype=object)
    code = tmp_path / "token_acts.npz"
    np.savez(code, data=bomb, indices=[0], indptr=[0, 1], shape=[1, 1], format=np.array(b"csr"))
    with pytest.raises(ValueError, match=r"token_acts\.npz"):
        load_csr(code)
    good = sp.csr_matrix(np.eye(2, dtype=np.float32))
    np.savez(code, data=good.data, indices=good.indices, indptr=good.indptr, shape=[2, 2], format=bomb)
    with pytest.raises(ValueError, match=r"token_acts\.npz"):
        load_csr(code)
    code.write_bytes(pickle.dumps(Evil(struck)))
    with pytest.raises(ValueError, match=r"token_acts\.npz"):
        load_csr(code)
    assert not struck.exists()
    pickle.loads(pickle.dumps(Evil(struck)))
    assert struck.exists(), "the bomb is a dud: nothing was tried"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(tiny.path(), tmp_path / "model")
    return tmp_path / "model"


def test_pickled_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"x": Evil(tmp_path / "struck")}, checkpoint / "pytorch_model.bin")
    load_model(checkpoint)  # the safetensors beside it are what is read
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights in safetensors, and interp loads no pickles"):
        load_model(checkpoint)
    assert not (tmp_path / "struck").exists()


def test_code_of_a_model_is_not_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def asked(*args: object) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", asked)
    code = f"import os; os.mkdir({str(tmp_path / 'struck')!r})\nclass C: pass\n"
    (checkpoint / "evil.py").write_text(code)
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    load_model(checkpoint)  # an architecture that transformers has
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(ValueError, match="needs code of its own, which interp does not run"):
        load_model(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({**config, "auto_map": {}}))
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.C", None]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    load_model(checkpoint)
    assert not (tmp_path / "struck").exists()


def test_damaged_checkpoints_are_refused(checkpoint: Path) -> None:
    """Above all one that lacks weights, which transformers would draw at random."""
    from safetensors.torch import load_file, save_file

    file = checkpoint / "model.safetensors"
    good = file.read_bytes()
    for bad in (good[: len(good) // 2], b"", good[:20] + bytes([good[20] ^ 4]) + good[21:]):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"the weights of .*model are damaged"):
            load_model(checkpoint)
    file.write_bytes(good)
    tensors = load_file(file)
    name = next(k for k in tensors if k.endswith("gate_proj.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lack {name}"):
        load_model(checkpoint)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"another shape .* {name}"):
        load_model(checkpoint)


# --------------------------------------------------------------------------------------- paths

NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    "a\0b",
    "x" * 5000,
    "CON",
    "nul.txt",
    "C:\\x",
    "a\nb",
    "-rf",
    "~",
    "$(id)",
    "\u202egnp",
    "é",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
]


def test_safe_names() -> None:
    made = [safe_name(n) for n in NAMES]
    plain = [safe_name(n) for n in ("first", "tier2.v1", "A_b+c-3")]
    assert plain == ["first", "tier2.v1", "A_b+c-3"]
    for name in made:
        assert name == os.path.basename(name)
        assert name.isascii()
        assert 0 < len(name) < 100
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
        assert name[0] not in ".-"
        assert name.split(".")[0].lower() not in ("con", "nul")
    assert len(set(made)) == len(NAMES)
    assert safe_name(made[0]) != made[0], "a text could take the name of another"


def test_prompt_ids_are_not_paths(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    prompts = [{"id": n, "text": "w4 w5"} for n in NAMES if n]
    acts = capture(zoo("llama"), prompts, sites="resid_post.0", vectors={"../v": torch.ones(32)}, out=out)
    assert Activations.load(out).prompt_ids == [n for n in NAMES if n]
    acts.to_json(out / "view.json")
    assert [f.name for f in tmp_path.iterdir()] == ["deep"]
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["run"]
    assert {f.suffix for f in out.iterdir()} == {".json", ".safetensors"}


def test_a_prompt_file_cannot_name_another_folder(tmp_path: Path) -> None:
    for name in ("...txt", "a b;c.txt"):
        (tmp_path / name).write_text("w4 w5\n")
        out = plan_module.run_plan(tmp_path / "e", (), (), [tmp_path / name], model=zoo("llama"), chat=False)
        assert out.parent == tmp_path / "e" / "tier2"
        assert out.resolve().parent == out.parent.resolve()
    (tmp_path / "manifest.txt").write_text("w4 w5\n")
    with pytest.raises(ValueError, match="under the name 'manifest'"):
        plan_module.run_plan(tmp_path / "e", (), (), [tmp_path / "manifest.txt"], model=zoo("llama"))


def test_a_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    """Also one whose hash is right."""
    capture(zoo("llama"), [{"id": "a", "text": "w4"}], sites="resid_post.0", out=tmp_path / "run")
    shard = next((tmp_path / "run").glob("shard-*"))
    shutil.copy(shard, tmp_path / "secret.safetensors")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        manifest["shards"][0]["file"] = name
        write_json(tmp_path / "run" / "manifest.json", manifest)
        with pytest.raises(ValueError, match="as a shard, which interp never writes"):
            Activations.load(tmp_path / "run")
    (tmp_path / "lenses").mkdir()
    content = {"format": "interp.lenses", "version": 1, "normalisation": "standardised"}
    write_json(tmp_path / "lenses" / "lenses.json", {**content, "tensors": "../secret.safetensors"})
    with pytest.raises(ValueError, match=r"is no name of its tensor file|this version of interp"):
        load_lenses(tmp_path / "lenses")


def test_text_that_no_file_can_hold_is_refused_at_once() -> None:
    from interp.lens.concepts import ConceptPack

    for prompt in ({"text": "w4 \ud83d"}, {"id": "\udc00", "text": "w4"}):
        with pytest.raises(ValueError, match="half a surrogate pair"):
            Prompts([prompt])
    concept = {"id": "a", "term": "\ud83d", "definition": "", "parents": [], "level": 0}
    examples = {"positive": ["x"], "negative": []}
    with pytest.raises(ValueError, match="half a surrogate pair"):
        ConceptPack.from_dict({"name": "p", "version": "1", "concepts": [{**concept, "examples": examples}]})


# ---------------------------------------------------------------------------------------- markup

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><svg onload=alert(1)>",
    "&lt;script&gt;",
    "`</code><iframe src=javascript:alert(1)>`",
]


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.made.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(page_of: Any) -> None:
    """A page with hostile text has the elements of one with harmless text, and shows the text."""
    plain = Elements(page_of("harmless")).made
    for attack in ATTACKS:
        found = Elements(page_of(attack))
        assert found.made == plain, f"{attack!r} became markup"
        bare = attack.replace("`", "")
        assert bare in "".join(found.text).replace("`", ""), f"{attack!r} is not shown as it is"


def _report(text: str, **more: Any) -> LensReport:
    return LensReport(concept=text, term=text, level=1, **{"fitted": True, "score": 0.9, **more})


def test_lenses_are_escaped() -> None:
    check(lambda t: Highlight([t, "b"], [2.0, 0.0], [_report(t), _report("b")])._repr_html_())

    class Some(list):
        def __repr__(self) -> str:
            return self.text

    def table(text: str) -> str:
        some = Some([1])
        some.text, some.reports = text, [_report(text, stop_reason=text, grade=text)]  # type: ignore[attr-defined]
        return lenses_html(some)  # type: ignore[arg-type]

    check(table)


def test_reports_and_stills_are_escaped() -> None:
    def page(text: str) -> str:
        report = Report(text, text)
        report.section(text, text)
        report.numbers([(text, text)])
        report.table(Table(text, [text, "n"], [[text, "1"]], note=text))
        report.footer(text)
        return report.html()

    # A pair of backticks is the page's own way to write code.
    backticks = ATTACKS.pop()
    try:
        check(page)
    finally:
        ATTACKS.append(backticks)
    assert "<iframe" not in page(backticks)
    check(lambda t: still_html("u", t, t, b"png", [(t, t)]))


def test_flames_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path or an argument of the program is in the page's data, inside a script."""
    monkeypatch.setattr("sys.argv", ["x</script><script>alert(1)</script>"])
    made = flame(sum, range(1000), title="</script><b>t")
    page = made.html()
    assert "</script><script>alert(1)" not in page
    shown = made._repr_html_()
    assert "</script><b>" not in shown
    assert html.unescape(shown.split('srcdoc="')[1].split('"')[0]) == page


def test_a_dollar_is_no_formula() -> None:
    """Text that Matplotlib would fail to read as a formula is drawn as it is."""
    bad = r"$\frac$ $x_{$"
    assert png(projection_figure([bad, "b"], np.eye(2), [bad, "n"], title=bad)).startswith(b"\x89PNG")
