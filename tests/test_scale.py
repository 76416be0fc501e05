"""Two processes instead of one: the same steps, exact scores, one writer, and what may be resumed by how many."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import tiny_run
import torch
from conftest import ROOT, shortened
from test_training import SCRIPT, mean_loss, results, run_in_two
from torch import nn
from torch.nn import functional as F

import common
from common import StreetsError
from results import runs

RUN = Path("tiny", "toy-course", "tiny_seed3")
RANK = partial(os.environ.get, "RANK")  # of this process among those that train; None outside of a training by several


def plain_network():
    """No batch norm, whose statistics are those of a process's part of the batch, and no dropout."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 19, 1))


def train_plain(toy, out, processes):
    """Train on 4 images per step in all; out/log.jsonl tells which process saw and wrote what, on how many threads."""
    out.mkdir()

    def note(**what):
        with open(out / "log.jsonl", "a") as log:
            log.write(json.dumps({"rank": RANK(), **what}) + "\n")

    def loss_without_void(model, batch):
        note(saw=batch["index"].tolist(), threads=torch.get_num_threads())
        return F.cross_entropy(model(batch["image"]), batch["label"].where(batch["label"] < 19, 0))

    def write(path, data, write=runs.write_atomic):
        note(wrote=path.name)
        write(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "tiny_network", plain_network)
        for module in (common, runs):
            patch.setattr(module, "write_atomic", write)
        return tiny_run.run(toy, out, processes=processes, batch_size=4 // processes, loss_fn=loss_without_void, epochs=3)


def train_plain_as_a_notebook_does(*args):
    """Train after OpenCV has started threads, which a forked process does not have."""
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)
    train_plain(*args)


def call(function, *args):
    """Command for a process of its own that calls a function of this module with paths and numbers."""
    return ["-c", f"import test_scale as t; from pathlib import *; t.{function}(*{args!r})"]


@pytest.fixture(scope="module")
def alone_and_two(toy, tmp_path_factory):
    """For one process and for two: (run folder, lines of the log)."""
    base = tmp_path_factory.mktemp("plain")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_plain(toy, base / "1", 1)
    torch.set_num_threads(threads)
    done = run_in_two(call("train_plain_as_a_notebook_does", toy, base / "2", 2))
    assert done.returncode == 0, done.stderr
    logs = [(base / n / "log.jsonl").read_text().splitlines() for n in "12"]
    return [(base / n / RUN, [json.loads(line) for line in log]) for n, log in zip("12", logs)]


