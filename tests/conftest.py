"""What the tests share: tiny toy streets, real photos where they are at hand, and the definitions inside the notebooks."""

import contextlib
import io
import os
import runpy
import shutil
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MPLBACKEND", "agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with two threads each are many times slower than two with one
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a model hub
os.environ.pop("CITYSCAPES_DATASET", None)


def pytest_configure(config):
    """Files come in order: xdist would keep those with few tests, which are long ones here, for the end."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The files that take minutes first, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_exercises", "test_training", "test_scale"))


def notebook_definitions(name: str) -> types.ModuleType:
    """A module with a notebook's imports, functions, classes and ALL_CAPS literals, none of its other statements run."""
    from results import runs

    return runs.notebook_definitions(name)


@pytest.fixture(scope="session")
def notebook():
    """notebook("06_kervadec_ablation").dice_loss: what that notebook defines."""
    return notebook_definitions


SHORTER = {  # what a lesson trains or draws on its way, of which no test of a whole script reads a number
    "EPOCHS, best, looks = 20,": "EPOCHS, best, looks = 2,",  # 02: the first training in view
    "seed=0, repeats=2000)": "seed=0, repeats=100)",  # 03: the bootstrap
    "EPOCHS = 12": "EPOCHS = 2",  # 04: the training in view
    "for _ in range(100):": "for _ in range(10):",  # 04: what a coarse grid can draw
    "math.ceil(300 / steps)": "math.ceil(60 / steps)",  # 05: the proxy network
    "min(15, settings[\"epochs\"])": "1",  # 06: a loss alone
}


def shortened(source: str) -> str:
    """A notebook's script with a SHORTER lesson."""
    for long, short in SHORTER.items():
        source = source.replace(long, short)
    return source


def with_parameters(source: str, **parameters) -> str:
    """A notebook's script, shortened, with the cell of parameters that `papermill --prepare-only` would put in."""
    head, mark, tail = shortened(source).partition("# %% [markdown]\n# The next cells find the helpers")
    assert mark
    injected = "# %% tags=[\"injected-parameters\"]\n# Parameters\n" + "".join(f"{k} = {v!r}\n" for k, v in parameters.items())
    return head + injected + "\n" + mark + tail


def run_script(name: str, folder: Path, cwd: Path = ROOT, edit=lambda source: source, **parameters) -> str:
    """Run a notebook's script in this process, with the parameters where `papermill --prepare-only` would put them.

    Returns what it printed; `edit` changes the script before. What needs no kernel is tested so: a kernel's imports take longer than a tiny training.
    """
    source = edit((ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8"))
    script = Path(folder) / f"{name}.py"
    script.write_text(with_parameters(source, **parameters), encoding="utf-8")
    before, printed = os.getcwd(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("STREETS_HOME", str(ROOT))
        os.chdir(cwd)
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            os.chdir(before)
    return printed.getvalue()


def run_in_kernel(name: str, folder: Path, cwd: Path = ROOT, **parameters):
    """Run a notebook, shortened, by papermill in a kernel of its own; returns it, with all that it shows (out.ipynb in `folder`)."""
    import jupytext
    import papermill

    script = (ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    jupytext.write(jupytext.reads(shortened(script), fmt="py:percent"), folder / "in.ipynb")
    return papermill.execute_notebook(folder / "in.ipynb", folder / "out.ipynb", parameters, cwd=cwd, progress_bar=False)


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Toy streets of 64x128 pixels: 8 train, 3 val, 2 test."""
    import data_prep

    root = tmp_path_factory.mktemp("streets") / "toy"
    data_prep.make_toy(root, size=(64, 128), train=8, val=3, test=2, seed=1)
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that holds camvid11/ and camvid32/ (the environment variable STREETS_TEST_DATA)."""
    root = os.environ.get("STREETS_TEST_DATA", "")
    if not root or not Path(root).is_dir():
        pytest.skip("set STREETS_TEST_DATA to a folder with camvid11/ and camvid32/ to test on real photos")
    return Path(root)


@pytest.fixture(scope="session")
def chromium():
    """A browser without a window, driven by playwright; $CHROMIUM names another program."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("apt install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def copy_some(source: Path, target: Path, form: str, every: int = 16) -> Path:
    """Links to every `every`-th photo of a CamVid folder, with its label, in the folder `target`."""
    names = ("images", "labels") if form == "camvid32" else [f"{s}{k}" for s in ("train", "val", "test") for k in ("", "annot")]
    for name in names:
        (target / name).mkdir(parents=True)
        for path in sorted((source / name).iterdir())[::every]:
            (target / name / path.name).symlink_to(path)
    return target


@pytest.fixture
def one_thread():
    """One thread of torch, for measurements that compare."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
