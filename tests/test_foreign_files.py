"""data_prep.py never removes or replaces a file that it did not write: with --force, killed, stopped or called twice."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_prep
from data_prep import StreetsError, make_toy

ROOT = Path(data_prep.__file__).parent
KINDS = ("toy", "camvid11", "camvid32", "pairs")
COLOURS = [colour for group in data_prep.CAMVID["camvid32"].values() for colour in group.values()]

# Imports once what takes seconds to import; each command is then a process of its own, forked in milliseconds. Such a
# process can be sent a signal (SIGKILL, SIGSTOP) just before the n-th time that it touches the disk. At an fsync, half of
# what was written is cut off first, as it may be when a process is killed while it writes.
SERVER = r"""
import json, os, signal, sys, threading
import data_prep

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock"}

def run(arguments, number, at):
    output = os.open(f"{os.environ['OUTPUTS']}/{os.getpid()}", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1), os.dup2(output, 2)
    count, counting, fsync = 0, threading.RLock(), os.fsync

    def touch(file=None):
        nonlocal count
        with counting:
            count += 1
            if count == at:
                if file is not None:
                    os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), number)

    def touch_before_sync(file):
        touch(file if number == signal.SIGKILL else None)
        fsync(file)

    def audit(event, arguments):
        if event in CHANGES or (event == "open" and arguments[2] and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            touch()

    os.fsync = touch_before_sync
    sys.addaudithook(audit)
    return data_prep.main(arguments)

for line in sys.stdin:
    what, *rest = json.loads(line)
    if what == "start":
        child = os.fork()
        if not child:
            code = 99
            try:
                code = run(*rest)
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(child, flush=True)
    else:
        _, status = os.waitpid(rest[0], os.WUNTRACED)
        print(-os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status), flush=True)
"""


class Commands:
    """Runs commands of data_prep.py, each in a process of its own."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"})

    def _ask(self, *question) -> int:
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, arguments, number=signal.SIGKILL, at: int = 0) -> int:
        return self._ask("start", list(map(str, arguments)), int(number), at)

    def wait(self, pid: int) -> int:
        """Exit code of a command, or minus the signal that ended or stopped it."""
        return self._ask("wait", pid)

    def __call__(self, arguments, kill_at: int = 0) -> int:
        return self.wait(self.start(arguments, at=kill_at))

    def said(self, pid: int) -> str:
        return (self.outputs / str(pid)).read_text()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("outputs"))
    yield commands
    commands.server.stdin.close()
    assert commands.server.wait(120) == 0


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """arguments(kind, out): the command that makes a data set of two or three tiny scenes."""
    base = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    for split, stem in (("train", "0016E5_00390"), ("test", "Seq05VD_f00000")):
        photo, label = rng.integers(0, 256, (12, 16, 3)), rng.integers(0, 12, (12, 16))
        save(base / f"camvid11/{split}/{stem}.png", photo)
        save(base / f"camvid11/{split}annot/{stem}.png", label)
        save(base / f"camvid32/{stem}.png", photo[::-1])
        save(base / f"camvid32/{stem}_L.png", np.array(COLOURS)[rng.integers(0, len(COLOURS), (12, 16))])
    for split, number in (("train", 1), ("train", 2), ("val", 1)):
        save(base / f"pairs/{split}/{number}.png", np.hstack([rng.integers(0, 256, (12, 16, 3)), np.full((12, 16, 3), (128, 64, 128))]))

    def of(kind: str, out: Path, *more: str) -> list[str]:
        if kind == "toy":
            return ["toy", "--size", "64x64", "--train", "1", "--val", "1", "--test", "0", "--out", str(out), *more]
        return [kind.rstrip("123"), "--source", str(base / kind), "--out", str(out), *more]

    return of


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What each command makes in an empty folder."""
    base = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        assert data_prep.main(arguments(kind, base / kind)) == 0
        assert {path.name for path in (base / kind).iterdir()} == {"leftImg8bit", "gtFine", "dataset.json"}
    return {kind: snapshot(base / kind) for kind in KINDS}


def snapshot(root: Path) -> dict[str, bytes]:
    """The files and links below a folder: name and content."""
    paths = [Path(folder, name) for folder, folders, names in os.walk(root) for name in folders + names]
    return {path.relative_to(root).as_posix(): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            for path in paths if path.is_symlink() or path.is_file()}


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def photos(root: Path, top: str = "leftImg8bit") -> Path:
    """A folder with files of the user's, as the official data set has them."""
    for number in range(2):
        path = root / f"{top}/train/ulm/ulm_00000{number}_000019_{top}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"irreplaceable %d" % number)
    return root


