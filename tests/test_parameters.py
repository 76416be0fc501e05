"""Parameters of a notebook: what papermill, a student or a script may set, and how a mistake is told."""

import ast
import json
import math
from functools import partial

import numpy as np
import papermill
import pytest
import torch
from conftest import ROOT

import common
import data_prep
from common import StreetsError
from results import runs

DECLARED = ('mode: str = "quick"  # quick, paper\nvariant: str = "D"\nlambdas: str = "4,2,0"\nlr: float = 0.0\nepochs: int = 0\nseed: int = 42\n'
            'data_dir: str = ""\nphoto: str = ""\n')
MODES = {"quick": {"epochs": 20, "lr": 0.1, "scratch_lr": 0.2, "flip": 0.5, "images": 40, "weight_decay": 0.1234567890123, "precision": "auto"},
         "paper": {"epochs": 160, "lr": 0.1, "scratch_lr": 0.1, "flip": 0.5, "images": 0, "weight_decay": 0.1234567890123, "precision": "fp32"}}


def scope(injected="", declared=DECLARED):
    """globals() of a kernel in which papermill's injected cell ran after the parameters cell."""
    cells = ["", declared] + (["# Parameters\n" + injected] if injected else []) + ["%matplotlib inline"]
    values = {}
    for cell in cells[:-1]:
        exec(cell, values)
    return values | {"In": cells}


def settings_of(given):
    return common.check_parameters(given, MODES, {"lambdas": ("4,2,0", "2", "2.5", "yes")}, {"variant": "ABCD"})


def check(given):
    settings_of(given)
    return given


def name_of(given, unused=()):
    """Name of the run D of a notebook with these globals()."""
    return runs.run_names(check(given), {"D": unused})["D"]


def test_declared_values_pass_unchanged_and_the_mode_fills_in():
    given = scope()
    settings = settings_of(given)
    assert (given["mode"], given["lambdas"], given["lr"], given["seed"]) == ("quick", "4,2,0", 0.0, 42)
    assert settings == MODES["quick"] and settings is not MODES["quick"]


def test_the_settings_are_printed(capsys):
    check(scope("epochs = 3"))
    assert capsys.readouterr().out.startswith("quick: epochs=3, lr=0.1, scratch_lr=0.2, flip=0.5, images=40,")


