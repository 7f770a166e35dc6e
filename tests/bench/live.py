"""What a moving monitor costs a fit: ``python tests/bench/live.py [--quick] [--repeats N]``.

A kernel is started as JupyterLab would, so that frames go out over its sockets; this process is the client
and counts the messages that arrive. Each turn runs the same fit three times in a thread of its own, in an
order that changes from turn to turn: twice with nobody listening, once under a `FitMonitor` that sends four
frames a second. How the two that nobody watches differ is what the machine does by itself. They have no hook
at all: what the events themselves cost is counted.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import nbclient
import nbformat
from table import Row, finish, parse, parser, quantity, ratio

GROUP = "Live"

CELL = """
import json, threading, time
import numpy as np, scipy.sparse as sp
import interp
from interp import run
from interp.live import FitMonitor

rng = np.random.default_rng(0)
x = sp.random(60_000, N_LATENTS, density=0.02, format="csr", rng=rng, dtype=np.float32)
x.data = rng.exponential(1.0, x.nnz).astype(np.float32)
y = rng.integers(0, 151, x.shape[0])

def plain():
    probe = interp.Sparse1DProbe()
    worker = threading.Thread(target=probe.fit, args=(x, y))
    start = time.perf_counter()
    worker.start()
    worker.join()
    return time.perf_counter() - start

frames = []
def watched():
    start = time.perf_counter()
    r = run.start(interp.Sparse1DProbe().fit, x, y)
    monitor = FitMonitor(r)
    r.wait()
    seconds = time.perf_counter() - start
    frames.append((monitor.frame_seconds, monitor._frames))
    while monitor._thread is not None:  # the last picture is not part of the fit
        time.sleep(0.01)
    return seconds

plain(), watched()
frames.clear()
turns = []
for i in range(N_TURNS):
    seconds = {}
    for which in np.roll(["alone", "watched", "again"], i):
        seconds[str(which)] = watched() if which == "watched" else plain()
    turns.append(seconds)

stops = []
for _ in range(5):
    r = run.start(interp.Sparse1DProbe().fit, x, y)
    monitor = FitMonitor(r)
    while not (r.last is not None and r.last.is_step):
        time.sleep(0.005)
    start = time.perf_counter()
    monitor._on_message(monitor, {"do": "stop"}, [])
    r.wait()
    stops.append(time.perf_counter() - start)
print(json.dumps(dict(turns=turns, frames=frames, stops=stops, nnz=x.nnz, shape=x.shape)))
"""


class Client(nbclient.NotebookClient):
    """Runs a notebook and keeps the size of each message of its widgets."""

    sizes: list[int]

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Take a message of the kernel."""
        if msg["msg_type"] == "comm_msg":
            self.sizes.append(len(json.dumps(msg["content"])) + sum(map(len, msg["buffers"])))
        return super().process_message(msg, cell, cell_index)


def measure(n_turns: int, n_latents: int) -> dict[str, Any]:
    """What the cell found, in a fresh kernel, and the sizes of the messages that came from it."""
    code = CELL.replace("N_TURNS", str(n_turns)).replace("N_LATENTS", str(n_latents))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = Client(book, timeout=3600, kernel_name="python3")
    client.sizes = []
    client.execute()
    printed = "".join(o.get("text", "") for o in book.cells[0].outputs if o.get("name") == "stdout")
    return {**json.loads(printed.strip().splitlines()[-1]), "sizes": client.sizes}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write ``live.csv`` and the table."""
    options = parse(parser(__doc__, repeats=15), arguments)
    found = measure(options.repeats, 512 if options.quick else 4096)
    alone, watched, again = ([t[which] for t in found["turns"]] for which in ("alone", "watched", "again"))
    unwatched = [(a + b) / 2 for a, b in zip(alone, again, strict=True)]
    cost, sent = ([frame[i] for frame in found["frames"]] for i in (0, 1))
    enough = "" if statistics.median(sent) >= 4 else "; too few to say what a moving monitor costs"
    size = f"{found['nnz']:,} events, {found['shape'][1]:,} × 151 pairs"
    note = f"{size}; {statistics.median(sent):.0f} frames a fit{enough}"
    said = (
        f"4 a second; {len(found['sizes']):,} arrived, {statistics.median(found['sizes']) / 1024:.0f} kB each"
    )
    rows = [
        ratio(GROUP, "fit with a moving monitor ÷ fit alone", watched, unwatched, note=note),
        ratio(GROUP, "fit alone ÷ the same again", alone, again, note="what the machine does by itself"),
        quantity(GROUP, "one frame in the kernel", cost, "ms", scale=1e3, note=said),
        quantity(GROUP, "from Stop to the end of the worker", found["stops"], "s"),
    ]
    return finish("live", rows, options)


if __name__ == "__main__":
    main()
