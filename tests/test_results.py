"""Results: the report beside published numbers, and the pictures and tables that notebooks draw."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import common

NOTEBOOK = "06_kervadec_ablation"


def put_run(base, method="D", seed=1, miou=0.5, dataset="cityscapes", mode="paper", weights="fcmae_ft_in22k_in1k_384", **more):
    folder = base / NOTEBOOK / f"{dataset}-{mode}" / f"{method}_seed{seed}"
    summary = {"notebook": NOTEBOOK, "run": folder.name, "method": method, "mode": mode, "dataset": dataset, "seed": seed,
               "epochs": 160, "weights": weights, "metrics": {"miou": miou, "iou": {"road": 0.9, "train": None}},
               "majority_baseline": {"miou": 0.02, "accuracy": 0.3}, "command": "papermill x -p variant D"}  # fmt: skip
    common.write_json(folder / "summary.json", summary | more)


def row_of(page, method):
    return next(line for line in page.splitlines() if line.startswith("|") and f"| {method} |" in line)


def test_three_seeds_give_mean_interval_and_difference(tmp_path):
    for seed, miou in enumerate((0.80, 0.81, 0.82)):
        put_run(tmp_path, seed=seed, miou=miou)
    row = row_of(common.report(tmp_path), "D")
    half = 4.302653 * 1.0 / 3**0.5
    assert f"|  | 3 | 160 | 81.00 ± {half:.2f} | 81.69 | -0.69 | 2.00 | yes |" in row


def test_where_a_source_reports_the_mean_of_six_classes_that_is_compared(tmp_path):
    for seed, miou6 in enumerate((0.60, 0.61, 0.62)):
        put_run(tmp_path, method="bas", seed=seed, weights="cityscapes", notebook="04_segformer_thin_structures",
                metrics={"miou": 0.7, "miou6": miou6})  # fmt: skip
    page = common.report(tmp_path)
    assert "| mIoU6 on val | published |" in page and "| 61.00 ± 2.48 | 59.63 | +1.37 |  | yes |" in row_of(page, "bas")


def test_a_network_that_is_part_of_a_loss_is_no_row_of_the_report(tmp_path):
    put_run(tmp_path, method="proxy", metrics={"edge_f1": 0.99}, majority_baseline={})
    assert "no finished runs" in common.report(tmp_path)
    put_run(tmp_path)
    assert "proxy" not in common.report(tmp_path) and row_of(common.report(tmp_path), "D")


def test_one_seed_has_no_interval_and_makes_no_claim(tmp_path):
    put_run(tmp_path)
    row = row_of(common.report(tmp_path), "D")
    assert "| 50.00 |" in row and "±" not in row and "one seed, no interval" in row


@pytest.mark.parametrize(("different", "reason"), [
    ({"dataset": "camvid32"}, "data camvid32"),
    ({"mode": "course"}, "mode course"),
    ({"weights": "none"}, "weights none, not fcmae_ft_in22k_in1k_384"),
])
def test_a_run_under_other_conditions_never_counts_as_a_test_of_the_claim(tmp_path, different, reason):
    for seed in (1, 2):
        put_run(tmp_path, seed=seed, **different)
    row = row_of(common.report(tmp_path), "D")
    assert f"no: {reason}" in row and "not comparable" in row and "81.69" in row


def test_quick_runs_are_no_evidence(tmp_path):
    put_run(tmp_path, mode="quick")
    assert "no finished runs" in common.report(tmp_path)
    assert "quick" in row_of(common.report(tmp_path, quick=True), "D")


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    put_run(tmp_path)
    monkeypatch.setattr("sys.argv", ["common.py", "report", "--out-dir", str(tmp_path)])
    common.main()
    assert (tmp_path / "README.md").read_text() == common.report(tmp_path) and "| D |" in capsys.readouterr().out


def test_a_damaged_summary_is_named(tmp_path):
    put_run(tmp_path)
    next(tmp_path.rglob("summary.json")).write_text('{"notebook": ')
    with pytest.raises(common.StreetsError, match="summary.json is damaged"):
        common.report(tmp_path)


def test_the_committed_page_is_what_the_committed_runs_give():
    page = (common.HERE / "results" / "README.md").read_text()
    by_notebook = re.split(r"\n## (?=0)", page)[1:]
    rows = [line for part in by_notebook for line in part.splitlines() if line.startswith("|")]
    committed = [p for p in common.HERE.glob("results/*/*/*/summary.json") if not p.parent.parent.name.endswith("-quick")]
    summaries = [s for s in map(json.loads, (p.read_text() for p in committed)) if "miou" in s["metrics"]]
    methods = {(s["notebook"], s["dataset"], s["mode"], s["method"]) for s in summaries}
    assert len(rows) == len(methods) + 2 * len({m[0] for m in methods})


def put_pair(base, differences, **more):
    """Runs of D and A whose mIoU differ by these many per cent, a seed each."""
    for seed, difference in enumerate(differences):
        put_run(base, method="A", seed=seed, miou=0.8, **more)
        put_run(base, method="D", seed=seed, miou=0.8 + difference / 100, **more)


def claim_row(page):
    return next(line for line in page.splitlines() if "is better than cross-entropy alone (A)" in line)


@pytest.mark.parametrize(("differences", "ours", "verdict"), [
    ((0.4, 0.5, 0.6), "+0.50 ± 0.25", "Reproduced."),
    ((-0.4, -0.5, -0.6), "-0.50 ± 0.25", "Not reproduced."),
    ((0.4, -0.5, 0.6), "+0.17 ±", "Undecided"),
    ((0.4,), "+0.40 |", "Undecided"),
])
def test_a_claim_is_judged_by_the_interval_of_paired_differences(tmp_path, differences, ours, verdict):
    put_pair(tmp_path, differences)
    row = claim_row(common.report(tmp_path))
    assert "| +0.41 |" in row and ours in row and verdict in row and f"| {len(differences)} |" in row


@pytest.mark.parametrize(("differences", "verdict"), [
    ((0.4, 0.5, 0.6), "points the same way."),
    ((-0.4, -0.5, -0.6), "points the other way."),
    ((0.4, -0.5, 0.6), "its interval holds 0."),
    ((0.4,), "one run decides nothing."),
])
def test_under_other_conditions_a_claim_is_not_tested_whatever_the_runs_say(tmp_path, differences, verdict):
    put_pair(tmp_path, differences, dataset="camvid32", mode="course", weights="none")
    row = claim_row(common.report(tmp_path))
    assert "Not testable without Cityscapes at full size (data camvid32; mode course; weights none, not" in row and verdict in row


def test_a_changed_recipe_is_no_test_of_the_claim_either(tmp_path):
    for seed in (1, 2):
        put_run(tmp_path, method="A-height512", seed=seed, miou=0.8)
        put_run(tmp_path, method="D-height512", seed=seed, miou=0.81)
    assert "Not a test of it (recipe changed: height512); here the difference points the same way." in claim_row(common.report(tmp_path))


def test_only_runs_of_one_recipe_and_one_seed_are_paired(tmp_path):
    put_run(tmp_path, method="A", seed=1)
    put_run(tmp_path, method="D", seed=2)
    put_run(tmp_path, method="D-height512", seed=1)
    assert "| 0 |" in claim_row(common.report(tmp_path)) and "Not tested" in claim_row(common.report(tmp_path))


def test_folds_are_paired_with_themselves_and_count_as_one_run(tmp_path):
    for fold, (start, end) in enumerate(((0.6, 0.5), (0.7, 0.65), (0.8, 0.65)), start=1):
        final = {"held_out": {"low": {"best": start}}, "official_val": {"full": {"last": end}}}
        put_run(tmp_path, method=f"fold{fold}", notebook="03_unet_resnet50_cv", weights="imagenet", final=final)
    row = next(line for line in common.report(tmp_path).splitlines() if "held-out fold" in line)
    assert "| -2.21 | -10.00 | 1 |" in row and "Undecided" in row


def test_scores_on_camvids_test_images_stand_beside_the_published_ones(tmp_path):
    iou = dict.fromkeys(common.CAMVID_CLASSES, 0.5) | {"sky": 0.9, "train": None}
    put_run(tmp_path, dataset="camvid11", mode="course", weights="none", test={"miou": 0.54, "iou": iou})
    put_run(tmp_path, dataset="camvid11", mode="course", method="U", test={"miou": 0.7, "iou": {"person": 0.5}})
    page = common.report(tmp_path)
    assert "| ENet |" in page and "| 52.85 | 90.0 | 70.3 |" in page and "| 06 D | ours, weights none |  | 1 | 160 | 54.00 | 90.0 |" in page
    assert "06 U |" not in page, "a run with other classes does not compare"
    assert "The best of ours, 54.00, is above ENet's 52.85." in page


def test_the_readme_repeats_claims_with_the_numbers_of_the_results_page():
    page = (common.HERE / "results" / "README.md").read_text().splitlines()
    table = re.search(r"\| claim \|.*?\n\|[-|]+\n(.*?)\n\n", (common.HERE / "README.md").read_text(), re.S)[1].splitlines()
    assert len(table) == 5
    for row in table:
        assert [line for line in page if line.startswith(row)], row


def test_every_claim_names_published_scores():
    claims = pd.read_csv(common.HERE / "results" / "claims.csv", keep_default_na=False, comment="#")
    for claim in claims.itertuples():
        published = common.read_published(claim.notebook)
        scores = [common.published_score(published, name) for name in (claim.published_a or claim.a, claim.published_b or claim.b)]
        assert np.isfinite(scores).all() != claim.claim.startswith("(our control)"), claim.claim


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


def test_pictures_hold_what_they_are_given_and_are_shown_once(monkeypatch, notebook):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    label = rng.integers(0, 19, (40, 60)).astype(np.uint8)
    label[0] = 255
    scheme = common.SCHEMES["cityscapes19"]
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "miou": [0.1, 0.2]})
    figures = [
        common.show_predictions([photo] * 2, [label] * 2, [label % 19] * 2, scheme),
        common.show_history({"A": history, "B": history}),
        notebook("06_kervadec_ablation").show_per_class({"A": {"road": 0.9, "sky": None}, "B": {"road": 0.8, "sky": None}}, "br"),
        notebook("02_unet_from_scratch").show_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"]),
    ]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == scheme.classes
    error = figures[0].axes[3].images[0].get_array()
    assert (error[0] == 0).all() and not (error[1:] == (220, 30, 30)).all(axis=2).any(), "void is black, right pixels are not red"
    assert [t.get_text() for t in figures[2].axes[0].get_yticklabels()] == ["road"], "an absent class has no bar"
    for figure in figures:
        common.show(figure)
    assert len(shown) == 4 and not __import__("matplotlib.pyplot").pyplot.get_fignums()


def test_more_runs_than_colours_are_all_drawn():
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "miou": [0.1, 0.2]})
    figure = common.show_history({f"run {i}": history for i in range(12)})
    assert [len(axis.lines) for axis in figure.axes] == [12, 12]


def test_the_command_tells_a_mistake_in_one_sentence(tmp_path, monkeypatch):
    put_run(tmp_path)
    next(tmp_path.rglob("summary.json")).write_text('{"notebook": ')
    monkeypatch.setattr("sys.argv", ["common.py", "report", "--out-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="summary.json is damaged"):
        common.main()


def test_colors_are_the_official_ones():
    scheme = common.SCHEMES["cityscapes19"]
    colors = common.as_colors(np.array([[0, 10, 255]], np.uint8), scheme)
    assert colors.tolist() == [[[128, 64, 128], [70, 130, 180], [0, 0, 0]]]


def test_a_comparison_table_sets_ours_beside_the_published(notebook):
    summary = {"metrics": {"miou": 0.5}, "dataset": "toy", "mode": "quick", "weights": "none", "majority_baseline": {"miou": 0.02}}
    table = notebook(NOTEBOOK).comparison_table({"D": summary, "new": summary}, common.read_published(NOTEBOOK), "miou")
    assert table.loc["D", "published"] == 81.69 and table.loc["D", "ours"] == 50 and pd.isna(table.loc["new", "published"])


def test_published_numbers_are_complete_rows():
    table = pd.read_csv(common.HERE / "results" / "published.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == ["notebook", "method", "metric", "class", "seed", "epoch", "value", "half_width", "std", "weights", "note"]
    assert table["value"].map(lambda v: bool(re.fullmatch(r"-?\d+\.\d+", v))).all() and not table.duplicated().any()


def test_a_changed_recipe_stands_beside_the_published_value_but_does_not_test_it(tmp_path):
    for seed in (1, 2):
        put_run(tmp_path, method="D-height512-epochs80", seed=seed)
    row = row_of(common.report(tmp_path), "D-height512-epochs80")
    assert "81.69" in row and "no: recipe changed: height512-epochs80" in row and "not comparable" in row
