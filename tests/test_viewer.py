"""results/viewer.py: the page about a folder of runs, from the command line and from the notebook, and in a browser."""

import html
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

import common
from results import viewer

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
SCHEME = common.SCHEMES["cityscapes19"]
EVIL = '</script><script>document.title="broken"</script><b>"&\'|.png'
CLASSES = ("road", "traffic <i>light")


def put_run(folder, name, miou, epochs=(5, 10), metrics=("boundary_f1_strict", "trimap_iou"), classes=CLASSES, **summary):
    """A finished run as it lies on disk: its scores rise along a straight line to the last epoch's."""
    run, others = folder / name, dict.fromkeys(metrics, 0.4)
    iou = {c: miou + 0.01 * k for k, c in enumerate(classes)} | {"bus": None}
    rows = [{"epoch": e, "miou": miou * e / epochs[-1]} | others | {f"iou_{c}": v for c, v in iou.items()} for e in epochs]
    method, _, seed = name.partition("_seed")
    facts = {"method": method, "seed": int(seed), "epochs": epochs[-1], "seconds": 90.0, "metrics": {"miou": miou} | others}
    common.write_json(run / "summary.json", facts | summary)
    common.write_json(run / "config.json", {"recorded": {"command": f"papermill {EVIL}"}})
    pd.DataFrame(rows).to_csv(run / "history.csv", index=False)
    return run


@pytest.fixture
def folder(tmp_path):
    """Runs of two methods with two seeds."""
    folder = tmp_path / "06_ablation" / "toy-quick"
    for name, miou in {"A_seed2": 0.45, "A_seed1": 0.5, "D_seed1": 0.6, "D_seed2": 0.7}.items():
        put_run(folder, name, miou)
    return folder


def scenes(width=96):
    """(photos, labels, names) of two scenes."""
    draw = np.random.default_rng(0)
    photos = [cv2.resize(draw.integers(0, 255, (3, 6, 3), np.uint8), (width, 48)) for _ in range(2)]
    labels = [draw.integers(0, 3, (48, width), np.uint8) for _ in range(2)]
    labels[0][:5] = 255
    return photos, labels, [EVIL, "second.png"]


def write(folder, *runs, width=96):
    """The page with pictures of these runs: perfect predictions of the first, wrong ones of the others."""
    photos, labels, names = scenes(width)
    predictions = {run: [label if k == 0 else (label + 1) % 4 for label in labels] for k, run in enumerate(runs)}
    return viewer.write(folder, photos, labels, predictions, names, SCHEME)


