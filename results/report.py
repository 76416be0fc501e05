"""Write results/README.md: what the sources claim, what the runs in this folder give, and what follows from it.

`python results/report.py` reads the runs' config.json, summary.json and history.csv, published.csv (the sources' numbers),
sources.csv (what each source trained with) and claims.csv (what it claims), and also fills the block between the two
`claims` comments of the repository's README.md. A run tests a claim only where it recorded all that the source had.
"""

import argparse
import html
import json
import math
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
import common
from results.runs import KINDS, NOT_OURS, definitions_digest, results_folder, run_summaries, script_cells

ALPHA = 0.05
MARGIN = 0.10  # a score this close to that of naming the most frequent class everywhere shows nothing learnt
JUDGES = {"test": "test", "val": "val"}  # the first that there is
NAMED = {"held_out": "held-out fold", "official_val": "official val"}
OF_A_METHOD = {"folds", "parent", "recipe", "images_per_step", "best_by"}
EARLIER = "made by an earlier state of the code"
CAMVID_TEST = 233  # images of the test split; a score on some of them compares with nothing published
CAMVID_CLASSES = ("sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car", "person", "rider")
README_BLOCK = re.compile(r"(<!-- claims, written by results/report.py -->\n).*?(\n<!-- end of claims -->)", re.S)


class Run(NamedTuple):
    """A finished run. `recorded` is all that changes its numbers but the seed, `reasons` what of it its source had not."""

    notebook: str
    method: str
    recipe: str
    seed: int
    command: str
    recorded: dict
    scores: dict  # by split
    final: dict  # whatever else was scored at the end
    majority: dict  # by split: scores of naming the most frequent class everywhere
    counted: dict  # by split: images and drives, in words
    history: pd.DataFrame | None
    state: str  # what is to be known about its code
    reasons: tuple

    @property
    def group(self) -> str:
        """Equal for the seeds that may be averaged, and for the folds of one cross-validation."""
        aside = {name for name in self.recorded if fold_of(self.recipe)[1] and name.startswith("n_")}
        return json.dumps({name: value for name, value in self.recorded.items() if name not in aside}, sort_keys=True)


def fold_of(recipe: str) -> tuple[str, str]:
    """("image-fold", "2") of the run "image-fold2", which holds out the second of the folds by image; else (recipe, "")."""
    found = re.fullmatch(r"((?:image|city)-fold)(\d+)", recipe)
    return found.groups() if found else (recipe, "")


def plain(value) -> str:
    """What somebody else may have named, on one line and of some length at most."""
    return "".join(c if c.isprintable() else " " for c in str(value)[:500])


def text(value) -> str:
    """The same for Markdown: nothing in it is markup, HTML or a link."""
    return re.sub(r"[|`\[\]*~$\\@]|(?i:(?<=www)\.)|:(?=//)", lambda found: f"&#{ord(found[0])};", html.escape(plain(value)))


@cache
def read_table(name: str) -> pd.DataFrame:
    return pd.read_csv(REPO / "results" / name, keep_default_na=False, comment="#", dtype=str)


@cache
def current_definitions(notebook: str, functions: tuple[str, ...]) -> str | None:
    """Digest of what a notebook defines today for the functions that a run names, None where there is no such notebook."""
    path = REPO / "notebooks" / f"{Path(notebook).name}.py"
    return definitions_digest(script_cells(path.read_text(encoding="utf-8")), functions) if path.exists() else None


def numbers(tree: dict) -> dict:
    """A tree of scores without what is no number; ValueError where one is not finite."""
    kept = {name: numbers(value) if isinstance(value, dict) else value for name, value in tree.items()
            if value is None or isinstance(value, dict | int | float)}  # fmt: skip
    if not all(abs(value) < 1e9 for value in kept.values() if isinstance(value, int | float)):
        raise ValueError("a score is not finite, or no score")
    return kept


