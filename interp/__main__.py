"""The command line: ``interp demo``, ``capture``, ``probe``, ``lenses``, ``profile``, ``bench``.

Every command calls the same public functions that a person calls; what they need is imported when they run.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from interp import __version__

app = typer.Typer(
    name="interp",
    help="Capture activations, probe sparse codes, train concept lenses, and watch them run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(no_args_is_help=True, help="Measure on this machine: one command per job.")
app.add_typer(bench, name="bench")

Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder or name of a model; `tiny` is the shipped one.")
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")]
Log = Annotated[
    Path | None, typer.Option(help="Write every event to this JSONL file, for a monitor to follow.")
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"interp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    # Without a terminal there are no bars: the log lines say how far the work is.
    level = logging.DEBUG if debug else logging.WARNING if sys.stderr.isatty() else logging.INFO
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("interp").setLevel(level)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.")] = Path("runs/demo"),
    seed: Seed = 0,
) -> None:
    """The main job, start to end, on the shipped model: capture, sparse code, probes, lenses, a report."""
    from interp.demo import demo as run

    run(out, seed=seed)


@app.command()
def probe(
    code: Annotated[Path, typer.Argument(help="Sparse code, SciPy CSR (token_acts.npz).")],
    labels: Annotated[Path, typer.Argument(help="One uint8 class id per row (labels.bin).")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where loss, weights, biases, tp, fp, tn, fn go.")
    ] = Path("probe1d_metrics.npz"),
    n_classes: Annotated[
        int | None, typer.Option(help="Number of classes; by default the largest id + 1.")
    ] = None,
    ridge: Annotated[float, typer.Option(help="Ridge on w and on b − logit(prevalence).")] = 1e-8,
    max_iter: Annotated[int, typer.Option(help="LM iterations at most.")] = 100,
    tol: Annotated[float, typer.Option(help="Largest scaled gradient of a converged pair.")] = 1e-6,
    threshold: Annotated[float, typer.Option(help="Probability from which a row counts as positive.")] = 0.5,
    top: Annotated[int, typer.Option(help="Print the best latent of so many classes.")] = 10,
    log: Log = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Fit a 1-D logistic probe for every (latent, class) pair of a sparse code."""
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists: give another --out, or --force to overwrite it")
    from interp.events import JsonlLog
    from interp.probe import Sparse1DProbe
    from interp.probe.data import load_csr, load_labels, write_metrics_npz

    x = load_csr(code)
    y = load_labels(labels, x.shape[0])
    fitted = Sparse1DProbe(ridge=ridge, max_iter=max_iter, tol=tol)
    fitted.fit(x, y, n_classes=n_classes, iteration_hook=None if log is None else JsonlLog(log))
    tp, fp, tn, fn = fitted.confusion(x, y, threshold=threshold)
    write_metrics_npz(
        out,
        loss=fitted.loss_matrix(x, y),
        weights=fitted.coef_,
        biases=fitted.intercept_,
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
    )
    print(f"{fitted.coef_.size:,} pairs → {out}")
    print(fitted.best_latents(1).head(top).to_string(index=False))


def main() -> None:
    """Entry point of the ``interp`` command: an error is one line on stderr and exit code 1."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv[1:]:
            raise
        kind = "" if isinstance(error, (ValueError, OSError, ImportError)) else f"{type(error).__name__}: "
        print(f"interp: {kind}{error}", file=sys.stderr)
        if kind:
            print("interp --debug … shows where it happened", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
