"""A student with JupyterLab in a real browser: run all cells, change a value, stop a training and go on with it.

Not part of the default run. It needs Chromium (Debian: `apt install chromium`; $CHROMIUM names another one), and in the
virtual environment `pip install jupyterlab playwright`; then `pytest -m browser`. Pictures of what the student sees go
to the folder $STREETS_SCREENSHOTS, if it is set.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jupytext
import pytest
from conftest import ROOT
from test_interrupt import NAME, edited

pytestmark = pytest.mark.browser
SMALL = {"stage": "scratch", "epochs": 2, "size": 32, "width": 4}
MINUTES = 3 * 60_000  # milliseconds that anything may take
WHOLE = 30 * 60_000  # and a whole notebook
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address, root folder) of a running JupyterLab."""
    pytest.importorskip("jupyterlab", reason="pip install jupyterlab playwright")
    base, port = tmp_path_factory.mktemp("lab"), free_port()
    root, overrides = base / "root", base / "settings" / "overrides.json"
    root.mkdir()
    overrides.parent.mkdir()
    overrides.write_text(json.dumps(SETTINGS))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={root}", f"--LabApp.app_settings_dir={overrides.parent}"]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(base / "config"), "JUPYTERLAB_WORKSPACES_DIR": str(base / "workspaces"),
                                "JUPYTERLAB_SETTINGS_DIR": str(base / "user"), "JUPYTER_RUNTIME_DIR": str(base / "runtime")}
    environment.pop("MPLBACKEND", None)  # the kernel chooses it, as it does for a student
    with open(base / "log", "w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, (base / "log").read_text()
                    time.sleep(0.2)
            yield address, root
        finally:
            server.terminate()


class Student:
    """Who opened a notebook, and sees the page."""

    def __init__(self, page, path, pictures):
        self.page, self.path, self.folder, self.pictures = page, path, path.parents[1], pictures
        self.cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")

    def menu(self, *entries):
        """Choose an entry of the menus at the top by their names."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=entries[0]).first.click()
        self.page.locator(".lm-Menu-item:visible", has=self.page.get_by_text(entries[1], exact=True)).click()

    def wait(self, condition, limit=MINUTES):
        """Wait until a JavaScript function is true on the page."""
        self.page.wait_for_function(condition, timeout=limit)

    def run_all(self):
        self.menu("Run", "Run All Cells")
        self.wait("() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(e => e.textContent.includes('*'))")

    def wait_until_idle(self, limit=MINUTES):
        self.wait("""() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(e => !e.textContent.includes('*'))
                     && document.querySelector('#jp-main-statusbar').innerText.includes('| Idle')""", limit)

    def cell(self, text):
        """The code cell whose source holds a text."""
        return self.cells.filter(has=self.page.locator(".cm-line", has_text=text)).first

    def change(self, line, new):
        """Click on a line of code and type another in its place."""
        self.page.locator(".cm-line", has_text=line).first.click()
        self.page.keyboard.press("Home")
        self.page.keyboard.press("Shift+End")
        self.page.keyboard.type(new)

    def saved(self):
        """Code cells of the notebook on disk, after saving it."""
        self.menu("File", "Save Notebook")
        self.wait("() => !document.querySelector('.jp-mod-dirty')")
        for _ in range(50):
            with contextlib.suppress(json.JSONDecodeError):  # the server is still writing
                return [cell for cell in json.loads(self.path.read_text())["cells"] if cell["cell_type"] == "code"]
            self.page.wait_for_timeout(200)
        pytest.fail(f"{self.path} is no notebook")

    def errors(self):
        """Names of the errors that cells ended with."""
        return [output["ename"] for cell in self.saved() for output in cell["outputs"] if output["output_type"] == "error"]

    def show(self, element, name):
        """Scroll to an element and keep a picture of the window."""
        element.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=str(self.pictures / f"{name}.png"))


@contextlib.contextmanager
def opened(lab, chromium, path, pictures, width=1300, height=1000):
    """A student who opened a notebook of a copy of the repository, in a window of this size."""
    address, root = lab
    pictures = Path(os.environ.get("STREETS_SCREENSHOTS") or pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    page.goto(f"{address}/lab/tree/{path.relative_to(root)}?reset")
    student = Student(page, path, pictures)
    student.cells.first.wait_for()
    student.wait_until_idle()  # the kernel is connected
    yield student
    student.menu("Kernel", "Shut Down Kernel")  # it holds a gigabyte
    student.wait("() => document.querySelector('#jp-main-statusbar').innerText.includes('No Kernel')")
    page.close()


@pytest.fixture
def student(lab, chromium, request, tmp_path):
    """A student who opened notebook 02, with small values in its parameters cell."""
    folder = lab[1] / request.node.name
    ignored = shutil.ignore_patterns(".*", "__pycache__", "data", "0?_*", "tests")
    shutil.copytree(ROOT, folder, ignore=ignored)
    shutil.copy(ROOT / "notebooks" / f"{NAME}.py", folder / "notebooks")  # it says what the values were before
    jupytext.write(edited(SMALL), folder / "notebooks" / f"{NAME}.ipynb")
    with opened(lab, chromium, folder / "notebooks" / f"{NAME}.ipynb", tmp_path) as student:
        yield student


def test_run_all_cells_shows_pictures_and_no_error(student):
    student.run_all()
    student.wait_until_idle()
    assert student.errors() == []
    images = student.page.locator(".jp-OutputArea-output img")
    assert images.count() >= 5
    student.wait("() => [...document.querySelectorAll('.jp-OutputArea-output img')].every(i => i.complete && i.naturalWidth > 100)")
    student.show(images.first, "1_first_picture")
    student.show(images.last, "2_last_picture")
    code = student.saved()
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_a_value_changed_in_the_parameters_cell_counts_when_all_cells_run_again(student):
    student.run_all()
    student.wait_until_idle()
    names = student.cell("common.train_runs(").locator(".jp-OutputArea")
    assert "-epochs2_seed42" in names.inner_text()
    student.change("epochs: int = 2", "epochs: int = 3")
    student.show(student.cell("epochs: int = 3"), "3_changed_value")
    student.run_all()
    student.wait_until_idle()
    assert student.errors() == []
    assert "-epochs3_seed42" in names.inner_text()
    student.show(names, "4_after_the_change")
    assert len(list(student.folder.rglob("history.csv"))) == 2, "another value, another run"


def test_a_training_stopped_in_the_menu_goes_on_when_the_cells_run_again(student):
    student.change("epochs: int = 2", "epochs: int = 200")
    student.run_all()
    training = student.cell("common.train_runs(")
    for _ in range(1200):
        if list(student.folder.rglob("checkpoint/epoch_*/progress.json")):
            break
        time.sleep(0.1)
    student.show(training.locator(".jp-OutputArea"), "5_training")
    student.menu("Kernel", "Interrupt Kernel")
    student.wait_until_idle()
    assert student.errors() == ["KeyboardInterrupt"]
    student.show(training.get_by_text("KeyboardInterrupt").last, "6_interrupted")
    assert not list(student.folder.rglob("summary.json"))
    student.run_all()
    training.get_by_text("resuming after epoch").wait_for(timeout=MINUTES)
    student.show(training.locator(".jp-OutputArea"), "7_resumed")
    student.wait_until_idle()
    assert student.errors() == []
    assert len(list(student.folder.rglob("summary.json"))) == 1
    student.show(student.page.locator(".jp-OutputArea-output img").last, "8_after_the_resumed_training")


CUT = """() => {
    const wide = line => line.scrollWidth > line.closest('.cm-scroller').clientWidth + 1;
    return [...document.querySelectorAll('.jp-CodeCell .cm-line')].filter(wide).map(line => line.innerText);
}"""
PICTURES = """() => [...document.querySelectorAll('.jp-Cell img')].filter(i => i.src.startsWith(location.origin)
    || !i.src.startsWith('http')).every(i => i.complete && i.naturalWidth > 16)"""
OVER = """() => {
    const over = [];
    for (const output of document.querySelectorAll('.jp-CodeCell .jp-OutputArea-output')) {
        const edge = output.getBoundingClientRect().right + 1;
        const parts = [output, ...output.querySelectorAll('img, table, pre')];
        if (output.scrollWidth > output.clientWidth + 1 || parts.some(part => part.getBoundingClientRect().right > edge))
            over.push(output.innerText.slice(0, 200) || 'a picture');
    }
    return over;
}"""


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_every_notebook_runs_in_the_window_of_a_laptop_and_nothing_is_cut_off(lab, chromium, name, tmp_path):
    folder = lab[1] / f"laptop_{name[:2]}"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "data", "tests", "toy-quick"))
    with opened(lab, chromium, folder / "notebooks" / f"{name}.ipynb", tmp_path, 1366, 768) as student:
        student.wait(PICTURES)
        assert student.page.evaluate(CUT) == []
        student.page.screenshot(path=str(student.pictures / f"{name[:2]}_opened.png"))
        student.run_all()
        student.wait_until_idle(WHOLE)
        assert student.errors() == []
        code = student.saved()
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        student.wait(PICTURES)
        assert student.page.evaluate(CUT) == [] and student.page.evaluate(OVER) == []
        images = student.page.locator(".jp-CodeCell .jp-OutputArea-output img")
        for k in range(images.count()):
            student.show(images.nth(k), f"{name[:2]}_{k:02d}")
