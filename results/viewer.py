"""One HTML file to look around in the runs of a folder: curves, scores of the classes, pictures of two runs side by side.

`python results/viewer.py results/06_kervadec_ablation/camvid11-laptop` writes viewer.html into that folder from what the
runs left there: config.json, history.csv, summary.json and, where a notebook kept them with `write`, pictures. The page
needs no network. Keep it to yourself where it shows photos that are not yours to publish.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import pandas as pd
import plotly.offline
from PIL import Image

import common

KEPT = Path("predictions") / "viewer"  # git ignores predictions/; below it, as what lies in it goes to an official evaluation
LARGEST = 7_500_000  # bytes of a page, more than half of them plotly's
WIDTHS = (768, 512, 384, 256)  # of pictures: the first with which the page is small enough
METRICS = {"miou": "mIoU", "boundary_f1_strict": "strict boundary F1", "boundary_f1": "boundary F1",
           "trimap_iou": "trimap IoU"}

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>|</title>
<style>
body {font: 15px/1.4 sans-serif; margin: 1em auto; max-width: 1150px; padding: 0 1em; color: #222}
h1 {font-size: 1.4em; margin: .3em 0} #shared {color: #666; margin: 0}
.row {display: flex; flex-wrap: wrap; align-items: center; gap: .4em 1.4em; margin: .7em 0}
label {white-space: nowrap} select {max-width: 32em} input {vertical-align: middle}
.swatch {display: inline-block; width: .8em; height: .8em; margin: 0 .3em; border: 1px solid #999}
#controls {position: sticky; top: 0; background: white; padding: .1em 0; z-index: 1; border-bottom: 1px solid #ddd}
#views {display: flex; gap: 1em} #images {display: flex; gap: 1%} figure {width: 49.5%; margin: 0} figure label {display: block}
img {width: 100%; margin-top: .4em} figcaption, #legend, #note, table {font-size: 13px} #note {color: #666; margin: 0}
table {border-collapse: collapse} td, th {padding: .15em .8em .15em 0; text-align: left; vertical-align: top}
[hidden] {display: none !important}
</style></head><body>
<h1 id="title"></h1><p id="shared"></p>
<div id="controls"><div class="row" id="labels"></div>
<div class="row"><label>seed <select id="seed"></select></label>
<label>epoch <input id="epoch" type="range" min="0"> <output id="epoch_shown"></output></label></div></div>
<div id="curves"></div>
<p id="note">With the mean of two seeds, thin lines are the seeds; from three on, the band is Student's 95 % interval.</p>
<div id="classes"></div>
<div id="pictures"><div class="row"><label>picture <select id="picture"></select></label><span id="views"></span></div>
<div id="images"><figure><label>left <select id="left"></select></label>
<img id="left_image" alt=""><figcaption id="left_caption"></figcaption></figure>
<figure><label>right <select id="right"></select></label>
<img id="right_image" alt=""><figcaption id="right_caption"></figcaption></figure></div>
<div class="row" id="legend"></div></div>
<details><summary>How these runs were made</summary><table id="facts"></table></details>
<script>|</script><script>const data = |</script></body></html>"""

