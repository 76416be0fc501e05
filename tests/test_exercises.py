"""The exercises that end each notebook: solutions are right, empty and typical wrong answers are not, nbgrader agrees."""

import ast
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import ROOT, notebook_definitions
from exercise_answers import WRONG

import common

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
HIDDEN = re.compile(r"[ ]*### BEGIN HIDDEN TESTS\n(.*?)[ ]*### END HIDDEN TESTS\n?", re.S)
SOLUTION = re.compile(r"([ ]*)### BEGIN SOLUTION\n.*?### END SOLUTION", re.S)


def graded_cells(name):
    """{grade_id: cell} of the answers and of the checks, in order."""
    cells = [cell for cell in jupytext.read(ROOT / "notebooks" / f"{name}.py").cells if "nbgrader" in cell.metadata]
    answers = {cell.metadata.nbgrader.grade_id: cell for cell in cells if cell.metadata.nbgrader.solution}
    checks = {cell.metadata.nbgrader.grade_id: cell for cell in cells if cell.metadata.nbgrader.grade}
    return answers, checks


EXERCISES = [(name, grade_id) for name in NAMES for grade_id in graded_cells(name)[0]]


def emptied(source):
    return SOLUTION.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()", source)


def run_check(name, grade_id, answer=None, hidden_only=False):
    """Run an exercise's check with the notebook's definitions and perhaps another answer; returns what it prints."""
    module = notebook_definitions(name)
    if answer is not None:
        exec(answer, module.__dict__)
    source = graded_cells(name)[1][f"{grade_id}_check"].source
    if hidden_only:
        head = source[: source.index("with common.exercise")]
        source = head + re.search(r"with common\.exercise.*\n", source)[0] + "".join(HIDDEN.findall(source))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(source, module.__dict__)
    return printed.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ends_with_three_to_five_exercises_whose_cells_nbgrader_knows(name):
    answers, checks = graded_cells(name)
    assert 3 <= len(answers) <= 5 and [f"{grade_id}_check" for grade_id in answers] == list(checks)
    for number, (answer, check) in enumerate(zip(answers.values(), checks.values(), strict=True), start=1):
        title = f"Exercise {int(name[:2])}.{number}"
        assert answer.source.startswith(f"# {title}") and check.source.startswith(f"# {title}: check\n")
        assert f'with common.exercise("{title}")' in check.source and HIDDEN.search(check.source)
        assert SOLUTION.search(answer.source) and check.metadata.nbgrader.locked and check.metadata.nbgrader.points > 0
    assert any("_as_given" in node.name for node in ast.parse((ROOT / "notebooks" / f"{name}.py").read_text()).body
               if isinstance(node, ast.FunctionDef)), "one exercise gives a function with a mistake to mend"


@pytest.mark.parametrize(("name", "grade_id"), EXERCISES)
def test_the_solution_passes_and_the_check_prints_what_is_expected(name, grade_id):
    printed = run_check(name, grade_id)
    assert "(expected " in printed and printed.rstrip().endswith(": right")


@pytest.mark.parametrize(("name", "grade_id"), EXERCISES)
def test_an_empty_answer_is_met_with_one_kind_sentence(name, grade_id):
    with pytest.raises(common.StreetsError, match=r"Exercise \d\.\d is waiting for you") as error:
        run_check(name, grade_id, emptied(graded_cells(name)[0][grade_id].source))
    assert error.value._render_traceback_() == [f"StreetsError: {error.value}"]


@pytest.mark.parametrize(("name", "grade_id"), EXERCISES)
def test_a_typical_wrong_answer_fails_the_hidden_tests(name, grade_id):
    run_check(name, grade_id, hidden_only=True)
    for hidden_only in (False, True):
        with pytest.raises(common.StreetsError, match="is not right yet"):
            run_check(name, grade_id, WRONG[name][grade_id], hidden_only)


def test_the_readme_names_the_points_of_each_notebook():
    points = [[cell.metadata.nbgrader.points for cell in graded_cells(name)[1].values()] for name in NAMES]
    *first, last = map(str, map(sum, points))
    assert f"give {', '.join(first)} and {last} points" in (ROOT / "README.md").read_text()
    assert all(1 <= value <= 4 for values in points for value in values)


def test_every_wrong_answer_belongs_to_an_exercise():
    assert {(name, grade_id) for name in WRONG for grade_id in WRONG[name]} == set(EXERCISES)


