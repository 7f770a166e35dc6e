"""A real JupyterLab in a real browser: one server for all tests, isolated from the user's settings."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "runs" / "browser"

#: A folder with ipykernel 6 in it, used as a second kernel. To make it:
#: pip install --no-deps --target runs/ipykernel6 "ipykernel<7"
IPYKERNEL6 = Path(os.environ.get("INTERP_IPYKERNEL6", ROOT / "runs" / "ipykernel6"))

#: Device pixels of a CSS pixel, for pictures that look sharp.
SCALE = float(os.environ.get("INTERP_BROWSER_SCALE", "1"))

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _chromium() -> str | None:
    return next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


class Lab:
    """A running JupyterLab; `notebook` writes a notebook into it, `open` shows one in the browser."""

    def __init__(self, root: Path, settings: Path, url: str, token: str) -> None:
        self.root, self.settings, self.url, self.token = root, settings, url, token
        self._setting("notification", {"fetchNews": "false", "checkForUpdates": False})

    def notebook(self, name: str, cells: list[str], kernel: str = "python3") -> str:
        import nbformat.v4 as v4

        book = v4.new_notebook(
            cells=[v4.new_code_cell(c) for c in cells],
            metadata={"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
        )
        (self.root / name).write_text(json.dumps(book), encoding="utf-8")
        return name

    def open(self, page, name: str, *, app: str = "lab") -> None:
        """Show a notebook in JupyterLab, or in Notebook 7 (``app="notebook"``), which the same server has."""
        # Lab would restore what it showed last.
        where = f"lab/tree/{name}?reset" if app == "lab" else f"notebooks/{name}"
        page.goto(f"{self.url}/{where}", timeout=120_000)
        # Before its kernel is connected, Lab would forget what it is asked to run, or ask for a kernel.
        for _ in range(240):
            kernels = [s["kernel"] for s in self._api("sessions") if s["path"] == name]
            if any(k["execution_state"] == "idle" and k["connections"] for k in kernels):
                break
            page.wait_for_timeout(250)
        page.wait_for_timeout(500)
        self.wait_idle(page)

    def theme(self, name: str) -> None:
        """The theme of pages opened from now on: "Light" or "Dark"."""
        self._setting("themes", {"theme": f"JupyterLab {name}"})

    def _setting(self, plugin: str, value: dict) -> None:
        folder = self.settings / "@jupyterlab" / "apputils-extension"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{plugin}.jupyterlab-settings").write_text(json.dumps(value), encoding="utf-8")

    def shutdown(self) -> None:
        """End all kernels."""
        for session in self._api("sessions"):
            self._api(f"sessions/{session['id']}", "DELETE")

    def _api(self, what: str, method: str = "GET"):
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{what}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def run_all(self, page) -> None:
        """Run › Run All Cells."""
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator("[data-command='runmenu:run-all']").click()

    def wait_idle(self, page, timeout: float = 60.0) -> None:
        """Wait until the kernel is free."""
        idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        idle.first.wait_for(state="attached", timeout=1000 * timeout)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pytest.importorskip("jupyterlab", reason="needs jupyterlab (pip install 'interp[test]')")
    home = tmp_path_factory.mktemp("jupyter")
    root = tmp_path_factory.mktemp("notebooks")
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(file, root)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    if IPYKERNEL6.is_dir():
        spec = home / "data" / "kernels" / "ipykernel6"
        spec.mkdir(parents=True)
        path = os.pathsep.join([str(IPYKERNEL6), str(ROOT / "tests"), str(ROOT)])
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {
            "argv": argv,
            "display_name": "ipykernel 6",
            "language": "python",
            "env": {"PYTHONPATH": path},
        }
        (spec / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
    env = {
        **os.environ,
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH")])
        ),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
        "--ServerApp.port_retries=0",
    ]
    log = home / "server.log"
    url = f"http://127.0.0.1:{port}"
    with open(log, "wb") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                if _answers(f"{url}/api?token={token}"):
                    break
                if server.poll() is not None:
                    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.25)
            else:
                raise RuntimeError(f"JupyterLab did not answer within 60 s:\n{log.read_text()[-3000:]}")
            yield Lab(root, home / "settings", url, token)
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'interp[test]')")
    path = _chromium()
    if path is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["python3", "ipykernel6"], ids=["ipykernel-current", "ipykernel-6"])
def kernel(request) -> str:
    """The name of a kernel: ipykernel's current release, and one 6.x."""
    if request.param == "ipykernel6" and not IPYKERNEL6.is_dir():
        pytest.skip('no ipykernel 6: pip install --no-deps --target runs/ipykernel6 "ipykernel<7"')
    return request.param


@pytest.fixture
def page(request, browser, lab: Lab):
    """A fresh page, logged in; afterwards, an error in the page or in its console fails the test.

    A test function's attribute ``expected_console`` names the error that belongs to it; ``console_of`` names
    sources, and errors from elsewhere are the application's own.
    """
    expected = getattr(request.function, "expected_console", None)
    sources = getattr(request.function, "console_of", ("",))
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, device_scale_factor=SCALE)
    context.set_extra_http_headers({"Authorization": f"token {lab.token}"})
    page = context.new_page()
    page.goto(f"{lab.url}/lab?token={lab.token}", wait_until="commit")
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"page error: {error} {error.stack}"))
    page.on("console", lambda m: problems.append(f"{m.text} {m.location}") if m.type == "error" else None)
    yield page
    try:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"end-{request.node.name}.png", scale="css")
    finally:  # whatever this page had, the next test starts without its kernels
        context.close()
        lab.shutdown()
    problems = [p for p in problems if any(source in p for source in sources)]
    assert not [p for p in problems if expected is None or expected not in p]


@pytest.fixture
def shots() -> Path:
    """Where screenshots go: test artefacts, not part of the repository."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    return SHOTS