def refused(command: list[str], capfd, *words: str) -> None:
    """The command ends with 1 and one sentence that holds the words, and changes nothing in its --out."""
    out = Path(command[command.index("--out") + 1])
    before = snapshot(out)
    capfd.readouterr()
    assert data_prep.main(command) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.endswith(".") and all(word in line for word in words), line
    assert snapshot(out) == before


# Somebody else's files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_official_labels_unpacked_before_the_photos_stay(kind, force, arguments, tmp_path, capfd):
    photos(tmp_path, "gtFine")
    refused(arguments(kind, tmp_path, *force), capfd, "gtFine", "choose another --out")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_photos_beside_an_unrelated_dataset_json_stay(kind, force, arguments, tmp_path, capfd):
    (photos(tmp_path) / "dataset.json").write_text('{"name": "streets of Ulm"}')
    refused(arguments(kind, tmp_path, *force), capfd, "dataset.json", "choose another --out")


@pytest.mark.parametrize("content", ['{"name": "streets of Ulm"}', "{}", "[1]", "years of work", '{"files": {}, "crc32": 1}'])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_unrelated_dataset_json_alone_stays(content, force, arguments, tmp_path, capfd):
    (tmp_path / "dataset.json").write_text(content)
    refused(arguments("toy", tmp_path, *force), capfd, "dataset.json")


@pytest.mark.parametrize("name", [".part-mine/thesis.txt", ".part-mine/dataset.json", ".part-clone/x.png", ".part-0/leftImg8bit/a.tmp"])
def test_folders_named_like_temporary_ones_stay(name, arguments, tmp_path, whole, capfd):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("{}")
    refused(arguments("camvid11", tmp_path), capfd, f"something else ({name.split('/')[0]})", "add --force")
    assert data_prep.main(arguments("camvid11", tmp_path, "--force")) == 0
    assert snapshot(tmp_path) == whole["camvid11"] | {name: b"{}"}


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_photos_beside_a_folder_that_looks_like_a_finished_temporary_one_stay(force, arguments, tmp_path, capfd):
    photos(tmp_path)
    for name in (".part-x", data_prep.STAGING):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text("{}")
        refused(arguments("camvid11", tmp_path, *force), capfd, "choose another --out")


@pytest.mark.parametrize("name", ["notes.txt", "dataset.json", "record.txt", "leftImg8bit/train/ulm/.a.png.1.2.tmp", "link", "record.txt/x"])
def test_a_folder_of_the_very_name_of_the_temporary_one_stays(name, arguments, tmp_path, capfd):
    path = tmp_path / "out" / data_prep.STAGING / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path) if name == "link" else path.write_text("mine")
    refused(arguments("toy", tmp_path / "out", "--force"), capfd, data_prep.STAGING)
    refused(arguments("toy", tmp_path / "out"), capfd, data_prep.STAGING)


@pytest.mark.parametrize("name", ["leftImg8bit", "gtFine", data_prep.STAGING, f"{data_prep.STAGING}/record.txt"])
def test_links_are_neither_followed_nor_replaced(name, arguments, tmp_path, capfd):
    target, out = photos(tmp_path / "mine"), tmp_path / "out"
    (tmp_path / "mine/empty").touch()
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(target / "empty" if name.endswith("txt") else target)
    before = snapshot(tmp_path)
    refused(arguments("toy", out, "--force"), capfd, data_prep.STAGING if name.startswith(".") else name)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["leftImg8bit", "leftImg8bit/train"])
