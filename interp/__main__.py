"""The command line: ``interp demo``, ``capture``, ``probe``, ``lenses``, ``profile``, ``cluster``, ``bench``.

Every command calls the same public functions that a person calls; what they need is imported when they run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import __version__

if TYPE_CHECKING:
    from interp.events import JsonlLog

app = typer.Typer(
    name="interp",
    help="Capture activations, probe sparse codes, train concept lenses, and watch them run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(
    invoke_without_command=True, help="Measure on this machine: one command per job; without one, all."
)
app.add_typer(bench, name="bench")
tasks = typer.Typer(no_args_is_help=True, help="A job as tasks, from a shell: plan, run, look, cancel.")
app.add_typer(tasks, name="cluster")

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


@contextmanager
def _logged(path: Path | None) -> Iterator[JsonlLog | None]:
    """The hook for ``--log``, closed at the end."""
    if path is None:
        yield None
        return
    from interp.events import JsonlLog

    with JsonlLog(path) as log:
        yield log


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.")] = Path("runs/demo"),
    seed: Seed = 0,
) -> None:
    """The main job, start to end, on the shipped model: capture, sparse code, probes, lenses, a report."""
    from interp.demo import demo as run

    run(out, seed=seed)


@app.command()
def capture(
    experiment: Annotated[
        str, typer.Option("--experiment", "-e", help="Folder; a bare name is one in runs/.")
    ],
    trait: Annotated[
        list[str] | None,
        typer.Option("--trait", "-t", help="Project on the vector of this trait; repeatable."),
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompts", "-p", help="A prompt; repeatable.")
    ] = None,
    prompts_file: Annotated[
        list[str] | None,
        typer.Option("--prompts-file", "-f", help="A .txt or .jsonl file, or one that ships; repeatable."),
    ] = None,
    model: Model = "tiny",
    tier: Annotated[int, typer.Option(help="2: all layers, projected. 3: one layer in full.")] = 2,
    layer: Annotated[int | None, typer.Option(help="The layer of tier 3; the middle one by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate behind each prompt.")] = 50,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    check: Annotated[int, typer.Option(help="Run so many prompts again alone, and compare.")] = 0,
    device: Device = "auto",
    save_json: Annotated[
        bool, typer.Option("--save-json", help="A small JSON file per prompt file.")
    ] = False,
    seed: Seed = 0,
    log: Log = None,
) -> None:
    """Capture many prompts for many traits with one load of the model."""
    from interp.capture.plan import run_plan, summarise

    with _logged(log) as hook:
        folder = run_plan(
            experiment,
            trait or (),
            prompts or (),
            prompts_file or (),
            model=model,
            tier=tier,
            layer=layer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            check=check,
            device=device,
            save_json=save_json,
            seed=seed,
            iteration_hook=hook,
        )
    print(summarise(folder))


@app.command()
def probe(
    code: Annotated[
        Path, typer.Argument(help="Sparse code: SciPy CSR (token_acts.npz), or a folder of .npy arrays.")
    ],
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
    threshold: Annotated[float, typer.Option(help="Probability above which a row counts as positive.")] = 0.5,
    top: Annotated[int, typer.Option(help="Print the best latent of so many classes.")] = 10,
    log: Log = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Fit a 1-D logistic probe for every (latent, class) pair of a sparse code."""
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists: give another --out, or --force to overwrite it")
    from interp.files import expect_writable
    from interp.probe import Sparse1DProbe
    from interp.probe.files import RowShards

    expect_writable(out.parent)
    rows = RowShards(code, labels)
    x = rows if code.is_dir() else list(rows)
    fitted = Sparse1DProbe(ridge=ridge, max_iter=max_iter, tol=tol)
    with _logged(log) as hook:
        fitted.fit(x, n_classes=n_classes, iteration_hook=hook)
    fitted.write_metrics(out, x, threshold=threshold)
    print(f"{fitted.coef_.size:,} pairs → {out}")
    print(fitted.best_latents(1).head(top).to_string(index=False))


