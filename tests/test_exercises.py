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
from conftest import ROOT, notebook_definitions, with_parameters
from test_other_classes import SMALL, classes_scored, with_classes

import common
import data_prep
from results import editions

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
SOLUTION = re.compile(r"([ ]*)### BEGIN SOLUTION\n.*?### END SOLUTION", re.S)
ANSWERS = {name: editions.read_solutions(ROOT / "tests" / "solutions" / f"{name}.py") for name in NAMES}
EXERCISES = [(name, exercise) for name in NAMES for exercise in ANSWERS[name]]


def cell(name, title):
    """Source of the one cell of a notebook that begins with this title."""
    cells = jupytext.read(ROOT / "notebooks" / f"{name}.py").cells
    [source] = [c.source for c in cells if c.cell_type == "code" and c.source.startswith(f"# {title}\n")]
    return source


def run_check(name, exercise, answer, visible=True, hidden=False):
    """Run an exercise's check with the notebook's definitions and an answer; returns what it prints."""
    module = notebook_definitions(name)
    exec(answer, module.__dict__)
    source = cell(name, f"{exercise}: check")
    if not visible:
        source = re.search(r"(?s).*?with common\.exercise.*?\n", source)[0] + "    pass\n"
    if hidden:
        source += "\n" + re.sub(r"(?m)^(?=.)", "    ", ANSWERS[name][exercise]["hidden tests"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(source, module.__dict__)
    return printed.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ends_with_three_to_five_exercises_one_of_which_is_a_mistake_to_mend(name):
    answers = ANSWERS[name]
    assert list(answers) == [f"Exercise {int(name[:2])}.{k}" for k in range(1, len(answers) + 1)] and 3 <= len(answers) <= 5
    for exercise, answer in answers.items():
        assert set(answer) == {"solution", "points", "hidden tests", "a wrong answer"} and 1 <= answer["points"] <= 4
        last = ast.parse(cell(name, f"{exercise}: check")).body[-1]
        assert isinstance(last, ast.With) and ast.unparse(last.items[0]) == f"common.exercise('{exercise}')"
    assert any("_as_given" in node.name for node in ast.parse((ROOT / "notebooks" / f"{name}.py").read_text()).body
               if isinstance(node, ast.FunctionDef)), "one exercise gives a function with a mistake to mend"


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_page_shows_the_solutions_stub_and_nothing_of_the_solution(name, exercise):
    stub = SOLUTION.sub(r"\1raise NotImplementedError", ANSWERS[name][exercise]["solution"])
    assert cell(name, exercise).partition("\n")[2].rstrip() == stub.rstrip()
    script, notebook = ((ROOT / "notebooks" / f"{name}{suffix}").read_text() for suffix in (".py", ".ipynb"))
    assert "SOLUTION" not in script + notebook and "HIDDEN" not in script + notebook


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_solution_passes_all_checks_and_what_is_expected_is_shown(name, exercise):
    printed = run_check(name, exercise, ANSWERS[name][exercise]["solution"], hidden=True)
    assert "(expected " in printed and printed.endswith(f"{exercise}: right\n")


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_an_empty_answer_is_met_with_one_line_and_the_notebook_goes_on(name, exercise):
    assert run_check(name, exercise, cell(name, exercise)) == f"{exercise}: not done yet\n"


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_a_typical_wrong_answer_fails_the_visible_check_and_the_hidden_tests_and_is_told_why(name, exercise):
    for visible in (True, False):
        printed = run_check(name, exercise, ANSWERS[name][exercise]["a wrong answer"], visible, hidden=not visible)
        assert re.search(rf"{exercise}: not right yet: .+\n$", printed)
        assert "NameError" not in printed, "a check that stands alone"


def test_an_answer_that_raises_is_told_what_and_the_notebook_goes_on(capsys):
    with common.exercise("Exercise 1.1"):
        [][1]
    with common.exercise("Exercise 1.2"):
        {}["pole"]
    assert capsys.readouterr().out.splitlines() == ["Exercise 1.1: not right yet: IndexError: list index out of range",
                                                    "Exercise 1.2: not right yet: KeyError: 'pole'"]


def test_without_assert_statements_and_docstrings_verdicts_stand_and_what_the_notebooks_need_is_imported():
    program = ("import common\nimport segmentation_models_pytorch as smp\nprint(smp.UPerNet.__name__)\n"
               "with common.exercise('Exercise 1.1'):\n    common.check('one', 2, 1)\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-OO", "-c", program], cwd=ROOT, capture_output=True, text=True)  # -O and more
    assert done.stdout == "UPerNet\nExercise 1.1: not right yet: one is 2, expected 1\n", done.stderr


def test_the_page_for_instructors_names_the_points_of_each_notebook():
    *first, last = (str(sum(answer["points"] for answer in ANSWERS[name].values())) for name in NAMES)
    assert f"give {', '.join(first)} and {last} points" in (ROOT / "tests" / "solutions" / "README.md").read_text()


def test_a_check_shows_got_and_expected_and_takes_nothing_else():
    with pytest.raises(common.WrongAnswer, match="IoU is 0.25, expected 0.5"):
        common.check("IoU", 0.25, 0.5)
    for got in (None, "0.5", [0.5], float("nan"), [[1], [1, 2]]):
        with pytest.raises(common.WrongAnswer, match="IoU is .+, expected 0.5"):
            common.check("IoU", got, 0.5)
    with pytest.raises(common.WrongAnswer, match="expected between 0.1 and 0.2"):
        common.check("IoU", 0.3, between=(0.1, 0.2))
    common.check("classes", ["road", "sky"], ["road", "sky"])
    with pytest.raises(common.WrongAnswer, match="class is 'sky', expected 'road'"):
        common.check("class", "sky", "road")
    common.check("scores", [0.5, float("nan")], [0.5000001, float("nan")])


def test_no_verdict_rests_on_assert():
    sources = {path.name: path.read_text() for path in (*ROOT.glob("*.py"), *(ROOT / "results").glob("*.py"))}
    sources |= {exercise: cell(name, f"{exercise}: check") + "\n" + ANSWERS[name][exercise]["hidden tests"] for name, exercise in EXERCISES}
    assert not [where for where, source in sources.items() for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def test_while_grading_a_lessons_cell_keeps_its_definitions_and_all_runs_from_the_first_exercise_on():
    keep = common.runs.exercises_only()
    lesson = ["import os\n", "SIZES = (1, 2)\n", "THIRD = SIZES[1] + x\n", "net = train()\n", "def f():\n", "    return SIZES\n"]
    assert "".join(keep(lesson)) == "import os\nSIZES = (1, 2)\n\ndef f():\n    return SIZES\n"
    for kept in (["this is no Python\n"], ["# Exercise 1.1: look\n", "x = 3\n"], ["offset = 3\n"]):
        assert keep(kept) == kept


@pytest.mark.parametrize(("number", "said"), [("07", "no notebook '07': use 01 or 02"), ("2", "no notebook '2'"), ("..", "no notebook")])
def test_an_assignment_of_an_unknown_notebook_is_refused(tmp_path, capsys, number, said):
    assert data_prep.main(["assignment", number, "--out", str(tmp_path / "new")]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_assignment_replaces_nothing(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert data_prep.main(["assignment", "02", "--out", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_assignment_carries_the_pictures_that_its_text_shows(tmp_path):
    made = editions.make_assignment("01", tmp_path / "remapping")
    opening = nbformat.read(made, as_version=4).cells[0]
    [name] = opening.attachments
    assert f"](attachment:{name})" in opening.source and "../results/pictures" not in opening.source


def nbgrader(root, command, *arguments):
    active = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([sys.executable, "-m", "nbgrader", command, "--course", str(root), *arguments], cwd=root,
                          env=os.environ | active, capture_output=True, text=True)  # fmt: skip


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course folder of nbgrader's: all six notebooks as one assignment, handed in solved, as handed out, with a mistake."""
    root = tmp_path_factory.mktemp("course")
    source, release, submitted = (root / step for step in ("source/streets", "release/streets", "submitted"))
    for name in NAMES:
        made = editions.make_assignment(name[:2], root / "made" / name)
        shutil.copytree(made.parent, source, dirs_exist_ok=True)
    assert nbgrader(root, "generate_assignment", "streets").returncode == 0
    shutil.copytree(source, submitted / "solved" / "streets")
    shutil.copytree(release, submitted / "empty" / "streets")
    shutil.copytree(source, submitted / "mistaken" / "streets", ignore=lambda _, files: {f"{name}.ipynb" for name in NAMES[2:]})
    for name in NAMES[:2]:
        path = submitted / "mistaken" / "streets" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        answer = next(iter(ANSWERS[name].values()))["a wrong answer"]
        next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")).source = answer
        nbformat.write(notebook, path)
    done = nbgrader(root, "autograde", "streets", "--ExecutePreprocessor.timeout=300")
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def points(root, student, name):
    """(earned, possible) of a graded notebook, from nbgrader's own database."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{root}/gradebook.db") as gradebook:
        graded = gradebook.find_submission_notebook(name, "streets", student)
        return graded.score, graded.max_score


@pytest.mark.parametrize("name", NAMES)
def test_a_released_notebook_is_the_one_on_the_page_with_nbgraders_stubs(course, name):
    released = nbformat.read(course / "release" / "streets" / f"{name}.ipynb", as_version=4)
    page = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    for ours, theirs in zip(page.cells, released.cells, strict=True):
        if ours.cell_type == "code":
            wanted = ours.source.replace("    raise NotImplementedError", "    # YOUR CODE HERE\n    raise NotImplementedError()")
            assert theirs.source.rstrip() == wanted.rstrip()


def test_released_notebooks_alone_with_their_helpers_run_to_their_ends_on_streets_of_three_classes(course, tmp_path):
    shutil.copytree(course / "release" / "streets", home := tmp_path / "home")
    three = ("road", "building", "sky")
    streets = with_classes(tmp_path / "streets", train=three, val=three, test=three)
    for name in NAMES:
        script = jupytext.writes(jupytext.read(home / f"{name}.ipynb"), fmt="py:percent")
        (home / f"{name}.py").write_text(with_parameters(script, **SMALL[name], data_dir=str(streets)))
    program = f"import runpy\nfor name in {NAMES}:\n    runpy.run_path(name + '.py', run_name='__main__')"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    # warnings of means of nothing and the like, which the reader would see, are errors
    done = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", program], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(": not done yet\n") == len(EXERCISES)
    for name in NAMES:
        scored = classes_scored(home / "results" / name)
        assert all(one == (set() if name[:2] == "04" else {*three}) for one in scored) and bool(scored) == (name[:2] != "01")


@pytest.mark.parametrize("name", NAMES)
def test_a_solved_notebook_earns_all_points_and_one_as_handed_out_none(course, name):
    possible = sum(answer["points"] for answer in ANSWERS[name].values())
    assert points(course, "solved", name) == (possible, possible) and points(course, "empty", name) == (0, possible)


@pytest.mark.parametrize("name", NAMES)
def test_a_graded_notebook_as_handed_out_has_a_line_for_each_exercise_and_no_error(course, name):
    graded = nbformat.read(course / "autograded" / "empty" / "streets" / f"{name}.ipynb", as_version=4)
    outputs = [o for c in graded.cells if c.cell_type == "code" for o in c.outputs]
    text = "".join(o.text for o in outputs if o.output_type == "stream")
    assert not [o for o in outputs if o.output_type == "error"] and text.count(": not done yet\n") == len(ANSWERS[name])


def test_grading_trains_nothing_and_draws_no_streets(course):
    graded = course / "autograded" / "solved" / "streets"
    assert not [path for path in (graded / "results").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert not (graded / "data").exists()
    notebook = nbformat.read(graded / f"{NAMES[1]}.ipynb", as_version=4)
    assert not [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "data" in o and "image/png" in o.data]


def test_a_wrong_answer_loses_its_points_and_the_feedback_says_why(course):
    for name in NAMES[:2]:
        lost = next(iter(ANSWERS[name].values()))["points"]
        earned, possible = points(course, "mistaken", name)
        assert earned == possible - lost
    assert nbgrader(course, "generate_feedback", "streets", "--student", "mistaken").returncode == 0
    page = (course / "feedback" / "mistaken" / "streets" / f"{NAMES[0]}.html").read_text()
    assert "Exercise 1.1: not right yet" in page