def test_a_data_set_whose_photos_were_moved_to_another_disk_keeps_its_dataset_json(name, arguments, tmp_path, capfd):
    out = tmp_path / "out"
    data_prep.main(arguments("toy", out))
    shutil.move(out / name, tmp_path / "disk")
    (out / name).symlink_to(tmp_path / "disk")
    before = snapshot(tmp_path)
    refused(arguments("camvid11", out, "--force"), capfd, name)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["leftimg8bit/a.txt", "GTFINE/train", "Dataset.json"])
def test_a_name_that_differs_in_case_only_is_no_free_place(name, arguments, tmp_path, capfd):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    refused(arguments("toy", tmp_path, "--force"), capfd, name.split("/")[0])


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "x.tmp", "altmoor_000009_000019_leftImg8bit.png", "folder/notes.txt", "empty/"])
def test_what_somebody_put_among_our_photos_stays(name, arguments, tmp_path, capfd):
    data_prep.main(arguments("toy", tmp_path))
    city = next((tmp_path / "leftImg8bit/train").iterdir())
    (city / name).parent.mkdir(exist_ok=True)
    (city / name).mkdir() if name.endswith("/") else (city / name).write_text("mine")
    refused(arguments("camvid11", tmp_path, "--force"), capfd, str(city / name.split("/")[0]))
    assert (city / name).exists() and data_prep.main(arguments("toy", tmp_path)) == 0, "and the data set is still there"


@pytest.mark.parametrize("name", ["leftImg8bit/train", "gtFine/val", "dataset.json"])
def test_a_file_of_ours_that_somebody_edited_is_no_longer_ours(name, arguments, tmp_path, capfd):
    data_prep.main(arguments("toy", tmp_path))
    path = next((path for path in sorted((tmp_path / name).rglob("*.png"))), tmp_path / name)
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1') if name == "dataset.json" else b"retouched")
    refused(arguments("camvid11", tmp_path, "--force"), capfd, str(path))


def test_a_data_set_of_an_earlier_version_is_used_but_not_replaced(arguments, tmp_path, capfd):
    data_prep.main(arguments("toy", tmp_path))
    info = json.loads((tmp_path / "dataset.json").read_text())
    del info["files"], info["crc32"]
    (tmp_path / "dataset.json").write_text(json.dumps(info, indent=2) + "\n")
    before = snapshot(tmp_path)
    assert data_prep.main(arguments("toy", tmp_path)) == 0 and snapshot(tmp_path) == before
    refused(arguments("toy", tmp_path, "--force"), capfd, "dataset.json", "remove it yourself or choose another --out")


