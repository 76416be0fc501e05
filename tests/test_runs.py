"""Runs of a notebook: which are trained, in which order, under which name and record, and what in their folders stays."""

import json
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import tiny_run
import torch

import common
from results import runs

PARAMETERS = 'mode: str = "course"\nstage: str = "all"\nwidth: int = 0\nfill: str = "noise"\nseed: int = 3\n' \
             'data_dir: str = ""\nout_dir: str = ""\nmax_hours: float = 0.0\n'
MODES = {"course": {"width": 8, "epochs": 1}}
STAGES = ("scratch", "occluded", "dice")


def notebook_scope(out, injected="", **more):
    """globals() of a notebook after its parameters were checked; `injected` is what papermill adds."""
    cells = ["", PARAMETERS, f"# Parameters\nout_dir = {str(out)!r}\n{injected}"]
    given = {"In": cells, "NOTEBOOK": "tiny", **more}
    given["settings"] = common.check_parameters(given, MODES, {"fill": ("noise", "black")}, {"stage": STAGES})
    return given


def train_all(scope, toy, jobs, **options):
    images = {split: common.list_frames(toy, split) for split in ("train", "val", "test")}
    return common.train_runs(scope, jobs, scope["settings"], toy, images, **options)


def job(toy, note, folder, parent=None, max_hours=0.0):
    """A real training of one epoch; what it was called with is appended to the list `note`."""
    note.append((folder.name, parent and parent.name))
    frames = [common.list_frames(toy, split) for split in ("train", "val", "test")]
    tiny_run.train(folder, frames, epochs=2 if max_hours else 1, max_hours=max_hours)


@pytest.fixture
def jobs(toy):
    note = []
    return {name: partial(job, toy, note) for name in STAGES} | {"note": note}


def split_off(jobs):
    return {name: one for name, one in jobs.items() if name != "note"}, jobs["note"]


def test_a_job_alone_has_its_parents_trained_first_and_gets_their_folder(toy, tmp_path, jobs, capsys):
    jobs, note = split_off(jobs)
    found = train_all(notebook_scope(tmp_path), toy, jobs, parents={"occluded": "scratch", "dice": "scratch"}, wanted=["dice"])
    assert note == [("scratch_seed3", None), ("dice_seed3", "scratch_seed3")]
    assert "dice starts from scratch, which is not trained yet" in capsys.readouterr().out
    assert list(found) == ["scratch", "dice"] and found["dice"].summary["epochs"] == 1
    assert len(found["dice"].history) == 1 and found["dice"].folder == tmp_path / "tiny" / "toy-course" / "dice_seed3"
    config = json.loads((found["dice"].folder / "config.json").read_text())
    assert config["parent"] == "scratch_seed3" and config["recipe"] == "dice"


def test_what_a_run_does_not_read_neither_names_it_nor_makes_it_another(toy, tmp_path, jobs):
    jobs, note = split_off(jobs)
    unused = {"scratch": ["fill"], "occluded": [], "dice": ["fill"]}
    train_all(notebook_scope(tmp_path), toy, jobs, unused=unused)
    again = train_all(notebook_scope(tmp_path, 'fill = "black"'), toy, jobs, unused=unused)
    assert [run.folder.name for run in again.values()] == ["scratch_seed3", "occluded-fillblack_seed3", "dice_seed3"]
    assert [name for name, _ in note] == ["scratch_seed3", "occluded_seed3", "dice_seed3", "occluded-fillblack_seed3"]
    assert runs.run_names(notebook_scope(tmp_path, 'fill = "black"\nwidth = 9'), unused)["scratch"] == "scratch-width9"


