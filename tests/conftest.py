"""What all tests share: reproducible defaults, and parts that may be missing on a machine.

A test marked ``browser`` (or another name of `PARTS`) needs that part. Where it is missing the test is
skipped with the reason, or fails if the part is named in the environment variable ``INTERP_REQUIRE``
(comma-separated), as CI does: there a skipped test would go unnoticed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import hypothesis
import pytest

# Nothing in the tests may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
# Tests run two at a time: a thread that waits for another must not do so spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

hypothesis.settings.register_profile("interp", deadline=None, print_blob=True)
# CI repeats the same examples, so that a red run is the change's doing.
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "interp")


def _missing_browser() -> str:
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install 'interp[test]'"
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return "no chromium on PATH: apt-get install chromium"
    return ""


def _missing_slurm() -> str:
    if shutil.which("sbatch") is None:
        return "no sbatch on PATH: apt-get install slurm-wlm munge"
    return ""


#: Name of a part → function that says what is missing, "" if nothing.
PARTS = {"browser": _missing_browser, "slurm": _missing_slurm}


def requires(part: str) -> None:
    """Skip the running test if `part` is missing here; fail it if ``INTERP_REQUIRE`` names the part."""
    reason = PARTS[part]()
    if not reason:
        return
    if part in os.environ.get("INTERP_REQUIRE", "").split(","):
        pytest.fail(f"{part} is required here (INTERP_REQUIRE) and missing: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Playwright leaves its event loop running in the main thread, where asyncio.run would refuse to start.
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for part in PARTS:
        if item.get_closest_marker(part):
            requires(part)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One torch thread: small tensors are faster so, and sums come out the same on every machine."""
    import torch

    torch.set_num_threads(1)