def test_a_check_shows_got_and_expected_and_takes_nothing_else():
    with pytest.raises(AssertionError, match="IoU is 0.25, expected 0.5"):
        common.check("IoU", 0.25, 0.5)
    for got in (None, "0.5", [0.5], float("nan")):
        with pytest.raises(AssertionError):
            common.check("IoU", got, 0.5)
    with pytest.raises(AssertionError, match="expected between 0.1 and 0.2"):
        common.check("IoU", 0.3, between=(0.1, 0.2))
    common.check("classes", ["road", "sky"], ["road", "sky"])
    with pytest.raises(AssertionError, match="class is 'sky', expected 'road'"):
        common.check("class", "sky", "road")
    common.check("scores", [0.5, float("nan")], [0.5000001, float("nan")])


@pytest.mark.parametrize("optimize", [1, 2])
def test_a_wrong_answer_stays_wrong_where_python_leaves_asserts_and_docstrings_out(optimize):
    names = {"check", "exercise"}
    kept = [node for node in ast.parse((ROOT / "common.py").read_text()).body if getattr(node, "name", "") in names]
    scope = dict(vars(common))
    exec(compile(ast.Module(kept, []), "common.py", "exec", optimize=optimize), scope)
    assert scope["check"] is not common.check and bool(scope["check"].__doc__) == (optimize < 2)
    with pytest.raises(common.StreetsError, match="Exercise 0 is not right yet: IoU is 0.25, expected 0.5"), scope["exercise"]("Exercise 0"):
        scope["check"]("IoU", 0.25, 0.5)


