"""Results: the report beside published numbers, and the pictures and tables that notebooks draw."""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import common
import data_prep
from results import report, runs

NOTEBOOK = "06_kervadec_ablation"
WEIGHTS = "fcmae_ft_in22k_in1k_384"
# what the source of notebook 06 trained with, as the runs of its paper mode record it
SETTINGS = {"network": "base", "encoder": f"tu-convnextv2_base.{WEIGHTS}", "decoder_width": 512, "height": 1024, "epochs": 160,
            "batch_size": 2, "accumulation": 4, "lr": 6e-5, "scratch_lr": 6e-5, "weight_decay": 0.01, "schedule": "linear", "class_weights": "none"}  # fmt: skip
PARAMETERS = {"recipe": "paper", "flip": 0.5, "jitter": 0.25, "hue": 0.03, "blur": 1.0, "precision": "bf16"}


def put_run(base, recipe="D", seed=1, miou=0.5, *, settings=(), parameters=(), changes=(), facts=(), code="committed",
            definitions=None, name="", history=None, **summary):
    """A finished run as a notebook leaves it: by default one that was made as the source of notebook 06 made its own."""
    dataset, mode = summary.get("dataset", "cityscapes"), summary.get("mode", "paper")
    method = summary.pop("method", "-".join([recipe, *(f"{key}{value}" for key, value in dict(changes).items())]))
    notebook = summary.get("notebook", NOTEBOOK)
    folder = base / notebook / f"{dataset}-{mode}" / (name or f"{method}_seed{seed}")
    terms = {"lambda_d": 1.0 if recipe in "BC" else None, "lambda_b": 0.2 if recipe in "CD" else None,
             "norm": "clip127" if recipe in "CD" else None}  # fmt: skip
    config = {"method": method, "recipe": recipe, "changes": dict(changes), "settings": SETTINGS | dict(settings),
              "parameters": {"mode": mode, "seed": seed} | PARAMETERS | dict(parameters), "dataset": dataset,
              "images": {"train": summary.get("n_train", 2975), "val": 500, "test": 0}} | terms | dict(facts)  # fmt: skip
    config["recorded"] = {"command": "papermill x", "code": code, "commit": "0" * 40,
                          "functions": ["train_variant"],
                          "definitions": definitions or report.current_definitions(notebook, ("train_variant",))}  # fmt: skip
    run = {"notebook": notebook, "run": folder.name, "method": method, "mode": mode, "dataset": dataset, "seed": seed, "n_train": 2975,
           "n_val": 500, "n_test": 0, "drives": {"train": 18, "val": 3, "test": 0}, "epochs": config["settings"]["epochs"],
           "weights": WEIGHTS, "num_processes": 1, "images_per_step": 8, "test": None, "metrics": {"miou": miou, "iou": {"road": 0.9}},
           "majority_baseline": {"miou": 0.02, "accuracy": 0.3}, "command": "papermill x -p variant D"} | summary  # fmt: skip
    folder.mkdir(parents=True)
    for file, content in {"config.json": config, "summary.json": run}.items():  # without the fsync of common.write_json
        (folder / file).write_text(json.dumps(content))
    if history:
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    return folder


def put_pair(base, differences=(0.4, 0.5, 0.6), a="A", b="D", **more):
    """Runs of two recipes, by default D and A, whose mIoU differ by these many per cent, a seed each."""
    for seed, difference in enumerate(differences):
        put_run(base, a, seed, 0.8, **more)
        put_run(base, b, seed, 0.8 + difference / 100, **more)


def page_of(base, **options):
    return report.report(base, **options)[0]


def row_of(page, start):
    """Cells of the one row that begins with this cell."""
    rows = [line for line in page.split("## In short")[1].split("\n## ", 1)[1].splitlines() if line.startswith(f"| {start}")]
    assert len(rows) == 1, rows
    return [cell.strip() for cell in rows[0].strip("|").split(" | ")]


CLAIM = "Cross-entropy with the boundary loss (D) is better than cross-entropy alone (A)"


def verdict_of(page):
    return row_of(page, CLAIM)[-1].rstrip(" |")


def evidence_of(base, start=CLAIM):
    claim = next(c for c in report.read_table("claims.csv").itertuples() if c.claim.startswith(start))
    return report.find_evidence(claim, report.read_runs(base)[0])


# what counts as a test


def test_runs_made_as_the_source_made_its_own_test_its_claim(tmp_path):
    put_pair(tmp_path)
    page = page_of(tmp_path)
    assert row_of(page, CLAIM)[1:5] == ["+0.40", "+0.50 ± 0.25", "3", ""] and verdict_of(page) == "Reproduced."
    assert "Tested under a source's own conditions: 1 (1 reproduced)" in page
    assert "| 06 | " + CLAIM + " | +0.40 | +0.50 ± 0.25 | 3 | yes | Reproduced. |" in page
    row = row_of(page, "D |")
    assert row[3:6] == ["3", "160", "80.50 ± 0.25"] and row[7] == "81.69 (-1.19)"


