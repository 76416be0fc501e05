"""What JupyterLab does with the notebooks when it is started as the README says: jupytext's own contents manager is there."""

import asyncio
import os
import re
import shutil

import jupytext
import nbformat
import pytest
from conftest import ROOT
from jupyter_core.utils import ensure_async

NAME = "notebooks/01_class_remapping"
LINE = re.search(r"(?m)^\.venv/bin/jupyter lab(.*?)(?: +#.*)?$", (ROOT / "README.md").read_text())[1].split()
SERVER = [*LINE, "--no-browser", "--allow-root", "--ServerApp.port=0", "--ServerApp.open_browser=False"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """(root folder, contents manager) of a Jupyter server on a copy of the notebooks, with the extensions that pip installs."""
    server = pytest.importorskip("jupyter_server.serverapp")
    for name in ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"JUPYTER_{name}", str(tmp_path / name))
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(ROOT / f"{NAME}.py", root / f"{NAME}.py")
    jupytext.write(jupytext.read(root / f"{NAME}.py"), root / f"{NAME}.ipynb")
    monkeypatch.chdir(root)
    app = server.ServerApp()
    app.initialize([*SERVER, f"--ServerApp.root_dir={root}"], find_extensions=True, new_httpserver=False)
    yield root, app.contents_manager
    server.ServerApp.clear_instance()


def test_the_pictures_that_the_notebooks_show_are_served(lab):
    root, manager = lab
    shutil.copytree(ROOT / "results" / "pictures", root / "results" / "pictures")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        links = re.findall(r"!\[[^]]*\]\(\.\./([^)]+)\)", nbformat.read(path, as_version=4).cells[0].source)
        assert links and all(asyncio.run(ensure_async(manager.get(link)))["format"] == "base64" for link in links)


def newer(path, seconds):
    """Let a file be `seconds` younger than it is."""
    at = path.stat().st_mtime + seconds
    os.utime(path, (at, at))


def edit(path, text):
    """What VS Code or Colab does: change a cell of the .ipynb, and know nothing of the .py."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = text
    nbformat.write(notebook, path)


def get(manager, **options):
    return asyncio.run(ensure_async(manager.get(f"{NAME}.ipynb", type="notebook", **options)))


def test_the_server_has_jupytexts_contents_manager(lab):
    assert "jupytext" in repr(type(lab[1]).__mro__).lower(), "else the tests below show nothing"


@pytest.mark.parametrize("seconds", [100, -100], ids=["edited elsewhere, then opened", "edited, then a pull brings a younger .py"])
def test_an_edited_notebook_opens_with_its_edit(lab, seconds):
    root, manager = lab
    edit(root / f"{NAME}.ipynb", "my own words")
    newer(root / f"{NAME}.ipynb", seconds)
    assert get(manager)["content"]["cells"][-1]["source"] == "my own words"


def test_saving_after_run_all_keeps_the_edit_and_leaves_the_script_byte_for_byte(lab):
    root, manager = lab
    before = (root / f"{NAME}.py").read_bytes()
    model = get(manager)
    model["content"]["cells"][-1]["source"] = "my own words"
    model["content"]["metadata"]["language_info"] = {"name": "python", "version": "3.12.0"}  # as running it does
    asyncio.run(ensure_async(manager.save({"type": "notebook", "format": "json", "content": model["content"]}, f"{NAME}.ipynb")))
    assert (root / f"{NAME}.py").read_bytes() == before
    assert nbformat.read(root / f"{NAME}.ipynb", as_version=4).cells[-1].source == "my own words"
    assert sorted(path.name for path in (root / "notebooks").iterdir() if path.is_file()) == [f"{NAME[10:]}.ipynb", f"{NAME[10:]}.py"]


@pytest.mark.parametrize("ending", ["py", "ipynb"])
def test_no_committed_notebook_declares_a_pair(ending):
    for path in (ROOT / "notebooks").glob(f"*.{ending}"):
        assert "formats" not in jupytext.read(path).metadata.get("jupytext", {}), path