def test_a_dataset_json_that_claims_files_elsewhere_does_not_reach_them(arguments, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    out = tmp_path / "out"
    data_prep.main(arguments("toy", out))
    info = json.loads((out / "dataset.json").read_text())
    info["files"] |= {name: 13 for name in ("../thesis.txt", "gtFine/../../thesis.txt", str(tmp_path / "thesis.txt"))}
    del info["crc32"]
    (out / "dataset.json").write_bytes(data_prep._dataset_json(info))
    assert data_prep.main(arguments("camvid11", out, "--force")) == 0
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_clone_leaves_the_folder_and_no_temporary_one(arguments, tmp_path, whole, monkeypatch):
    source = Path(arguments("camvid11", tmp_path)[2])
    repository, temporary = shutil.copytree(source, tmp_path / "repository"), tmp_path / "temporary"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(repository)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run(git + command, check=True)
    temporary.mkdir()
    (tmp_path / "out/.part-clone").mkdir(parents=True)
    (tmp_path / "out/.part-clone/mine.txt").write_text("mine")
    monkeypatch.setenv("STREETS_CAMVID_URL", repository.as_uri())
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert data_prep.main(["camvid", "--out", str(tmp_path / "out"), "--force"]) == 0
    assert snapshot(tmp_path / "out") == whole["camvid11"] | {".part-clone/mine.txt": b"mine"}
    assert not list(temporary.iterdir())


# What is ours


@pytest.mark.parametrize("kind", KINDS)
def test_force_replaces_a_data_set_of_ours_also_through_a_linked_out(kind, arguments, tmp_path, whole):
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    for before in KINDS:
        assert data_prep.main(arguments(before, tmp_path / "out", "--force")) == 0
    assert data_prep.main(arguments(kind, tmp_path / "out", "--force")) == 0
    assert snapshot(tmp_path / "disk") == whole[kind] and (tmp_path / "out").is_symlink()
    assert sum(path.is_dir() for path in (tmp_path / "disk").rglob("*")) == len(
        {parent for name in whole[kind] for parent in Path(name).parents} - {Path()}), "and no empty folder stays"


@pytest.mark.parametrize("at", [9, 17, 30])
def test_what_a_killed_command_left_is_dropped_when_another_data_set_is_made(at, arguments, commands, tmp_path, whole):
    assert commands(arguments("camvid11", tmp_path), at) == -signal.SIGKILL
    assert commands(arguments("pairs", tmp_path)) == 0
    assert snapshot(tmp_path) == whole["pairs"]


@pytest.mark.parametrize("before, force, first", [(None, [], 1), ("toy", ["--force"], 28)])
def test_killed_anywhere_a_command_loses_nothing_and_the_next_ends_as_if_it_never_was(before, force, first, arguments, commands, tmp_path, whole):
    out, old = tmp_path / "out", whole[before] | {"notes.txt": b"mine"} if before else {}
    command = arguments("camvid11", out, *force)
    for at in itertools.count(first):  # before each time it touches the disk, until it has come to its end
        shutil.rmtree(out, ignore_errors=True)
        for name, data in old.items():
            put(out / name, data)
        code = commands(command, at)
        assert code in (0, -signal.SIGKILL) and (not old or "notes.txt" in snapshot(out))
        if (out / "dataset.json").exists():  # it is the first to go and the last to come
            assert any(whole[kind].items() <= snapshot(out).items() for kind in ("camvid11", before) if kind)
        if at % 7 == 0:  # killed a second time, soon after
            commands(command, at % 5 + 3)
        assert commands(command) == 0
        assert snapshot(out) == whole["camvid11"] | ({"notes.txt": b"mine"} if old else {})
        assert not any(path.name.startswith(".") for path in out.iterdir())
        if code == 0:
            break
    assert at > first + 15


def test_killed_at_any_moment_a_command_is_completed_by_the_next(arguments, commands, tmp_path, whole):
    rng, killed = random.Random(0), 0
    started = time.perf_counter()
    assert commands(arguments("toy", tmp_path / "timed")) == 0
    duration = time.perf_counter() - started
    for number in range(8):
        out = tmp_path / str(number)
        pid = commands.start(arguments("toy", out))
        time.sleep(rng.uniform(0, duration))
        os.kill(pid, signal.SIGKILL)  # the child of our child: until that waits for it, its number is not given again
        killed += commands.wait(pid) == -signal.SIGKILL
        assert commands(arguments("toy", out)) == 0
        assert snapshot(out) == whole["toy"]
    assert killed > 2


# Two commands at once


@pytest.mark.parametrize("second, force", [("camvid11", []), ("camvid11", ["--force"]), ("pairs", ["--force"])])
def test_while_a_command_is_stopped_a_second_one_says_so_and_the_first_completes(second, force, arguments, commands, tmp_path, whole):
    for at in range(7, 36, 7):  # from when it has the lock
        out = tmp_path / str(at)
        first = commands.start(arguments("camvid11", out), signal.SIGSTOP, at)
        assert commands.wait(first) == -signal.SIGSTOP
        other = commands.start(arguments(second, out, *force))
        assert commands.wait(other) == 1
        assert commands.said(other) == f"Another command is writing {out}: wait until it is done, then run this again.\n"
        os.kill(first, signal.SIGCONT)
        assert commands.wait(first) == 0
        assert snapshot(out) == whole["camvid11"]


def test_many_commands_at_once_make_one_whole_data_set(arguments, commands, tmp_path, whole):
    for number in range(3):
        out = tmp_path / str(number)
        codes = [commands.wait(pid) for pid in [commands.start(arguments("pairs", out)) for _ in range(6)]]
        assert 0 in codes and set(codes) <= {0, 1} and snapshot(out) == whole["pairs"]


@pytest.mark.parametrize("number", ["ENOLCK", "EOPNOTSUPP", "EIO"])
def test_a_disk_without_locks_is_one_sentence_and_leaves_nothing(number, arguments, tmp_path, monkeypatch, capfd):
    fcntl = pytest.importorskip("fcntl")
    number = getattr(data_prep.errno, number)

    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    refused(arguments("toy", tmp_path), capfd, "Cannot lock", os.strerror(number), "choose an --out on another disk")
    assert not list(tmp_path.iterdir())


# Everything at random


def plant(rng: random.Random, out: Path, outside: Path) -> list[Path]:
    """Put something of the user's into `out`, or change something that is there; returns the files that are now theirs."""
    data = rng.randbytes(rng.randrange(1, 60))
    top, staging = rng.choice(["leftImg8bit", "gtFine"]), out / data_prep.STAGING
    folders = sorted(path for path in out.rglob("*") if path.is_dir() and not path.is_symlink()) or [out]
    made = sorted(path for path in out.rglob("*.png") if not path.is_symlink()) or [out / "thesis.txt"]
    path = rng.choice([
        out / "thesis.txt", out / ".DS_Store", out / "dataset.json", staging / "notes.txt", staging / "dataset.json",
        staging / top / "train/ulm/ulm.png.tmp", out / ".part-mine/a.png", out / ".part-0/dataset.json", out / top,
        out / f".part-0/{top}/train/a.png", out / top / "train/ulm/ulm_000000_000019_leftImg8bit.png",
        out / top.upper() / "a.png", *(rng.choice(folders) / name for name in ("a.png", ".x.png.7.8.tmp", "b/c.txt")),
        *(rng.choice(made) for _ in range(3)), rng.choice(made).with_suffix(".png.tmp"),
    ])  # fmt: skip
    if any(parent.is_symlink() or parent.is_file() for parent in path.parents) or path.is_symlink() or path.is_dir():
        return []
    if path.exists():
        return [put(path, path.read_bytes() + data)]
    return [link(path, outside) if rng.random() < 0.2 else put(path, data)]


@pytest.mark.parametrize("seed", range(24))
def test_whatever_is_there_and_whatever_happens_foreign_files_stay(seed, arguments, commands, tmp_path, whole):
    rng, out = random.Random(seed), tmp_path / "out"
    outside = photos(tmp_path / "outside")
    theirs, elsewhere = {}, snapshot(outside)
    for _ in range(rng.randrange(3, 7)):
        if rng.random() < 0.4:
            for path in plant(rng, out, outside):
                name = path.relative_to(out).as_posix()
                theirs[name] = snapshot(out)[name]
        kind, force = rng.choice(KINDS), ["--force"] * (rng.random() < 0.6)
        code = commands(arguments(kind, out, *force), rng.randrange(1, 70) if rng.random() < 0.5 else 0)
        now = snapshot(out) if out.exists() else {}
        assert code in (0, 1, -signal.SIGKILL)
        assert theirs.items() <= now.items() and snapshot(outside) == elsewhere
        if code == 0:
            assert (whole[kind] | theirs).items() <= now.items(), "and what is called made is complete"


def test_a_command_in_python_is_told_of_a_second_one_like_the_command_line(tmp_path):
    with data_prep._staging(tmp_path / "toy"), pytest.raises(StreetsError, match="Another command is writing"):
        make_toy(tmp_path / "toy", size=(64, 64), train=1, val=0, test=0)
    assert make_toy(tmp_path / "toy", size=(64, 64), train=1, val=0, test=0).is_dir()