SCRIPT = """
const $ = id => document.getElementById(id), views = ["photo", "truth", "prediction", "error"];
const options = {displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]]};
const add = (parent, kind, facts = {}) => parent.appendChild(Object.assign(document.createElement(kind), facts));
const swatch = color => {
  const square = Object.assign(document.createElement("span"), {className: "swatch"});
  square.style.background = color;
  return square;
};
const fill = (id, names, chosen = 0) => {
  names.forEach((name, i) => $(id).add(new Option(name, i)));
  $(id).selectedIndex = chosen;
};
const switches = (parent, type, name, items, checked) => items.forEach((item, i) => {
  const label = add(parent, "label"), id = name + i;
  add(label, "input", {type, name, id, value: i, checked: checked(i)});
  label.append(" ", item);
});
const shown = () => data.labels.filter((_, i) => $("label" + i).checked);
const seed = () => data.seeds[$("seed").value], epoch = () => data.epochs[$("epoch").value];
function tracesOf(label, metric, k) {
  const axes = {xaxis: "x" + (k + 1), yaxis: "y" + (k + 1), name: label.text, showlegend: false, mode: "lines"};
  const line = {color: label.color, dash: label.dash}, run = (label.curves[seed()] || {})[metric.key], traces = [];
  if (!run) return traces;
  if (run.half) {
    const upper = run.y.map((y, i) => y + run.half[i]), lower = run.y.map((y, i) => y - run.half[i]);
    traces.push({...axes, x: run.x.concat([...run.x].reverse()), y: upper.concat(lower.reverse()), fill: "toself",
                 opacity: 0.2, fillcolor: label.color, line: {width: 0}, hoverinfo: "skip"});
  } else if (seed() == "mean") Object.entries(label.curves).forEach(([number, of_seed]) => {
    const thin = number != "mean" && of_seed[metric.key];
    if (thin) traces.push({...axes, x: thin.x, y: thin.y, line: {...line, width: 0.6}, hoverinfo: "skip"});
  });
  traces.push({...axes, x: run.x, y: run.y, line, mode: "lines+markers"});
  return traces;
}
function curves() {
  const traces = data.metrics.flatMap((metric, k) => shown().flatMap(label => tracesOf(label, metric, k)));
  const grid = {rows: 1, columns: data.metrics.length, pattern: "independent", xgap: 0.17};
  const layout = {height: 310, margin: {t: 25, b: 45, l: 55, r: 10}, grid, shapes: []};
  data.metrics.forEach((metric, k) => {
    const n = k ? k + 1 : "";
    layout["yaxis" + n] = {title: {text: metric.text}};
    layout["xaxis" + n] = {title: {text: "epoch"}};
    layout.shapes.push({type: "line", xref: "x" + n, yref: "y" + n + " domain", x0: epoch(), x1: epoch(), y0: 0, y1: 1,
                        line: {color: "#999", width: 1, dash: "dot"}});
  });
  Plotly.react("curves", traces, layout, options);
}
function classes() {
  $("epoch_shown").textContent = epoch();
  const traces = shown().map(label => {
    const scores = label.iou[seed()] || {}, reached = Object.keys(scores).map(Number).filter(e => e <= epoch());
    const last = Math.max(...reached), older = reached.length && last < epoch() ? " (epoch " + last + ")" : "";
    return {type: "bar", name: label.text + older, marker: {color: label.color}, x: data.classes, y: scores[last] || []};
  });
  const yaxis = {title: {text: "IoU in per cent"}, range: [0, 100]}, xaxis = {automargin: true};
  Plotly.react("classes", traces, {height: 330, margin: {t: 25, b: 30, l: 55, r: 10}, yaxis, xaxis, showlegend: false,
                                   hovermode: "x unified"}, options);
}
function pictures() {
  const picture = data.pictures[$("picture").value], view = views.find((_, i) => $("view" + i).checked);
  if (!picture) return;
  const shared = view == "photo" || view == "truth", says = view == "error" ? "error (red is wrong, black is void)" : view;
  for (const side of ["left", "right"]) {
    const run = $(side).value, own = picture.runs[run], source = shared ? picture[view] : own && own[view];
    $(side + "_image").hidden = !source;
    if (source) $(side + "_image").src = source;
    $(side + "_caption").textContent = shared ? view : data.drawn[run] + ": " + (own ? says : "no picture of this scene");
  }
}
function draw() { curves(); classes(); pictures(); }
document.title = $("title").textContent = data.title;
$("shared").textContent = data.shared;
switches($("labels"), "checkbox", "label", data.labels.map(label => label.name), () => true);
data.labels.forEach((label, i) => {
  $("label" + i).after(swatch(label.color));
});
switches($("views"), "radio", "view", views, i => i == 2);
fill("seed", data.seeds);
fill("picture", data.pictures.map(picture => picture.name));
fill("left", data.drawn);
fill("right", data.drawn, data.right);
data.legend.forEach(entry => add($("legend"), "span").append(swatch(entry.color), entry.name));
$("pictures").hidden = data.pictures.length == 0;
$("epoch").max = $("epoch").value = data.epochs.length - 1;
data.facts.forEach((row, i) => {
  const line = add($("facts"), "tr");
  row.forEach(cell => add(line, i ? "td" : "th", {textContent: cell}));
});
document.querySelectorAll("input, select").forEach(control => control.addEventListener("input", draw));
draw();
"""


