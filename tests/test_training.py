"""Training that can be trusted: what a run leaves, resuming, loading, and how it fails."""

import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import tiny_run
import torch

import common
from common import StreetsError
from results import runs

SCRIPT = Path(__file__).parent / "tiny_run.py"


def start(toy, out, *options):
    return subprocess.Popen([sys.executable, SCRIPT, toy, out, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(folder):
    """What a run must reproduce to the bit: every column of history.csv but seconds, and the final metrics."""
    history = pd.read_csv(folder / "history.csv", dtype=str).drop(columns="seconds")
    summary = json.loads((folder / "summary.json").read_text())
    return history.to_csv(), summary["metrics"], summary["test"], (folder / "last.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    process = start(toy, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return results(out / "tiny" / "toy-course" / "tiny_seed3")


def test_a_finished_run_leaves_the_files_and_fields_that_reports_rely_on(toy, tmp_path):
    folder, summary = tiny_run.run(toy, tmp_path, epochs=2)
    assert {p.name for p in folder.iterdir()} >= {"config.json", "history.csv", "summary.json", "best.safetensors", "last.safetensors"}
    assert not list(folder.glob("checkpoint/*")), "a finished run needs no state to resume from"
    fields = ("notebook run mode dataset split n_train n_val epochs seed weights metrics majority_baseline seconds "
              "images_per_second peak_memory_mb device versions command test").split()
    assert set(fields) <= set(summary)
    assert (summary["notebook"], summary["run"], summary["dataset"], summary["split"]) == ("tiny", "tiny_seed3", "toy", "val")
    assert (summary["n_train"], summary["n_val"], summary["epochs"], summary["seed"]) == (8, 3, 2, 3)
    assert 0 < summary["metrics"]["miou"] <= 1 and set(summary["metrics"]["iou"]) == set(common.SCHEMES["cityscapes19"].classes)
    assert 0 < summary["majority_baseline"]["miou"] < summary["majority_baseline"]["accuracy"] < 1
    history = pd.read_csv(folder / "history.csv", dtype={"miou": str})  # pandas 2 does not read numbers to the last bit
    assert list(history["epoch"]) == [1, 2] and list(history.columns[:4]) == ["epoch", "train_loss", "lr", "seconds"]
    assert float(history["miou"].iloc[-1]) == summary["metrics"]["miou"]
    assert history["lr"].tolist() == pytest.approx([1e-2, 5e-3])


def test_a_class_that_the_labels_lack_is_null_and_never_zero(toy, tmp_path):
    _, summary = tiny_run.run(toy, tmp_path, epochs=1)
    frames = common.list_frames(toy, "val")
    table = common.SCHEMES["cityscapes19"].table
    present = set(np.unique([table[common.read_label(f.label)] for f in frames])) - {255}
    for index, (name, iou) in enumerate(summary["metrics"]["iou"].items()):
        assert (iou is not None) == (index in present), name


@pytest.mark.parametrize("moment", ["any", "progress.json", "history.csv", "best.safetensors", "summary.json"])
def test_a_killed_run_goes_on_to_the_same_numbers_to_the_bit(toy, tmp_path, uninterrupted, moment):
    kills = 0
    if moment == "any":
        rng = random.Random()
        for _ in range(3):
            process = start(toy, tmp_path)
            process.stdout.readline()  # "ready": everything is imported
            time.sleep(rng.uniform(0.0, 1.2))
            kills += process.poll() is None
            process.kill()
            process.communicate()
    else:
        process = start(toy, tmp_path, f"kill_before={moment}", f"times={2 if moment in ('progress.json', 'history.csv') else 1}")
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kills += 1
    folder = tmp_path / "tiny" / "toy-course" / "tiny_seed3"
    assert not kills or not (folder / "summary.json").exists() or moment == "any"
    process = start(toy, tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    if moment in ("history.csv", "summary.json"):
        assert "resuming after epoch" in output
    assert results(folder) == uninterrupted


def test_an_interrupted_run_resumes_and_schedules_per_step_too(toy, tmp_path):
    whole, _ = tiny_run.run(toy, tmp_path / "whole", epochs=3, schedule="step", accumulation=2, clip_norm=1.0)

    def interrupt(model, batch):
        if common.read_json(folder / "config.json") and (folder / "checkpoint" / "epoch_0002" / "progress.json").exists():
            raise KeyboardInterrupt
        return tiny_run.cross_entropy(model, batch)

    folder = runs.run_folder(str(tmp_path / "halves"), "tiny", "toy", "course", "tiny", 3)
    with pytest.raises(KeyboardInterrupt):
        tiny_run.run(toy, tmp_path / "halves", epochs=3, schedule="step", accumulation=2, clip_norm=1.0, loss_fn=interrupt)
    tiny_run.run(toy, tmp_path / "halves", epochs=3, schedule="step", accumulation=2, clip_norm=1.0)
    assert results(folder) == results(whole)


def test_max_hours_stops_cleanly_and_the_next_start_finishes(toy, tmp_path, capsys):
    folder, summary = tiny_run.run(toy, tmp_path, epochs=2, max_hours=1e-9)
    assert summary is None and not (folder / "summary.json").exists()
    assert "run again to resume" in capsys.readouterr().out
    _, summary = tiny_run.run(toy, tmp_path, epochs=2)
    assert summary["epochs"] == 2 and "resuming after epoch 1 of 2" in capsys.readouterr().out


def in_git(folder, *arguments):
    named = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", folder, *named, *arguments], check=True, capture_output=True, text=True).stdout


def test_a_run_of_which_the_repository_holds_only_the_scores_is_trained(toy, tmp_path, capsys, monkeypatch):
    in_git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*.safetensors\n*.npz\n.lock\ncheckpoint/\n")
    folder, summary = tiny_run.run(toy, tmp_path / "runs", epochs=1)
    in_git(tmp_path, "add", "."), in_git(tmp_path, "commit", "-qm", "scores")
    clone = tmp_path / "a clone"
    in_git(tmp_path, "clone", "-q", tmp_path, clone)
    (clone / folder.relative_to(tmp_path) / "notes.txt").write_text("mine")
    capsys.readouterr()
    monkeypatch.chdir(clone)
    again, there = tiny_run.run(toy, clone / "runs", epochs=1)
    said = capsys.readouterr().out
    assert "has its scores and not its weights, so it is trained here" in said and (again / "last.safetensors").exists()
    assert runs.flat(there["metrics"]) == pytest.approx(runs.flat(summary["metrics"])) and (again / "notes.txt").read_text() == "mine"
    tiny_run.run(toy, clone / "runs", epochs=1)
    assert "repeats it" in capsys.readouterr().out
    subprocess.run(re.search(r"git -C .* restore \.(?= brings)", said)[0], shell=True, check=True, cwd="/")
    assert in_git(clone, "status", "--porcelain", "-uno") == ""


@pytest.mark.parametrize("parent", [False, True])
def test_a_training_cut_short_does_not_pass_for_the_finished_run_whose_scores_git_brought_back(toy, tmp_path, parent, capsys):
    in_git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*.safetensors\n*.npz\n.lock\ncheckpoint/\n")
    folder, _ = tiny_run.run(toy, tmp_path / "runs", epochs=2)
    in_git(tmp_path, "add", "."), in_git(tmp_path, "commit", "-qm", "scores")
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.npz")]:
        path.unlink()
    tiny_run.run(toy, tmp_path / "runs", epochs=2, max_hours=1e-9)
    assert (folder / "best.safetensors").exists() and not (folder / "last.safetensors").exists()
    in_git(folder, "restore", "."), capsys.readouterr()
    if parent:
        trained = []
        runs.train_or_load(folder, common.read_json(folder / "config.json"), lambda folder: trained.append(folder), parent=True)
        assert trained == [folder]
    else:
        tiny_run.run(toy, tmp_path / "runs", epochs=2)
        assert "so it is trained here" in capsys.readouterr().out and (folder / "last.safetensors").exists()


def test_scores_that_git_cannot_bring_back_are_kept_without_their_weights(toy, tmp_path, capsys):
    folder, summary = tiny_run.run(toy, tmp_path / "runs", epochs=1)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    for prepare in ([], ["init", "-q"], ["add", "."], ["commit", "-qm", "scores"]):
        in_git(tmp_path, *prepare) if prepare else None
        if prepare[:1] == ["commit"]:
            (folder / "history.csv").write_text("edited")
        assert tiny_run.run(toy, tmp_path / "runs", epochs=1)[1] == summary
        assert "repeats it" in capsys.readouterr().out and not (folder / "last.safetensors").exists()


def test_a_run_that_others_start_from_is_trained_again_only_where_git_can_bring_its_scores_back(tmp_path, capsys):
    folder = tmp_path / "parent"
    config = {"method": "m", "parameters": {"mode": "course", "seed": 1}, "recorded": {"started": "2026-01-01", "definitions": ""}}

    def train(folder):
        runs.write_atomic(folder / "best.safetensors", b"")
        common.write_json(folder / "summary.json", {"epochs": 1})

    in_git(tmp_path, "init", "-q")
    runs.train_or_load(folder, config, train, parent=True)
    (folder / "best.safetensors").unlink()
    (tmp_path / ".gitignore").write_text("*.safetensors\n.lock\n")
    for changes, kept in itertools.product(({}, {"settings": {"epochs": 2}}), ((), ("last", "epoch_0001"))):
        for name in kept:
            (folder / f"{name}.safetensors").touch()
        with pytest.raises(common.StreetsError, match="has scores and not the weights that are needed here: choose another out_dir"):
            runs.train_or_load(folder, config | changes, train, parent=True)
        assert common.read_json(folder / "summary.json") == {"epochs": 1} and all((folder / f"{name}.safetensors").exists() for name in kept)
    in_git(tmp_path, "add", "."), in_git(tmp_path, "commit", "-qm", "scores")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    runs.train_or_load(folder, config, train, parent=True)
    assert "so it is trained here" in capsys.readouterr().out and (folder / "best.safetensors").exists()


def test_a_finished_run_is_loaded_and_rerun_yes_repeats_it(toy, tmp_path, capsys):
    folder, first = tiny_run.run(toy, tmp_path, epochs=1)
    stamp = (folder / "last.safetensors").stat().st_mtime_ns
    _, second = tiny_run.run(toy, tmp_path, epochs=1)
    assert second == first and (folder / "last.safetensors").stat().st_mtime_ns == stamp
    assert "-p rerun yes repeats it" in capsys.readouterr().out
    tiny_run.run(toy, tmp_path, epochs=1, rerun="yes")
    assert (folder / "last.safetensors").stat().st_mtime_ns > stamp


def test_another_configuration_in_the_same_folder_is_refused_by_the_keys_that_differ(toy, tmp_path):
    tiny_run.run(toy, tmp_path, epochs=1, settings={"lr": 1, "size": [64, 128]})
    with pytest.raises(StreetsError, match=r"differs in settings_lr: .*rerun"):
        tiny_run.run(toy, tmp_path, epochs=1, settings={"lr": 2, "size": [64, 128]})


def test_a_second_process_on_the_same_run_stops_with_a_sentence(toy, tmp_path):
    first = start(toy, tmp_path)
    first.stdout.readline()
    folder = runs.run_folder(str(tmp_path), "tiny", "toy", "course", "tiny", 3)
    while not (folder / "config.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    with pytest.raises(StreetsError, match="Another process is writing"):
        tiny_run.run(toy, tmp_path)
    first.communicate()
    assert first.returncode == 0


def test_two_runs_at_once_in_one_results_folder_do_not_disturb_each_other(toy, tmp_path, uninterrupted):
    processes = [start(toy, tmp_path, f"method={name}") for name in ("one", "two")]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    for name in ("one", "two"):
        assert results(tmp_path / "tiny" / "toy-course" / f"{name}_seed3") == uninterrupted


def test_a_damaged_checkpoint_is_named(toy, tmp_path):
    folder, _ = tiny_run.run(toy, tmp_path, epochs=2, max_hours=1e-9)
    state = folder / "checkpoint" / "epoch_0001" / "optimizer.bin"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(StreetsError, match=r"checkpoint .*epoch_0001 is damaged .* delete"):
        tiny_run.run(toy, tmp_path, epochs=2)


def flip_bit(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def stopped(toy, tmp_path_factory):
    """Results folder of a run that max_hours stopped after its first epoch."""
    out = tmp_path_factory.mktemp("stopped")
    assert tiny_run.run(toy, out, epochs=2, max_hours=1e-9)[1] is None
    return out


def copied(stopped, out):
    """A copy of that run: (its folder, its saved state)."""
    shutil.copytree(stopped, out)
    folder = runs.run_folder(str(out), "tiny", "toy", "course", "tiny", 3)
    return folder, folder / "checkpoint" / "epoch_0001"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "progress.json"])
def test_one_flipped_bit_in_a_saved_state_is_told_and_not_resumed(toy, tmp_path, stopped, name):
    folder, state = copied(stopped, tmp_path / "out")
    bits = 8 * (state / name).stat().st_size
    for bit in (bits // 9, bits // 2, bits - 40):
        flip_bit(state / name, bit)
        with pytest.raises(StreetsError, match=f"{state}.* is damaged.*: delete .* and run again"):
            runs.check_sums(state, runs.read_json(state / "progress.json"))
        flip_bit(state / name, bit)
    flip_bit(state / name, bits // 3)
    with pytest.raises(StreetsError, match=f"{state}.* is damaged.*: delete .* and run again"):
        tiny_run.run(toy, tmp_path / "out", epochs=2)
    assert not (folder / "summary.json").exists()


def test_every_bit_of_the_record_of_a_state_counts(stopped, tmp_path):
    _, state = copied(stopped, tmp_path / "out")
    path, told = state / "progress.json", 0
    whole, expected = path.read_bytes(), runs.check_sums(state, runs.read_json(path))
    for bit in range(8 * len(whole)):
        flip_bit(path, bit)
        try:
            assert runs.check_sums(state, runs.read_json(path)) == expected, "the last digits of a number that is the same"
        except StreetsError:
            told += 1
        path.write_bytes(whole)
    assert told > 7.9 * len(whole)


def test_a_state_that_lacks_a_file_is_told(toy, tmp_path, stopped):
    _, state = copied(stopped, tmp_path / "out")
    (state / "random_states_0.pkl").unlink()
    with pytest.raises(StreetsError, match=r"damaged \(random_states_0.pkl\)"):
        tiny_run.run(toy, tmp_path / "out", epochs=2)


def test_a_state_and_weights_of_an_earlier_release_have_no_checksums_and_go_on_to_the_same_numbers(toy, tmp_path, stopped):
    whole, _ = tiny_run.run(toy, tmp_path / "whole", epochs=2)
    folder, state = copied(stopped, tmp_path / "out")
    progress = runs.read_json(state / "progress.json")
    assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl"} <= progress.pop("files").keys() and len(progress.pop("sha256")) == 64
    runs.write_json(state / "progress.json", progress)
    net = common.load_weights(folder / "best.safetensors", tiny_run.tiny_network())
    (folder / "best.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
    common.load_weights(folder / "best.safetensors", tiny_run.tiny_network())
    tiny_run.run(toy, tmp_path / "out", epochs=2)
    assert results(folder) == results(whole)


def test_every_bit_of_kept_weights_counts(tmp_path):
    net, path = tiny_run.tiny_network(), tmp_path / "w.safetensors"
    common.save_weights(path, net)
    whole, told, tried = path.read_bytes(), 0, range(0, 8 * path.stat().st_size, 7)
    for bit in tried:
        flip_bit(path, bit)
        other = tiny_run.tiny_network()
        try:
            common.load_weights(path, other)
            assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values())), bit
        except StreetsError as error:
            assert "train that run again with rerun = \"yes\" or -p rerun yes" in str(error) and "\n" not in str(error)
            told += 1
        path.write_bytes(whole)
    assert told > 0.99 * len(tried)


def test_damaged_best_weights_are_told_at_the_end_of_a_resumed_run(toy, tmp_path, stopped):
    folder, _ = copied(stopped, tmp_path / "out")
    flip_bit(folder / "best.safetensors", 8 * (folder / "best.safetensors").stat().st_size - 3)
    with pytest.raises(StreetsError, match="best.safetensors .*checksum.*train that run again"):
        tiny_run.run(toy, tmp_path / "out", epochs=2, select="best", best_by="constant",
                     evaluate=lambda *given: (common.evaluate(*given)[0] | {"constant": 0.0}, common.evaluate(*given)[1]))
    assert not (folder / "summary.json").exists()


# what an augmentation returns


@pytest.mark.parametrize(("augment", "sentence"), [
    (lambda image, label: (image / 255, label), "augment must return an image (H, W, 3) uint8 and a label (H, W) of integers, not float64 (64, 128, 3)"),
    (lambda image, label: (image, label.astype(np.float32)), "augment must return an image (H, W, 3) uint8 and a label"),
    (lambda image, label: (image[..., 0], label), "augment must return an image (H, W, 3) uint8 and a label"),
    (lambda image, label: (image, label[None]), "augment must return an image (H, W, 3) uint8 and a label"),
    (lambda image, label: (image, np.where(label == 255, 254, label)), "augment must return a label of classes 0 to 18, or 255, but it holds 254"),
    (lambda image, label: (image, label.astype(int) - 1), "augment must return a label of classes 0 to 18, or 255, but it holds"),
    (lambda image, label: image, "augment must return an image and a label as arrays, not ndarray."),
    (lambda image, label: (image.tolist(), label), "augment must return an image and a label as arrays, not tuple."),
    (lambda image, label: None, "augment must return an image and a label as arrays, not NoneType."),
])
def test_what_an_augmentation_may_not_return_is_told_in_one_sentence(toy, augment, sentence):
    data = common.StreetScenes(common.list_frames(toy, "train"), (64, 128), augment=lambda image, label, rng: augment(image, label))
    with pytest.raises(StreetsError) as caught:
        data[0]
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("augment", "sizes"), [(lambda image, label, rng: (image, label[:32]), "64x128 and 32x128"),
                                                (lambda image, label, rng: (image[:, :64].copy(), label), "64x64 and 64x128")])
def test_an_augmentation_that_leaves_two_sizes_is_told_before_the_first_step(toy, tmp_path, augment, sizes):
    with pytest.raises(StreetsError, match=f"^augment must return image and label of one size, not {sizes}.$"):
        tiny_run.run(toy, tmp_path, epochs=1, augment=augment)
    assert not list(tmp_path.rglob("history.csv"))


def test_images_of_different_sizes_in_one_batch_are_told(toy, tmp_path):
    def cut(image, label, rng):
        rows = int(rng.integers(32, 64))
        return image[:rows], label[:rows]

    for workers in (0, 1):
        with pytest.raises(StreetsError, match="^augment must return all images in one size"):
            tiny_run.run(toy, tmp_path / str(workers), epochs=1, augment=cut, num_workers=workers)


def test_a_loss_that_is_not_a_number_stops_and_leaves_no_result(toy, tmp_path):
    def poisoned(model, batch):
        return tiny_run.cross_entropy(model, batch) * float("nan")

    with pytest.raises(StreetsError, match="The loss is nan .* lower lr"):
        tiny_run.run(toy, tmp_path, loss_fn=poisoned)
    assert not list(tmp_path.rglob("summary.json")) and not list(tmp_path.rglob("progress.json"))


def test_a_full_disk_stops_with_a_sentence_and_the_next_start_finishes(toy, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
    try:
        with pytest.raises(StreetsError, match="Cannot write .* make room"):
            tiny_run.run(toy, tmp_path, epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("summary.json"))
    assert tiny_run.run(toy, tmp_path, epochs=1)[1]["epochs"] == 1


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_results_folder_without_write_permission_is_named(toy, tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(StreetsError, match=r"Cannot write to .* choose another out_dir"):
            runs.train_or_load(tmp_path / "a" / "b", {"parameters": {"mode": "quick"}}, lambda folder: None)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_a_worker_process_that_dies_is_told_in_one_sentence(toy, tmp_path):
    def die(image, label, rng):
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return image, label

    with pytest.raises(StreetsError, match="data-loading process died, .*: end other programs, or lower batch_size, such as"):
        tiny_run.run(toy, tmp_path, augment=die, num_workers=1)


def test_a_mistake_in_a_worker_is_not_taken_for_its_death(toy, tmp_path):
    def wrong(image, label, rng):
        if torch.utils.data.get_worker_info():
            raise RuntimeError("my own mistake")
        return image, label

    with pytest.raises(RuntimeError, match="my own mistake"):
        tiny_run.run(toy, tmp_path, epochs=1, augment=wrong, num_workers=1)


def test_an_error_in_a_worker_process_arrives_as_its_own_sentence(toy, tmp_path):
    def complain(image, label, rng):
        raise StreetsError("street.png is damaged: copy it again.")

    with pytest.raises(StreetsError, match=r"^street.png is damaged: copy it again\.$"):
        tiny_run.run(toy, tmp_path, augment=complain, num_workers=1)


@pytest.mark.parametrize(("error", "words"), [
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "Out of GPU memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "Out of memory"),
    (MemoryError("Unable to allocate 20. GiB for an array"), "Out of memory")])
def test_running_out_of_memory_names_batch_and_size_and_what_there_is_to_lower(error, words):
    with pytest.raises(StreetsError, match=f"^{words} with batch_size 2 at 8x8: lower batch_size, such as batch_size = 1 or -p batch_size 1, or"), \
            common.plain_errors("batch_size 2 at 8x8"):
        raise error
    with pytest.raises(StreetsError, match="lower batch_size or crop, such as"), common.plain_errors("", ["batch_size", "crop"]):
        raise error


def test_what_a_run_does_not_have_is_not_named_as_a_remedy(toy, tmp_path):
    def exhausted(model, batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(StreetsError, match="lower batch_size or size, such as"):
        tiny_run.run(toy, tmp_path, settings={"size": 8, "batch_size": 3, "lr": 1}, loss_fn=exhausted)


def test_batch_norm_on_a_single_value_is_explained():
    with pytest.raises(StreetsError, match="batch_size of at least 2"), common.plain_errors("batch_size 1"):
        torch.nn.BatchNorm2d(4)(torch.zeros(1, 4, 1, 1))


def test_fewer_images_than_a_batch_are_refused(toy, tmp_path):
    with pytest.raises(StreetsError, match="8 training images do not fill one batch of 9: .* batch_size = 8 or -p batch_size 8"):
        tiny_run.run(toy, tmp_path, batch_size=9)
    with pytest.raises(StreetsError, match="8 training images do not fill one batch of 10"):
        common.steps_per_epoch(range(8), 5, processes=2)


def test_select_best_describes_the_best_epoch(toy, tmp_path):
    scores = iter([0.3, 0.5, 0.4])

    def evaluate(model, data, accelerator):
        metrics, per_image = common.evaluate(model, data, accelerator)
        return metrics | {"miou": next(scores, 0.0), "probe": float(next(model.parameters()).detach().sum())}, per_image

    folder, summary = tiny_run.run(toy, tmp_path, epochs=3, select="best", evaluate=evaluate)
    history = pd.read_csv(folder / "history.csv")
    assert summary["metrics"]["probe"] == history["probe"][1] != history["probe"][2]


def test_a_plateau_scheduler_steps_on_the_validation_score(toy, tmp_path):
    model = tiny_run.tiny_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=0)
    frames = common.list_frames(toy, "train")
    data = common.StreetScenes(frames, (64, 128))
    common.write_json(tmp_path / "n" / "d" / "r" / "config.json", {
        "method": "x", "parameters": {"mode": "quick", "seed": 0}, "dataset": "toy", "images": {"train": 8, "val": 8},
        "recorded": {"versions": {}, "command": ""}})
    common.fit(tmp_path / "n" / "d" / "r", model, tiny_run.cross_entropy, data, data, epochs=4, batch_size=4,
               optimizer=optimizer, scheduler=scheduler, schedule="plateau", evaluate=lambda m, d, a: (
                   {"miou": 0.5}, {"confusion": np.ones((1, 19, 19), int)}))
    assert pd.read_csv(tmp_path / "n" / "d" / "r" / "history.csv")["lr"].tolist() == [0.01, 0.01, 0.005, 0.0025]


def test_weights_survive_a_round_trip_and_a_damaged_file_is_named(tmp_path):
    net, other = tiny_run.tiny_network(), tiny_run.tiny_network()
    common.save_weights(tmp_path / "w.safetensors", net)
    common.load_weights(tmp_path / "w.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))
    (tmp_path / "w.safetensors").write_bytes(b"half")
    with pytest.raises(StreetsError, match="w.safetensors .* train that run again"):
        common.load_weights(tmp_path / "w.safetensors", other)


def test_a_run_killed_before_its_last_history_still_gets_every_epoch(toy, tmp_path, uninterrupted):
    process = start(toy, tmp_path, "kill_before=history.csv", "times=4")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    _, errors = (process := start(toy, tmp_path)).communicate()
    assert process.returncode == 0, errors
    assert results(tmp_path / "tiny" / "toy-course" / "tiny_seed3") == uninterrupted


def test_a_run_with_worker_processes_resumes_to_the_same_numbers(toy, tmp_path):
    whole, _ = tiny_run.run(toy, tmp_path / "whole", epochs=3, num_workers=1)
    folder, summary = tiny_run.run(toy, tmp_path / "halves", epochs=3, num_workers=1, max_hours=1e-9)
    assert summary is None
    tiny_run.run(toy, tmp_path / "halves", epochs=3, num_workers=1)
    assert results(folder) == results(whole)


def test_after_an_interrupt_the_cell_can_be_run_again_though_the_kernel_keeps_the_traceback(toy, tmp_path):
    def interrupt(model, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        tiny_run.run(toy, tmp_path, epochs=1, loss_fn=interrupt)
    _, summary = tiny_run.run(toy, tmp_path, epochs=1)
    assert summary["epochs"] == 1 and kept.tb


@pytest.mark.parametrize("removed", range(4))
def test_a_kill_while_an_old_run_is_cleared_never_leaves_a_mixture(toy, tmp_path, monkeypatch, removed):
    folder, _ = tiny_run.run(toy, tmp_path, epochs=1, settings={"lr": 1})
    left, unlink = [removed], Path.unlink

    def unlink_or_die(path, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_or_die)
        with pytest.raises(KeyboardInterrupt):
            tiny_run.run(toy, tmp_path, epochs=1, settings={"lr": 2}, rerun="yes")
    assert (folder / "summary.json").exists() == (removed == 0)
    with pytest.raises(StreetsError, match="differs in settings_lr"):
        tiny_run.run(toy, tmp_path, epochs=1, settings={"lr": 2})


LAUNCHED = """
import sys, tiny_run
loss = tiny_run.cross_entropy if sys.argv[3] == "good" else lambda model, batch: tiny_run.cross_entropy(model, batch) * float("nan")
tiny_run.run(sys.argv[1], sys.argv[2], processes=2, epochs=3, batch_size=2, loss_fn=loss)
"""


def run_in_two(command, cwd=SCRIPT.parent):
    paths = os.pathsep.join((str(SCRIPT.parent), str(SCRIPT.parent.parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("launcher", ["notebook", "torchrun"])
def test_two_processes_leave_one_run_whose_scores_are_those_of_its_weights(toy, tmp_path, launcher):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, SCRIPT, toy, tmp_path, "processes=2"]
    done = run_in_two(torchrun if launcher == "torchrun" else ["-c", LAUNCHED, toy, tmp_path, "good"])
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "tiny" / "toy-course" / "tiny_seed3"
    summary = json.loads((folder / "summary.json").read_text())
    net = common.load_weights(folder / "last.safetensors", tiny_run.tiny_network())
    metrics, _ = common.evaluate(net, common.StreetScenes(common.list_frames(toy, "val"), (64, 128)))
    assert summary["metrics"] == metrics and summary["epochs"] == (4 if launcher == "torchrun" else 3)
    assert float(pd.read_csv(folder / "history.csv", dtype=str)["miou"].iloc[-1]) == metrics["miou"]
    if launcher == "torchrun":
        again = run_in_two(torchrun)
        assert again.returncode == 0 and again.stdout.count("-p rerun yes repeats it") == 1, again.stderr


def test_an_error_in_one_of_two_processes_ends_with_a_sentence_and_leaves_no_result(toy, tmp_path):
    done = run_in_two(["-c", LAUNCHED, toy, tmp_path, "bad"])
    assert done.returncode != 0 and "The loss is nan" in done.stdout + done.stderr
    assert "ended with the error printed above: mend it and run again." in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("summary.json"))


def test_looking_at_the_gpus_does_not_initialise_cuda_which_forked_processes_could_then_not_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was initialised"))
    assert common.device_line().startswith("device: 2 GPUs; torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert common.device_line().startswith("device: 1 GPU; torch")


def test_half_precision_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StreetsError, match="fp16 needs an NVIDIA GPU: use auto, bf16 or fp32"):
        common.make_accelerator("fp16")


def test_a_run_is_recorded_where_git_is_not_installed(toy, monkeypatch):
    monkeypatch.setenv("PATH", "")
    recorded = runs.record("tiny", tiny_run.train, [], "", toy)
    assert recorded["commit"] is None and recorded["code"] == "unknown" and recorded["functions"] == ["train"]
    assert set(runs.PACKAGES) <= set(recorded["versions"]), "whatever a distribution calls itself"


def mean_loss(logits, label):
    return torch.nn.functional.cross_entropy(logits, label, ignore_index=255)


def test_the_best_epoch_is_the_lowest_of_a_column_named_loss_and_the_highest_of_any_other(toy, tmp_path):
    for best_by, pick in (("eval_loss", "idxmin"), ("accuracy", "idxmax")):
        folder, summary = tiny_run.run(toy, tmp_path / best_by, epochs=5, select="best", best_by=best_by,
                                       evaluate=partial(common.evaluate, loss=mean_loss))
        history = pd.read_csv(folder / "history.csv")
        assert summary["metrics"][best_by] == pytest.approx(history.loc[getattr(history[best_by], pick)(), best_by], abs=1e-9)
        assert summary["selected"] == "best" and summary["best_by"] == best_by


@pytest.mark.parametrize("best_by", ["miou", "eval_loss"])
def test_a_score_that_is_no_number_ends_the_training_with_a_sentence(toy, tmp_path, best_by):
    def evaluate(*arguments, **options):
        metrics, per_image = common.evaluate(*arguments, **options)
        return metrics | {"eval_loss": math.nan}, per_image

    with pytest.raises(common.StreetsError, match="eval_loss is nan after epoch 1: lower lr"):
        tiny_run.run(toy, tmp_path, epochs=2, evaluate=evaluate, select="best", best_by=best_by)


def test_the_loss_of_an_evaluation_is_the_mean_of_the_images_losses(toy):
    data = common.StreetScenes(common.list_frames(toy, "val"), (64, 128))
    model = tiny_run.tiny_network().eval()
    metrics, per_image = common.evaluate(model, data, batch_size=2, loss=mean_loss)
    with torch.no_grad():
        expected = [mean_loss(model(data[i]["image"][None]), data[i]["label"][None]).item() for i in range(len(data))]
    np.testing.assert_allclose(per_image["loss"], expected, rtol=1e-5)
    assert metrics["eval_loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_final_scores_see_the_selected_weights_and_both_files_and_land_in_the_summary(toy, tmp_path):
    def final_scores(folder, model, accelerator):
        best = common.load_weights(folder / "best.safetensors", tiny_run.tiny_network()).state_dict()
        same = all(torch.equal(v, best[k]) for k, v in accelerator.unwrap_model(model).state_dict().items())
        return {"selected_in_place": same, "last_exists": (folder / "last.safetensors").exists()}

    _, summary = tiny_run.run(toy, tmp_path, select="best", final_scores=final_scores)
    assert summary["final"] == {"selected_in_place": True, "last_exists": True}


def test_scores_of_every_image_are_kept_for_each_split_with_the_names_of_the_images(toy, tmp_path):
    folder, summary = tiny_run.run(toy, tmp_path)
    for split, metrics in (("val", summary["metrics"]), ("test", summary["test"])):
        kept, frames = np.load(folder / f"{split}_per_image.npz"), common.list_frames(toy, split)
        assert kept["image"].tolist() == [f"{frame.city}/{frame.name}" for frame in frames]
        assert kept["confusion"].shape == (len(frames), 19, 19) and common.miou(kept["confusion"].sum(0)) == pytest.approx(metrics["miou"])


def test_a_parent_is_reused_in_quick_mode_unless_its_recipe_or_its_weights_are_missing(tmp_path):
    config = {"method": "m", "parameters": {"mode": "quick", "seed": 1}, "settings": {"epochs": 1},
              "recorded": {"started": "2026-01-01", "definitions": ""}}
    trained = []

    def train(folder):
        trained.append(1)
        for name in ("best", "last"):
            runs.write_atomic(folder / f"{name}.safetensors", b"")
        common.write_json(folder / "summary.json", {"epochs": 1})

    for _ in range(2):
        assert runs.train_or_load(tmp_path, config, train, parent=True) == {"epochs": 1}
    assert len(trained) == 1, "the second time it is there"
    runs.train_or_load(tmp_path, config | {"settings": {"epochs": 2}}, train, parent=True)
    assert len(trained) == 2, "another recipe"
    (tmp_path / "best.safetensors").unlink()
    runs.train_or_load(tmp_path, config | {"settings": {"epochs": 2}}, train, parent=True)
    assert len(trained) == 3, "its weights were gone"
    runs.train_or_load(tmp_path, config | {"settings": {"epochs": 2}}, train)
    assert len(trained) == 4, "asked for itself, a quick run is trained again"


def finish(folder, parent=None):
    """A training that is over at once."""
    for name in ("best", "last"):
        runs.write_atomic(folder / f"{name}.safetensors", b"")
    runs.write_json(folder / "summary.json", {"from": parent and parent.name})


def stop(folder):
    """A training that max_hours stops."""


def test_each_job_may_have_images_of_its_own_and_one_that_max_hours_stops_ends_the_list(toy, tmp_path):
    given, frames = tiny_run.scope(out_dir=str(tmp_path)), common.list_frames(toy, "train")
    jobs = {"one": finish, "two": stop, "three": finish}
    images = {name: {"train": frames[:n]} for n, name in enumerate(jobs, start=3)}
    done = common.train_runs(given, jobs, {}, toy, images)
    assert list(done) == ["one"] and not done["one"].folder.with_name("three_seed3").exists()
    recorded = [common.read_json(done["one"].folder.with_name(f"{name}_seed3") / "config.json") for name in ("one", "two")]
    assert [config["images"] for config in recorded] == [{"train": 3}, {"train": 4}]
    with pytest.raises(StreetsError, match="No run is finished yet: run the notebook again to go on"):
        common.train_runs(given, jobs, {}, toy, images, wanted=["two"])


def test_a_job_that_starts_from_another_gets_that_ones_folder_and_what_it_does_not_read_names_neither(toy, tmp_path):
    given = tiny_run.scope(out_dir=str(tmp_path))
    parameters = given["_parameters"]
    given["_parameters"] = parameters._replace(values=parameters.values | {"fill": "black", "size": 8}, defaults={"fill": "noise", "size": 0})
    jobs, unused = dict.fromkeys(("scratch", "control", "dice"), finish), {"scratch": ["fill"]}
    done = common.train_runs(given, jobs, {"size": 8}, toy, {}, wanted=["dice"], unused=unused, parents={"dice": "scratch", "control": "scratch"})
    assert [run.folder.name for run in done.values()] == ["scratch-size8_seed3", "dice-fillblack-size8_seed3"]
    assert [run.summary["from"] for run in done.values()] == [None, "scratch-size8_seed3"]
    assert runs.run_names(given, unused | {"dice": ()}) == {"scratch": "scratch-size8", "dice": "dice-fillblack-size8"}