@pytest.mark.parametrize(("different", "reason"), [
    ({"weights": "imagenet"}, f"weights imagenet, source {WEIGHTS}"),
    ({"weights": "none"}, f"weights none, source {WEIGHTS}"),
    ({"num_processes": 8, "images_per_step": 64}, "images_per_step 64, source 8"),
    ({"settings": {"batch_size": 4, "accumulation": 2}}, "batch_size 4, source 2; accumulation 2, source 4"),
    ({"settings": {"epochs": 20}}, "epochs 20, source 160"),
    ({"settings": {"lr": 2e-4}}, "lr 0.0002, source 0.00006"),
    ({"settings": {"height": 512}}, "height 512, source 1024"),
    ({"n_train": 1000}, "n_train 1000, source 2975"),
    ({"dataset": "camvid32"}, "dataset camvid32, source cityscapes"),
    ({"parameters": {"blur": 0.0}}, "blur 0.0, source 1 (assumed)"),
    ({"parameters": {"precision": "auto"}}, "precision auto, source bf16"),
    ({"parameters": {"recipe": "author_config"}}, "recipe author_config, source paper"),
    ({"changes": {"new_knob": 3}}, "new_knob 3, source not on record"),
    ({"images_per_step": None}, "images_per_step not recorded, source 8"),
    ({"settings": {"weight_decay": None}}, "weight_decay not recorded, source 0.01"),
])
def test_what_differs_from_the_source_is_named_and_such_runs_test_nothing(tmp_path, different, reason):
    put_pair(tmp_path, **different)
    page = page_of(tmp_path)
    assert f"In all runs: {reason}" in page and "own conditions: 0; compared under other conditions only: 1;" in page
    assert verdict_of(page) == "Points the claimed way."
    method = next(run.method for run in report.read_runs(tmp_path)[0] if run.recipe == "D")
    assert row_of(page, f"{method} |")[7] == "81.69", "no difference to a score that it does not test"


def test_a_parameter_of_one_method_is_compared_too(tmp_path):
    put_pair(tmp_path, facts={"norm": "none"})
    assert any(reason == "norm none, source clip127 (assumed)" for reason in evidence_of(tmp_path)[0].reasons)


def test_seeds_of_different_initialisation_are_never_averaged(tmp_path):
    for seed, weights in enumerate((WEIGHTS, WEIGHTS, "imagenet", "none")):
        put_run(tmp_path, "A", seed, 0.8, weights=weights)
        put_run(tmp_path, "D", seed, 0.8 + 0.01 * seed, weights=weights)
    found = evidence_of(tmp_path)
    assert sorted(len(one.values) for one in found) == [1, 1, 2]
    assert [len(one.values) for one in found if not one.reasons] == [2], "the source's weights alone are a test"
    rows = [line for line in page_of(tmp_path).splitlines() if line.startswith("| D |")]
    assert [row.split(" | ")[2:4] for row in rows] == [[WEIGHTS, "2"], ["imagenet", "1"], ["none", "1"]]


@pytest.mark.parametrize("different", [{"settings": {"lr": 1e-4}}, {"parameters": {"flip": 0.0}}, {"n_train": 300}, {"num_processes": 2},
                                       {"weights": "none"}, {"dataset": "camvid11"}, {"mode": "course"}])  # fmt: skip
def test_only_runs_made_alike_are_compared(tmp_path, different):
    put_run(tmp_path, "A", 1, 0.8)
    put_run(tmp_path, "D", 1, 0.9, **different)
    assert not evidence_of(tmp_path)
    put_run(tmp_path, "A", 1, 0.8, name="another", **different)
    assert len(evidence_of(tmp_path)) == 1


def test_seeds_are_paired(tmp_path):
    put_run(tmp_path, "A", 1)
    put_run(tmp_path, "D", 2)
    assert not evidence_of(tmp_path)


def test_a_copy_of_a_run_does_not_count_twice(tmp_path):
    put_pair(tmp_path, (0.4, 0.5))
    put_run(tmp_path, "D", 1, 0.99, name="D_seed1 (copy)")
    page = page_of(tmp_path)
    assert row_of(page, "D |")[3] == "2" and "D&#95;seed1" not in page and "a copy of another run" in page


def test_quick_runs_are_no_evidence(tmp_path):
    put_pair(tmp_path, mode="quick")
    assert "| D |" not in page_of(tmp_path) and not evidence_of(tmp_path)
    page = page_of(tmp_path, quick=True)
    assert "quick mode" in page and verdict_of(page) == "Points the claimed way." and "own conditions: 0;" in page


def test_runs_of_records_without_the_newer_fields_are_read_and_test_nothing(tmp_path):
    for seed in (1, 2):
        for recipe in "AD":
            folder = put_run(tmp_path, recipe, seed, method=f"{recipe}-height512")
            config = json.loads((folder / "config.json").read_text())
            del config["recipe"], config["changes"], config["parameters"]["recipe"], config["recorded"]["code"]
            common.write_json(folder / "config.json", config | {"recipe": "paper"})
    runs, _ = report.read_runs(tmp_path)
    assert {run.recipe for run in runs} == {"A", "D"} and {run.recorded["recipe"] for run in runs} == {"paper"}
    (folder / "config.json").unlink()
    assert "height not recorded, source 1024" in report.read_run(folder).reasons


# scores, intervals, verdicts