class Run(NamedTuple):
    """A finished run: `history` has a row of scores in per cent per evaluated epoch, `facts` are words by their heading."""

    folder: Path
    method: str
    seed: int
    history: pd.DataFrame
    facts: dict[str, str]


def read_history(path: Path) -> pd.DataFrame:
    """The scores of a history.csv that the page shows, in per cent, by epoch; ValueError where it holds no mIoU."""
    history = pd.read_csv(path).set_index("epoch")
    history = 100 * history[[c for c in history if c in METRICS or c.startswith("iou_")]].astype(float)
    history = history.replace([np.inf, -np.inf], np.nan).groupby(level=0).last()
    history.index = history.index.astype(int)
    if not len(history) or "miou" not in history:
        raise ValueError("no epoch was scored")
    return history


def facts_of(name: str, summary: dict, config: dict) -> dict[str, str]:
    """What the table below the page says of a run; empty where its files do not."""
    seconds = summary.get("seconds")
    said = {"run": name, "images": summary.get("n_train"), "epochs": summary.get("epochs"),
            "weights": summary.get("weights"), "minutes": None if seconds is None else round(seconds / 60),
            "mIoU": f"{100 * summary['metrics']['miou']:.2f}", "device": summary.get("device"),
            "command": config.get("recorded", {}).get("command")}
    return {heading: "" if fact is None else str(fact) for heading, fact in said.items()}


def read_run(folder: Path) -> Run | None:
    """The run in `folder`; None where there is no finished one, or one without mIoU (a network that is part of a loss)."""
    name, summary = re.fullmatch(r"(.+)_seed(\d+)", folder.name), common.read_json(folder / "summary.json")
    if not name or summary is None or "miou" not in summary["metrics"]:
        return None
    facts = facts_of(folder.name, summary, common.read_json(folder / "config.json") or {})
    return Run(folder, name[1], int(name[2]), read_history(folder / "history.csv"), facts)


def find_runs(folder: Path) -> list[Run]:
    """The finished runs in `folder`, by name and seed; a run whose files are damaged is left out, and a line says so."""
    if not folder.is_dir():
        raise common.StreetsError(f"There is no folder {folder} (seen from {Path.cwd()}).")
    runs = []
    for path in sorted(folder.glob("*/summary.json")):
        try:
            runs.append(read_run(path.parent))
        except common.StreetsError as error:
            print(f"left out: {error}")
        except common.runs.NOT_OURS:  # pandas and json have many words for it
            print(f"left out: {path.parent} has no readable summary.json and history.csv")
    runs = sorted((run for run in runs if run), key=lambda run: (run.method, run.seed))
    if not runs:
        raise common.StreetsError(f"There are no finished runs in {folder}: name a folder of runs such as "
                                  "results/06_kervadec_ablation/camvid11-laptop.")
    return runs


def short_names(methods: Sequence[str]) -> tuple[dict[str, str], str]:
    """{method: name without what ends them all}, and that end: A-epochs20 and D-epochs20 are A and D, -epochs20."""
    parts = [re.split(r"(?=-[A-Za-z])", method) for method in methods]  # not within lr1e-05
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 for p in parts) and len({p[-1 - shared] for p in parts}) == 1:
        shared += 1
    names = ["".join(p[: len(p) - shared]) for p in parts]
    return dict(zip(methods, names)), "".join(parts[0][len(parts[0]) - shared :])


def metrics_of(runs: Iterable[Run]) -> list[str]:
    """Columns to draw curves of: those of METRICS that the histories hold, the strict boundary F1 before the other one."""
    held = [metric for metric in METRICS if any(metric in run.history for run in runs)]
    return [metric for metric in held if metric != "boundary_f1" or "boundary_f1_strict" not in held]


def line_of(values: pd.Series, half: Sequence[float] | None = None) -> dict:
    return {"x": values.index.tolist(), "y": values.round(3).tolist(), "half": half}