def read_run(folder: Path) -> Run:
    """The run in a folder; one of the errors that `read_runs` catches where its files are not a run's."""
    optional = dict.fromkeys(("test", "final", "majority_baseline", "test_majority_baseline", "drives"))
    kinds = KINDS | {"command": str} | dict.fromkeys(optional, dict | None)
    run = optional | common.read_json(folder / "summary.json")
    config = common.read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if wrong := [name for name, kind in kinds.items() if not isinstance(run[name], kind)]:
        raise TypeError(wrong)
    final, changes = numbers(run["final"] or {}), config.get("changes") or {}
    scores = {split: score for split, score in final.items() if isinstance(score, dict) and "miou" in score}
    scores |= numbers({"val": run["metrics"]} | ({"test": run["test"]} if run["test"] else {}))
    majority = {"val": run["majority_baseline"] or {}, "test": run["test_majority_baseline"] or {}}
    images = config.get("images", {}) | {split: run[f"n_{split}"] for split in ("val", "test") if f"n_{split}" in run}
    drives = dict.fromkeys(images, "an unrecorded number of") | (run["drives"] or {})
    counted = {split: f"{text(n)} images, {text(drives[split])} drives" for split, n in images.items()}
    counted["held_out"] = counted.get("val")
    recipe = str(config["recipe"]) if "changes" in config else run["method"].partition("-")[0]
    recorded = recorded_facts(run, config, recipe)
    note = config.get("recorded", {})
    current = "code" in note and note["definitions"] == current_definitions(run["notebook"], tuple(note["functions"]))
    state = EARLIER if not current else "" if note["code"] == "committed" else "uncommitted code"
    table = folder / "history.csv"
    history = pd.read_csv(table) if table.exists() else None
    reasons = tuple(differences(run["notebook"], recipe, recorded, changes))
    if any(isinstance(tree.get("miou"), dict) for tree in (*scores.values(), *majority.values())):
        raise TypeError("mIoU is one number")
    return Run(run["notebook"], run["method"], recipe, run["seed"], run["command"], recorded, scores, final, numbers(majority),
               counted, history, state, reasons)  # fmt: skip


def recorded_facts(run: dict, config: dict, recipe: str) -> dict:
    """{name: value} of everything in a run's two files that changes its numbers, without the seed."""
    aside = ("parameters", "settings", "images", "drives", "arguments", "recorded", "changes", "method")
    found = {name: value for name, value in config.items() if name not in aside and (name, value) != ("recipe", recipe)}
    found, settings = found | (config.get("changes") or {}), config.get("settings", {})
    # the first folds were trained before there was a parameter `learn`, with all pictures
    found |= {"folds": fold_of(recipe)[0].removesuffix("-fold"), "learn": 0} if fold_of(recipe)[1] else {}
    found |= config.get("parameters", {}) | settings | {f"settings.{name}": value for name, value in settings.items()}
    found |= {f"n_{split}": n for split, n in config.get("images", {}).items()}
    named = ("dataset", "mode", "n_train", "n_val", "n_test", "epochs", "weights", "num_processes", "images_per_step", "best_by")
    found |= {name: run[name] for name in named if run.get(name) is not None}
    if "miou6" in run["metrics"]:  # a class that no label holds is not in the mean
        named = run["metrics"].get("iou") or {}
        found["classes_in_miou6"] = sum(value is not None for name, value in named.items() if name != "background")
    found |= {"parent": re.sub(r"_seed\d+$", "", str(found["parent"]))} if "parent" in found else {}
    return {name: value for name, value in found.items() if name != "seed"}


def differences(notebook: str, recipe: str, recorded: dict, changes: dict) -> list[str]:
    """What a run did not have as its source had it, by name; empty for a run that tests what the source claims."""
    def parsed(word: str):
        try:
            return json.loads(word)
        except ValueError:
            return word

    rows = read_table("sources.csv").query("notebook == @notebook and name not in ('source', 'departs')").itertuples()
    rows = [row for row in rows if re.fullmatch(row.method or ".*", recipe)]
    found = ["quick mode"] * (recorded["mode"] == "quick") + ["no source on record"] * (not rows)
    for row in (row for row in rows if row.value != "any"):
        source = row.value + " (assumed)" * (row.seen == "assumed")
        if recorded.get(row.name) is None:
            found.append(f"{row.name} not recorded, source {source}")
        elif recorded[row.name] not in map(parsed, row.value.split(" or ")):
            found.append(f"{row.name} {recorded[row.name]}, source {source}")
    return found + [f"{name} {value}, source not on record" for name, value in changes.items()
                    if name.rstrip("_") not in {row.name for row in rows}]  # fmt: skip