@app.command()
def lenses(
    out: Annotated[Path, typer.Argument(help="Folder for the lenses; a killed run goes on there.")],
    pack: Annotated[str, typer.Option(help="Concepts as JSON; `tiny` is the pack that ships.")] = "tiny",
    model: Model = "tiny",
    site: Annotated[
        str | None, typer.Option(help="Where they read; the middle layer's end by default.")
    ] = None,
    level: Annotated[
        list[int] | None, typer.Option("--level", "-l", help="Only this level of the ontology; repeatable.")
    ] = None,
    f1_target: Annotated[float, typer.Option(help="F1 at which a lens stops growing.")] = 0.95,
    validation_blocking: Annotated[
        bool, typer.Option("--validation-blocking", help="Go on until the grade is A or B, too.")
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    log: Log = None,
) -> None:
    """Train and grade concept lenses, level by level of the ontology."""
    from interp.capture.model import load_model
    from interp.lens.levels import train_by_level

    loaded = load_model(model, device=device)
    with _logged(log) as hook:
        trained = train_by_level(
            loaded,
            pack,
            site=site or f"resid_post.{loaded.n_layers // 2}",
            out=out,
            levels=level,
            seed=seed,
            iteration_hook=hook,
            f1_target=f1_target,
            validation_blocking=validation_blocking,
        )
    frame = trained.frame()
    print(frame.groupby("level")["grade"].value_counts().unstack(fill_value=0).to_string())
    print(trained.blocking_table().round(2).to_string(index=False))
    print(f"{len(trained)} lenses → {out}")


@app.command()
def profile(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for both flames and the table.")] = Path(
        "runs/profile"
    ),
    code: Annotated[
        Path | None, typer.Option(help="Sparse code (token_acts.npz); random by default.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Its labels (labels.bin).")] = None,
    n_rows: Annotated[int, typer.Option(help="Rows of the shard.")] = 1000,
    n_classes: Annotated[int, typer.Option(help="Classes.")] = 256,
    n_latents: Annotated[int, typer.Option(help="Latents of the random code.")] = 2048,
    seed: Seed = 0,
) -> None:
    """Profile a probe fit in a fresh process: flames with the hook off and with DEBUG logging."""
    from interp.live.flame import profile_fit

    report = profile_fit(
        out,
        token_acts=code,
        labels=labels,
        n_rows=n_rows,
        n_classes=n_classes,
        n_latents=n_latents,
        seed=seed,
    )
    print(report["summary"])
    for name in ("flame_off", "flame_debug", "hotspots"):
        print(f"{name.replace('_', ' ')}: {report[name]}")


Folder = Annotated[Path, typer.Argument(help="The run folder.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="NAME=VALUE, the value as JSON or plain text; repeatable."),
]


def _named(options: list[str] | None) -> dict[str, Any]:
    """``--option`` as keyword arguments."""
    import json

    out: dict[str, Any] = {}
    for option in options or ():
        name, equals, value = option.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"--option {option!r}: expected NAME=VALUE, such as timeout_min=120")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


@tasks.command("plan")
def cluster_plan(
    shards: Annotated[str, typer.Argument(help="What there is to work on, as `interp.cluster.plan` has it.")],
    folder: Folder,
    job: Annotated[str, typer.Option(help="summary, capture or lenses.")] = "summary",
    n_tasks: Annotated[int, typer.Option(help="Tasks at most; the result does not depend on it.")] = 8,
    threads: Annotated[int, typer.Option(help="Torch threads of a task.")] = 1,
    option: Options = None,
) -> None:
    """Cut a job into tasks, and write the plan into a folder."""
    from interp.cluster import plan

    planned = plan(shards, folder, job=job, n_tasks=n_tasks, threads=threads, **_named(option))
    print(f"{len(planned)} tasks → {folder}; to begin: interp cluster run {folder}")