def curves_of(runs: Sequence[Run], metrics: Iterable[str]) -> dict:
    """{seed or "mean": {metric: {"x", "y", "half"}}} of one method's runs.

    The mean is over all seeds, so it is there for the epochs that all have; `half`, of Student's interval, is left out
    for two seeds, where t is 12.7 and the band would fill the panel.
    """
    curves = {"mean": {}} | {str(run.seed): {} for run in runs}
    for metric in metrics:
        lines = {str(run.seed): run.history[metric].dropna() for run in runs if metric in run.history}
        for number, line in lines.items():
            curves[number][metric] = line_of(line)
        if lines:
            table = pd.concat(lines, axis=1).dropna()
            half = [round(common.student_interval(row)[1], 3) for row in table.to_numpy()] if len(lines) > 2 else None
            curves["mean"][metric] = line_of(table.mean(axis=1), half)
    return curves


def class_scores(runs: Sequence[Run], classes: Sequence[str]) -> dict:
    """{seed or "mean": {epoch: IoU of every class in per cent}} of one method's runs; None where a class has none."""
    columns = [f"iou_{name}" for name in classes]
    tables = {str(run.seed): run.history.reindex(columns=columns) for run in runs}
    shared = set.intersection(*(set(table.index) for table in tables.values()))
    together = pd.concat(tables.values()).groupby(level=0).mean()
    tables["mean"] = together[together.index.isin(shared)]
    return {number: {int(epoch): [None if np.isnan(v) else round(v, 2) for v in row]
                     for epoch, row in zip(table.index, table.to_numpy())} for number, table in tables.items()}


def label_entries(runs: Sequence[Run], metrics: Sequence[str], classes: Sequence[str]) -> tuple[list[dict], str]:
    """What the page draws of each method, and what ends all their names. Plotly reads `text` as HTML, so it is escaped."""
    by_method = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    names, end = short_names(list(by_method))
    dashes = [dash for dash in ("solid", "dash", "dot", "dashdot") for _ in common.CURVES]  # when the colours begin again
    entries = [{"name": names[method], "text": html.escape(names[method]), "color": color, "dash": dash,
                "curves": curves_of(of_method, metrics), "iou": class_scores(of_method, classes)}
               for (method, of_method), color, dash in zip(by_method.items(), cycle(common.CURVES), cycle(dashes))]
    return entries, end


def narrow(picture: np.ndarray, width: int, how: int) -> np.ndarray:
    """An (H, W) or (H, W, 3) array, at most `width` wide."""
    if picture.shape[1] <= width:
        return picture
    return cv2.resize(picture, (width, max(1, round(picture.shape[0] * width / picture.shape[1]))), interpolation=how)