def read_runs(out_dir: str | Path = "", quick: bool = False) -> tuple[list[Run], list[str]]:
    """(runs, a line for each folder that holds none of ours). Quick runs are no evidence and come only with `quick`."""
    runs, skipped = {}, []
    for folder, path in run_summaries(out_dir).items():
        try:
            run = read_run(path.parent)
            same = run.notebook, run.method, run.seed, run.group
        except NOT_OURS:
            skipped.append(f"{folder}: damaged or not ours")
            continue
        if same in runs:
            skipped.append(f"{folder}: a copy of another run")
        elif "miou" in run.scores["val"] and (quick or run.recorded["mode"] != "quick"):  # not so a network within a loss
            runs[same] = run
    return list(runs.values()), skipped


def score(run: Run, split: str, metric: str) -> float | None:
    """A metric of a run on a split; miou@10 is the one on val after epoch 10; None where the run has none."""
    name, _, epoch = metric.partition("@")
    if not epoch:
        tree = {"final": run.final} if name.startswith("final_") else run.scores.get(split, {})
        return common.flat(tree).get(name)
    if run.history is None or not {"epoch", name} <= set(run.history.columns):
        return None
    history = run.history[["epoch", name]].apply(pd.to_numeric, errors="coerce").dropna()
    value = history[history["epoch"] == (history["epoch"].max() if epoch == "last" else int(epoch))][name]
    return float(value.iloc[0]) if len(value) else None


def share_of_gains(a: dict, b: dict) -> float | None:
    """Share of the classes that both have in which a is above b; None where there is no such class."""
    gains = [a[name] > b[name] for name in a if a[name] is not None and b.get(name) is not None]
    return sum(gains) / len(gains) if gains else None


def measure(x: Run, y: Run, split: str, a: str, b: str) -> float | None:
    """What a claim is about, from one run of either side: a difference, a share of the classes or a single score."""
    if a.startswith("gaining_"):
        return share_of_gains(*(run.scores.get(split, {}).get(a.removeprefix("gaining_")) or {} for run in (x, y)))
    first, second = score(x, split, a.removeprefix("spread_")), score(y, split, b) if b else 0.0
    return None if first is None or second is None else first - second


def comparable(x: dict, y: dict) -> bool:
    """Whether two runs were made alike but for what their methods are: what both read has one value."""
    names, silent = (x.keys() & y.keys()) - OF_A_METHOD, (None, "not used")
    names -= {name for name in names if "folds" in x and name.startswith("n_")}  # folds of one data set differ in size
    names -= {"epochs"} if "settings.epochs" in names else set()  # those of a stage, where the settings are what counts
    return all(x[name] == y[name] or x[name] in silent or y[name] in silent for name in names)


def near_majority(runs: Sequence[Run], split: str, metric: str) -> bool:
    """Whether runs score, on average, within MARGIN of naming the most frequent class everywhere.

    Looked at are mIoU and, where that answer's score is known or 0 (of one class, say), the metric itself.
    """
    metric, at, epoch = metric.partition("@")
    gaps = {name: [] for name in ("miou", *[metric] * metric.startswith(("iou_", "miou6", "final_")))}
    for run in runs:
        constant = run.majority.get(split) or run.majority["val"]
        for name, each in gaps.items():
            each.append((score(run, split, name + at + epoch) or 0) - (constant.get("miou" if "final_" in name else name) or 0))
    return any(np.mean(each) <= MARGIN for each in gaps.values())


class Evidence(NamedTuple):
    """What two groups of runs give for a claim: a value per seed, and at which level its interval is drawn."""

    claim: tuple  # a row of claims.csv
    values: np.ndarray
    a: list[Run]
    b: list[Run]
    splits: list[str]
    near: bool
    reasons: tuple
    level: float = ALPHA

    @property
    def judged(self) -> bool:
        """Whether there is a verdict: the claim has a direction, there are two seeds or more, and something was learnt."""
        return bool(self.claim.sign) and len(self.values) > 1 and not self.near


def alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs in groups of one method that differ in their seeds only."""
    groups = {}
    for run in runs:
        groups.setdefault((run.notebook, run.method, run.group), []).append(run)
    return list(groups.values())


def sides(runs: Sequence[Run], name: str) -> list[dict]:
    """The groups of runs of a recipe, each {(fold, seed): run}; "image-fold" means all folds of one cross-validation."""
    groups = {}
    for run in runs:
        family, number = fold_of(run.recipe)
        if name in (run.recipe, family):
            groups.setdefault(run.group, {})[number, run.seed] = run
    return list(groups.values())


def find_evidence(claim, runs: Sequence[Run]) -> list[Evidence]:
    """One for every two groups of runs of the claim's methods that were made alike, paired by seed (and fold)."""
    name_a, _, a = claim.a.partition(" ")
    name_b, _, b = claim.b.partition(" ")
    named, metric = [split for split in (*NAMED, *JUDGES) if f"final_{split}" in a + b], a.removeprefix("spread_")
    found = []
    groups_a, groups_b = sides(runs, name_a), sides(runs, name_b or name_a)
    for of_a, of_b in ((x, y) for x in groups_a for y in groups_b if b or x == y):
        if not comparable(*(next(iter(side.values())).recorded for side in (of_a, of_b))):
            continue
        for split in ("val",) if named or "@" in a else JUDGES:
            pairs = [(key, measure(of_a[key], of_b[key], split, a, b)) for key in sorted(of_a.keys() & of_b.keys())]
            pairs = [(key, value) for key, value in pairs if value is not None]
            of_seed = pd.Series([value for _, value in pairs], [seed for (_, seed), _ in pairs], float).groupby(level=0)
            values = (of_seed.std() if metric != a else of_seed.mean()).dropna().to_numpy()
            if len(values):
                xs, ys = ([side[key] for key, _ in pairs] for side in (of_a, of_b))
                near = near_majority(xs, split, metric) and near_majority(ys, split, b or metric)
                reasons = tuple(dict.fromkeys(reason for run in (*xs, *ys) for reason in run.reasons))
                found.append(Evidence(claim, values, xs, ys, named or [split], near, reasons))
                break
    return sorted(found, key=lambda one: len(one.a[0].method))  # those that depart least from their mode stand first


def p_value(values: np.ndarray) -> float:
    """Two-sided p of Student's t for a mean of 0."""
    return float(stats.ttest_1samp(values, 0).pvalue) if stats.sem(values) else float(not values.any())


def holm_levels(ps: Sequence[float]) -> list[float]:
    """Level at which Holm's procedure judges each p value: from the smallest on ever larger, until the first that fails."""
    levels, level, failed = [0.0] * len(ps), ALPHA, False
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        level = level if failed else ALPHA / (len(ps) - rank)
        failed = failed or ps[i] > level
        levels[i] = level
    return levels


def survivors(ps: pd.DataFrame) -> pd.DataFrame:
    """Which p values of a table stay significant after Holm's correction for those of their row."""
    return ps <= ps.apply(holm_levels, axis=1, raw=True)


def with_levels(rows: list[Evidence]) -> list[Evidence]:
    """Evidence on one source at Holm's levels: tests of its claims are a family, others one by data, mode and weights."""
    families = {}
    for i, one in enumerate(rows):
        if one.judged:
            like = [one.a[0].recorded[name] for name in ("dataset", "mode", "weights")] if one.reasons else []
            families.setdefault(tuple(like), []).append(i)
    levels = {}
    for members in families.values():
        levels |= zip(members, holm_levels([p_value(rows[i].values) for i in members]), strict=True)
    return [one._replace(level=levels.get(i, ALPHA)) for i, one in enumerate(rows)]


