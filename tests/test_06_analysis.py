"""Notebook 06 after its training: the statistics on published numbers and on runs, and the gradients."""

import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy import stats

import common
from results import report

NAME = "06_kervadec_ablation"


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


@pytest.fixture(scope="module")
def published():
    return common.read_published(NAME)


@pytest.fixture(scope="module")
def by_epoch(nb, published):
    return {160 if e == "last" else e: nb.per_seed(published, "miou", str(e)) for e in (*range(10, 160, 10), "last")}


def test_published_seeds_give_the_published_student_intervals(nb, published):
    for metric in nb.METRICS:
        stated = published[(published["metric"] == metric) & published["note"].str.startswith("v0.2, Student")]
        assert len(stated) == 4
        for row in stated.itertuples():
            mean, half = common.student_interval(nb.per_seed(published, metric)[row.method])
            assert (mean, half) == (pytest.approx(float(row.value), abs=0.011), pytest.approx(float(row.half_width), abs=0.021))


def test_published_p_values_come_out_again(nb, published):
    stated = published[published["metric"].str.startswith("p_holm")]
    assert len(stated) == 7
    for row in stated.itertuples():
        table = nb.paired_tests(nb.per_seed(published, row.metric.removeprefix("p_holm_")))
        assert table.loc[row.method.replace("-", " - "), "holm"] == pytest.approx(row.value, abs=0.003)


def test_the_sources_slips_are_found_from_its_own_numbers(by_epoch):
    means = pd.DataFrame({epoch: table.mean() for epoch, table in by_epoch.items()}).T
    last = means.loc[160]
    assert last["C"] - last["B"] == pytest.approx(0.13, abs=0.011) and last["C"] - last["D"] == pytest.approx(-0.46, abs=0.011)
    assert means.loc[50].max() - means.loc[50].min() > 1
    assert means.idxmax(axis=1)[[10, 20, 80, 90, 100]].tolist() == ["C", "B", "B", "B", "D"]


def test_c_and_d_change_places_with_one_sign_in_all_seeds(nb, by_epoch):
    found = {e: (table["C"] - table["D"]) for e, table in by_epoch.items() if nb.paired_t(table["C"], table["D"])[2] < 0.05}
    assert {e: int(np.sign(d.mean())) for e, d in found.items()} == {10: 1, 20: 1, 30: 1, 50: 1, 70: 1, 130: -1, 140: -1, 150: -1, 160: -1}
    assert all(abs(np.sign(d).sum()) == 3 for d in found.values())
    assert by_epoch[120].loc["456", "A"] > by_epoch[120].loc["456", "D"]


def test_no_class_of_d_minus_b_survives_nineteen_comparisons(nb, published):
    rows = published.query("metric == 'iou' and seed != ''").pivot(index=["class", "seed"], columns="method", values="value")
    p = [nb.paired_t(table["D"], table["B"])[2] for _, table in rows.groupby("class")]
    assert len(p) == 19 and nb.holm(p).min() > 0.2


def test_paired_table_equals_scipys_paired_t_test(nb, published):
    last = nb.per_seed(published, "miou")
    oracle = stats.ttest_rel(last["C"], last["D"])
    row, interval = nb.paired_tests(last).loc["C - D"], oracle.confidence_interval()
    assert row["p"] == pytest.approx(oracle.pvalue) and row["± t"] == pytest.approx((interval.high - interval.low) / 2)


def test_pairs_without_a_shared_seed_make_no_difference_and_no_error(nb):
    table = nb.paired_tests(pd.DataFrame({"A": [1.0, np.nan], "B": [np.nan, 2.0], "C": [3.0, np.nan]}))
    assert table.loc["A - B"].isna().all() and table.loc["A - C", "difference"] == -2 and np.isnan(table.loc["A - C", "p"])


@pytest.mark.parametrize("seed", range(20))
def test_holms_adjusted_p_decides_as_the_levels_by_which_the_report_judges(nb, seed):
    p = np.random.default_rng(seed).beta(0.3, 2, size=6).tolist()
    assert (nb.holm(p) <= 0.05).tolist() == [one <= level for one, level in zip(p, report.holm_levels(p))]


def wrong_pick(by_epoch, winner, seeds=1, draws=20000):
    """Probability by epoch that the best of `seeds` runs each, with that epoch's spread over seeds, is not the winner."""
    rng, found = np.random.default_rng(0), {}
    for epoch, scores in by_epoch.items():
        noise = np.sqrt(scores.var().mean() / seeds) * rng.standard_normal((draws, scores.shape[1]))
        picks = (scores.mean().to_numpy() + noise).argmax(axis=1)
        found[epoch] = np.mean(scores.columns.to_numpy()[picks] != winner)
    return pd.Series(found)


