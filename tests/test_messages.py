"""What sentences advise exists: every parameter that a message names is one of the notebook's, or at least of one of them."""

import ast
import re

import pytest
from conftest import ROOT

from results import runs

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


def names_of(notebook):
    """Names that -p takes in a notebook: its parameters and what its modes hold."""
    scope = {"__file__": ROOT / "notebooks" / f"{notebook}.py"}
    modes = next(found["MODES"] for found in map(runs.literal_assignments, runs.notebook_cells(scope)) if "MODES" in found)
    return {*runs.parameter_cells(scope)[0], *(name for values in modes.values() for name in values)}


def advised(path):
    """Names that the messages of a file advise to set: of setting(name, ...), of `-p name` and of `name = value`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "setting" and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value
        said = isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("print", "say_once", "StreetsError"))
        for text in (part.value for part in ast.walk(node) if said and isinstance(part, ast.Constant) and isinstance(part.value, str)):
            yield from re.findall(r"(?<![\w-])-p (\w+)", text)
            yield from re.findall(r"\b([a-z]\w+) = (?=[\w\"])", text)


@pytest.mark.parametrize("name", ["common.py", "results/runs.py"])
def test_what_the_helpers_advise_to_set_exists_in_every_notebook_that_trains(name):
    found = set(advised(ROOT / name))
    for_some = {"weights", "height", "num_processes"}  # said only where pretrained weights, a height or several processes were asked for
    assert {"rerun", "batch_size"} & found and found - for_some <= set.intersection(*(names_of(notebook) for notebook in NOTEBOOKS[1:]))
    assert for_some <= set.union(*map(names_of, NOTEBOOKS))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_what_a_notebook_advises_to_set_is_its_own(notebook):
    assert set(advised(ROOT / "notebooks" / f"{notebook}.py")) <= names_of(notebook)


def test_the_scan_sees_what_no_notebook_has(tmp_path):
    (tmp_path / "code.py").write_text('raise StreetsError(f"{x}: use num_workers = 0, or -p workers 1, or {setting(\'threads\', 1)}.")')
    assert set(advised(tmp_path / "code.py")) == {"num_workers", "workers", "threads"}


def test_a_remedy_is_written_for_a_reader_of_the_notebook_and_for_one_of_the_command_line():
    assert runs.setting("depth", 4) == "depth = 4 or -p depth 4" and runs.setting("rerun", "yes") == 'rerun = "yes" or -p rerun yes'
    assert runs.setting("photo", "my street.jpg") == """photo = "my street.jpg" or -p photo 'my street.jpg'"""
