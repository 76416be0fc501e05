"""Notebook 06 after its training: the statistics on published numbers and on runs, and the gradients."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import common

NAME = "06_kervadec_ablation"


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


@pytest.fixture(scope="module")
def study(nb):
    return nb.published_scores(common.read_published(NAME))


def put_runs(base, values, epochs=(5, 10), classes=("road", "pole"), images=("aachen/a", "aachen/b", "bonn/c", "bonn/d")):
    """Finished runs {(variant, seed): final mIoU}, as they lie on disk, and what find_variants makes of them."""
    rng = np.random.default_rng(0)
    for (letter, seed), miou in values.items():
        folder = base / NAME / "camvid32-course" / f"{letter}_seed{seed}"
        iou = {name: miou + 0.01 * k for k, name in enumerate(classes)}
        rows = [{"epoch": e, "miou": miou * e / epochs[-1], "boundary_f1_strict": 0.5, "trimap_iou": 0.4}
                | {f"iou_{name}": v for name, v in iou.items()} for e in epochs]  # fmt: skip
        summary = {"notebook": NAME, "method": letter, "mode": "course", "dataset": "camvid32", "seed": seed,
                   "weights": "none", "epochs": epochs[-1], "metrics": {"miou": miou, "boundary_f1_strict": 0.5, "trimap_iou": 0.4, "iou": iou}}  # fmt: skip
        common.write_json(folder / "summary.json", summary)
        pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)
        confusion = rng.integers(0, 50, (len(images), 19, 19)) + np.eye(19, dtype=int) * int(1000 * miou)
        scores = rng.random((len(images), 19)) + miou
        scores = {"boundary_f1_strict": scores, "trimap_iou": scores}
        np.savez_compressed(folder / "val_per_image.npz", image=np.array(images), confusion=confusion, **scores)
    return common.find_runs(base)


def find(nb, base, letters="ABCD"):
    return nb.find_variants(base, "camvid32", "course", {letter: letter for letter in letters})


def test_published_intervals_are_students_and_agree_with_the_corrected_ones(nb, study):
    table = nb.interval_table(study)
    published = common.read_published(NAME)
    for metric, name in nb.METRICS.items():
        stated = published[(published["metric"] == metric) & published["note"].str.startswith("v0.2, Student")]
        for row in stated.itertuples():
            ours = table.loc[(name, row.method)]
            assert ours["mean"] == pytest.approx(float(row.value), abs=0.011)
            assert ours["± t"] == pytest.approx(float(row.half_width), abs=0.021)
            assert ours["± t"] / ours["± 1.96"] == pytest.approx(stats.t.ppf(0.975, 2) / 1.96, rel=0.1)


def test_published_p_values_come_out_again(nb, study):
    published = common.read_published(NAME)
    stated = published[published["metric"].str.startswith("p_holm")]
    assert len(stated) == 7
    for row in stated.itertuples():
        ours = nb.compare_pairs(study, row.metric.removeprefix("p_holm_")).loc[row.method, "holm"]
        assert ours == pytest.approx(row.value, abs=0.003)


def test_the_sources_slips_are_found_from_its_own_numbers(nb, study):
    means, _ = nb.over_epochs(study, "miou")
    last = means.iloc[-1]
    assert last["C"] - last["B"] == pytest.approx(0.13, abs=0.011) and last["C"] - last["D"] == pytest.approx(-0.46, abs=0.011)
    assert means.loc[50].max() - means.loc[50].min() > 1
    assert means.idxmax(axis=1)[[10, 20, 80, 90, 100]].tolist() == ["C", "B", "B", "B", "D"]


def test_paired_table_equals_scipys_paired_t_test(nb, study):
    last = nb.last_of(study, "miou")
    oracle = stats.ttest_rel(last["C"], last["D"])
    row = nb.compare_pairs(study, "miou").loc["C-D"]
    assert row["p"] == pytest.approx(oracle.pvalue, abs=5e-4)
    interval = oracle.confidence_interval()
    assert row["± t"] == pytest.approx((interval.high - interval.low) / 2, abs=5e-4)


def scores_of(table):
    """Tidy table of mIoU from {(variant, seed, epoch): value}."""
    rows = [{"variant": v, "seed": s, "epoch": e, "metric": "miou", "value": y} for (v, s, e), y in table.items()]
    return pd.DataFrame(rows)


def test_the_probability_of_a_wrong_winner_is_that_of_two_normal_draws(nb):
    table = {(v, s, e): base + noise for v, base in {"A": 50.0, "B": 51.0}.items() for e in (10, 20)
             for s, noise in {"1": -1.0, "2": 0.0, "3": 1.0}.items()}  # fmt: skip
    for seeds in (1, 3):
        expected = stats.norm.sf(1.0 / (np.sqrt(2 / seeds) * 1.0))  # the spread of the seeds is 1
        np.testing.assert_allclose(nb.wrong_pick(scores_of(table), "miou", seeds), expected, atol=0.015)


def test_a_ranking_that_turns_is_always_wrong_before_and_never_after(nb):
    table = {("A", s, e): y for s in "12" for e, y in {5: 60.0, 10: 60.0}.items()}
    table |= {("B", s, e): y for s in "12" for e, y in {5: 50.0, 10: 70.0}.items()}
    table["A", "1", 5] += 0.001  # some spread, far below the difference
    assert nb.wrong_pick(scores_of(table), "miou").round(3).tolist() == [1.0, 0.0]


def test_runs_are_found_by_variant_and_seed_and_others_are_left_out(nb, tmp_path):
    put_runs(tmp_path, {("A", 1): 0.5, ("D", 1): 0.6, ("D", 2): 0.7})
    found = find(nb, tmp_path)
    assert set(found) == {("A", "1"), ("D", "1"), ("D", "2")}
    assert set(nb.find_variants(tmp_path, "camvid32", "course", {"D": "D"})) == {("D", "1"), ("D", "2")}
    assert not nb.find_variants(tmp_path, "camvid32", "paper", {"D": "D"}) and not find(nb, tmp_path / "nothing")
    scores = nb.run_scores(found)
    last = nb.last_of(scores, "miou")
    assert last.loc["1"].tolist() == [50.0, 60.0] and last.loc["2"].isna().tolist() == [True, False]
    assert nb.interval_table(scores, nb.STRICT).loc["mIoU", "seeds"].tolist() == [1, 2]  # an interval needs no pairs
    assert nb.compare_pairs(scores, "miou").loc["A-D", "difference"] == pytest.approx(-10)  # a difference does
    middle, half = nb.over_epochs(scores, "miou")
    assert middle.loc[10].tolist() == [50.0, pytest.approx(65.0)] and np.isnan(half.loc[10, "A"])
    assert half.loc[10, "D"] == pytest.approx(stats.t.ppf(0.975, 1) * 5)


def test_class_changes_are_paired_over_seeds(nb, tmp_path):
    put_runs(tmp_path, {("A", 1): 0.5, ("A", 2): 0.4, ("D", 1): 0.6, ("D", 2): 0.7})
    table = nb.class_changes(find(nb, tmp_path))
    assert table.loc["pole", "difference"] == pytest.approx(20) and table.loc["pole", "half"] == pytest.approx(12.706 * 10, rel=1e-3)


def test_intervals_over_images_are_the_shared_bootstrap_of_the_mean_over_seeds(nb, tmp_path):
    put_runs(tmp_path, {("A", 1): 0.5, ("A", 2): 0.4, ("D", 1): 0.6, ("D", 2): 0.7, ("D", 3): 0.1})
    found = find(nb, tmp_path)
    difference, low, high, p = nb.image_interval(found, "D", "A", "miou", split="val", film=False)
    kept = {key: np.load(row.folder / "val_per_image.npz")["confusion"].sum(0) for key, row in found.items()}
    mean = {v: np.mean([common.miou(kept[v, s]) for s in "12"]) for v in "AD"}
    assert difference == pytest.approx(100 * (mean["D"] - mean["A"])) and low <= difference <= high and 0 < p <= 1
    f1 = {key: np.load(row.folder / "val_per_image.npz")["boundary_f1_strict"].mean() for key, row in found.items()}
    expected = 100 * (np.mean([f1["D", s] for s in "12"]) - np.mean([f1["A", s] for s in "12"]))
    assert nb.image_interval(found, "D", "A", "boundary_f1_strict", split="val")[0] == pytest.approx(expected)
    assert nb.image_table(found, {"miou": "mIoU"}, split="val", film=False).shape == (1, 1)


def test_runs_without_scores_per_image_or_without_a_shared_seed_make_no_interval_and_no_error(nb, tmp_path):
    put_runs(tmp_path, {("A", 1): 0.5, ("B", 2): 0.5, ("D", 1): 0.6})
    found = find(nb, tmp_path)
    (found["D", "1"].folder / "val_per_image.npz").unlink()
    assert nb.image_table(found, {"miou": "mIoU"}, split="val").index.tolist() == ["A-B"]
    assert np.isnan(nb.image_interval(found, "A", "B", "miou", split="val")).all()
    assert nb.compare_pairs(nb.run_scores(found), "miou").loc["A-B"].isna().all()


def test_figures_are_drawn_for_many_runs_for_one_epoch_and_for_one_seed(nb, study, tmp_path):
    put_runs(tmp_path / "one", {("A", 1): 0.5, ("D", 1): 0.6}, epochs=(3,))
    one = nb.run_scores(find(nb, tmp_path / "one"))
    for scores, metrics in ((study, nb.METRICS), (one, nb.STRICT)):
        assert len(nb.show_convergence(scores, metrics).axes) == 3
    assert len(nb.show_ranks(study).axes) == 2
    assert [t.get_text() for t in nb.show_convergence(one, nb.STRICT).axes[0].get_xticklabels()] == ["A", "D"]
    assert len(nb.show_deltas(nb.class_changes(find(nb, tmp_path / "one")), "points").axes[0].patches) == 2
    plt.close("all")


def test_term_gradients_add_up_to_the_gradient_of_the_whole_loss(nb):
    logits, label = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    batch, terms = {"label": label, "phi": torch.randn(2, 5, 6, 7)}, {"ce": 1.0, "dice": 0.7, "boundary": 0.3}
    parts = nb.term_gradients(logits, batch, terms)
    leaf = logits.clone().requires_grad_()
    nb.composite_loss(leaf, batch, terms).backward()
    torch.testing.assert_close(sum(parts.values()), leaf.grad)


def test_cosine_of_gradients_over_a_mask(nb):
    a, b = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    a[0, :, 0] = torch.tensor([[1.0, 1.0, 5.0], [0.0, 0.0, 5.0]])
    b[0, :, 0] = torch.tensor([[1.0, 0.0, -5.0], [0.0, 1.0, -5.0]])
    masks = [torch.tensor([[row]]) for row in ([True, False, False], [False, True, False], [False, False, True])]
    assert [round(nb.cosine(a, b, mask), 5) for mask in masks] == [1.0, 0.0, -1.0]