def test_the_probability_of_a_wrong_winner_is_that_of_two_normal_draws():
    table = pd.DataFrame({"A": [49.0, 50.0, 51.0], "B": [50.0, 51.0, 52.0]})  # the spread of the seeds is 1
    for seeds in (1, 3):
        expected = stats.norm.sf(1.0 / (np.sqrt(2 / seeds) * 1.0))
        assert wrong_pick({10: table}, "B", seeds)[10] == pytest.approx(expected, abs=0.015)


def test_a_ranking_that_turns_is_always_wrong_before_and_never_after():
    before, after = (pd.DataFrame({"A": [60.0, 60.001], "B": [b, b]}) for b in (50.0, 70.0))
    assert wrong_pick({5: before, 10: after}, "B").tolist() == [1.0, 0.0]


def test_the_published_probabilities_take_each_epochs_own_spread(by_epoch):
    found = wrong_pick(by_epoch, "D")
    expected = {60: 0.78, 90: 0.85, 100: 0.59, 110: 0.29, 140: 0.45, 150: 0.31}
    assert found[list(expected)].to_dict() == pytest.approx(expected, abs=0.02)


def test_in_our_runs_rare_classes_still_learn_when_frequent_ones_stand_still():
    groups = {"rare": ("pole", "traffic sign", "person", "rider", "fence"), "frequent": ("road", "building", "vegetation", "sky", "car")}
    runs = ROOT / "results" / "06_kervadec_ablation" / "camvid11-laptop"
    means = {}
    for letter in "ABCD":
        histories = [100 * pd.read_csv(runs / f"{letter}_seed{seed}" / "history.csv").set_index("epoch") for seed in (42, 43, 44)]
        for group, classes in groups.items():
            means[group, letter] = sum(one[[f"iou_{name}" for name in classes]].mean(axis=1) for one in histories) / 3
    assert means["frequent", "A"][[6, 9, 12]].round(1).tolist() == [88.0, 88.5, 88.7]
    rises = {letter: means["rare", letter][12] - means["rare", letter][9] for letter in "ABCD"}
    assert (min(rises.values()), max(rises.values())) == (pytest.approx(2.4, abs=0.06), pytest.approx(3.6, abs=0.06))
    gains = {(group, a): means[group, a][12] - means[group, b][12] for group in groups for a, b in ("BA", "CD")}
    assert (gains["rare", "B"], gains["rare", "C"]) == (pytest.approx(1.5, abs=0.06), pytest.approx(1.7, abs=0.06))
    assert min(gains["frequent", "B"], gains["frequent", "C"]) == pytest.approx(-0.1, abs=0.06)


def put_run(folder, shift, n=40):
    """Scores of n pictures of two drives, better by about `shift`, as `fit` leaves them."""
    rng = np.random.default_rng(zlib.crc32(folder.name.encode()))
    folder.mkdir(parents=True)
    confusion = rng.integers(0, 9, (n, 4, 4)) + np.eye(4, dtype=int) * rng.integers(10, 40 + int(100 * shift), (n, 1, 1))
    f1 = np.where(rng.random((n, 4)) < 0.2, np.nan, rng.random((n, 4)) * 0.5 + shift)
    f1[3] = np.nan
    names = np.array([f"{'north' if k < n // 2 else 'south'}/{k:03d}" for k in range(n)])
    np.savez(folder / "test_per_image.npz", image=names, confusion=confusion, trimap_iou=f1)
    return folder


def test_for_one_seed_the_interval_over_both_is_the_bootstrap_over_blocks_of_pictures(tmp_path):
    a, b = put_run(tmp_path / "a", 0.3), put_run(tmp_path / "b", 0.1)
    kept = [np.load(one / "test_per_image.npz") for one in (a, b)]
    blocks = common.film_blocks(name.split("/")[0] for name in kept[0]["image"])
    expected = common.paired_bootstrap(kept[0]["confusion"], kept[1]["confusion"], common.miou, blocks, repeats=1000)
    assert common.compare_runs([a], [b]) == pytest.approx(expected)
    means = [np.nanmean(np.delete(one["trimap_iou"], 3, 0), axis=1).mean() for one in kept]
    assert common.compare_runs([a], [b], "trimap_iou")[0] == pytest.approx(means[0] - means[1])


