"""The pages: README's examples run as they stand, and whatever a page names in code is there."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
from pathlib import Path

import pytest

import interp

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = ["README.md", "CHANGELOG.md", "notebooks/README.md", "interp/README.md", "interp/tiny/README.md"]


@pytest.mark.slow
def test_the_examples_of_the_readme_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 5
    names: dict[str, object] = {}

    async def run_all() -> None:
        for block in blocks:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as in a notebook
            result = eval(compile(block, "README.md", "exec", flags=flags), names)
            if inspect.iscoroutine(result):
                await result

    asyncio.run(asyncio.wait_for(run_all(), timeout=240))  # a run left paused would never end
    assert names["acts"].n_prompts == 2
    assert names["probe"].coef_.shape == (2048, 151)
    assert names["run"].state == "done"
    assert len(names["lenses"]) > 100


# --------------------------------------------------------------------------- what the pages name


def code_spans(text: str) -> list[str]:
    """What stands in single backticks, outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


def attribute(thing: object, name: str) -> bool:
    """Whether `thing` has `name`: as an attribute, or documented as one that its instances get."""
    if hasattr(thing, name) or name in getattr(thing, "__dataclass_fields__", {}):
        return True
    return inspect.isclass(thing) and re.search(rf"\b{name}\b.* : ", inspect.getdoc(thing) or "") is not None


def exists(dotted: str) -> bool:
    """Whether a dotted name from `interp` on can be reached by imports and attributes."""
    thing: object = interp
    path = "interp"
    for name in dotted.split(".")[1:]:
        path += f".{name}"
        if hasattr(thing, name):
            thing = getattr(thing, name)
            continue
        try:
            thing = importlib.import_module(path)
        except ModuleNotFoundError:
            return attribute(thing, name) and path == dotted
    return True


#: Where the bare names of the pages are looked up.
HOMES = ("interp", "interp.lens", "interp.live", "interp.events", "interp.probe", "interp.lens.study")


def public_home(name: str) -> str | None:
    """``Lenses`` → ``interp.lens.Lenses``: where a bare public name is at home."""
    for face in HOMES:
        if name in importlib.import_module(face).__all__:
            return f"{face}.{name}"
    return None


def missing(page: Path, text: str) -> list[str]:
    """The files, tests, modules and names that a page speaks of and that are not there."""
    out = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target.replace("\\_", "_")) if target else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            out.append(link)
    for span in code_spans(text):
        path, _, test = span.partition("::")
        if re.fullmatch(r"(\.ci|interp|tests|notebooks)/[\w./-]*|[\w./-]+\.(py|ipynb|md|js|yml|toml)", path):
            if "runs/" in path or path == "shards.py":  # of the reader's own
                continue
            # From the root, or from the page; a bare name may be in any folder of the package.
            found = [base / path for base in (ROOT, page.parent) if (base / path).exists()]
            found += [] if "/" in path else [*(ROOT / "interp").rglob(path)]
            if not found or (test and f"def {test}(" not in found[0].read_text(encoding="utf-8")):
                out.append(span)
            continue
        name = re.match(r"[A-Za-z_][\w.]*\w(?=\(|$|\[)", span)
        if name is None:
            continue
        first, _, rest = name[0].partition(".")
        if first == "interp" and rest:
            out += [] if exists(name[0]) else [span]
        elif rest and (home := public_home(first)):
            out += [] if exists(f"{home}.{rest}") else [span]
    return out


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    file = ROOT / page
    assert missing(file, file.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_found():
    """The check above can fail, once for each kind of name."""
    wrong = {
        "[a](nowhere.md)",
        "[a](README.md#nowhere)",
        "`tests/test_nowhere.py`",
        "`tests/test_readme.py::test_nothing`",
        "`interp.nowhere`",
        "`interp.probe.lm.nothing`",
        "`Sparse1DProbe.nothing`",
        "`Lenses.nothing(k=2)`",
    }
    for text in wrong:
        assert missing(README, text), text
    right = "[a](README.md#measured) `tests/test_readme.py::missing` `interp.probe.lm.descend`"
    right += " `SlabEnd.seconds` `Sparse1DProbe.coef_` `interp.capture` `Lenses.frame()`"
    assert missing(README, right) == []
