"""Without a notebook: a bar with the right total on a terminal, nothing but logging where there is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
termios = pytest.importorskip("termios", reason="needs a pseudo-terminal")

HEAD = "import logging, numpy as np, scipy.sparse as sp, torch; torch.set_num_threads(1)\nimport interp\n"
FIT = """
x = sp.random(3000, 64, density=0.2, format="csr", random_state=0)
interp.Sparse1DProbe(class_slab_size=4).fit(x, np.arange(3000) % 28)
"""
CAPTURE = """
model = interp.load_model("tiny")
interp.capture(model, [f"the owl number {i} sees a fox" for i in range(9)], sites="embed", batch_tokens=32)
"""
LENSES = """
model = interp.load_model("tiny")
pack = interp.ConceptPack.load("tiny")
few = [c.id for c in pack if c.level == 0]
interp.train_lenses(model, pack, site="resid_post.2", concepts=few, growth=(12, 24))
print("trained", len(few))
"""
#: Job → (code, description of its bar, total, unit)
JOBS = {
    "fit": (FIT, "probe", 7, "slab"),
    "reading": (
        "from interp.probe import stages; stages._BAR_AFTER = 0.0" + FIT,
        "probe, summary",
        3000,
        "row",
    ),
    "capture": (CAPTURE, "capture", 9, "prompt"),
}


def on_a_terminal(code: str) -> tuple[str, str]:
    """Run `code` with standard error on a terminal of 100 columns; what it wrote there, and its output."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))  # a terminal without a size has no room for a bar
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not block:
                break
            seen += block
        output = process.stdout.read() if process.stdout else ""
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    return seen.decode(), output


def piped(code: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, check=True)
    return done.stderr, done.stdout


@pytest.mark.parametrize("job", JOBS)
def test_a_terminal_shows_a_bar_with_the_right_total(job):
    code, name, total, unit = JOBS[job]
    seen, output = on_a_terminal(code)
    bars = re.findall(rf"{name}: +(\d+)%\|.*?\| (\d+)/(\d+) \[", seen)
    assert bars, seen
    assert {int(n) for _, _, n in bars} == {total}
    assert bars[-1][:2] == ("100", str(total))
    assert unit in seen
    assert output == ""


def test_a_terminal_shows_the_lenses_and_keeps_their_bar_alone():
    seen, output = on_a_terminal(LENSES)
    n = int(output.split()[-1])
    bars = re.findall(r"lenses: +(\d+)%\|.*?\| (\d+)/(\d+) \[", seen)
    assert {int(total) for _, _, total in bars} == {n}
    assert bars[-1][:2] == ("100", str(n))


@pytest.mark.parametrize("job", JOBS)
def test_without_a_terminal_there_is_nothing_but_logging(job):
    code, name, total, unit = JOBS[job]
    assert piped(code) == ("", "")
    logged, output = piped("logging.basicConfig(level=logging.INFO, format='%(name)s|%(message)s')\n" + code)
    lines = [line for line in logged.splitlines() if line.startswith("interp.")]
    assert f"interp.events.process|{name}: {total} {unit}" in lines
    assert f"interp.events.process|{name}: done" in lines
    assert output == ""
    assert "\r" not in logged
    assert "%|" not in logged


def test_a_run_in_the_background_shows_its_bar_too():
    code = FIT.replace("interp.Sparse1DProbe", "r = interp.run.start(interp.Sparse1DProbe").replace(
        ".fit(x, np.arange(3000) % 28)", ".fit, x, np.arange(3000) % 28)\nr.wait()"
    )
    seen, _ = on_a_terminal(code)
    assert "7/7" in seen