@pytest.mark.parametrize(("injected", "name", "value"), [
    ("lambdas = 2", "lambdas", "2"),  # papermill makes -p lambdas 2 an int
    ("lambdas = 2.5", "lambdas", "2.5"),
    ("lr = 1", "lr", 1.0),
    ('lr = "0.5"', "lr", 0.5),
    ("seed = 7.0", "seed", 7),
    ("lambdas = True", "lambdas", "yes"),
    ("flip = 1", "flip", 1.0),  # of the mode only
    ('variant = ["A", "D"]', "variant", "A,D"),
    ('variant = ["all"]', "variant", "all"),
])
def test_values_take_the_type_of_their_default(injected, name, value):
    result = check(scope(injected))[name]
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(("injected", "sentence"), [
    ('varient = "A"', "There is no parameter 'varient' here: this notebook has mode, variant, lambdas, lr, epochs, seed, data_dir, photo, "
                      "and its modes have scratch_lr, flip, images, weight_decay, precision."),
    ('mode = "fast"', "mode does not know 'fast': use quick or paper."),
    ('variant = "E"', "variant does not know 'E': use A, B, C, D, several with commas, or all."),
    ('variant = ["A", "E"]', "variant does not know 'E': use A, B, C, D, several with commas, or all."),
    ('variant = ""', "variant does not know '': use A, B, C, D, several with commas, or all."),
    ('lambdas = "1"', "lambdas does not know '1': use 4,2,0 or 2 or 2.5 or yes."),
    ('seed = "many"', "seed must be a whole number such as 42, not 'many'."),
    ("seed = 1.5", "seed must be a whole number such as 42, not 1.5."),
    ("seed = float('inf')", "seed must be a whole number such as 42, not inf."),  # what papermill makes of -p seed inf
    ('lr = "fast"', "lr must be a number such as 0.0, not 'fast'."),
    ("seed = -1", "seed must be 0 to 4294967295, not -1."),
    ("flip = -0.5", "flip must be 0.0 to 1.0, not -0.5."),
    ("images = 2.5", "images must be a whole number such as 40, not 2.5."),
    ('precision = "fp8"', "precision does not know 'fp8': use auto or bf16 or fp16 or fp32."),
    ('data_dir = "/nowhere"', "data_dir: there is no folder /nowhere (seen from"),
    ('photo = "/nowhere.png"', "photo: there is no file /nowhere.png (seen from"),
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


# ranges, of parameters and of modes


NUMBERS = 'mode: str = "quick"\nlr: float = 0.0\nheight: int = 0\nlambda_b: float = 0.2\nseed: int = 42\nkeep_at: str = ""\n' \
          'num_processes: int = 1\nmax_hours: float = 0.0\nmine: float = 1.0\n'
def test_what_a_cell_computes_is_no_literal_and_no_mistake():
    cell = "a = float(total)\nb = float()\nc = float('inf')\nd = float('7')\nMODE = 'x'"
    assert runs.literal_assignments(cell) == {"c": math.inf, "MODE": "x"}


NUMBER_MODES = {"quick": {"lr": 0.1, "height": 128, "blur": 0.5, "flip": 0.5, "jitter": 0.25, "epochs": 5, "batch_size": 2, "evaluate_at": "5"}}


def check_numbers(injected="", **of_mode):
    return common.check_parameters(scope(injected, NUMBERS), {"quick": NUMBER_MODES["quick"] | of_mode})


@pytest.mark.parametrize(("given", "sentence"), [
    ("seed = 1732792800123456789", "seed must be 0 to 4294967295, not 1732792800123456789."),
    (f"seed = {'9' * 4000}", "seed must be 0 to 4294967295, not 9999"),
    ("lr = float('inf')", "lr must be 1e-09 to 10.0, not inf."), ("lr = float('nan')", "lr must be 1e-09 to 10.0, not nan."),
    ("lr = -1", "lr must be 1e-09 to 10.0, not -1.0."), ("lr = 100", "lr must be 1e-09 to 10.0, not 100.0."),
    ("lambda_b = float('inf')", "lambda_b must be 0.0 to 1000.0, not inf."), ("blur = 1e5", "blur must be 0.0 to 20.0, not 100000.0."),
    ("height = 100000000", "height must be 32 to 8192, not 100000000."), ("flip = 5", "flip must be 0.0 to 1.0, not 5.0."),
    ("jitter = 1e6", "jitter must be 0.0 to 1.0, not 1000000.0."), ("batch_size = 0", "batch_size must be 1 to 1024, not 0."),
    ("num_processes = 0", "num_processes must be 1 to 64, not 0."), ("max_hours = float('nan')", "max_hours must be 0.0 to 10000.0, not nan."),
    ("mine = float('nan')", "mine must be 0 or a positive number, not nan."), ("mine = -2", "mine must be 0 or a positive number, not -2.0."),
    ("mine = float('inf')", "mine must be 0 or a positive number, not inf."),
    (f"evaluate_at = '{'9' * 5000}'", "'9999"), ("evaluate_at = '0'", "'0' does not name epochs: use one number such as 10"),
    (f"keep_at = '5,{'1' * 7}'", "'5,1111111' does not name epochs"), (f"mode = '{'x' * 5000}'", "mode does not know 'xxxx"),
])
def test_a_number_out_of_range_is_one_sentence_with_the_range(given, sentence):
    with pytest.raises(StreetsError) as caught:
        check_numbers(given)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(("of_mode", "sentence"), [
    ({"epochs": 0}, "epochs must be 1 to 100000, not 0."), ({"lr": 0.0}, "lr must be 1e-09 to 10.0, not 0.0."),
    ({"epochs": 2.5}, "epochs must be a whole number such as 1, not 2.5."), ({"epochs": "many"}, "epochs must be a whole number such as 1, not 'many'."),
    ({"flip": math.nan}, "flip must be 0.0 to 1.0, not nan."), ({"precision": "fp8"}, "precision does not know 'fp8': use auto or bf16"),
    ({"evaluate_at": "often"}, "'often' does not name epochs"),
])
def test_a_value_of_a_mode_that_a_reader_edits_is_held_to_the_same_ranges(of_mode, sentence):
    with pytest.raises(StreetsError) as caught:
        check_numbers(**of_mode)
    assert str(caught.value).startswith(sentence)


def test_a_number_that_python_does_not_print_is_refused_all_the_same():
    with pytest.raises(StreetsError, match="seed must be 0 to 4294967295, not a number of thousands of digits"):
        runs.in_range("seed", 10**5000)


def test_the_limits_themselves_are_allowed_and_the_values_keep_their_type():
    settings = check_numbers("flip = 1\nseed = 4294967295\nlambda_b = 1000\nheight = 8192", epochs=1, blur=20)
    assert settings["flip"] == 1.0 and settings["height"] == 8192 and settings["epochs"] == 1
    assert [type(settings[name]) for name in ("flip", "blur", "height")] == [float, float, int]


def notebook_literals(name):
    """(parameters, modes) of a notebook."""
    cells = runs.notebook_cells({"__file__": ROOT / "notebooks" / f"{name}.py"})
    return runs.parameter_cells({"__file__": ROOT / "notebooks" / f"{name}.py"})[0], \
        next(found["MODES"] for found in map(runs.literal_assignments, cells) if "MODES" in found)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.py")))
def test_every_number_of_every_notebook_has_a_range_and_lies_in_it(name):
    parameters, modes = notebook_literals(name)
    settings = [pair for values in modes.values() for pair in values.items()]
    own = [(key, value) for key, value in parameters.items() if value or key not in dict(settings)]
    numbers = [(key, value) for key, value in settings + own if not isinstance(value, str)]
    assert len(numbers) > 4 and {key for key, _ in numbers} <= set(runs.RANGES)
    assert all(runs.in_range(key, value) == value for key, value in numbers)
    assert {key for key in parameters if key.endswith(("_dir", "photo"))} == runs.PATHS.keys() & parameters.keys()


def test_a_value_without_its_type_counts_too():
    given = scope(declared=DECLARED.replace("epochs: int = 0", "epochs = 7"))
    assert settings_of(given)["epochs"] == 7


# paths


@pytest.mark.parametrize("name", ["data_dir", "out_dir", "photo"])
@pytest.mark.parametrize(("path", "reason"), [("x" * 5000, "too long"), ("x" * 300, "too long"), ("~nosuchuser/x", "home"), ("a\0b", "null"),
                                              ("a\ud800", "codec")])
def test_a_path_that_can_be_none_is_one_sentence(name, path, reason):
    given = scope(f"{name} = {path!r}", DECLARED + 'out_dir: str = ""\n')
    with pytest.raises(StreetsError, match=f"^{name} cannot be .*{reason}.*: give another path") as caught:
        check(given)
    assert len(str(caught.value)) < 300


def test_what_is_there_but_of_another_kind_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for name, path in {"data_dir": "file", "out_dir": "file", "photo": "."}.items():
        with pytest.raises(StreetsError, match=f"{name}: there is no (folder|file) "):
            check(scope(f"{name} = {str(tmp_path / path)!r}", DECLARED + 'out_dir: str = ""\n'))


def test_the_home_folder_is_read_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data_prep.write_png(tmp_path / "mine.png", np.zeros((40, 60, 3), np.uint8))
    assert check(scope('photo = "~/mine.png"'))["photo"] == str(tmp_path / "mine.png")


def test_what_lies_in_the_top_folder_is_found_from_the_folder_of_the_notebooks(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    assert check(scope('photo = "results/pictures/streets.jpg"'))["photo"] == str(ROOT / "results/pictures/streets.jpg")
    assert check(scope('data_dir = "results"'))["data_dir"] == str(ROOT / "results")
    assert check(scope('out_dir = "results"', DECLARED + 'out_dir: str = ""\n'))["out_dir"] == "results", "written where one is"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (2000, 8), (8, 2000), (40, 400)])
def test_a_photo_of_ones_own_is_read_and_measured_before_training(tmp_path, height, width):
    data_prep.write_png(tmp_path / "mine.png", np.zeros((height, width, 3), np.uint8))
    with pytest.raises(StreetsError, match=f"mine.png has {width}x{height} pixels: use photos with at least 32"):
        check(scope(f"photo = {str(tmp_path / 'mine.png')!r}"))
    (tmp_path / "mine.png").write_bytes(b"no photo")
    with pytest.raises(StreetsError, match="mine.png is damaged or cut short, or neither PNG nor JPEG"):
        check(scope(f"photo = {str(tmp_path / 'mine.png')!r}"))


def test_toy_names_the_embedded_streets_where_no_folder_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check(scope('data_dir = "toy"'))["data_dir"] == "toy"
    (tmp_path / "toy").mkdir()
    assert runs.check_path("data_dir", "toy") == "toy" and not runs.is_toy("toy")


# launches


WHOLE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("given", [{name: WHOLE[name]} for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] + [{"LOCAL_WORLD_SIZE": "2"}]
                         + [{key: value for key, value in WHOLE.items() if key != left_out} for left_out in WHOLE]
                         + [WHOLE | {"RANK": "one"}, WHOLE | {"RANK": "2"}, WHOLE | {"LOCAL_WORLD_SIZE": "x"}])
def test_half_an_environment_of_torchrun_is_refused_with_the_way_to_launch(monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StreetsError, match="^The environment says .* unset them, or, .* `accelerate launch` or torchrun, as notebooks/README.md says"):
        check(scope())


@pytest.mark.parametrize("given", [{}, WHOLE, {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}])
def test_a_whole_launch_and_none_are_fine(monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert check(scope())["mode"] == "quick"


def test_several_processes_without_fork_are_refused_before_anything_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(StreetsError, match="num_processes = 2 or -p num_processes 2 needs fork, .* make a script .* `accelerate launch` or torchrun"):
        runs.train_or_load(tmp_path / "run", {}, lambda folder: pytest.fail("trained"), num_processes=2)
    assert not (tmp_path / "run").exists()
    readme = (ROOT / "notebooks" / "README.md").read_text()
    assert "**Use several GPUs.**" in readme and "accelerate launch" in readme and "torchrun" in readme


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StreetsError, match="needs as many GPUs, and here are 1: use num_processes = 1 or -p num_processes 1"):
        runs.train_or_load(tmp_path / "run", {}, lambda folder: pytest.fail("trained"), num_processes=2)


# what the mode says and what was changed of it


@pytest.mark.parametrize(("injected", "changed"), [
    ("epochs = 5", {"epochs": 5}), ("lr = 0.3", {"lr": 0.3, "scratch_lr": 0.3}), ("scratch_lr = 0.4", {"scratch_lr": 0.4}),
    ("scratch_lr = 0.4\nlr = 0.3", {"lr": 0.3, "scratch_lr": 0.4}),
    ("flip = 0.7", {"flip": 0.7}), ("flip = 0", {"flip": 0.0}), ("images = 0", {"images": 0}), ('precision = "bf16"', {"precision": "bf16"}),
    ("epochs = 0", {}), ("lr = 0", {}), ("epochs = 20", {})])
def test_a_value_that_is_not_empty_takes_the_place_of_the_modes_and_of_the_mode_only_also_0(injected, changed):
    assert settings_of(scope(injected)) == MODES["quick"] | changed


def test_papermills_mode_is_the_one_that_counts():
    assert settings_of(scope('mode = "paper"\nflip = 0')) == MODES["paper"] | {"flip": 0.0}


@pytest.mark.parametrize("again", ["mode = 'paper'", "mode, size = 'paper', 3", "size = 5\nepochs = 7", "# Parameters\nepochs = 7"])
def test_a_students_own_cells_may_assign_to_the_names_of_parameters(again):
    given = scope("epochs = 3")
    given["In"].append(again)
    exec(again, given)
    assert settings_of(given) == MODES["quick"] | {"epochs": 3} and given["mode"] == "quick" and given["epochs"] == 3


def test_running_the_parameters_cell_again_is_fine_and_its_new_values_count():
    given = scope("seed = 3")
    given["In"].append(DECLARED)
    assert check(given)["seed"] == 42, "papermill's cell was not run again"
    given["In"] += ["# Parameters\nseed = 4", "check()", "check()"]
    assert check(given)["seed"] == 4 and check(given)["seed"] == 4
    given["In"].append(DECLARED.replace("epochs: int = 0", "epochs: int = 9"))
    assert settings_of(given)["epochs"] == 9 and given["seed"] == 42
    assert name_of(given) == "D-epochs9", "the defaults are those of the first time"


def test_a_parameter_that_a_student_adds_to_the_cell_is_known_after_running_it_again():
    given = scope()
    given["In"].append(DECLARED + "dropout: float = 0.1\n")
    declared, _, _ = runs.parameter_cells(check(given))
    assert declared["dropout"] == 0.1 and given["dropout"] == 0.1
    given["In"].append(DECLARED + "dropout: float = 1\n")
    assert check(given)["dropout"] == 1.0 and isinstance(given["dropout"], float)


@pytest.mark.parametrize("magic", ["%%time\n", "%%time \n", "%%capture\n"])
@pytest.mark.parametrize("cell", [1, 2, 3])
def test_a_magic_on_any_cell_hides_nothing(magic, cell):
    """IPython keeps a cell under a magic as one call of run_cell_magic."""
    from IPython.core.inputtransformer2 import TransformerManager

    given = scope("epochs = 3")
    given["In"][-1] = "def f():\n    return 1\n"
    given["In"][cell] = TransformerManager().transform_cell(magic + given["In"][cell])
    assert "run_cell_magic" in given["In"][cell]
    assert check(given)["epochs"] == 3
    assert [ast.unparse(node) for node in runs.definitions(given["In"]).values()] == ["def f():\n    return 1"]


def test_a_parameter_that_is_no_literal_is_taken_as_it_is():
    declared = DECLARED.replace('photo: str = ""', 'photo: str = str(here)')
    photo = ROOT / "results" / "pictures" / "streets.jpg"
    given = {"here": photo, "photo": str(photo), "In": ["", declared]}
    assert check(given)["photo"] == str(photo)


# what takes several


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


def test_a_list_that_papermill_reads_from_yaml_is_one(tmp_path):
    notebook = tmp_path / "n.ipynb"
    cells = [{"cell_type": "code", "execution_count": None, "id": f"c{k}", "metadata": {"tags": tags}, "outputs": [], "source": source}
             for k, (source, tags) in enumerate(((DECLARED, ["parameters"]), ("", [])))]
    notebook.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}},
                                    "nbformat": 4, "nbformat_minor": 5}))
    from papermill.cli import papermill as command

    with pytest.raises(SystemExit) as ended:
        command([str(notebook), str(tmp_path / "out.ipynb"), "--prepare-only", "--no-progress-bar", "-y", "{variant: [A, D], flip: 0}"])
    assert not ended.value.code
    prepared = [cell.source for cell in papermill.iorw.load_notebook_node(str(tmp_path / "out.ipynb")).cells]
    assert check({"In": prepared})["variant"] == "A,D"
    assert settings_of({"In": prepared})["flip"] == 0