@tasks.command("run")
def cluster_run(
    folder: Folder,
    executor: Annotated[
        str, typer.Option("--executor", "-e", help="processes, inline, submitit-local or slurm.")
    ] = "processes",
    retries: Annotated[int, typer.Option(help="Attempts after the first of a task that failed.")] = 2,
    option: Options = None,
) -> None:
    """Run what is not done, and wait. Options: those of `interp.cluster.run` (slurm_partition=cpu)."""
    from interp.cluster import load, run

    done = run(load(folder), executor, retries=retries, **_named(option))
    print(f"all {len(done)} tasks are done; in Python, interp.cluster.merge({str(folder)!r}) joins them")


@tasks.command("status")
def cluster_status(folder: Folder) -> None:
    """How far every task is, from any machine that sees the folder."""
    from interp.cluster import status

    table = status(folder)
    print(table.round({"seconds": 1, "progress": 2}).to_string(index=False))
    print(", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items()))


@tasks.command("cancel")
def cluster_cancel(folder: Folder) -> None:
    """End a run: what is done stays done, and `interp cluster run` goes on behind it."""
    from interp.cluster import cancel

    cancel(folder)
    print(f"{folder} is asked to stop: its tasks end at their next event")


@bench.callback()
def _bench(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        for command in bench.registered_commands:
            if command.callback is not None:
                print(f"\n=== interp bench {command.name}", flush=True)
                # In full it takes a quarter of an hour: that is for those who ask for it by name.
                small = {"fraction": 0.01} if command.name == "seed-scale" else {}
                context.invoke(command.callback, **small)


@bench.command("capture")
def bench_capture(
    prompts_file: Annotated[
        list[str] | None,
        typer.Option("--prompts-file", "-f", help="A file of prompts, or one that ships (all); repeatable."),
    ] = None,
    model: Model = "tiny",
    max_new_tokens: Annotated[int, typer.Option(help="New tokens behind each prompt.")] = 50,
    repeats: Annotated[int, typer.Option(help="Interleaved repeats of every case.")] = 5,
    device: Device = "auto",
) -> None:
    """What loading once, batches, the cache and the hooks are worth, each as a number of its own."""
    from interp.capture.measure import measure
    from interp.capture.model import load_model
    from interp.capture.prompts import SHIPPED, Prompts, shipped

    sets = [shipped(f) if f in SHIPPED else Prompts.from_file(f) for f in prompts_file or SHIPPED]
    prompts = Prompts([prompt for prompts in sets for prompt in prompts])
    print(measure(load_model(model, device=device), prompts, max_new_tokens=max_new_tokens, repeats=repeats))


@bench.command("seed-scale")
def bench_seed_scale(
    fraction: Annotated[float, typer.Option(help="Share of the 5.6M rows.")] = 1.0,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the numbers.")] = Path("runs/bench"),
) -> None:
    """The 18-hour probe job at its size, on data made as it is needed (a quarter of an hour in full)."""
    from interp.seed_scale import report, seed_scale

    print(report(seed_scale(fraction, seed=seed, out=out)))


@bench.command("lenses")
def bench_lenses(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables.")] = Path(
        "runs/bench/lenses"
    ),
    model: Model = "tiny",
    pack: Annotated[str, typer.Option(help="Concepts as JSON; `tiny` is the pack that ships.")] = "tiny",
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Precision and batching: bf16 beside float32, speed and memory by batch, lens quality, steering."""
    from interp.files import expect_writable
    from interp.lens.study import study

    expect_writable(out)
    measured = study(model, pack, device=device, seed=seed)
    measured.save(out)
    print(measured)


def main() -> None:
    """Entry point of the ``interp`` command: an error is one line on stderr and exit code 1."""
    try:
        app()
    except Exception as error:  # of whatever kind: this is where the user reads it
        if "--debug" in sys.argv[1:]:
            raise
        meant = isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith(
            "interp."
        )
        kind = "" if meant else f"{type(error).__name__}: "
        print(f"interp: {kind}{error}", file=sys.stderr)
        if kind:
            print("interp --debug … shows where it happened", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