def error_picture(image: np.ndarray, label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the photo in pale grey, wrong pixels red, void black."""
    picture = np.repeat(image.mean(2, keepdims=True), 3, axis=2).astype(np.uint8) // 2 + 100
    picture[(pred != label) & (label != 255)], picture[label == 255] = (220, 30, 30), 0
    return picture


def jpeg(picture: np.ndarray, quality: int = 85) -> bytes:
    """A photo (H, W, 3) uint8 as a JPEG."""
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def map_png(classes: np.ndarray, palette: bytes) -> bytes:
    """Class indices (H, W) as a PNG with a palette: its pixels are the indices, and programs show them in colour."""
    image, file = Image.fromarray(classes.astype(np.uint8)), io.BytesIO()
    image.putpalette(palette)
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def read_map(path: Path) -> tuple[np.ndarray, bytes]:
    """Class indices (H, W) and palette of a PNG that `map_png` made; StreetsError where it is damaged."""
    try:
        with Image.open(path) as image:
            palette = bytes(image.getpalette()).ljust(768, b"\0")  # a file holds it up to the last index used
            return np.array(image), palette
    except (OSError, SyntaxError, ValueError, TypeError):  # Pillow's words for a cut file, another kind, no palette
        raise common.StreetsError(f"{path} is damaged: delete it") from None


def keep_pictures(folder: Path, photos: Sequence, labels: Sequence, predictions: dict[str, Sequence], names: Sequence[str],
                  scheme: common.Scheme) -> None:
    """Keep photos and labels beside the runs, and each run's predictions, {run: maps}, in its folder.

    A file's name holds a checksum of photo and label, so that runs which saw other pictures under the same name, or the
    same at another size, are never shown beside them. It comes first, as the official evaluation looks for files that
    begin with the photo's name.
    """
    palette = common.as_colors(np.arange(256, dtype=np.uint8), scheme).tobytes()
    for i, (photo, label, name) in enumerate(zip(photos, labels, names, strict=True)):
        key = f"{zlib.crc32(photo.tobytes() + label.tobytes()):08x}_{quote(name, safe='')}"
        common.write_atomic(folder / KEPT / f"{key}.jpg", jpeg(narrow(photo, WIDTHS[0], cv2.INTER_AREA)))
        maps = {folder: label} | {folder / run: of_run[i] for run, of_run in predictions.items()}
        for place, classes in maps.items():
            classes = narrow(classes.astype(np.uint8), WIDTHS[0], cv2.INTER_NEAREST)
            common.write_atomic(place / KEPT / f"{key}.png", map_png(classes, palette))


class Scene(NamedTuple):
    """A photo (H, W, 3), its label and the predictions {number of the run: (H, W)}; the palette of both."""

    name: str
    photo: np.ndarray
    label: np.ndarray
    predictions: dict[int, np.ndarray]
    palette: bytes


def kept_scenes(folder: Path, runs: Sequence[Run]) -> list[Scene]:
    """The scenes of which at least one run has kept its prediction; damaged pictures are left out, and a line says so."""
    scenes = []
    for path in sorted((folder / KEPT).glob("*.jpg"), key=lambda path: path.name.partition("_")[2]):
        file = f"{path.stem}.png"
        own = {i: run.folder / KEPT / file for i, run in enumerate(runs) if (run.folder / KEPT / file).exists()}
        try:
            photo, (label, palette) = common.read_image(path), read_map(path.with_name(file))
            predictions = {i: read_map(place)[0] for i, place in own.items()}
        except common.StreetsError as error:
            print(f"left out: {error}")
            continue
        if predictions:
            scenes.append(Scene(unquote(path.stem.partition("_")[2]), photo, label, predictions, palette))
    return scenes


def data_uri(content: bytes, kind: str) -> str:
    """A file as text that an HTML page can hold."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def picture_entry(scene: Scene, width: int, drawn: dict[int, int]) -> dict:
    """Photo, truth and every run's prediction and errors of one scene, at most `width` wide; `drawn` numbers the runs."""
    photo = narrow(scene.photo, width, cv2.INTER_AREA)
    label, *maps = (narrow(m, width, cv2.INTER_NEAREST) for m in (scene.label, *scene.predictions.values()))
    runs = {drawn[i]: {"prediction": data_uri(map_png(classes, scene.palette), "png"),
                       "error": data_uri(jpeg(error_picture(photo, label, classes), 75), "jpeg")}
            for i, classes in zip(scene.predictions, maps)}
    return {"name": scene.name, "photo": data_uri(jpeg(photo), "jpeg"), "truth": data_uri(map_png(label, scene.palette), "png"),
            "runs": runs}


def picture_entries(scenes: Sequence[Scene], drawn: dict[int, int], room: int) -> list[dict]:
    """`picture_entry` of the scenes, as wide as `room` bytes allow; where even small ones do not fit, of the first few."""
    entries = []
    for width in WIDTHS:
        entries = [picture_entry(scene, width, drawn) for scene in scenes]
        if len(json.dumps(entries)) <= room:
            break
    while entries and len(json.dumps(entries)) > room:
        print(f"left out, as the page would be too large: the pictures of {entries.pop()['name']}")
    return entries


def legend_of(scenes: Sequence[Scene], names: Sequence[str]) -> list[dict]:
    """Name and colour of the classes that the scenes hold."""
    if not scenes:
        return []
    present = np.unique(np.concatenate([np.unique(m) for s in scenes for m in (s.label, *s.predictions.values())]))
    palette = np.frombuffer(scenes[0].palette, np.uint8).reshape(-1, 3)
    return [{"name": names[c], "color": f"rgb({', '.join(map(str, palette[c]))})"} for c in present if c < len(names)]


def page_data(folder: Path, runs: Sequence[Run], room: int) -> dict:
    """All that the page shows, in at most about `room` bytes: the pictures get what the numbers leave."""
    metrics, numbered = metrics_of(runs), list(dict.fromkeys(c for run in runs for c in run.history if c.startswith("iou_")))
    all_classes = [column.removeprefix("iou_") for column in numbered]  # in the order of the scheme
    classes = [c for c in all_classes if any(run.history.get(f"iou_{c}", pd.Series()).notna().any() for run in runs)]
    labels, end = label_entries(runs, metrics, classes)
    scenes = kept_scenes(folder, runs)
    with_pictures = sorted({i for scene in scenes for i in scene.predictions})
    names = short_names([label["name"] + end for label in labels])[0]
    data = {"title": f"{folder.parent.name}: {folder.name}", "labels": labels,
            "shared": f"All names here end in {end}." if end else "",
            "metrics": [{"key": metric, "text": f"{METRICS[metric]} in per cent"} for metric in metrics],
            "seeds": ["mean", *map(str, sorted({run.seed for run in runs}))],
            "epochs": sorted({int(epoch) for run in runs for epoch in run.history.index}),
            "classes": [html.escape(name) for name in classes], "legend": legend_of(scenes, all_classes),
            "drawn": [f"{names[runs[i].method]}, seed {runs[i].seed}" for i in with_pictures],
            # at first the right picture is of the left one's seed
            "right": max((k for k, i in enumerate(with_pictures) if runs[i].seed == runs[with_pictures[0]].seed), default=0),
            "facts": [list(runs[0].facts), *(list(run.facts.values()) for run in runs)]}
    drawn = {i: k for k, i in enumerate(with_pictures)}
    return data | {"pictures": picture_entries(scenes, drawn, room - len(json.dumps(data)))}


def write_page(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page for the runs in `folder`, <notebook>/<data>-<mode>, and return its path. All names in it are escaped."""
    folder = Path(folder).resolve()
    runs, plotly_js = find_runs(folder), plotly.offline.get_plotlyjs()
    data = page_data(folder, runs, LARGEST - len(plotly_js.encode()))
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # no name can end the script
    head, style, middle, tail = PAGE.split("|")
    title = html.escape(data["title"])
    page = "".join([head, title, style, plotly_js, middle, text, ";", SCRIPT, tail])
    out = Path(out) if out else folder / "viewer.html"
    common.write_atomic(out, page.encode())
    return out


def write(folder: str | Path, photos: Sequence, labels: Sequence, predictions: dict[str, Sequence], names: Sequence[str],
          scheme: common.Scheme) -> Path:
    """Keep pictures of a few scenes beside the runs, then write the page; returns its path.

    Photos (H, W, 3) uint8, labels (H, W) of class indices, predictions {name of a run's folder: as labels}.
    """
    keep_pictures(Path(folder), photos, labels, predictions, names, scheme)
    return write_page(folder)


def write_networks(folders: dict[str, Path], networks: dict, data: common.StreetScenes, wanted: Sequence[int]) -> Path:
    """`write` with what networks {name: network} of runs {name: folder} predict for the `wanted` scenes of the val split.

    The runs lie in one folder, whose page is written.
    """
    photos, labels = zip(*(data.read(k) for k in wanted))
    predictions = {folders[name].name: [common.predict(network, photo, data.size, data.mean, data.std) for photo in photos]
                   for name, network in networks.items()}  # fmt: skip
    names = [f"val street {k}" for k in wanted]
    return write(next(iter(folders.values())).parent, photos, labels, predictions, names, data.scheme)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one HTML page to look around in the runs of a folder.")
    parser.add_argument("folder", help="a folder of runs, such as results/06_kervadec_ablation/camvid11-laptop")
    parser.add_argument("--out", metavar="FILE", help="the page (default: viewer.html in that folder)")
    args = parser.parse_args()
    try:
        path = write_page(args.folder, args.out)
    except common.StreetsError as error:
        sys.exit(str(error))
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    main()