def verdict(one: Evidence) -> str:
    """One sentence on what the evidence says of its claim."""
    if one.near:
        return "No verdict: both score near the majority class."
    if not one.judged:
        return "One seed decides nothing." if one.claim.sign else "Shown, not judged."
    if p_value(one.values) > one.level:
        return "Undecided."
    as_claimed = (one.values.mean() > 0) == (one.claim.sign == "+")
    if one.reasons:
        return "Points the claimed way." if as_claimed else "Points the other way."
    return "Reproduced." if as_claimed else "Contradicted."


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table of cells that are Markdown already."""
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in (head, ["---"] * len(head), *rows))


def number(values: Sequence[float], sign: str = "", level: float = ALPHA, scale: float = 100) -> str:
    """Mean of fractions in per cent and, of two or more, its Student-t interval: "81.00 ± 2.48"; "" of none."""
    if not len(values):
        return ""
    mean, half = common.student_interval(scale * np.asarray(values, float), 1 - level)
    return f"{mean:{sign}.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def is_difference(claim) -> bool:
    return not re.search(" (gaining|spread)_", claim.a)


def our_value(one: Evidence) -> str:
    """What the runs give for a claim, in points: a difference with its interval, or a share or spread without."""
    if is_difference(one.claim):
        return number(one.values, "+", one.level, 1 if "loss" in one.claim.a else 100)
    return f"{100 * one.values.mean():.2f}"


def published_score(published: pd.DataFrame, name: str) -> float:
    """Published value of "recipe metric" or "recipe metric@epoch", such as "scratch iou_person"; nan where there is none."""
    recipe, _, metric = name.partition(" ")
    metric, _, epoch = metric.partition("@")
    of_class = metric.removeprefix("iou_") if metric.startswith("iou_") else ""
    rows = published[(published["method"] == recipe) & (published["metric"] == ("iou" if of_class else metric))]
    rows = rows[(rows["class"] == of_class) & (rows["seed"] == "") & rows["epoch"].isin([epoch] if epoch else ["last", "best"])]
    return float(rows["value"].iloc[0]) if len(rows) else math.nan


def published_value(claim) -> str:
    """What the source's numbers give for a claim, in points; empty where it printed none."""
    published, a, b = common.read_published(claim.notebook), claim.published_a or claim.a, claim.published_b
    b, (recipe, _, metric) = b or claim.b * (not claim.published_a), a.partition(" ")
    if is_difference(claim):
        value = published_score(published, a) - (published_score(published, b) if b else 0)
        return "" if math.isnan(value) else f"{value:+.2f}"
    rows = published[published["metric"] == metric.partition("_")[2]].astype({"value": float})
    if metric.startswith("spread_"):
        return f"{rows[rows['method'].str.fullmatch(recipe + '[0-9]')]['value'].std():.2f}"
    scores = rows[rows["class"] != ""].pivot(index="class", columns="method", values="value")
    return f"{100 * share_of_gains(dict(scores[recipe]), dict(scores[b.partition(' ')[0]])):.2f}"


def place(one: Evidence) -> str:
    """Where evidence was scored: each split with its images and its drives."""
    counted = [sorted({run.counted.get(split) or "unrecorded" for run in one.a}) for split in one.splits]
    return "; ".join(f"{(JUDGES | NAMED)[split]}, {' or '.join(each)}" for split, each in zip(one.splits, counted, strict=True))


class Notes:
    """Numbers for lists of differences; what all runs share is in `shared`, to be said once."""

    def __init__(self, runs: Sequence[Run]):
        every, self.numbers = [dict.fromkeys((*run.reasons, run.state)) for run in runs], {}
        self.shared = [reason for reason in every[0] if all(reason in each for each in every)]

    def of(self, *runs: Run) -> str:
        rest = dict.fromkeys(reason for run in runs for reason in (*run.reasons, run.state) if reason not in ("", *self.shared))
        return f"note {self.numbers.setdefault(tuple(rest), len(self.numbers) + 1)}" if rest else ""


