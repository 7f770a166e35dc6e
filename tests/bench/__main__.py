"""All benchmarks, one after the other, and the table of them: ``python tests/bench [--quick] [name …]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from table import BENCHES, collect, folder, parser


def main() -> int:
    """Run each benchmark in a process of its own; 1 if one of them failed."""
    made = parser(__doc__)
    names = [name for name in BENCHES if name != "seed_scale"]
    made.add_argument("names", nargs="*", metavar="name", help=f"only these, of {', '.join(names)}")
    options = made.parse_args()
    unknown = set(options.names) - set(names)
    if unknown:
        made.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    out = folder(options)
    shared = ["--out", str(out), *["--quick"] * options.quick]
    shared += ["--repeats", str(options.repeats)] * (options.repeats is not None)
    failed = []
    for name in options.names or names:
        print(f"\n=== {name}", flush=True)
        script = Path(__file__).parent / f"{name}.py"
        if subprocess.run([sys.executable, str(script), *shared], check=False).returncode:
            failed.append(name)
    print("\n" + collect(out))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
