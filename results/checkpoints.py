"""Use the kept weights of finished runs of notebook 06 again, without training.

`python results/checkpoints.py score results/06_kervadec_ablation/camvid11-laptop --processes 2` scores the last weights of every
run in a folder, and those that `keep_at` kept, with today's scores, and writes rescored.csv into the folder of each run.

`python results/checkpoints.py export results/06_kervadec_ablation/cityscapes-paper/D_seed42 --split test --out predictions`
writes one PNG of label ids per photo, at the photo's size, as the official evaluation and the Cityscapes server want them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
from data_prep import write_png

NOTEBOOK = "06_kervadec_ablation"


class Kept:
    """A finished run, its notebook's definitions, and the data that it saw."""

    def __init__(self, folder: Path, data_dir: str = ""):
        config = common.read_json(folder / "config.json")
        if config is None or not (folder / "summary.json").exists() or "decoder_width" not in config.get("settings", {}):
            raise common.StreetsError(f"{folder} holds no finished run of notebook 06.")
        self.folder, self.settings, self.nb = folder, config["settings"], common.runs.notebook_definitions(NOTEBOOK)
        self.root = common.data_prep.user_path("data_dir", data_dir or config["recorded"]["data"])
        if not self.root.is_dir():
            raise common.StreetsError(f"There is no folder {self.root}, on which {folder.name} was trained: "
                                      "name it with --data-dir.")
        self.splits = common.list_splits(self.root, self.settings["images"])
        if {split: len(frames) for split, frames in self.splits.items()} != config["images"]:
            raise common.StreetsError(f"{self.root} has not as many images as {folder.name} was trained and scored on.")
        self.size = common.network_size(self.splits["train"][0], self.settings["height"])
        self.scaling = {name: self.settings[name] for name in ("mean", "std") if name in self.settings}

    def network(self, file: str) -> torch.nn.Module:
        return self.nb.load_variant(self.folder, self.settings, file)


def weights_of(folder: Path) -> list[str]:
    """Files of weights whose epoch is known: those that were kept on the way, and the last."""
    return [path.name for name in (*common.runs.NUMBERED, "last") for path in sorted(folder.glob(f"{name}.safetensors"))]


def score_again(folder: Path, file: str, data_dir: str, threads: int) -> dict:
    """The scores on the validation images of one file of weights, as a row of rescored.csv."""
    torch.set_num_threads(threads)
    kept = Kept(folder, data_dir)
    val = common.StreetScenes(kept.splits["val"], kept.size, **kept.scaling)
    metrics, _ = common.evaluate(kept.network(file), val, contours=True, score=kept.nb.strict_contours)
    last = common.read_json(folder / "summary.json")["epochs"]
    return {"epoch": last if file.startswith("last") else int(file[6:-12]), "weights": file} | common.flat(metrics)


def score(folder: str, processes: int = 1, data_dir: str = "") -> list[Path]:
    """Write rescored.csv for a run, or for every run in a folder; returns the paths."""
    folders = sorted(path.parent for path in Path(folder).resolve().glob("**/summary.json") if weights_of(path.parent))
    if not folders:
        raise common.StreetsError(f"There are no finished runs with weights in {folder} (seen from {Path.cwd()}).")
    processes = max(1, processes)
    jobs = [(one, file, data_dir, max(1, torch.get_num_threads() // processes)) for one in folders for file in weights_of(one)]
    if processes == 1:
        rows = [score_again(*job) for job in jobs]
    else:  # not forked: a process that has used a GPU, or threads, cannot be
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            rows = list(pool.map(score_again, *zip(*jobs)))
    written = []
    for one in folders:
        own = [row for row, job in zip(rows, jobs) if job[0] == one]
        written.append(one / "rescored.csv")
        common.runs.write_csv(written[-1], own)
        print(f"{written[-1]}: {len(own)} files of weights scored")
    return written


def export(folder: str, out: str, split: str = "val", weights: str = "last.safetensors", data_dir: str = "") -> list[Path]:
    """Write one PNG of label ids for each photo of a split, named after it; returns their paths."""
    kept, out = Kept(Path(folder).resolve(), data_dir), Path(out)
    model, table = kept.network(weights), common.SCHEMES["cityscapes19"].table
    ids = np.array([np.flatnonzero(table == c)[0] for c in range(19)], np.uint8)  # road, class 0, has the label id 7
    written = []
    for frame in common.list_frames(kept.root, split):
        answer = common.predict(model, common.read_image(frame.image), kept.size, **kept.scaling)
        written.append(out / frame.image.name.replace("leftImg8bit", "predictions"))
        write_png(written[-1], ids[answer])
    print(f"{out}: {len(written)} files such as {written[0].name}")
    return written


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser("score", help="score kept weights again")
    files = commands.add_parser("export", help="write predictions")
    again.add_argument("folder", help="a run, or a folder of runs")
    again.add_argument("--processes", type=int, default=1, help="how many to score at a time (1)")
    files.add_argument("folder", help="a run")
    files.add_argument("--out", required=True, help="the folder to write to")
    files.add_argument("--split", default="val", choices=("train", "val", "test"), help="which photos (val)")
    files.add_argument("--weights", default="last.safetensors", help="a file of weights of that run (last.safetensors)")
    for one in (again, files):
        one.add_argument("--data-dir", default="", help="where the data set is, if no longer where the run found it")
    options = vars(parser.parse_args(argv))
    try:
        {"score": score, "export": export}[options.pop("command")](**options)
    except common.StreetsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
