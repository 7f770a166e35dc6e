"""What a moving monitor costs a fit: paired runs in a Jupyter kernel, without and with it.

    python tests/bench/live.py [--quick] [--pairs N]

A kernel is started as JupyterLab would, so that frames go out over its sockets. Each pair runs the same
fit in a thread of its own, once with nobody listening and once under a `FitMonitor` that sends four
frames a second; every other pair the other way round. Printed are the medians, the median of the paired
ratios with its range, the frames that were sent in a fit, the cost of one, and the time from Stop to the end
of the worker. The fit without a monitor has no hook at all: what the events themselves cost is counted.
``--quick`` has a smaller fit and fewer pairs: it shows that the script works, not what a monitor costs.
"""

from __future__ import annotations

import argparse

import nbclient
import nbformat

CELL = """
import statistics, threading, time
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
pairs = []
for i in range(N_PAIRS):
    if i % 2:
        b = watched(); a = plain()
    else:
        a = plain(); b = watched()
    pairs.append((a, b))
ratios = sorted(b / a for a, b in pairs)
print(f"fit of {x.shape[1]:,} x 151 pairs, {x.nnz:,} events, {len(pairs)} pairs of runs")
alone, watching = (statistics.median(p[i] for p in pairs) for i in (0, 1))
print(f"alone {alone:.3f} s, watched {watching:.3f} s")
print(f"overhead {statistics.median(ratios) - 1:+.2%} (from {ratios[0] - 1:+.2%} to {ratios[-1] - 1:+.2%})")
frame, sent = (statistics.median(f[i] for f in frames[1:]) for i in (0, 1))
print(f"a frame costs {1000 * frame:.2f} ms: {4 * frame:.2%} of a core at 4 Hz; {sent:.0f} frames a fit")
if sent < 4:
    print("too few frames: the fit is too short to say what a moving monitor costs")

latencies = []
for _ in range(5):
    r = run.start(interp.Sparse1DProbe().fit, x, y)
    monitor = FitMonitor(r)
    while not (r.last is not None and r.last.is_step):
        time.sleep(0.005)
    start = time.perf_counter()
    monitor._on_message(monitor, {"do": "stop"}, [])
    r.wait()
    latencies.append(time.perf_counter() - start)
print(f"Stop takes effect in {statistics.median(latencies):.3f} s (at most {max(latencies):.3f} s)")
"""


def main(n_pairs: int, n_latents: int) -> None:
    """Run the pairs in a fresh kernel and print what they say."""
    code = CELL.replace("N_PAIRS", str(n_pairs)).replace("N_LATENTS", str(n_latents))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=3600, kernel_name="python3").execute()
    for output in book.cells[0].outputs:
        print(output.get("text", ""), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a small fit, three pairs")
    parser.add_argument("--pairs", type=int, default=None, help="pairs of runs (15)")
    asked = parser.parse_args()
    main(asked.pairs or (3 if asked.quick else 15), 512 if asked.quick else 4096)