# names of runs


def test_a_name_says_what_departs_from_the_mode_in_the_order_of_the_notebook():
    assert name_of(scope()) == name_of(scope("epochs = 20\nimages = 40")) == name_of(scope('variant = "A"\nseed = 1\nphoto = ""')) == "D"
    assert name_of(scope("epochs = 5\nlambdas = 2")) == name_of(scope("lambdas = 2\nepochs = 5")) == "D-lambdas2-epochs5"
    assert name_of(scope("flip = 0\nimages = 8")) == name_of(scope("images = 8\nflip = 0")) == "D-flip0.0-images8"
    assert name_of(scope("flip = 0\nimages = 8"), unused=["flip"]) == "D-images8"


def test_long_names_stay_short_and_distinct():
    long = "\n".join(f"{name} = {value!r}" for name, value in {"lambdas": "2.5", "lr": 0.1234567890123, "epochs": 98765, "flip": 0.1234567890123,
                     "images": 123456, "weight_decay": 1.234567890123e-05}.items())
    first = name_of(scope(long))
    others = {name_of(scope(long.replace("1.234567890123e-05", value))) for value in ("1.234567890124e-05", "1.2345678901231e-05", "0.5")}
    assert len(f"{first}_seed123456789") < 100 and len({first, *others}) == 4
    assert all(name.startswith("D-lambdas2.5-lr0.1234567890123-epochs98765") for name in (first, *others))
    assert name_of(scope("lr = 0.1234567890123")) == "D-lr0.1234567890123" != name_of(scope("lr = 0.1234567890124"))