def run_table(runs: Sequence[Run], published: pd.DataFrame, notes: Notes) -> str:
    """A row for each group of seeds that were made alike, beside the published score and, of a test, the difference to it."""
    metric, rows = "miou6" if len(common.headline(published, "miou6")) else "miou", []
    for group in alike(runs):
        run, theirs = group[0], published_score(published, f"{group[0].recipe} {metric}")
        of_split = {split: [value for run in group if (value := score(run, split, metric)) is not None] for split in JUDGES}
        val, judge = of_split.pop("val"), next((values for values in of_split.values() if values), [])
        tests = f" ({100 * np.mean(judge or val) - theirs:+.2f})" if not run.reasons and len(group) > 1 else ""
        rows.append([text(run.method), text(f"{run.recorded['dataset']}, {run.recorded['mode']}"), text(run.recorded["weights"]),
                     len(group), run.recorded["epochs"], number(val), number(judge),
                     "" if math.isnan(theirs) else f"{theirs:.2f}{tests}", notes.of(*group)])  # fmt: skip
    scores = [f"{metric.replace('miou', 'mIoU')}, {split}" for split in ("val", "test")]
    return table(["run", "data, mode", "weights", "seeds", "epochs", *scores, "published", "differs also"], rows)


def conditions(found: Sequence[Evidence]) -> list[str]:
    """What tells apart the runs behind each of several pieces of evidence on a claim; "" for the runs of a plain mode."""
    made = []
    for run in (one.a[0] for one in found):
        changes = run.method.removeprefix(run.recipe).strip("-")
        made.append([*(run.recorded[name] for name in ("dataset", "mode", "weights")), changes])
    differs = [len(set(column)) > 1 for column in zip(*made)]
    return [", ".join(text(word) for word, told in zip(each, differs) if told and word) for each in made]


def in_lines(found: Sequence[Evidence], rows: Sequence[tuple]) -> list[str]:
    """The cells of several rows of a table, one for each piece of evidence on a claim, as those of one: a line for each."""
    names = conditions(found)
    lines = [[f"{name}: {value}" if name else str(value) for name, value in zip(names, column)] for column in zip(*rows)]
    return [str(column[0]) if len(set(column)) == 1 else "<br>".join(of) for column, of in zip(zip(*rows), lines)]


def claim_row(found: list[Evidence], notes: Notes) -> list[str]:
    """The row of a claim: cells with a line for each of the conditions under which its runs were made, if they differ."""
    claim = found[0].claim
    columns = [(our_value(one), len(one.values), notes.of(*one.a, *one.b), verdict(one)) for one in found]
    return [f"{claim.claim} {claim.seen}", published_value(claim), *in_lines(found, columns)]


def section(notebook: str, runs: Sequence[Run], claims: pd.DataFrame, rows: list[Evidence]) -> str:
    """The part of the page on one source: its runs, its claims by where they were scored, notes, and the commands."""
    facts = read_table("sources.csv").query("notebook == @notebook").set_index("name")["value"]
    page = f"\n## {text(notebook)}\n\n" + (f"Source: {facts['source']}. " if "source" in facts else "")
    if runs:
        notes = Notes(runs)
        majority = sorted({f"{100 * run.majority['val']['miou']:.1f}" for run in runs if run.majority["val"].get("miou")})
        page += f"Naming the most frequent class everywhere gives an mIoU of {' or '.join(majority)} on val. " if majority else ""
        page += f"In all runs: {'; '.join(map(text, filter(None, notes.shared)))}." if any(notes.shared) else ""
        page += "\n\n" + run_table(runs, common.read_published(notebook), notes)
        by_place: dict[str, dict[int, list[Evidence]]] = {}  # and by claim
        for one in rows:
            by_place.setdefault(place(one), {}).setdefault(one.claim.Index, []).append(one)
        for where, by_claim in by_place.items():
            page += f"\nClaims, scored on {where}:\n\n" + table(
                ["claim", "published", "ours", "seeds", "differs also", "verdict"],
                [claim_row(found, notes) for found in by_claim.values()])  # fmt: skip
        page += "".join(f"\nNote {k}: {'; '.join(map(text, rest))}.\n" for rest, k in notes.numbers.items())
    page += f"\nNo parameter undoes that {facts['departs']}.\n" if "departs" in facts else ""
    left = claims.drop(index={one.claim.Index for one in rows})
    reasons = left["not_computed"].where(left["not_computed"] != "", "as no run here has the scores")
    for reason, of_reason in left.groupby(reasons, sort=False):
        page += f"\nNot computed, {reason}: {'; '.join(of_reason['claim'] + ' ' + of_reason['seen'])}.\n"
    commands = sorted({re.sub(r" -p seed \S+", "", plain(run.command)) for run in runs})
    return page + ("\nMade by these, with `-p seed`:\n\n" + "".join(f"    {line}\n" for line in commands)) * bool(commands)


