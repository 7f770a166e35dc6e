"""The README's examples run as they stand, one after the other."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


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
