"""A whole training in seconds, as a process that tests can kill: python tests/tiny_run.py DATA OUT [key=value ...].

Keys: method (name of the run), processes, batch_size, max_hours, kill_before and times.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
from torch import nn

import common
from results import runs

runs.SAVE_SECONDS = 0.0  # after every epoch, so that there is something to resume in a training of seconds
mode, seed = "course", 3  # course: a finished run is loaded, not trained again


def tiny_network() -> nn.Module:
    """Four layers with batch norm and dropout, whose state and randomness a resumed run has to restore."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(8, 19, 1)
    )


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"], ignore_index=255)


def flip(image, label, rng):
    return (image[:, ::-1].copy(), label[:, ::-1].copy()) if rng.random() < 0.5 else (image, label)


def train(folder, frames, epochs=4, loss_fn=cross_entropy, augment=flip, schedule="epoch", **options):
    torch.manual_seed(seed)
    model = tiny_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=epochs)
    data = [common.StreetScenes(f, (64, 128), seed=seed) for f in frames]
    data[0].augment = augment
    options = {"batch_size": 3, "precision": "fp32"} | options
    common.fit(folder, model, loss_fn, data[0], data[1], epochs=epochs, optimizer=optimizer, scheduler=scheduler,
               schedule=schedule, test_data=data[2], **options)


def scope(**values):
    """globals() of a notebook `tiny` after check_parameters."""
    values = {"mode": mode, "seed": seed} | values
    return {"NOTEBOOK": "tiny", "_parameters": runs.Parameters(values, values, {}, ())}


def run(root, out, method="tiny", rerun="no", settings=None, processes=1, **options):
    """Train or load OUT/tiny/toy-course/<method>_seed3 and return its folder and summary, None if max_hours stopped it."""
    splits = {split: common.list_frames(Path(root), split) for split in ("train", "val", "test")}
    jobs = {method: lambda folder: train(folder, list(splits.values()), **options)}  # no partial: its arguments may change
    given = scope(out_dir=str(out), rerun=rerun, num_processes=processes)
    try:
        common.train_runs(given, jobs, settings or {}, Path(root), splits, last="RANK" not in os.environ)
    except common.StreetsError as error:
        if not str(error).startswith("No run is finished yet"):
            raise
    folder = runs.run_folder(str(out), "tiny", "toy", mode, method, seed)
    return folder, runs.read_json(folder / "summary.json")


def kill_before(name: str, times: int) -> None:
    """Arrange for SIGKILL just before the file `name` is written for the given time: a state that is not complete."""
    write, left = runs.write_atomic, [times]

    def write_or_die(path, data):
        left[0] -= Path(path).name == name
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data)

    common.write_atomic = runs.write_atomic = write_or_die


def killed_and_unbroken(test, train, toy, base, times):
    """(folders, histories) of a killed and resumed run and of an unbroken one, of train(toy, folder), on one thread.

    `train` is train_tiny of the test module `test`; it is killed in a process of its own at its times-th checkpoint. The
    histories, without the seconds, must be the same to the bit.
    """
    here = Path(__file__).resolve().parent
    script = f"import sys; sys.path[:0] = [{str(here.parent)!r}, {str(here)!r}]\n" \
             f"import torch, pathlib, tiny_run, {test} as t\ntorch.set_num_threads(1)\n" \
             f"tiny_run.kill_before('progress.json', {times})\n" \
             f"t.train_tiny(pathlib.Path({str(toy)!r}), pathlib.Path({str(base / 'killed')!r}))"
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (base / "killed" / "summary.json").exists() and list((base / "killed" / "checkpoint").iterdir())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folders = [train(toy, base / name) for name in ("killed", "unbroken")]
    torch.set_num_threads(threads)
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in folders]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    return folders, histories


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = dict(pair.split("=") for pair in sys.argv[3:])
    if "kill_before" in given:
        kill_before(given["kill_before"], int(given.get("times", 1)))
    print("ready", flush=True)
    summary = run(sys.argv[1], sys.argv[2], given.get("method", "tiny"), processes=int(given.get("processes", 1)),
                  batch_size=int(given.get("batch_size", 3)), max_hours=float(given.get("max_hours", 0)))[1]
    print(summary["metrics"]["miou"] if summary else "stopped")