def in_short(runs: Sequence[Run], claims: pd.DataFrame, found: dict[str, list]) -> str:
    """The top of the page, and what the repository's README repeats: a paragraph, and the first claim of each source."""
    theirs = claims[claims["seen"] != "[ours]"]
    rows = [one for of_source in found.values() for one in of_source if one.claim.seen != "[ours]"]
    tests = [one for one in rows if one.judged and not one.reasons]
    computed, tested = ({one.claim.Index for one in some} for some in (rows, tests))
    verdicts = [verdict(one)[:-1].lower() for one in tests]
    came_out = ", ".join(f"{verdicts.count(word)} {word}" for word in sorted(set(verdicts)))
    made = [(run.recorded["dataset"], run.recorded["weights"].replace("none", "random"), run.state) for run in runs]
    made = [f"{made.count(one)} on {text(one[0])} from {text(one[1])} weights" + f", {one[2]}" * bool(one[2])
            for one in dict.fromkeys(made)]  # fmt: skip
    page = (f"{theirs['notebook'].nunique()} sources make {len(theirs)} claims. Tested under a source's own conditions: "
            f"{len(tested)}{f' ({came_out})' * bool(came_out)}; compared under other conditions only: {len(computed - tested)}; "
            f"not computed: {len(theirs) - len(computed)}. Runs: {'; '.join(made) or 'none yet'}.\n\n")  # fmt: skip
    lines = []
    for claim in claims.drop_duplicates("notebook").itertuples():
        mine = [one for one in found[claim.notebook] if one.claim.Index == claim.Index]
        mine = [one for one in mine if one.a[0].method == one.a[0].recipe] or mine  # what departs from its mode stands below
        columns = [(our_value(one), len(one.values), "no" if one.reasons else "yes", verdict(one)) for one in mine]
        cells = in_lines(mine, columns) if mine else ["", "0", "", ""]
        lines.append([claim.notebook[:2], claim.claim, published_value(claim), *cells])
    return page + table(["", "claim", "published", "ours", "seeds", "its conditions?", "what came out"], lines)


def on_official_val(run: Run) -> float:
    """mIoU on the data set's val split, which for a network of a cross-validation is not the fold that it was scored on."""
    values = run.final.get("official_val", {}).get("low")
    return values["last"] if values else score(run, "val", "miou") or 0


def camvid(runs: Sequence[Run]) -> str:
    """Our best networks on the test split of CamVid with 11 classes, beside what others published: mIoU, and IoU by class."""
    published, names = common.read_published("camvid11_test"), [f"iou_{name}" for name in CAMVID_CLASSES]
    rows, by_class, best = [], [], 0
    for method, theirs in published.groupby("method", sort=False):
        of_class = dict(zip(theirs["class"], theirs["value"]))
        rows.append([method, theirs["weights"].iloc[0], "", f"{of_class.pop(''):.2f}"])
        if of_class:
            by_class.append([method, *(f"{of_class[name]:.1f}" if name in of_class else "" for name in CAMVID_CLASSES)])
    whole = [run for run in runs if run.recorded["dataset"] == "camvid11" and run.recorded.get("n_test") == CAMVID_TEST]
    ours: dict[str, tuple] = {}  # by notebook: mIoU on val, which chooses, and the runs
    for group in alike(whole):
        if all(score(run, "test", name) is not None for run in group for name in ("miou", *names)):
            on_val = np.mean([on_official_val(run) for run in group])
            ours[group[0].notebook] = max(ours.get(group[0].notebook, (-1, group)), (on_val, group), key=lambda one: one[0])
    for _, group in ours.values():
        mious, *each = ([score(run, "test", name) for run in group] for name in ("miou", *names))
        name = f"{text(group[0].notebook[:2])} {text(group[0].method)}"
        rows.append([name, text(group[0].recorded["weights"]), len(group), number(mious)])
        by_class.append([name, *(f"{100 * np.mean(values):.1f}" for values in each)])
        best = max(best, 100 * np.mean(mious))
    page = "\n## CamVid, test split, 11 classes\n\nOf each notebook the network that is best on the val split:\n\n"
    page += table(["network", "weights", "seeds", "mIoU"], rows)
    bar = published_score(published, "ENet miou")
    page += f"\nThe best of ours, {best:.2f}, is {'above' if best > bar else 'below'} ENet's {bar:.2f}.\n" if best else ""
    page += "\nThe IoU of each class, where it is known:\n\n" + table(["network", *CAMVID_CLASSES], by_class)
    notes = published.drop_duplicates("method")
    return page + "\nRead at:\n\n" + "".join(f"- {line}.\n" for line in notes["method"] + ": " + notes["note"])