def data_of(page):
    """What the page holds as data, and its text."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r"<script>const data = (.*?);\nconst \$", text, re.S)[1]), text


def test_the_page_is_one_file_below_8_mb_that_asks_nobody_and_escapes_names(folder):
    put_run(folder, "E<b>&_seed1", 0.3)
    data, text = data_of(write(folder, "A_seed1", "D_seed1"))
    assert (folder / "viewer.html").stat().st_size < 8e6
    ours = text[text.index("const data =") :]
    assert "<b>" not in ours and "<i>light" not in ours and text.count("</script>") == 2, "no name may end the script"
    assert data["classes"] == [html.escape(name) for name in CLASSES], "plotly reads names as HTML; a class without scores is left out"
    assert [(label["name"], label["text"]) for label in data["labels"]][2] == ("E<b>&", "E&lt;b&gt;&amp;")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?https?:", text)
    assert not re.search(r"fetch\(|XMLHttpRequest|https?:|import\(", ours)


def test_a_page_of_many_runs_and_large_pictures_is_as_small(tmp_path, capsys):
    folder, names = tmp_path / "nb" / "toy-quick", [f"D-lambda_b{k}_seed1" for k in range(30)]
    for name in names:
        put_run(folder, name, 0.5)
    data, _ = data_of(write(folder, *names, width=800))
    assert (folder / "viewer.html").stat().st_size < 8e6 and len(data["pictures"]) >= 1
    assert [label["color"] for label in data["labels"]][:8] == [*common.CURVES, common.CURVES[0]]
    assert data["labels"][0]["dash"] != data["labels"][7]["dash"]
    scenes_of_all = viewer.kept_scenes(folder, viewer.find_runs(folder))
    assert viewer.picture_entries(scenes_of_all, dict.fromkeys(range(30), 0), room=10) == []
    assert "left out, as the page would be too large" in capsys.readouterr().out


def test_curves_are_the_histories_with_means_over_seeds_and_students_interval_from_three_on(folder):
    put_run(folder, "D_seed3", 0.8)
    data, _ = data_of(viewer.write_page(folder))
    a, d = (label["curves"] for label in data["labels"])
    assert data["seeds"] == ["mean", "1", "2", "3"] and data["epochs"] == [5, 10]
    assert d["2"]["miou"] == {"x": [5, 10], "y": [35.0, 70.0], "half": None}
    assert a["mean"]["miou"] == {"x": [5, 10], "y": [23.75, 47.5], "half": None}, "no band of two"
    assert d["mean"]["miou"]["y"] == [35.0, 70.0]
    assert d["mean"]["miou"]["half"][1] == pytest.approx(stats.t.ppf(0.975, 2) * 10 / np.sqrt(3), abs=1e-3)
    assert data["labels"][1]["iou"]["mean"]["10"] == [70.0, 71.0] and data["labels"][0]["iou"]["1"]["5"] == [50.0, 51.0]
    assert [label["color"] for label in data["labels"]] == common.CURVES[:2]


def test_runs_of_different_epochs_have_a_mean_where_all_seeds_were_scored(folder):
    put_run(folder, "A_seed3", 0.6, epochs=(10, 15))
    put_run(folder, "long_seed1", 0.6, epochs=(20, 40))
    data, _ = data_of(viewer.write_page(folder))
    assert data["epochs"] == [5, 10, 15, 20, 40]
    a = data["labels"][0]
    assert a["curves"]["mean"]["miou"]["x"] == [10] and list(a["iou"]["mean"]) == ["10"] and list(a["iou"]["3"]) == ["10", "15"]


@pytest.mark.parametrize(("held", "shown"), [((), ["miou"]), (("boundary_f1",), ["miou", "boundary_f1"]),
                                             (("boundary_f1", "boundary_f1_strict", "trimap_iou"), ["miou", "boundary_f1_strict", "trimap_iou"])])
def test_the_metrics_are_those_that_the_histories_hold(tmp_path, held, shown):
    put_run(tmp_path, "A_seed1", 0.5, metrics=held)
    put_run(tmp_path, "B_seed1", 0.5, metrics=())
    data, _ = data_of(viewer.write_page(tmp_path))
    assert [metric["key"] for metric in data["metrics"]] == shown and list(data["labels"][1]["curves"]["mean"]) == ["miou"]


def test_a_label_is_the_runs_name_less_what_ends_all_names():
    methods = ["A-lr1e-05-epochs20", "D-normnone-lr1e-05-epochs20"]
    assert viewer.short_names(methods) == (dict(zip(methods, ["A", "D-normnone"])), "-lr1e-05-epochs20")
    assert viewer.short_names(["A-lr1e-05", "A-lr2e-05"])[1] == "" and viewer.short_names(["A", "A-epochs20"])[1] == ""
    assert viewer.short_names(["D-epochs20"]) == ({"D-epochs20": "D-epochs20"}, "")


def test_pictures_are_kept_beside_the_runs_and_found_again(folder):
    photos, labels, _ = scenes()
    write(folder, "A_seed1", "D_seed1")
    kept = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("predictions/viewer/*"))
    assert len(kept) == 2 * 2 + 2 * 2 and all("predictions/viewer/" in path for path in kept)
    ignored = subprocess.run(["git", "check-ignore", *(f"results/nb/toy-course/{path}" for path in kept)], cwd=ROOT, capture_output=True, text=True)
    assert len(ignored.stdout.splitlines()) == len(kept)
    found = {scene.name: scene for scene in viewer.kept_scenes(folder, viewer.find_runs(folder))}
    assert set(found) == {EVIL, "second.png"}
    scene = found[EVIL]
    np.testing.assert_array_equal(scene.label, labels[0])
    np.testing.assert_array_equal(scene.predictions[0], labels[0])
    assert set(scene.predictions) == {0, 2} and np.abs(scene.photo.astype(int) - photos[0]).mean() < 4
    np.testing.assert_array_equal(np.frombuffer(scene.palette, np.uint8).reshape(-1, 3)[labels[1]], common.as_colors(labels[1], SCHEME))


def test_what_another_session_kept_of_the_same_scenes_is_shown_too_but_never_beside_other_photos(folder):
    write(folder, "A_seed1")
    data, _ = data_of(write(folder, "D_seed2"))
    assert data["drawn"] == ["A, seed 1", "D, seed 2"] and data["right"] == 0
    assert [list(p["runs"]) for p in data["pictures"]] == [["0", "1"]] * 2
    data, _ = data_of(write(folder, "D_seed1", width=64))  # the same names
    assert data["drawn"][data["right"]] == "D, seed 1", "the last with the seed of the first"
    assert sorted((p["name"], tuple(p["runs"])) for p in data["pictures"]) == sorted(
        (name, runs) for name in (EVIL, "second.png") for runs in (("0", "2"), ("1",)))


def test_the_command_line_writes_the_page_with_what_was_kept_and_ends_in_a_sentence_where_it_cannot(folder):
    def command(*arguments):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, ROOT / "results" / "viewer.py", *arguments], cwd=folder.parent, env=environment, capture_output=True, text=True)

    kept = write(folder, "A_seed1", "D_seed1").read_bytes()
    (folder / "viewer.html").unlink()
    done = command(folder.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(folder / "viewer.html")) and done.stdout.endswith("MB: open it in a browser\n")
    assert (folder / "viewer.html").read_bytes() == kept
    assert command(folder.name, "--out", "new/page.html").returncode == 0
    assert (folder.parent / "new" / "page.html").read_bytes() == kept
    done = command("nothing")
    assert done.returncode == 1 and done.stderr.startswith("There is no folder") and len(done.stderr.splitlines()) == 1


def test_without_pictures_there_is_a_page_without_them(folder):
    data, _ = data_of(viewer.write_page(folder))
    assert data["pictures"] == data["drawn"] == data["legend"] == [] and len(data["labels"]) == 2


@pytest.mark.parametrize(("made", "says"), [((), "There is no folder"), (("other",), "There are no finished runs in"),
                                            (("A_seed1", "A_seed1/history.csv"), "There are no finished runs in")])
def test_no_folder_and_no_runs_end_in_one_sentence(tmp_path, monkeypatch, made, says):
    for name in made:
        place = tmp_path / "runs" / name
        place.write_text("epoch,miou\n1,0.5\n") if place.suffix else place.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["viewer.py", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as stopped:
        viewer.main()
    assert stopped.value.code.startswith(says) and len(stopped.value.code.splitlines()) == 1
    assert not list(tmp_path.rglob("*.html"))


DAMAGE = {"history.csv": ("", "epoch,miou\n", "epoch,miou\n1,half\n", "epoch,miou\n,0.5\n", "epoch,loss\n1,2\n", 'a,"b', "\0\0", None),
          "summary.json": ('{"metrics": ', "[]", '{"metrics": 3}', "{}", '{"metrics": {"miou": null}}', "[" * 100_000, '{"metrics": {"miou": 1%s}}' % ("0" * 400)), "config.json": ('{"recorded": ', "[1]")}


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in DAMAGE.items() for text in texts])
def test_a_damaged_run_is_left_out_with_a_line(folder, capsys, file, text):
    path = folder / "A_seed1" / file
    path.write_text(text) if text is not None else path.unlink()
    data, _ = data_of(viewer.write_page(folder))
    assert [list(label["curves"]) for label in data["labels"]] == [["mean", "2"], ["mean", "1", "2"]]
    printed = capsys.readouterr().out
    assert printed.startswith("left out: ") and "A_seed1" in printed and len(printed.splitlines()) == 1


def test_a_network_without_miou_and_what_is_no_run_are_not_spoken_of(folder, capsys):
    put_run(folder, "proxy_seed1", 0.5, metrics=())
    common.write_json(folder / "proxy_seed1" / "summary.json", {"metrics": {"f1": 0.5}})
    (folder / "notes").mkdir()
    (folder / "notes" / "summary.json").write_text("{}")
    data, _ = data_of(viewer.write_page(folder))
    assert [label["name"] for label in data["labels"]] == ["A", "D"] and capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", None])
def test_a_damaged_picture_is_left_out_with_a_line(folder, capsys, content):
    write(folder, "A_seed1", "D_seed1")
    for path in (next((folder / viewer.KEPT).glob("*_second.png.jpg")), next((folder / "D_seed1" / viewer.KEPT).glob("*script*"))):
        path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    data, _ = data_of(viewer.write_page(folder))
    assert data["pictures"] == [] and capsys.readouterr().out.count("left out: ") == 2


def test_the_committed_runs_of_every_notebook_make_a_page(tmp_path):
    for folder in sorted({path.parent.parent for path in (ROOT / "results").glob("*/*-course/*/summary.json")}):
        page = viewer.write_page(folder, tmp_path / "page.html")
        data, _ = data_of(page)
        assert data["title"] == f"{folder.parent.name}: {folder.name}" and data["labels"] and page.stat().st_size < 8e6


ACTS = """
<script>
const set = (id, value, key = "value") => { const c = $(id); c[key] = value; c.dispatchEvent(new Event("input", {bubbles: true})); };
const bars = () => $("classes").data.map(t => [t.name, t.y[0]]);
const count = () => $("curves").data.length;
const seen = {start: bars(), lines: count(), title: $("title").textContent, bar: document.title, facts: $("facts").rows.length};
set("label0", false, "checked"); seen.without_a = bars();
set("label0", true, "checked"); set("seed", 1); seen.seed_1 = bars(); seen.lines_1 = count();
set("epoch", 0); seen.epoch = [$("epoch_shown").textContent, bars()];
set("epoch", 2); seen.later = bars(); set("seed", 3); seen.seed_3 = bars();
set("right", 1); set("view3", true, "checked"); seen.error = $("right_caption").textContent;
const error = $("left_image").src;
set("view0", true, "checked"); seen.photo = [$("left_caption").textContent, $("left_image").src != error, $("left_image").src == $("right_image").src];
set("view2", true, "checked"); set("left", 2); seen.missing = [$("left_caption").textContent, $("left_image").hidden];
seen.pictures = [...$("picture").options].map(o => o.text); seen.legend = $("legend").textContent; seen.problems = window.problems;
seen.sides = $("pictures").hidden; seen.decoded = $("right_image").naturalWidth;
document.body.innerHTML = ""; document.body.dataset.seen = JSON.stringify(seen);
</script>"""


def browse(page, folder, acts):
    """What `acts` saw in the page in a headless Chromium; no error may have come up."""
    text = page.read_text(encoding="utf-8")
    catch = "<script>window.problems = []; window.onerror = message => { window.problems.push(String(message)); };</script>"
    (folder / "acted.html").write_text(text.replace("<meta", catch + "<meta", 1).replace("</body>", acts + "</body>"), encoding="utf-8")
    chromium = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
                "--virtual-time-budget=5000", "--dump-dom", f"file://{folder / 'acted.html'}"]  # fmt: skip
    done = subprocess.run(chromium, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["problems"] == [] and not [line for line in done.stderr.splitlines() if "CONSOLE" in line and "rror" in line]
    return seen


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
def test_a_browser_switches_runs_seeds_epochs_and_pictures_without_an_error(folder, tmp_path):
    put_run(folder, "E<b>_seed3", 0.4, epochs=(15,))
    write(folder, "D_seed1", "A_seed1")
    photos, labels, _ = scenes(64)
    viewer.keep_pictures(folder, photos[:1], labels[:1], {"E<b>_seed3": labels[:1]}, ["third.png"], SCHEME)
    seen = browse(viewer.write_page(folder), tmp_path, ACTS)
    escaped, mean = html.escape("E<b>"), [["A (epoch 10)", pytest.approx(47.5)], ["D (epoch 10)", pytest.approx(65.0)]]
    assert seen["start"] == [*mean, [escaped, 40]] and seen["lines"] == 3 * (3 + 3 + 2), "with a mean of two, both as thin lines"
    assert seen["without_a"] == [mean[1], [escaped, 40]]
    assert seen["seed_1"] == [["A (epoch 10)", 50], ["D (epoch 10)", 60], [escaped, None]] and seen["lines_1"] == 6
    assert seen["epoch"] == ["5", [["A", 50], ["D", 60], [escaped, None]]]
    assert seen["seed_3"] == [["A", None], ["D", None], [escaped, 40]]
    assert seen["error"] == "D, seed 1: error (red is wrong, black is void)" and seen["photo"] == ["photo", True, True]
    assert seen["missing"] == ["E<b>, seed 3: no picture of this scene", True]
    assert seen["pictures"] == [EVIL, "second.png", "third.png"] and seen["legend"] == "roadtraffic <i>lightbus"
    assert seen["title"] == seen["bar"] == "06_ablation: toy-quick" and seen["facts"] == 6 and not seen["sides"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
def test_a_page_without_pictures_hides_their_controls_in_a_browser(folder, tmp_path):
    show = '<script>document.body.dataset.seen = JSON.stringify({hidden: $("pictures").hidden, high: $("pictures").offsetHeight, problems});</script>'
    seen = browse(viewer.write_page(folder), tmp_path, show)
    assert seen["hidden"] and seen["high"] == 0
