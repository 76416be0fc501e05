"""Parameters of a notebook: what papermill, a student or a script may set, and how a mistake is told."""

import pytest

import common
from common import StreetsError

DECLARED = 'mode: str = "quick"  # quick, paper\nvariant: str = "D"\nlambdas: str = "4,2,0"\nlr: float = 0.1\nseed: int = 42\ndata_dir: str = ""\n'


def scope(injected="", declared=DECLARED):
    """globals() of a kernel in which papermill's injected cell ran after the parameters cell."""
    cells = ["", declared] + (["# Parameters\n" + injected] if injected else []) + ["%matplotlib inline"]
    values = {}
    for cell in cells[:-1]:
        exec(cell, values)
    return values | {"In": cells}


def check(given):
    common.check_parameters(given, {"mode": ("quick", "paper")}, {"variant": "ABCD"})
    return given


def test_declared_values_pass_unchanged():
    given = check(scope())
    assert (given["mode"], given["lambdas"], given["lr"], given["seed"]) == ("quick", "4,2,0", 0.1, 42)


@pytest.mark.parametrize(("injected", "name", "value"), [
    ("lambdas = 2", "lambdas", "2"),  # papermill makes -p lambdas 2 an int
    ("lambdas = 2.5", "lambdas", "2.5"),
    ("lr = 1", "lr", 1.0),
    ('lr = "0.5"', "lr", 0.5),
    ("seed = 7.0", "seed", 7),
    ("lambdas = True", "lambdas", "yes"),
])
def test_values_take_the_type_of_their_default(injected, name, value):
    result = check(scope(injected))[name]
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(("injected", "sentence"), [
    ('varient = "A"', "There is no parameter 'varient' here: this notebook has mode, variant, lambdas, lr, seed, data_dir."),
    ('mode = "fast"', "mode does not know 'fast': use quick or paper."),
    ('variant = "E"', "variant does not know 'E': use A, B, C, D, several with commas, or all."),
    ('variant = ""', "variant does not know '': use A, B, C, D, several with commas, or all."),
    ('seed = "many"', "seed must be a whole number such as 42, not 'many'."),
    ("seed = 1.5", "seed must be a whole number such as 42, not 1.5."),
    ("seed = float('inf')", "seed must be a whole number such as 42, not inf."),  # what papermill makes of -p seed inf
    ('lr = "fast"', "lr must be a number such as 0.1, not 'fast'."),
    ("seed = -1", "seed must not be negative, but is -1."),
    ('data_dir = "/nowhere"', "data_dir: there is no folder /nowhere (seen from"),
])
def test_a_mistake_is_one_sentence_that_says_what_is_allowed(injected, sentence):
    with pytest.raises(StreetsError) as caught:
        check(scope(injected))
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


@pytest.mark.parametrize("script", [
    '# %% tags=["parameters"]\n{declared}\n# %% tags=["injected-parameters"]\n# Parameters\nvarient = "A"\n# %%\nx = 1\n',
    '{declared}\n# %% tags=["injected-parameters"]\n# Parameters\nvarient = "A"\n# %%\n',
])
def test_a_script_is_checked_like_a_notebook(tmp_path, script):
    path = tmp_path / "run.py"
    path.write_text(script.format(declared=DECLARED))
    given = {key: value for key, value in scope('varient = "A"').items() if key != "In"} | {"__file__": str(path)}
    with pytest.raises(StreetsError, match="There is no parameter 'varient' here"):
        check(given)


def test_running_the_parameters_cell_again_is_fine():
    given = scope("seed = 3")
    given["In"].append(DECLARED)
    assert check(given)["seed"] == 3


@pytest.mark.parametrize(("value", "names"), [
    ("D", "D"), ("A,C", "AC"), ("ABCD", "ABCD"), ("all", "ABCD"), ("A, A", "A"), ("DA", "DA"), ("ALL", "ABCD"),
])
def test_a_list_parameter_takes_one_several_or_all(value, names):
    assert common.several("variant", value, "ABCD") == list(names)


def test_longer_names_are_separated_by_commas():
    stages = ("scratch", "weighted", "dice")
    assert common.several("stage", "dice,scratch", stages) == ["dice", "scratch"]
    with pytest.raises(StreetsError, match="stage does not know 'dicescratch'"):
        common.several("stage", "dicescratch", stages)


def test_the_digest_follows_definitions_and_not_comments_or_calls():
    first = {"In": ["def f(x):\n    return x", "f(1)"]}
    same = {"In": ["# why\ndef f(x):\n    return x  # because", "f(2)"]}
    other = {"In": ["def f(x):\n    return x + 1"]}
    assert common.definitions_digest(first) == common.definitions_digest(same) != common.definitions_digest(other)


def test_jupyter_shows_the_sentence_and_no_traceback():
    assert StreetsError("Do this.")._render_traceback_() == ["StreetsError: Do this."]


def test_a_parameter_that_a_student_adds_to_the_cell_is_known_after_running_it_again():
    given = scope()
    given["In"].append(DECLARED + "dropout: float = 0.1\n")
    given["dropout"] = 1
    declared, _ = common.parameter_cells(check(given))
    assert declared["dropout"] == 0.1 and given["dropout"] == 1.0 and isinstance(given["dropout"], float)