HEAD = f"""# Results

Written by `python results/report.py` from the runs in this folder, published.csv, sources.csv and claims.csv; do not edit.

Numbers are per cent (losses as they are). A run *tests* a claim only where it recorded everything that changes its
numbers as the source had it; whatever else it had is listed by name. Differences are scored on *test*, images that
nothing was selected on, where there are some, else on *val*. Intervals are Student's over seeds: at 95 % for a single
run's row, and for a claim at the level that Holm's procedure leaves it among all of its source that are judged on like
data, in one mode, from like weights. One that was tried in several ways has a line for each; *In short* has only those
of a mode as it is, where there are some. One seed has no interval and decides nothing, nor do networks that both score
within {100 * MARGIN:.0f} points of naming the most frequent class everywhere. A claim was seen in the source's
[report], its [code] or a [draft]; [ours] is a question of ours: a control that no source made, or a change read off the
source's output.
Where a source prints two scores, their *published* difference is taken between these, rounded as they are; the source
may print another last digit. A mean, a spread or a share of classes that it does not print is ours.
"""


def report(out_dir: str | Path = "", quick: bool = False) -> tuple[str, str]:
    """(page, the part of it that the repository's README repeats) as Markdown; quick runs are listed only with `quick`."""
    runs, skipped = read_runs(out_dir, quick)
    claims = read_table("claims.csv")
    names = sorted({*claims["notebook"], *(run.notebook for run in runs)})
    by_notebook = {name: [run for run in runs if run.notebook == name] for name in names}
    found = {name: [] for name in names}
    for claim in claims[claims["a"] != ""].itertuples():
        found[claim.notebook] += find_evidence(claim, by_notebook[claim.notebook])
    found = {name: with_levels(rows) for name, rows in found.items()}
    summary = in_short(runs, claims, found)
    page = HEAD + "\n## In short\n\n" + summary
    for name, rows in found.items():
        page += section(name, by_notebook[name], claims[claims["notebook"] == name], rows)
    page += camvid(runs)
    return page + ("\nNot read:\n\n" + "".join(f"- {text(line)}\n" for line in skipped)) * bool(skipped), summary


def main() -> None:
    parser = argparse.ArgumentParser(description="Write results/README.md from finished runs and published numbers.")
    parser.add_argument("--out-dir", default="", help="results folder (default: results/ of this repo)")
    parser.add_argument("--quick", action="store_true", help="print the page with quick runs, too; they are not written")
    args, written = parser.parse_args(), {}
    page, summary = report(args.out_dir)
    target = results_folder(args.out_dir) / "README.md"
    if target.exists() and not target.read_text(encoding="utf-8", errors="replace").startswith(HEAD.partition(",")[0]):
        sys.exit(f"{target} was not written by this program and stays: name a folder of runs with --out-dir.")
    written[target] = page
    if not args.out_dir:
        readme = (REPO / "README.md").read_text(encoding="utf-8")
        written[REPO / "README.md"] = README_BLOCK.sub(lambda old: old[1] + summary + old[2], readme)
    try:
        for path, text in written.items():
            common.write_atomic(path, text.encode())
    except common.StreetsError as error:
        sys.exit(str(error))
    if args.quick:
        print(report(args.out_dir, quick=True)[0])
    print("written:", ", ".join(map(str, written)))


if __name__ == "__main__":
    main()