def test_a_class_is_compared_by_its_hits_and_union_over_all_pictures(tmp_path):
    runs = [put_run(tmp_path / name, shift) for name, shift in (("a", 0.3), ("b", 0.1))]
    for one in runs:
        (one / "summary.json").write_text('{"metrics": {"iou": {"sky": 0, "road": 0, "pole": 0, "car": null}}}')
    ious = [common.iou_per_class(np.load(one / "test_per_image.npz")["confusion"].sum(0))[2] for one in runs]
    columns = (pd.Series([one], index=[42]) for one in runs)  # as the notebooks have them, with seeds as their index
    middle, low, high, _ = common.compare_runs(*columns, "iou_pole")
    assert middle == pytest.approx(ious[0] - ious[1]) and low < middle < high


def test_over_several_seeds_it_is_their_mean_and_wider_where_they_disagree(tmp_path):
    ours = [put_run(tmp_path / f"a{k}", shift) for k, shift in enumerate((0.1, 0.3, 0.5))]
    theirs = [put_run(tmp_path / f"b{k}", 0.1) for k in range(3)]
    each = [common.compare_runs([a], [b], "trimap_iou")[0] for a, b in zip(ours, theirs)]
    middle, low, high, _ = common.compare_runs(ours, theirs, "trimap_iou")
    assert middle == pytest.approx(np.mean(each)) and low < min(each) + 0.1 and high > max(each) - 0.1
    means = [common.mean_over_images(np.load(f / "test_per_image.npz")["trimap_iou"]) for f in (*ours, *theirs)]
    assert middle == pytest.approx(np.mean(means[:3]) - np.mean(means[3:]))


def test_runs_on_other_pictures_or_seeds_do_not_compare(tmp_path):
    a, b = put_run(tmp_path / "a", 0.3), put_run(tmp_path / "b", 0.1, n=30)
    for ours, theirs in (([a], [b]), ([a, a], [a])):
        with pytest.raises(ValueError, match="scored on different pictures, or have other seeds"):
            common.compare_runs(ours, theirs)


def test_term_gradients_add_up_to_the_gradient_of_the_whole_loss(nb):
    logits, label, class_weights = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7)), torch.linspace(0.5, 2, 5)
    batch, terms = {"label": label, "phi": torch.randn(2, 5, 6, 7)}, {"ce": 1.0, "dice": 0.7, "boundary": 0.3}
    parts = nb.term_gradients(logits, batch, terms, class_weights)
    leaf = logits.clone().requires_grad_()
    nb.composite_loss(leaf, batch, terms, class_weights).backward()
    torch.testing.assert_close(sum(parts.values()), leaf.grad)


def test_lengths_and_cosine_of_gradients_over_a_mask(nb):
    a, b = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    a[0, :, 0] = torch.tensor([[1.0, 1.0, 5.0], [0.0, 0.0, 5.0]])
    b[0, :, 0] = torch.tensor([[1.0, 0.0, -5.0], [0.0, 1.0, -5.0]])
    masks = [torch.tensor([[row]]) for row in ([True, False, False], [False, True, False], [False, False, True])]
    found = [nb.compare_pulls({"ce": torch.full_like(a, 0.5), "dice": a, "boundary": b}, mask) for mask in masks]
    assert [round(one["cosine of the two"], 5) for one in found] == [1.0, 0.0, -1.0]
    half = 0.5**0.5  # the length of cross-entropy's, of two classes
    assert [one["|dice| / |ce|"] * half for one in found] == pytest.approx([1, 1, 50**0.5])
    assert [one["|boundary| / |ce|"] * half for one in found] == pytest.approx([1, 1, 50**0.5])
    assert [one["|boundary| per pixel"] for one in found] == pytest.approx([1, 1, 50**0.5])
    both = nb.compare_pulls({"ce": a + 1, "dice": a, "boundary": b}, masks[0] | masks[2])
    assert both["|boundary| per pixel"] == pytest.approx((51 / 2) ** 0.5)


def test_runs_on_camvid_are_found_by_the_name_of_their_loss_and_others_are_left_out(nb, tmp_path, monkeypatch):
    rows = [("A", "laptop", "camvid11"), ("D-normnone", "laptop", "camvid11"), ("B-epochs3", "laptop", "camvid11"),
            ("D-lambda_b0.35", "laptop", "camvid11"), ("C", "course", "camvid11"), ("C", "laptop", "camvid32"),
            ("C-normnone", "laptop", "camvid11"), ("D-normnone-epochs3", "laptop", "camvid11")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "mode", "dataset"]).assign(notebook=NAME, seed=42)
    monkeypatch.setattr(common, "find_runs", lambda **wanted: table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)])
    assert nb.camvid_runs(nb.VARIANTS)["name"].tolist() == ["A", "D pixels"]
    assert nb.camvid_runs(nb.VARIANTS, "-epochs3")["name"].tolist() == ["B", "D pixels"]
    monkeypatch.setattr(common, "find_runs", lambda **wanted: table.iloc[:0])
    assert not len(nb.camvid_runs(nb.VARIANTS))