def test_what_a_file_system_does_not_take_is_replaced_and_still_tells_names_apart():
    names = {runs.method_name("D", {"classes": value}) for value in ("a b", "a/b", "a:b", "a_b", "ä_b")}
    assert len(names) == 5 and all(name.isascii() and not set("/: ") & set(name) for name in names)


def test_a_value_equal_to_the_modes_is_the_same_run_as_none():
    plain, given = (check(scope(text))["_parameters"] for text in ("", "epochs = 20\nimages = 40"))
    assert plain.used() == given.used() and plain.changes() == given.changes() == {}
    assert "epochs" not in plain.used() and plain.used(["lambdas"])["lambdas"] == "not used", "the settings hold what a mode decides"
    assert name_of(scope("lr = 0.1")) == "D-lr0.1", "it is the mode's lr, but not its scratch_lr, which it replaces, too"


def test_the_command_repeats_what_was_set():
    given = check(scope('variant = ["A", "D"]\nflip = 0\nlambdas = 2'))
    assert given["_parameters"].command("nn") == "papermill notebooks/nn.ipynb out.ipynb -p variant A,D -p lambdas 2 -p flip 0.0"


# what a run was made with


NOTEBOOK = ["import math", "RATES = (1, 2)", "def scale(x):\n    return x * RATES[0]", "def train(folder):\n    return scale(1)  # why",
            "def draw():\n    return 1", "train(1)", "def train(folder):\n    return scale(2)"]