def test_a_run_made_before_a_notebook_had_some_parameter_is_that_of_its_default(toy, tmp_path, jobs, capsys):
    jobs, note = split_off(jobs)
    folder = train_all(notebook_scope(tmp_path), toy, {"scratch": jobs["scratch"]})["scratch"].folder
    config = json.loads((folder / "config.json").read_text())
    del config["parameters"]["fill"]
    (folder / "config.json").write_text(json.dumps(config))
    train_all(notebook_scope(tmp_path), toy, {"scratch": jobs["scratch"]})
    assert len(note) == 1 and "scratch_seed3: trained on" in capsys.readouterr().out
    other = config | {"changes": {"fill": "black"}, "parameters": config["parameters"] | {"fill": "black"}}
    assert runs.differing_keys(other, config) == ["changes_fill", "parameters_fill"]
    assert runs.differing_keys(config, other) == ["changes_fill", "parameters_fill"], "and what it no longer has differs"


def test_weights_that_a_job_is_given_count_and_those_of_a_run_that_did_not_record_them_are_not_compared():
    given = {rate: runs.plain_arguments(partial(train, weights=torch.tensor([1 / 3, rate]), network=torch.zeros(2000))) for rate in (1.0, 2.0)}
    assert given[1.0] == {"weights": [0.3333, 1.0]}
    one, other = ({"arguments": arguments} for arguments in given.values())
    assert runs.differing_keys(one, other) == ["arguments_weights"] and runs.differing_keys(one, one) == []
    assert runs.differing_keys(one, {"arguments": {}}) == [] and runs.differing_keys({"arguments": {}}, one) == ["arguments_weights"]


def test_an_edited_recipe_is_not_taken_for_the_run_of_the_old_one(toy, tmp_path):
    def train_with(folder, terms, frames):
        tiny_run.train(folder, frames, epochs=1)

    frames = [common.list_frames(toy, split) for split in ("train", "val", "test")]
    jobs = {"dice": partial(train_with, terms={"ce": 1.0, "dice": 0.5}, frames=frames)}
    folder = train_all(notebook_scope(tmp_path), toy, jobs)["dice"].folder
    assert json.loads((folder / "config.json").read_text())["arguments"] == {"terms": {"ce": 1.0, "dice": 0.5}}
    edited = {"dice": partial(train_with, terms={"ce": 1.0, "dice": 0.7}, frames=frames)}
    with pytest.raises(common.StreetsError, match="holds a run that differs in arguments_terms_dice: choose another out_dir"):
        train_all(notebook_scope(tmp_path), toy, edited)


def test_the_summary_says_what_a_claim_is_judged_by(toy, tmp_path, jobs):
    jobs, _ = split_off(jobs)
    summary = train_all(notebook_scope(tmp_path), toy, {"dice": jobs["dice"]})["dice"].summary
    assert (summary["n_train"], summary["n_val"], summary["n_test"]) == (8, 3, 2)
    assert summary["images_per_step"] == 3 and summary["weights"] == "none" and summary["num_processes"] == 1
    assert summary["drives"] == {split: len({f.city for f in common.list_frames(toy, split)}) for split in ("train", "val", "test")}
    assert set(summary["majority_baseline"]) == set(summary["test_majority_baseline"]) == {"miou", "accuracy"}
    assert 0 < summary["test"]["miou"] < 1 and summary["command"].endswith(f"-p out_dir {tmp_path}")


def test_a_run_that_max_hours_stops_ends_the_list_and_what_is_finished_is_returned(toy, tmp_path, jobs):
    jobs, note = split_off(jobs)
    stopped = jobs | {"occluded": partial(jobs["occluded"], max_hours=1e-9)}
    assert list(train_all(notebook_scope(tmp_path), toy, stopped)) == ["scratch"]
    with pytest.raises(common.StreetsError, match="No run is finished yet"):
        train_all(notebook_scope(tmp_path / "else"), toy, {"occluded": stopped["occluded"]})
    assert list(train_all(notebook_scope(tmp_path), toy, jobs)) == list(STAGES)