def test_two_processes_with_half_the_batch_make_the_same_steps(alone_and_two):
    (alone, log), (two, log_of_two) = alone_and_two
    steps = [line["saw"] for line in log if "saw" in line]
    halves = [[line["saw"] for line in log_of_two if "saw" in line and line["rank"] == rank] for rank in "01"]
    assert len(steps) == 6 and steps == [a + b for a, b in zip(*halves, strict=True)]
    losses = [pd.read_csv(folder / "history.csv")["train_loss"] for folder in (alone, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    ours, theirs = (common.load_weights(f / "last.safetensors", plain_network()).state_dict() for f in (alone, two))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_one_of_two_processes_writes_and_leaves_what_one_process_leaves(alone_and_two):
    (alone, log), (two, log_of_two) = alone_and_two
    wrote = [(line["rank"], line["wrote"]) for line in log_of_two if "wrote" in line]
    assert [rank for rank, _ in wrote] == [None] + ["0"] * (len(wrote) - 1) and wrote[0][1] == "config.json"
    for name in ("history.csv", "last.safetensors", "summary.json", "val_per_image.npz", "progress.json"):
        assert sum(n == name for _, n in wrote) == sum(line.get("wrote") == name for line in log) > 0, name
    assert {p.name for p in two.iterdir()} == {p.name for p in alone.iterdir()}
    runs.lock_folder(two).lock.release()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (alone, two)]
    assert [s["num_processes"] for s in summaries] == [1, 2] and summaries[0].keys() == summaries[1].keys()


def test_a_forked_process_which_inherits_no_threads_counts_on_none(alone_and_two):
    assert {line["threads"] for line in alone_and_two[1][1] if "saw" in line} == {1}


def score(toy, out):
    """Write what each process gets for all validation images, and for one, which leaves the second without any."""
    port = str(runs.get_free_port())
    runs.notebook_launcher(lambda: score_here(toy, out / RANK()), num_processes=2, use_port=port)


def score_here(toy, folder):
    torch.manual_seed(0)
    net = tiny_run.tiny_network()
    net[1].running_mean += float(RANK(0))  # as after a step on other images
    for n in (1, 3):
        data = common.StreetScenes(common.list_frames(toy, "val")[:n], (64, 128))
        metrics, per_image = common.evaluate(net, data, contours=True, loss=mean_loss)
        common.write_json(folder / f"{n}.json", metrics)
        np.savez(folder / f"{n}.npz", **per_image)


def test_two_processes_score_exactly_what_one_does_also_where_their_shares_differ(toy, tmp_path, one_thread):
    done = run_in_two(call("score", toy, tmp_path))
    assert done.returncode == 0, done.stderr
    score_here(toy, tmp_path / "alone")
    for n in (1, 3):
        expected = dict(np.load(tmp_path / "alone" / f"{n}.npz"))
        assert set(expected) == {"confusion", "boundary_f1", "trimap_iou", "loss"} and len(expected["confusion"]) == n
        for rank in "01":
            assert (tmp_path / rank / f"{n}.json").read_bytes() == (tmp_path / "alone" / f"{n}.json").read_bytes()
            np.testing.assert_equal(dict(np.load(tmp_path / rank / f"{n}.npz")), expected)


def in_two(toy, out, *options):
    return run_in_two([SCRIPT, toy, out, "processes=2", "batch_size=2", *options])


@pytest.fixture(scope="module")
def at_once(toy, tmp_path_factory):
    """Results of two trainings of two processes each, at the same time and in the same results folder."""
    out = tmp_path_factory.mktemp("whole")
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda name: in_two(toy, out, f"method={name}"), ("one", "two")))
    for done in both:
        assert done.returncode == 0, done.stderr
    return [results(out / RUN.with_name(f"{name}_seed3")) for name in ("one", "two")]


@pytest.fixture
def whole(at_once):
    """Results of a training of two processes from its beginning to its end."""
    return at_once[0]


def test_two_trainings_of_two_processes_at_once_do_not_meet(at_once):
    assert len(at_once) == 2 and at_once[0] == at_once[1]


def test_a_killed_run_of_two_processes_goes_on_to_the_same_numbers_to_the_bit(toy, tmp_path, whole):
    killed = in_two(toy, tmp_path, "kill_before=progress.json", "times=3")
    assert killed.returncode != 0 and "ended with the error printed above" in killed.stderr
    assert {p.name for p in (tmp_path / RUN / "checkpoint").iterdir()} == {"epoch_0002", "epoch_0003"}
    resumed = in_two(toy, tmp_path)
    assert resumed.returncode == 0 and "resuming after epoch 2 of 4" in resumed.stdout, resumed.stderr
    assert results(tmp_path / RUN) == whole


def train_with_another_clock(toy, out):
    def loss(model, batch):
        if RANK() == "1":
            runs.STARTED = np.inf  # left alone, this process would go on for ever
        return tiny_run.cross_entropy(model, batch)

    tiny_run.run(toy, out, processes=2, batch_size=2, loss_fn=loss, max_hours=1e-9)