def digest(cells):
    return runs.definitions_digest(cells, ["train"])


def test_the_digest_follows_definitions_and_not_comments_docstrings_or_calls():
    first, same, other = ["def f(x):\n    return x", "f(1)"], ["# why\ndef f(x):\n    'What for.'\n    return x  # because", "f(2)"], ["def f(x):\n    return x + 1"]
    assert len({runs.definitions_digest(cells, ["f"]) for cells in (first, same)}) == 1
    assert runs.definitions_digest(first, ["f"]) != runs.definitions_digest(other, ["f"])


SYNTAX = """
def f(x, *, width: int = 3, **more) -> None:
    'A docstring.'
    first, rest = x[1, 2], (1, 2)
    return f"{first!r:>{width}}" "a" f"{rest[0]=}", {**more, "b": u"c"}, [1.0, True, None, ...]
"""


def test_the_digest_is_the_same_in_every_python_version():
    """Measured with 3.10.13, 3.11.7, 3.12.1 and 3.13.0; `ast.unparse` and `ast.dump` write these lines differently there."""
    assert runs.definitions_digest([SYNTAX], ["f"]) == "81b61934e236"


def test_the_digest_tells_types_and_kinds_of_values_apart():
    values = ["1", "1.0", "True", "'1'", "None", "(1,)", "[1]", "{1}", "-1", "f'{x}'", "f'{x!r}'", "f'{x:1}'", "x", "x.y", "x[0]", "x[:0]"]
    assert len({runs.definitions_digest([f"A = {value}"], ["A"]) for value in values}) == len(values)


