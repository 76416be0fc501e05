"""What holds for every notebook: pairs, form, parameters, and definitions that stand on their own."""

import ast
import builtins
import dis
import json
import re
import statistics
import types

import jupytext
import nbformat
import papermill
import pytest
from conftest import ROOT, SHORTER, notebook_definitions

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
SHARED_TAIL = ["seed", "data_dir", "out_dir", "num_processes", "max_hours"]


def cells(name, kind="code"):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def parameters_source(name):
    return next(cell.source for cell in cells(name) if "parameters" in cell.metadata.get("tags", []))


def notebook_parameters(name):
    """{name: default} of the parameters cell."""
    return {node.target.id: ast.literal_eval(node.value) for node in ast.parse(parameters_source(name)).body}


@pytest.mark.parametrize("name", NAMES)
def test_script_and_notebook_are_the_same_text(name):
    script = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for ours, theirs in zip(script.cells, notebook.cells, strict=True):
        assert (ours.cell_type, ours.source) == (theirs.cell_type, theirs.source)
        assert ours.metadata.get("tags") == theirs.metadata.get("tags")


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_was_executed_once_from_top_to_bottom(name):
    code = cells(name)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"], "no warnings, either"
    assert not [cell for cell in code if "injected-parameters" in cell.metadata.get("tags", [])]
    assert [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {})]
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 2**20


def test_what_the_tests_shorten_stands_in_one_notebook_each():
    scripts = [(ROOT / "notebooks" / f"{name}.py").read_text() for name in NAMES]
    assert [sorted(script.count(long) for script in scripts)[-2:] for long in SHORTER] == [[0, 1]] * len(SHORTER)


@pytest.mark.parametrize("name", NAMES)
def test_a_formula_in_the_text_stands_on_one_line(name):
    """GitHub, Jupyter and the book agree on these only."""
    for cell in jupytext.read(ROOT / "notebooks" / f"{name}.py").cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"(?s)```.*?```|`[^`]*`|\$\$.*?\$\$", "", cell.source)
            assert not [line for line in text.splitlines() if line.count("$") % 2]


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_holds_one_idea(name):
    lengths = sorted(len([line for line in cell.source.splitlines() if line.strip()]) for cell in cells(name))
    assert statistics.median(lengths) <= 6
    assert lengths[int(0.9 * len(lengths)) - 1] <= 20
    assert lengths[-1] <= 40
    assert [line for cell in cells(name) for line in cell.source.splitlines() if len(line) > 88] == [], "no wider than a page"


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_ends_in_a_value_that_nobody_wants_to_see(name):
    outputs = [o for cell in cells(name) for o in cell.outputs]
    values = [o["data"] for o in outputs if o["output_type"] == "execute_result"]
    assert [data["text/plain"][:60] for data in values if "text/html" not in data and len(data["text/plain"]) > 1000] == []


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_flat_typed_and_explained(name):
    source = parameters_source(name)
    assignments = ast.parse(source).body
    names = [node.target.id for node in assignments]
    assert names[0] == "mode" and names[-5:] == SHARED_TAIL
    assert len(names) <= 20, "what a reader changes first; the rest is in MODES"
    for node, line in zip(assignments, source.splitlines(), strict=True):
        assert type(ast.literal_eval(node.value)).__name__ == node.annotation.id in ("str", "int", "float")
        comment = line.partition("#")[2]
        assert "=" not in comment, "papermill cannot parse a comment with an equals sign"
        assert comment.strip() or node.target.id == "seed"


@pytest.mark.parametrize("name", NAMES)
def test_modes_have_the_same_values_under_the_names_of_parameters_and_more_and_the_cell_names_them(name):
    modes, declared = notebook_definitions(name).MODES, notebook_parameters(name)
    keys, types_of = {tuple(values) for values in modes.values()}, {tuple(map(type, values.values())) for values in modes.values()}
    assert len(keys) == len(types_of) == 1 and all(mode in parameters_source(name).splitlines()[0].partition("#")[2] for mode in modes)
    assert not [key for key, value in declared.items() if key in modes["quick"] and value], "0 or empty takes the mode's"


@pytest.mark.parametrize("name", NAMES)
def test_papermill_can_list_the_parameters_with_their_help(name):
    listed = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    assert list(listed) == [node.target.id for node in ast.parse(parameters_source(name)).body]
    assert "quick" in listed["mode"]["help"] and listed["seed"]["inferred_type_name"] == "int"


@pytest.mark.parametrize("name", NAMES)
def test_definitions_use_nothing_but_imports_literals_and_other_definitions(name):
    module = notebook_definitions(name)
    known = set(vars(module)) | set(vars(builtins))

    def used(code):
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield instruction.argval
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from used(constant)

    functions = [f for f in vars(module).values() if isinstance(f, types.FunctionType) and f.__globals__ is vars(module)]
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    functions += [m for c in classes for m in vars(c).values() if isinstance(m, types.FunctionType)]
    assert functions
    for function in functions:
        unknown = set(used(function.__code__)) - known
        assert not unknown, f"{function.__qualname__} uses {unknown}, which a reader of the definition cannot find"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_defined_once(name):
    tree = ast.parse((ROOT / "notebooks" / f"{name}.py").read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("place", "name"), list(enumerate(NAMES)))
def test_a_notebook_opens_like_the_others_and_links_to_its_neighbours(place, name):
    opening = cells(name, "markdown")[0].source
    assert opening.startswith("# ") and opening.splitlines()[0].endswith("?") and f"Notebook {place + 1} of 6" in opening
    for other in (place - 1, place + 1):
        assert not 0 <= other < 6 or f"]({NAMES[other]}.ipynb)" in opening
    order = [opening.index(part) for part in ("colab-badge", "Notebook ", "Source", "**You need**", "| mode | data | hardware | time |")]
    assert order == sorted(order) and cells(name, "markdown")[1].source.startswith("## Parameters")
    headings = [line for cell in cells(name, "markdown") for line in cell.source.splitlines() if line.startswith("## ")]
    assert headings[-3:] == ["## What we learnt", "## Exercises", "## References"]


def test_prose_and_code_do_not_mention_how_the_course_is_made():
    tracked = [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *(ROOT / "notebooks").glob("*.py"), *(ROOT / "tests").glob("*.py")]
    for path in tracked:
        if path.name != "test_notebooks.py":
            text = path.read_text()
            assert "recipes.md" not in text and "design.md" not in text and "style.md" not in text, path


def test_notebook_json_is_valid():
    for name in NAMES:
        nbformat.validate(json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text()), relax_add_props=True)