def test_max_hours_stops_both_whatever_their_clocks_and_only_as_many_may_go_on(toy, tmp_path, whole):
    stopped = run_in_two(call("train_with_another_clock", toy, tmp_path))
    assert stopped.returncode == 0 and stopped.stdout.count("stopped after epoch 1 of 4") == 1, stopped.stderr
    state = tmp_path / RUN / "checkpoint" / "epoch_0001"
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= {p.name for p in state.iterdir()}
    with pytest.raises(StreetsError, match=r"begun with num_processes = 2; with 1 .* go on with 2, or .* rerun"):
        tiny_run.run(toy, tmp_path)
    assert in_two(toy, tmp_path).returncode == 0
    assert results(tmp_path / RUN) == whole
    _, summary = tiny_run.run(toy, tmp_path)
    assert summary["num_processes"] == 2, "what is finished is loaded by any number"


def test_two_do_not_go_on_where_one_began(toy, tmp_path):
    assert tiny_run.run(toy, tmp_path, max_hours=1e-9)[1] is None
    refused = in_two(toy, tmp_path)
    assert refused.returncode != 0 and "begun with num_processes = 1; with 2 its batches" in refused.stderr
    assert tiny_run.run(toy, tmp_path, epochs=4)[1]["num_processes"] == 1


def torchrun(*command, **options):
    return run_in_two(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *command], **options)


def test_a_launched_script_is_refused_by_one_sentence_where_another_process_writes(toy, tmp_path):
    with runs.lock_folder(tmp_path / RUN):
        done = torchrun(SCRIPT, toy, tmp_path)
    assert done.returncode != 0 and done.stderr.count("StreetsError: Another process is writing") == 1, done.stderr


def test_a_machine_that_does_not_see_the_results_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runs, "PartialState", lambda cpu: SimpleNamespace(wait_for_everyone=lambda: None))
    with pytest.raises(StreetsError, match="not the same on all machines: choose an out_dir that they share"):
        runs.train_or_load(tmp_path / "run", {}, lambda folder: pytest.fail("trained"))


@pytest.mark.parametrize(("name", "parameters"), [
    ("02_unet_from_scratch", {"stage": "dice_occlusion", "epochs": 2, "stage_epochs": 2, "size": 32, "width": 4, "dice_batch_size": 2}),
    ("03_unet_resnet50_cv", {"folds": "image", "fold": 2, "epochs": 2, "height": 32, "weights": "none", "batch_size": 2, "eval_every": 2}),
    ("06_kervadec_ablation", {"variant": "D", "epochs": 2, "height": 32, "weights": "none", "batch_size": 2})])
def test_a_notebook_becomes_a_script_that_two_processes_run_to_its_end(toy, tmp_path, monkeypatch, name, parameters):
    monkeypatch.setenv("STREETS_HOME", str(ROOT))
    parameters = parameters | {"images": 8, "data_dir": toy, "out_dir": tmp_path / "results"}
    given = [word for key, value in parameters.items() for word in ("-p", key, value)]
    notebook = ROOT / "notebooks" / f"{name}.ipynb"
    run_in_two(["-m", "papermill", "--prepare-only", notebook, "run.ipynb", *given], cwd=tmp_path)
    run_in_two(["-m", "jupytext", "--to", "py:percent", "run.ipynb"], cwd=tmp_path)
    script = tmp_path / "run.py"
    script.write_text(shortened(script.read_text()))
    done = torchrun("run.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"Exercise {int(name[:2])}.1: not done yet") == 1, "one of them went on to the end"
    paths = list((tmp_path / "results").rglob("summary.json"))
    assert len(paths) == (2 if name.startswith("02") else 1)
    for path in paths:
        summary = json.loads(path.read_text())
        scores = summary["final"]["official_val"]["full"]["last"] if name.startswith("03") else summary["test"]["miou"]
        assert summary["num_processes"] == 2 and summary["epochs"] == 2 and 0 < scores < 1
        history = pd.read_csv(path.with_name("history.csv"), dtype=str)
        found = list(map(float, history["miou"]))
        assert summary["metrics"]["miou"] in found and len(found) == (2 if name.startswith("02") else 1)
        assert not (path.parent / "checkpoint").exists()
        runs.lock_folder(path.parent).lock.release()
    assert not list(tmp_path.rglob("*.tmp"))