@pytest.mark.parametrize(("differences", "ours", "verdict"), [
    ((0.4, 0.5, 0.6), "+0.50 ± 0.25", "Reproduced."),
    ((-0.4, -0.5, -0.6), "-0.50 ± 0.25", "Contradicted."),
    ((0.4, -0.5, 0.6), "+0.17 ± 1.46", "Undecided."),
    ((0.4,), "+0.40", "One seed decides nothing."),
])
def test_a_claim_is_judged_by_the_interval_of_paired_differences(tmp_path, differences, ours, verdict):
    put_pair(tmp_path, differences)
    page = page_of(tmp_path)
    assert row_of(page, CLAIM)[2:4] == [ours, str(len(differences))] and verdict_of(page) == verdict


def test_levels_are_holms_by_hand():
    assert report.holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert report.holm_levels([0.02, 0.01]) == pytest.approx([0.05, 0.025])
    assert report.holm_levels([0.03, 0.04]) == [0.025, 0.025], "after the first that fails none is judged more mildly"


def test_claims_of_a_source_share_its_chance_of_a_mistake(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(3):
        for recipe, miou in {"A": 0.8, "B": 0.7, "C": 0.75, "D": 0.81}.items():
            put_run(tmp_path, recipe, seed, miou + rng.normal(0, 0.002))
    claims = [c for c in report.read_table("claims.csv").itertuples() if c.notebook == NOTEBOOK and c.a]
    runs, _ = report.read_runs(tmp_path)
    rows = report.with_levels([one for claim in claims for one in report.find_evidence(claim, runs)])
    ps = [stats.ttest_1samp(one.values, 0).pvalue for one in rows]
    order = np.argsort(ps)
    adjusted = np.maximum.accumulate([(len(ps) - rank) * ps[i] for rank, i in enumerate(order)])
    for p, one in zip(adjusted, np.array(rows, dtype=object)[order].tolist()):
        one = report.Evidence(*one)
        mean, half = common.student_interval(one.values, 1 - one.level)
        assert len(rows) == 4 and one.level <= 0.05 and (abs(mean) > half) == (p <= 0.05) == (report.verdict(one) != "Undecided.")


def test_other_data_are_another_family(tmp_path):
    put_pair(tmp_path)
    put_pair(tmp_path, dataset="camvid11")
    runs, _ = report.read_runs(tmp_path)
    assert [one.level for one in report.with_levels(evidence_of(tmp_path))] == [0.05, 0.05] and len(runs) == 12


@pytest.mark.parametrize(("a", "b", "near"), [(0.10, 0.11, True), (0.11, 0.13, False), (0.05, 0.6, False), (0.13, 0.14, False)])
def test_two_networks_near_the_majority_class_get_no_verdict(tmp_path, a, b, near):
    for seed in range(3):
        put_run(tmp_path, "A", seed, a + 0.0001 * seed)
        put_run(tmp_path, "D", seed, b)
    assert (verdict_of(page_of(tmp_path)) == "No verdict: both score near the majority class.") == near


def test_a_class_that_nobody_has_learnt_decides_nothing_about_it(tmp_path):
    for seed in range(3):
        for recipe, wall in {"B": 0.01, "D": 0.05 + 0.0001 * seed}.items():
            put_run(tmp_path, recipe, seed, 0.6, metrics={"miou": 0.6, "iou": {"wall": wall, "truck": wall + 0.3, "bus": None}})
    page = page_of(tmp_path)
    assert row_of(page, "Walls gain by D")[-1].startswith("No verdict") and row_of(page, "Trucks gain by D")[-1].startswith("Reproduced")
    assert re.search(r"no run here has the scores: .*Buses gain by D", page)


def test_a_test_split_is_preferred_to_images_that_selected(tmp_path):
    for seed in range(3):
        for recipe, (val, test) in {"A": (0.5, 0.6), "D": (0.7, 0.61 + 0.0001 * seed)}.items():
            put_run(tmp_path, recipe, seed, val, dataset="camvid11", n_test=233, drives={"val": 1, "test": 2}, test={"miou": test},
                    test_majority_baseline={"miou": 0.03})  # fmt: skip
    page = page_of(tmp_path)
    assert row_of(page, CLAIM)[2].startswith("+1.01") and "Claims, scored on test, 233 images, 2 drives:" in page
    assert row_of(page, "D |")[5:7] == ["70.00 ± 0.00", "61.01 ± 0.02"]


def test_without_a_test_split_val_is_said(tmp_path):
    put_pair(tmp_path)
    assert "Claims, scored on val, 500 images, 3 drives:" in page_of(tmp_path)


def test_scores_after_an_epoch_come_from_the_history(tmp_path):
    for seed in range(2):
        for recipe, early in {"C": 0.6, "D": 0.5, "B": 0.7}.items():
            put_run(tmp_path, recipe, seed, history={"epoch": [10, 160], "miou": [early, 0.8]})
    page = page_of(tmp_path)
    assert row_of(page, "Early on C leads: C against D")[1:3] == ["+1.92", "+10.00 ± 0.00"]
    assert row_of(page, "Early on C leads: C against B")[1:3] == ["+2.26", "-10.00 ± 0.00"]


def test_folds_are_paired_with_themselves_and_count_as_one_run(tmp_path):
    for fold, (start, end) in enumerate(((0.6, 0.5), (0.7, 0.65), (0.8, 0.65)), start=1):
        final = {"held_out": {"low": {"best": start}}, "official_val": {"full": {"last": end}}}
        put_run(tmp_path, f"image-fold{fold}", notebook="03_unet_resnet50_cv", miou=start, final=final, n_train=1980 + fold)
    page = page_of(tmp_path)
    row = row_of(page, "The score falls from the held-out fold at low")
    assert row[1:4] == ["-2.21", "-10.00", "1"] and row[-1].startswith("One seed")
    spread = row_of(page, "The score is stable: standard deviation over the folds at low")
    assert spread[1:3] == ["1.15", "10.00"] and spread[-1].startswith("Shown, not judged.")


def test_folds_by_image_and_by_city_are_compared_fold_by_fold_although_their_sizes_differ(tmp_path):
    for seed in range(2):
        for kind, scores in {"image": (0.6, 0.7, 0.8), "city": (0.55, 0.5, 0.6 + 0.01 * seed)}.items():
            for fold, last in enumerate(scores, start=1):
                final = {"held_out": {"low": {"last": last}}}
                put_run(tmp_path, f"{kind}-fold{fold}", seed, notebook="03_unet_resnet50_cv", final=final, facts={"variant": None},
                        n_train=len(kind) * 100 + fold, dataset="camvid11", mode="laptop")  # fmt: skip
    row = row_of(page_of(tmp_path), "Folds by image score higher than folds by city")
    assert row[2].startswith("+14.83") and row[3] == "2" and row[-1].startswith("Points the claimed way.")
    assert not any("folds image, source" in reason for run in report.read_runs(tmp_path)[0] for reason in run.reasons)
    assert "folds city, source image" in report.read_runs(tmp_path)[0][0].reasons
    for kind, last in {"image": 0.5, "city": 0.45}.items():
        for fold in (1, 2, 3):
            put_run(tmp_path, f"{kind}-fold{fold}", notebook="03_unet_resnet50_cv", final={"held_out": {"low": {"last": last}}},
                    facts={"variant": None}, n_train=50, dataset="camvid11", mode="laptop", changes={"learn": 50}, parameters={"learn": 50})  # fmt: skip
    differences = row_of(page_of(tmp_path), "Folds by image score higher than folds by city")[2]
    assert re.fullmatch(r"\+14\.83.*<br>learn50: \+5\.00", differences), "with as many pictures beside with as many"


def test_the_share_of_classes_that_gain_is_shown_and_not_judged(tmp_path):
    for recipe, (road, pole, train) in {"ppce": (0.9, 0.3, None), "semeda_4_2_0": (0.8, 0.4, None)}.items():
        metrics = {"miou": 0.6, "iou": {"road": road, "pole": pole, "train": train}}
        put_run(tmp_path, recipe, notebook="05_semeda", metrics=metrics)
    row = row_of(page_of(tmp_path), "Nearly every class gains: share in IoU")
    assert row[1:4] == ["94.74", "50.00", "1"] and row[-1].startswith("Shown, not judged.")


def test_where_a_source_reports_the_mean_of_six_classes_that_is_compared(tmp_path):
    for seed, miou6 in enumerate((0.60, 0.61, 0.62)):
        put_run(tmp_path, "bas", seed, notebook="04_segformer_thin_structures", metrics={"miou": 0.7, "miou6": miou6})
    page = page_of(tmp_path)
    assert "| mIoU6, val |" in page and row_of(page, "bas |")[5:8] == ["61.00 ± 2.48", "", "59.63"]


def test_a_mean_without_background_says_of_how_many_classes_it_is_where_some_are_in_no_label(tmp_path):
    iou = {"background": 0.9, "fence": 0.3, "car": 0.8, "vegetation": 0.7, "pole": 0.2, "traffic sign": 0.4, "traffic light": None}
    put_run(tmp_path, "bas", notebook="04_segformer_thin_structures", metrics={"miou": 0.7, "miou6": 0.48, "iou": iou})
    assert "classes_in_miou6 5, source 6" in page_of(tmp_path)


def test_a_network_that_is_part_of_a_loss_is_no_row_of_the_report(tmp_path):
    put_run(tmp_path, "proxy", metrics={"edge_f1": 0.99}, majority_baseline={})
    assert "proxy" not in page_of(tmp_path) and "Runs: none yet." in page_of(tmp_path)


# the state of the code


def test_code_that_was_not_committed_or_has_changed_since_is_said(tmp_path):
    put_run(tmp_path, "A", code="uncommitted: common.py")
    put_run(tmp_path, "B", definitions="0123456789ab")
    put_run(tmp_path, "D")
    states = {run.recipe: run.state for run in report.read_runs(tmp_path)[0]}
    assert states == {"A": "uncommitted code", "B": report.EARLIER, "D": ""}
    page = page_of(tmp_path)
    assert row_of(page, "A |")[-1].startswith("note 1") and row_of(page, "B |")[-1].startswith("note 2")
    assert "Note 1: uncommitted code." in page and "Note 2: made by an earlier state of the code." in page


def test_a_method_of_ones_own_has_a_row_without_a_published_score(tmp_path):
    put_pair(tmp_path)
    put_run(tmp_path, "E", 1, 0.7)
    assert row_of(page_of(tmp_path), "E |")[:7] == ["E", "cityscapes, paper", WEIGHTS, "1", "160", "70.00", ""]
    assert row_of(page_of(tmp_path), "E |")[7] == "" and verdict_of(page_of(tmp_path)) == "Reproduced."


def test_a_claim_that_was_tried_at_two_budgets_is_one_row_with_a_line_for_each(tmp_path):
    for changes, differences in (({"epochs": 3}, (-0.4,)), ({}, (0.4, 0.5, 0.6))):
        put_pair(tmp_path, differences, changes=changes, settings={"epochs": changes.get("epochs", 12)}, dataset="camvid11", mode="laptop")
    notes = "note 1<br>epochs3: note 2", "note 2<br>epochs3: note 1"
    verdicts = "Points the claimed way.<br>epochs3: One seed decides nothing."
    row = row_of(page_of(tmp_path), CLAIM)
    assert row[2:4] == ["+0.50 ± 0.25<br>epochs3: -0.40", "3<br>epochs3: 1"] and row[4] in notes and row[5].rstrip(" |") == verdicts


def test_in_a_row_of_several_conditions_what_tells_them_apart_is_named(tmp_path):
    put_pair(tmp_path, (0.4,), dataset="camvid11", mode="laptop", weights="lite0")
    put_pair(tmp_path, (0.6,), dataset="camvid11", mode="course", weights="none")
    row = row_of(page_of(tmp_path), CLAIM)
    assert sorted(row[2].split("<br>")) == ["course, none: +0.60", "laptop, lite0: +0.40"] and row[3] == "1"


# what is not ours


@pytest.mark.parametrize(("file", "content"), [
    ("summary.json", '{"notebook": '), ("summary.json", "[1, 2]"), ("summary.json", '"text"'), ("summary.json", "{}"),
    ("summary.json", b"\xff\xfe\x00"), ("summary.json", "[" * 100_000), ("config.json", "[]"), ("config.json", "null"),
    ("config.json", '{"settings": 3}'), ("config.json", '{"images": [1]}'), ("history.csv", ""),
    ("metrics", None), ("metrics", {"miou": float("inf")}), ("metrics", [0.5]), ("seed", "one"), ("epochs", 1.5), ("method", None),
    ("final", [1]), ("drives", [1]), ("test", "good"), ("majority_baseline", "none"),
    ("metrics", {"miou": 10**400}), ("metrics", {"miou": 1e308}), ("metrics", {"miou": {}}), ("majority_baseline", {"miou": {}}),
])
def test_what_is_damaged_or_not_ours_is_skipped_with_one_line(tmp_path, file, content):
    put_pair(tmp_path)
    folder = put_run(tmp_path, "C")
    if "." in file:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    else:
        summary = json.loads((folder / "summary.json").read_text()) | {file: content}
        (folder / "summary.json").write_text(json.dumps(summary).replace("Infinity", "1e999"))
    page = page_of(tmp_path)
    assert page.count("damaged or not ours") == 1 and "paper/C_seed1: damaged" in page and verdict_of(page) == "Reproduced."


@pytest.mark.parametrize(("file", "content"), [
    ("summary.json", '{"notebook": '), ("summary.json", "[1, 2]"), ("summary.json", "3"), ("summary.json", "{}"), ("summary.json", "[" * 100_000),
    ("summary.json", b"\xff\xfe\x00"), ("config.json", "{"), ("config.json", "[1]"), ("config.json", '{"settings": 3}'),
    ("metrics", None), ("metrics", [0.5]), ("seed", "one"), ("method", None), ("final", [1]),
])
def test_a_notebook_leaves_out_what_is_damaged_or_not_ours_with_one_line(tmp_path, capsys, file, content):
    kept, folder = put_run(tmp_path, "D"), put_run(tmp_path, "C")
    if "." in file:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    else:
        summary = json.loads((folder / "summary.json").read_text()) | {file: content}
        (folder / "summary.json").write_text(json.dumps(summary))
    common.say_once.cache_clear()
    assert common.find_runs(tmp_path)["folder"].tolist() == [kept]
    assert capsys.readouterr().out == f"left out: {folder} is damaged or not a run of ours\n"


def test_a_notebook_asks_for_runs_of_some_kind_and_gets_a_table_also_where_there_are_none(tmp_path):
    made = {(recipe, mode): put_run(tmp_path, recipe, mode=mode) for recipe in "AD" for mode in ("laptop", "paper")}
    assert common.find_runs(tmp_path, mode="laptop", method="D")["folder"].tolist() == [made["D", "laptop"]]
    assert set(common.find_runs(tmp_path, mode="laptop")["folder"]) == {made["A", "laptop"], made["D", "laptop"]}
    for none in (common.find_runs(tmp_path, mode="course"), common.find_runs(tmp_path / "nothing")):
        assert len(none) == 0 and {"folder", "method", "mode", "seed"} <= set(none.columns)
    with pytest.raises(KeyError, match="mod"):
        common.find_runs(tmp_path, mod="laptop")


def test_a_notebook_finds_all_runs_of_this_repository(capsys):
    common.say_once.cache_clear()
    for _, run in common.find_runs(notebook="06_kervadec_ablation", mode="laptop").iterrows():
        summary = json.loads((run["folder"] / "summary.json").read_text())
        assert run["iou_pole"] == summary["metrics"]["iou"]["pole"] and run["test_iou_pole"] == summary["test"]["iou"]["pole"]
    assert len(common.find_runs()) == len(list((common.HERE / "results").glob("*/*/*/summary.json"))) and not capsys.readouterr().out


def test_where_the_repository_is_read_only_its_runs_are_found_beside_those_that_were_written_elsewhere(tmp_path, monkeypatch):
    repository, working = tmp_path / "input" / "streets", tmp_path / "working"
    working.mkdir()
    committed = [put_run(repository / "results", recipe) for recipe in "AD"]
    monkeypatch.setattr(runs, "HERE", repository)
    monkeypatch.setattr(data_prep, "HERE", repository)
    monkeypatch.setattr(data_prep.os, "access", lambda path, mode: repository not in (Path(path), *Path(path).parents))
    monkeypatch.chdir(working)
    assert common.find_runs()["folder"].tolist() == committed
    again, new = put_run(runs.results_folder(), "D", miou=0.6), put_run(runs.results_folder(), "E", miou=0.7)
    assert working in again.parents
    assert common.find_runs()["folder"].tolist() == [committed[0], again, new]
    assert [run.scores["val"]["miou"] for run in report.read_runs()[0]] == [0.5, 0.6, 0.7] and report.read_runs()[1] == []
    assert common.find_runs(repository / "results")["folder"].tolist() == committed


HOSTILE = "D <script>alert(1)</script>|x `code` [a](http://b.c) www.b.c **bold** $x$\n# head\u202e &lt; a@b.c"


def test_names_that_others_chose_are_neither_markup_nor_links(tmp_path):
    folder = put_run(tmp_path, "D")
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {name: HOSTILE for name in ("notebook", "method", "dataset", "mode", "weights", "command", "n_val")}
    common.write_json(folder / "summary.json", summary | {"drives": {"val": HOSTILE}})
    config = json.loads((folder / "config.json").read_text())
    common.write_json(folder / "config.json", config | {"changes": {HOSTILE: HOSTILE}, "recipe": HOSTILE})
    foreign = tmp_path / "06" / "x" / "[y](z)`<i>|"
    foreign.mkdir(parents=True)
    (foreign / "summary.json").write_text("{")
    page = page_of(tmp_path)
    assert "damaged or not ours" in page and "&lt;script&gt;" in page, "the hostile run and folder are on the page"
    rendered = [line for line in page.splitlines() if not line.startswith("    papermill")]
    for line in rendered:
        if "&lt;script" in line or "not ours" in line:
            assert not re.search(r"<script|http://|`|\[a\]|\[y\]|<i>|www\.b|\*\*bold|\$x|a@b|\u202e", line), line
            assert len(line.split("|")) in (1, 11), line
    assert not [line for line in page.splitlines() if line.startswith("# head")]


# the page and the README


def test_the_summary_shows_runs_of_a_plain_mode_where_there_are_some_and_the_section_all(tmp_path):
    for changes, d in (({"epochs": 3}, 0.9), ({}, 0.6)):
        for recipe, miou in (("A", 0.5), ("D", d)):
            put_run(tmp_path, recipe, 1, miou, changes=changes, settings={"epochs": changes.get("epochs", 12)}, dataset="camvid11", mode="laptop")
    _, summary, *sections = page_of(tmp_path).split("\n## ")
    assert "(A) | +0.40 | +10.00 | 1 |" in summary
    assert [row for section in sections for row in section.splitlines() if "+0.40 | +10.00<br>epochs3: +40.00 | 1 |" in row]
    shutil.rmtree(tmp_path)
    for recipe, miou in (("A", 0.5), ("D", 0.9)):
        put_run(tmp_path, recipe, 1, miou, changes={"epochs": 3}, settings={"epochs": 3}, dataset="camvid11", mode="laptop")
    summary = page_of(tmp_path).split("\n## ")[1]
    assert "(A) | +0.40 | +40.00 | 1 |" in summary, "and where there are none, what there is"


def test_the_command_writes_the_page_and_leaves_the_readme_to_the_repos_own_runs(tmp_path, monkeypatch, capsys):
    before = (common.HERE / "README.md").read_bytes()
    put_run(tmp_path)
    put_run(tmp_path, "A", mode="quick")
    monkeypatch.setattr("sys.argv", ["report.py", "--out-dir", str(tmp_path), "--quick"])
    report.main()
    page, printed = (tmp_path / "README.md").read_text(), capsys.readouterr().out
    assert page == page_of(tmp_path) and "| D |" in page and "quick" not in page.split("## In short")[1]
    assert printed.endswith(f"written: {tmp_path / 'README.md'}\n")
    assert "| A | cityscapes, quick |" in printed and (common.HERE / "README.md").read_bytes() == before


def test_a_readme_that_somebody_else_wrote_stays(tmp_path, monkeypatch):
    put_run(tmp_path)
    (tmp_path / "README.md").write_text("my thesis notes")
    monkeypatch.setattr("sys.argv", ["report.py", "--out-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="was not written by this program and stays"):
        report.main()
    assert (tmp_path / "README.md").read_text() == "my thesis notes"


def test_the_committed_pages_are_what_the_committed_runs_give():
    page, summary = report.report()
    assert (common.HERE / "results" / "README.md").read_text(encoding="utf-8") == page, "run python results/report.py"
    readme = (common.HERE / "README.md").read_text(encoding="utf-8")
    assert report.README_BLOCK.search(readme) and summary in readme and summary in page


def test_every_table_of_the_page_fits_a_page():
    page = (common.HERE / "results" / "README.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?m)(?:^\|.*\n)+", page):
        columns = zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[:1] + table.splitlines()[2:]))
        longest = [max(len(word) for cell in column for word in re.split(r"[ -]|<br>", cell)) for column in columns]
        assert sum(longest) + 3 * len(longest) <= 115, "lines break at spaces and hyphens, and a page has room for so many characters"


def test_the_readme_repeats_claims_with_the_numbers_of_the_results_page():
    page = (common.HERE / "results" / "README.md").read_text(encoding="utf-8").splitlines()
    table = re.search(r"\| claim \|.*?\n\|[-| ]+\n(.*?)\n\n", (common.HERE / "README.md").read_text(encoding="utf-8"), re.S)[1].splitlines()
    assert len(table) == 5
    for row in table:
        assert [line for line in page if line.startswith(row)], row


def test_every_claim_is_computed_or_says_why_not_and_names_published_scores():
    claims = report.read_table("claims.csv")
    assert not claims.duplicated(["notebook", "claim"]).any() and set(claims["sign"]) == {"+", "-", ""}
    assert set(claims["seen"]) <= {"[report]", "[code]", "[draft]", "[ours]"}
    unpublished = []
    for claim in claims.itertuples():
        assert bool(claim.a) != bool(claim.not_computed), claim.claim
        if claim.a and not report.published_value(claim):
            unpublished.append(claim.claim)
            assert claim.seen == "[ours]" or claim.a.split()[1] in ("boundary_f1", "outside_3", "final_official_val_full_last"), claim.claim
    assert {"Edges improve in the last stage (boundary F1)"} <= set(unpublished)


def test_published_scores_are_found_by_epoch_and_class():
    published = common.read_published(NOTEBOOK)
    assert report.published_score(published, "C miou@10") == 78.1702 and round(report.published_score(published, "D iou_wall"), 2) == 61.64
    assert np.isnan(report.published_score(published, "D iou_moon")) and np.isnan(report.published_score(published, "D miou@11"))


@pytest.mark.parametrize("name", sorted(set(report.read_table("sources.csv")["notebook"])))
def test_the_record_of_a_source_names_what_its_notebooks_runs_record(name):
    rows = report.read_table("sources.csv").query("notebook == @name and name not in ('source', 'departs')")
    text = (common.HERE / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    of_summary = {"dataset", "n_train", "n_val", "n_test", "images_per_step", "best_by", "settings.epochs", "classes_in_miou6"}
    assert not {n for n in rows["name"] if n not in of_summary and not re.search(rf"\b{n}\b", text)}
    modes = next(ast.literal_eval(node.value) for node in ast.parse(text).body
                 if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MODES")  # fmt: skip
    assert set(modes["paper"]) <= set(rows["name"]), "a setting of the mode that is not compared"
    modes["paper"].pop("precision", None)  # where it is auto, the notebook says that it departs from the source
    for row in rows[rows["name"].isin(modes["paper"]) & (rows["value"] != "any") & (rows["method"] == "")].itertuples():
        value = modes["paper"][row.name]
        value = list(value) if isinstance(value, tuple) else value
        assert str(value) in row.value.split(" or ") or value in [json.loads(v) for v in row.value.split(" or ") if v[:1] in "[0123456789"], row


def test_scores_on_camvids_test_images_stand_beside_the_published_ones(tmp_path):
    iou = dict.fromkeys(report.CAMVID_CLASSES, 0.5) | {"sky": 0.9, "train": None}
    put_run(tmp_path, dataset="camvid11", mode="course", weights="none", n_test=233, test={"miou": 0.54, "iou": iou})
    put_run(tmp_path, "U", dataset="camvid11", mode="course", n_test=233, test={"miou": 0.7, "iou": {"person": 0.5}})
    put_run(tmp_path, "B", dataset="camvid11", mode="course", n_test=50, test={"miou": 0.9, "iou": iou})  # a part of them
    page = page_of(tmp_path)
    assert "| 06 B | " not in page.partition("## CamVid, test split")[2]
    assert "| ENet | none |  | 52.10 |" in page and "| DeepLab v3 | not stated |  | 53.24 |" in page and "| 06 D | none | 1 | 54.00 |" in page
    by_class = page.partition("The IoU of each class")[2]
    assert "| ENet | 90.2 | 68.6 |" in by_class and "| DeepLab v3 |" not in by_class and "| 06 D | 90.0 |" in by_class
    assert "06 U |" not in page, "a run with other classes does not compare"
    assert "nan" not in page.partition("## CamVid, test split")[2]
    assert "The best of ours, 54.00, is above ENet's 52.10." in page


def test_the_choice_of_a_network_on_camvid_does_not_see_the_fold_that_it_was_scored_on(tmp_path):
    iou, of_fold = dict.fromkeys(report.CAMVID_CLASSES, 0.5), {"dataset": "camvid11", "mode": "course", "n_test": 233}
    for recipe, fold, val, test in (("A", 0.9, 0.3, 0.31), ("B", 0.4, 0.5, 0.51)):
        final = {"held_out": {"low": {"last": fold, "best": fold}}, "official_val": {"low": {"last": val, "best": 0.95}}}
        put_run(tmp_path, recipe, miou=fold, test={"miou": test, "iou": iou}, final=final, **of_fold)
    assert "| 06 B | " in page_of(tmp_path) and "The best of ours, 51.00" in page_of(tmp_path)


# metrics, pictures and tables


def test_per_image_scores_give_the_metrics_of_the_whole_set():
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 50, (4, 3, 3))
    confusion[:, 2] = 0  # class 2 is predicted but never true
    contours = np.array([[0.5, 1.0, np.nan], [np.nan, 0.4, np.nan], [np.nan] * 3, [0.2, 0.2, np.nan]])
    metrics = common.metrics_of({"confusion": confusion, "boundary_f1": contours}, ["a", "b", "c"])
    assert metrics["boundary_f1"] == pytest.approx(np.mean([0.75, 0.4, 0.2]))
    assert metrics["miou"] == common.miou(confusion.sum(0)) and metrics["iou"]["c"] is None


def test_the_majority_baseline_names_one_class_everywhere():
    confusion = np.array([[10, 20], [5, 5]])  # 30 pixels of class 0, 10 of class 1
    assert common.majority_baseline(confusion) == {"miou": pytest.approx(0.75 / 2), "accuracy": pytest.approx(0.75)}


def test_pictures_hold_what_they_are_given_and_are_shown_once(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    label = rng.integers(0, 19, (40, 60)).astype(np.uint8)
    label[0] = 255
    scheme = common.SCHEMES["cityscapes19"]
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "miou": [0.1, 0.2]})
    rows = {("a", "pole"): (1.0, 0.5, 1.5, True), ("b", "pole"): (0.1, -0.5, 0.7, False), ("a", "car"): (0.0, -1.0, 1.0, False)}
    intervals = pd.DataFrame(rows, ["difference", "low", "high", "significant"]).T
    figures = [
        common.show_panels({"photo": photo, "truth": label, "again": label}, scheme, columns=2),
        common.show_encoder_unet([8, 16]),
        common.show_segformer([8, 16, 24, 32], 64),
        common.show_folds({"image": [np.array([0, 3]), np.array([1, 2])], "city": [np.array([0, 1]), np.array([2, 3])]}, list("aabb")),
        common.show_history({"A": history, "B": history}),
        common.show_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"]),
        common.show_panels({"photo": photo, "truth": common.as_colors(label, scheme)}, scheme),
        common.show_seeds(pd.DataFrame({"gain": [1.0, 2.0]}, pd.MultiIndex.from_product([["a"], [42, 43]])), "in points"),
        common.show_unet(photo, common.as_colors(label, scheme)),
        common.show_intervals(intervals, "in points"),
    ]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == scheme.classes
    panels = [axis.images[0].get_array() for axis in figures[0].axes if axis.images]
    assert len(figures[0].axes) == 4 and len(panels) == 3 and (panels[0] == photo).all()
    assert (panels[1] == common.as_colors(label, scheme)).all()
    dots = [line for axis in figures[-1].axes for line in axis.lines if line.get_marker() == "o"]
    assert [axis.get_title() for axis in figures[-1].axes] == ["pole", "car"]
    assert [(dot.get_xdata()[0], dot.get_markerfacecolor() != "white") for dot in dots] == [(1.0, True), (0.1, False), (0.0, False)]
    for figure in figures:
        common.show(figure)
    assert len(shown) == len(figures) and not __import__("matplotlib.pyplot").pyplot.get_fignums()


def test_more_runs_than_colours_are_all_drawn():
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "miou": [0.1, 0.2]})
    figure = common.show_history({f"run {i}": history for i in range(12)})
    assert [len(axis.lines) for axis in figure.axes] == [12, 12]


def test_colors_are_the_official_ones():
    scheme = common.SCHEMES["cityscapes19"]
    colors = common.as_colors(np.array([[0, 10, 255]], np.uint8), scheme)
    assert colors.tolist() == [[[128, 64, 128], [70, 130, 180], [0, 0, 0]]]


def test_published_numbers_are_complete_rows():
    table = pd.read_csv(common.HERE / "results" / "published.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == ["notebook", "method", "metric", "class", "seed", "epoch", "value", "half_width", "std", "weights", "note"]
    assert table["value"].map(lambda v: bool(re.fullmatch(r"-?\d+\.\d+", v))).all() and not table.duplicated().any()