def test_python_oo_imports_what_the_notebooks_need_and_judges_alike():
    lines = ["import common", "import segmentation_models_pytorch as smp", "print(smp.UPerNet.__name__)",
             "with common.exercise('Exercise 0'):", "    common.check('IoU', 0.25, 0.5)"]
    done = subprocess.run([sys.executable, "-OO", "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "UPerNet\n" and done.stderr.splitlines()[-1].endswith("Exercise 0 is not right yet: IoU is 0.25, expected 0.5")


def test_no_verdict_rests_on_assert():
    sources = {path.name: path.read_text() for path in (*ROOT.glob("*.py"), *(ROOT / "results").glob("*.py"))}
    sources |= {f"{name}: {grade_id}": cell.source for name in NAMES for grade_id, cell in graded_cells(name)[1].items()}
    assert not [where for where, source in sources.items() for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def test_while_grading_a_lessons_cell_keeps_its_definitions_and_all_runs_from_the_first_exercise_on():
    keep = common.exercises_only()
    lesson = ["import os\n", "SIZES = (1, 2)\n", "THIRD = SIZES[1] + x\n", "net = train()\n", "def f():\n", "    return SIZES\n"]
    assert "".join(keep(lesson)) == "import os\nSIZES = (1, 2)\n\ndef f():\n    return SIZES\n"
    for kept in (["this is no Python\n"], ["# Exercise 1.1: look\n", "x = 3\n"], ["offset = 3\n"]):
        assert keep(kept) == kept


def test_the_readmes_lines_release_a_notebook_that_finds_its_helpers_beside_itself(tmp_path):
    block = re.search(r"```bash\n(.*mkdir -p course.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    copying, releasing = (next(line for line in block.splitlines() if word in line) for word in ("mkdir -p", "generate_assignment"))
    repository = tmp_path / "repository"
    (repository / "notebooks").mkdir(parents=True)
    for name in NAMES:
        jupytext.write(jupytext.read(ROOT / "notebooks" / f"{name}.py"), repository / "notebooks" / f"{name}.ipynb")
    for path in (*ROOT.glob("*.py"), ROOT / "results"):
        (repository / path.name).symlink_to(path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = f"set -e\n{copying}\n{releasing}"
    done = subprocess.run(["bash", "-c", script], cwd=repository, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [released] = (repository / "course" / "release").rglob("*.ipynb")
    sources = [cell.source for cell in nbformat.read(released, as_version=4).cells if cell.cell_type == "code"]
    last = next(i for i, source in enumerate(sources) if "common.device_line()" in source)
    student = tmp_path / "student"
    shutil.copytree(released.parent, student)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("STREETS_", "PYTHON"))} | {"PATH": ""}
    cells = [*sources[: last + 1], "print(common.__file__, common.runs.__file__, len(common.read_published(NOTEBOOK)) > 0)"]
    (student / "run.py").write_text("".join(f"# %%\n{cell}\n" for cell in cells))
    done = subprocess.run([sys.executable, "run.py"], cwd=student, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"{student / 'common.py'} {student / 'results' / 'runs.py'} True"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course folder of nbgrader's: all notebooks released as one assignment, and handed in solved, empty and with a mistake."""
    root = tmp_path_factory.mktemp("course")
    source, release, submitted = (root / step for step in ("source/streets", "release/streets", "submitted"))
    source.mkdir(parents=True)
    for name in NAMES:
        jupytext.write(jupytext.read(ROOT / "notebooks" / f"{name}.py"), source / f"{name}.ipynb")
    for helper in (*ROOT.glob("*.py"), *ROOT.glob("results/*.py"), *ROOT.glob("results/*.csv")):
        (source / helper.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(helper, source / helper.relative_to(ROOT))
    nbgrader(root, "generate_assignment", "streets")
    shutil.copytree(source, submitted / "solved" / "streets")
    shutil.copytree(release, submitted / "empty" / "streets")
    shutil.copytree(source, submitted / "mistaken" / "streets", ignore=lambda _, files: {f"{name}.ipynb" for name in NAMES[2:]})
    for name in NAMES[:2]:
        path = submitted / "mistaken" / "streets" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        grade_id, answer = next(iter(WRONG[name].items()))
        next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id).source = answer
        nbformat.write(notebook, path)
    nbgrader(root, "autograde", "streets", "--ExecutePreprocessor.timeout=300")
    return root


def nbgrader(root, command, *arguments):
    active = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-m", "nbgrader", command, "--course", str(root), *arguments], cwd=root,
                          env=os.environ | active, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def points(root, student, name):
    """(earned, possible) of a graded notebook, from nbgrader's own database."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{root}/gradebook.db") as gradebook:
        graded = gradebook.find_submission_notebook(name, "streets", student)
        return graded.score, graded.max_score


@pytest.mark.parametrize("name", NAMES)
def test_a_released_notebook_holds_no_solution_and_no_hidden_test(course, name):
    released = nbformat.read(course / "release" / "streets" / f"{name}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in released.cells)
    answers, checks = graded_cells(name)
    assert "SOLUTION" not in text and "HIDDEN" not in text and text.count("    raise NotImplementedError()") == len(answers)
    for grade_id, cell in answers.items():
        released_cell = next(c for c in released.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)
        solution = {line.strip() for line in SOLUTION.search(cell.source)[0].splitlines()[1:-1]} - {""}
        assert not solution & {line.strip() for line in released_cell.source.splitlines()}
    for grade_id, cell in checks.items():
        released_cell = next(c for c in released.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)
        assert released_cell.source.rstrip() == HIDDEN.sub("", cell.source).rstrip()


@pytest.mark.parametrize("name", NAMES)
def test_a_solved_notebook_earns_all_points_and_an_empty_one_none(course, name):
    possible = sum(cell.metadata.nbgrader.points for cell in graded_cells(name)[1].values())
    assert points(course, "solved", name) == (possible, possible) and points(course, "empty", name) == (0, possible)


def test_grading_trains_nothing_and_draws_no_streets(course):
    graded = course / "autograded" / "solved" / "streets"
    assert not [path for path in (graded / "results").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert not (graded / "data").exists()
    notebook = nbformat.read(graded / f"{NAMES[1]}.ipynb", as_version=4)
    assert not [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "data" in o and "image/png" in o.data]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_unsolved_exercise_of_a_released_notebook_says_so_in_one_line(course, name):
    graded = nbformat.read(course / "autograded" / "empty" / "streets" / f"{name}.ipynb", as_version=4)
    errors = [o for cell in graded.cells if cell.cell_type == "code" for o in cell.outputs if o.output_type == "error"]
    assert len(errors) == len(graded_cells(name)[0])
    assert f"Exercise {int(name[:2])}.1 is waiting for you" in errors[0].traceback[0] and len(errors[0].traceback) == 1


def test_a_wrong_answer_loses_its_points_and_the_feedback_says_why(course):
    for name in NAMES[:2]:
        lost = next(iter(graded_cells(name)[1].values())).metadata.nbgrader.points
        earned, possible = points(course, "mistaken", name)
        assert earned == possible - lost
    nbgrader(course, "generate_feedback", "streets", "--student", "mistaken")
    assert "is not right yet" in (course / "feedback" / "mistaken" / "streets" / f"{NAMES[0]}.html").read_text()
