"""A student presses the stop button while a network trains, and then runs the same cell again in the same kernel."""

import asyncio
import gc
import json
import threading
import time
import weakref

import jupytext
import pandas as pd
import pytest
import tiny_run
import torch
from conftest import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import common

NAME = "02_unet_from_scratch"
EPOCHS = 40
SMALL = {"stage": "scratch", "epochs": EPOCHS, "size": 32, "width": 4}


def edited(parameters):
    """The notebook as a student leaves it who types other values into the parameters cell."""
    notebook = jupytext.read(ROOT / "notebooks" / f"{NAME}.py")
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for name, value in parameters.items():
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}: ")]
        declared, _, comment = lines[at].partition("  # ")
        lines[at] = f"{declared.partition(' = ')[0]} = {value!r}  # {comment}"
    cell.source = "\n".join(lines)
    return notebook


def press_stop(kernel, when, done):
    """Interrupt the kernel as soon as `when` is true; give up when `done` is set."""
    while not done.is_set():
        if when():
            asyncio.run(kernel.interrupt_kernel())
            return
        time.sleep(0.01)


def test_after_the_stop_button_the_training_cell_resumes_in_the_same_kernel_and_no_epoch_is_lost_or_repeated(toy, tmp_path):
    notebook = edited(SMALL | {"data_dir": str(toy), "out_dir": str(tmp_path)})
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    (at,) = [n for n, i in enumerate(code) if "common.train_runs(" in notebook.cells[i].source]
    training = notebook.cells[code[at]]

    def saved():
        return [json.loads(path.read_text())["epoch"] for path in tmp_path.rglob("checkpoint/epoch_*/progress.json")]

    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}})
    with client.setup_kernel():
        for i in code[:at]:
            client.execute_cell(notebook.cells[i], i)
        over = threading.Event()
        student = threading.Thread(target=press_stop, args=(client.km, saved, over))
        student.start()
        with pytest.raises(CellExecutionError) as stopped:
            client.execute_cell(training, code[at])
        over.set()
        student.join()
        assert stopped.value.ename == "KeyboardInterrupt"
        assert "interrupted; run this again to go on" in "".join(output.get("text", "") for output in training.outputs)
        assert not list(tmp_path.rglob("summary.json")), "nothing looks finished"
        epoch = max(saved())
        assert 0 < epoch < EPOCHS

        client.execute_cell(training, code[at])
        text = "".join(output.get("text", "") for output in training.outputs)
        assert f"_seed42: resuming after epoch {epoch} of {EPOCHS}\n" in text
        (history,) = tmp_path.rglob("history.csv")
        assert pd.read_csv(history)["epoch"].tolist() == list(range(1, EPOCHS + 1))
        assert {"summary.json", "best.safetensors", "last.safetensors"} <= {path.name for path in history.parent.iterdir()}
        client.execute_cell(notebook.cells[code[at + 1]], code[at + 1])  # and the notebook goes on: its scores
        assert any("scratch" in output.get("data", {}).get("text/html", "") for output in notebook.cells[code[at + 1]].outputs)


@pytest.mark.parametrize("end", [KeyboardInterrupt, torch.cuda.OutOfMemoryError])
def test_the_traceback_that_a_kernel_keeps_holds_neither_the_network_nor_its_activations(toy, tmp_path, end):
    seen = []

    def fail(model, batch):
        scores = model(batch["image"])
        seen.extend(map(weakref.ref, (model, scores)))
        raise end

    with pytest.raises((KeyboardInterrupt, common.StreetsError)) as kept:
        tiny_run.run(toy, tmp_path, epochs=1, loss_fn=fail)
    gc.collect()
    assert [ref() for ref in seen] == [None, None] and kept.tb