def test_training_again_removes_only_what_a_run_writes(toy, tmp_path, jobs):
    jobs, _ = split_off(jobs)
    folder = train_all(notebook_scope(tmp_path), toy, {"dice": jobs["dice"]})["dice"].folder
    mine = {folder / name: name.encode() for name in
            ("notes.txt", "best.ckpt", "history.csv.bak", "checkpoint/mine.pt", "predictions/street.png", ".hidden",
             "my_copy.safetensors", "epoch_best.safetensors", "mine_per_image.npz", "per_image.csv", "checkpoint/epoch_mine")}
    for path, content in mine.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (folder / "epoch_0007.safetensors").symlink_to(folder / "notes.txt")  # as an earlier run with keep_at left it
    scope = notebook_scope(tmp_path)
    scope["_parameters"].values["rerun"] = "yes"
    before = (folder / "summary.json").stat().st_mtime_ns
    train_all(scope, toy, {"dice": jobs["dice"]})
    assert (folder / "summary.json").stat().st_mtime_ns != before and not (folder / "epoch_0007.safetensors").exists()
    assert {path: path.read_bytes() for path in mine} == mine


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of its own with the helpers and one notebook, committed."""
    for name in ("common.py", "data_prep.py", "results/figures.py", "results/runs.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(runs.HERE / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "tiny.py").write_text("# %%\nRATE = 0.1\n\n# %%\ndef train(folder):\n    return RATE\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(runs, "HERE", tmp_path)
    return tmp_path


def train(folder):
    pytest.fail("only its name counts")


@pytest.mark.parametrize(("cells", "state"), [
    (["RATE = 0.1", "def train(folder):  # why\n    return RATE", "def other():\n    pass"], "committed"),
    (["RATE = 0.2", "def train(folder):\n    return RATE"], "uncommitted: the notebook"),
    (["RATE = 0.1", "def train(folder):\n    return 2 * RATE"], "uncommitted: the notebook"),
])
def test_a_record_says_whether_the_code_that_ran_was_committed(repository, cells, state):
    recorded = runs.record("tiny", train, cells, "papermill", repository)
    assert recorded["code"] == state and len(recorded["commit"]) == 40 and recorded["functions"] == ["train"]


def test_a_changed_helper_is_named_and_without_git_nothing_is_claimed(repository, monkeypatch):
    cells = runs.script_cells((repository / "notebooks" / "tiny.py").read_text())
    with open(repository / "common.py", "a") as file:
        file.write("# mine\n")
    assert runs.record("tiny", train, cells, "", repository)["code"] == "uncommitted: common.py"
    (repository / "results" / "extras_ti.py").write_text("RATE = 1\n")  # of the notebook "tiny"
    assert runs.record("tiny", train, cells, "", repository)["code"] == "uncommitted: common.py, results/extras_ti.py"
    monkeypatch.setenv("PATH", "")
    assert runs.record("tiny", train, cells, "", repository)["code"] == "unknown"


def test_the_scores_kept_of_each_picture_give_the_metrics_of_the_whole_split_and_of_one_drive(tmp_path):
    rng, classes = np.random.default_rng(0), ["road", "car", "person"]
    confusion = rng.integers(1, 9, (4, 3, 3))
    confusion[:2, 2] = 0  # the first drive shows no people
    contours, images = rng.random((4, 3)), ["A/1", "A/2", "AB/1", "AB/2"]
    np.savez_compressed(tmp_path / "test_per_image.npz", image=np.array(images), confusion=confusion, boundary_f1=contours)
    runs.write_json(tmp_path / "summary.json", {"metrics": {"iou": dict.fromkeys(classes)}})
    whole, first = common.kept_scores(tmp_path), common.kept_scores(tmp_path, drive="A")
    assert whole == common.metrics_of({"confusion": confusion, "boundary_f1": contours}, classes)
    assert first == common.metrics_of({"confusion": confusion[:2], "boundary_f1": contours[:2]}, classes)
    assert first["iou"]["person"] is None and whole["iou"]["person"] is not None
    with pytest.raises(common.StreetsError, match="no picture of B"):
        common.kept_scores(tmp_path, drive="B")