def test_the_digest_is_one_under_in_and_as_a_script_and_where_a_part_of_the_cells_ran(tmp_path):
    script = tmp_path / "run.py"
    script.write_text("".join(f"# %%\n{cell}\n\n\n" for cell in NOTEBOOK))
    ours = digest(runs.notebook_cells({"In": ["", *NOTEBOOK]}))
    assert ours == digest(runs.notebook_cells({"__file__": str(script)})), "as a script"
    without = [cell for cell in NOTEBOOK if "draw" not in cell and "math" not in cell]
    assert ours == digest(without) == digest([*without[:-1], "%%time\nx = 1", without[-1]]), "what training does not reach does not matter"
    assert ours == digest([*NOTEBOOK, "def scale_more(x):\n    return scale(x)"])


@pytest.mark.parametrize(("old", "new"), [("RATES = (1, 2)", "RATES = (1, 3)"), ("x * RATES[0]", "x + RATES[0]"), ("scale(2)", "scale(3)")])
def test_the_digest_changes_with_all_that_training_reaches(old, new):
    assert digest(NOTEBOOK) != digest([cell.replace(old, new) for cell in NOTEBOOK])


def test_what_a_notebook_imports_from_its_extras_counts_as_if_it_stood_there(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    extras, (_, *moved), train = tmp_path / "results" / "extras_99.py", NOTEBOOK[:3], NOTEBOOK[-1]
    extras.write_text("\n\n".join(["import common", *moved, "def unused():\n    return 1"]))
    cells = ["from results.extras_99 import scale", train]
    assert digest(cells) == digest(NOTEBOOK) != digest(["from results.extras_98 import scale", train])
    assert digest([cells[0], "RATES = (1, 3)", train]) != digest(NOTEBOOK), "what the notebook defines comes first"
    extras.write_text("\n\n".join(moved).replace("x * RATES", "x + RATES"))
    assert digest(cells) != digest(NOTEBOOK)


def train_one(folder, loss, **options):
    return loss, options


def test_a_job_is_known_by_the_functions_that_it_runs():
    job = partial(partial(train_one, loss=math.sqrt), terms={"dice": math.log})
    assert runs.functions_of(job) == ["log", "sqrt", "train_one"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.py")))
def test_the_notebooks_digest_is_the_same_from_its_cells_as_from_its_script(name):
    import jupytext

    path = ROOT / "notebooks" / f"{name}.py"
    cells = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    script = runs.notebook_cells({"__file__": str(path)})
    defined = runs.definitions(cells)
    assert defined and runs.definitions_digest(cells, defined) == runs.definitions_digest(script, defined)


def test_jupyter_shows_the_sentence_and_no_traceback():
    assert StreetsError("Do this.")._render_traceback_() == ["StreetsError: Do this."]
