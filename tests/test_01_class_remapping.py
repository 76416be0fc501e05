"""Notebook 01 and the class schemes: which number a pixel gets, and what is counted."""

import re
import shutil

import cv2
import numpy as np
import pytest
from conftest import run_in_kernel

import common

# labelId: (trainId, class of streets7, class of thin7), typed from the sources' tables; 255 is void
TABLE = {
    -1: (255, 0, 0), 0: (255, 0, 0), 1: (255, 0, 0), 2: (255, 0, 0), 3: (255, 0, 0), 4: (255, 0, 0), 5: (255, 0, 0),
    6: (255, 0, 0), 7: (0, 1, 0), 8: (1, 0, 0), 9: (255, 0, 0), 10: (255, 0, 0), 11: (2, 2, 0), 12: (3, 0, 0),
    13: (4, 0, 1), 14: (255, 0, 0), 15: (255, 0, 0), 16: (255, 0, 0), 17: (5, 0, 4), 18: (255, 0, 0), 19: (6, 0, 6),
    20: (7, 0, 5), 21: (8, 5, 3), 22: (9, 0, 0), 23: (10, 6, 0), 24: (11, 4, 0), 25: (12, 4, 0), 26: (13, 3, 2),
    27: (14, 3, 0), 28: (15, 3, 0), 29: (255, 3, 0), 30: (255, 3, 0), 31: (16, 3, 0), 32: (17, 3, 0), 33: (18, 3, 0),
}  # fmt: skip
SCHEME_NAMES = ("cityscapes19", "streets7", "thin7")


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook("01_class_remapping")


@pytest.fixture
def rng():
    return np.random.default_rng(1)


# The schemes


@pytest.mark.parametrize("column, name", list(enumerate(SCHEME_NAMES)))
def test_every_official_class_goes_where_the_source_sends_it(column, name):
    table = common.SCHEMES[name].table
    assert {i: int(table[i % 256]) for i in TABLE} == {i: row[column] for i, row in TABLE.items()}


@pytest.mark.parametrize("name", SCHEME_NAMES)
def test_numbers_that_are_no_label_id_are_marked_in_every_scheme(name):
    table = common.SCHEMES[name].table
    assert table.shape == (256,) and table.dtype == np.uint8
    assert set(table[34:255].tolist()) == {254}


def test_train_ids_names_and_colours_equal_those_of_cityscapesscripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    scheme = common.SCHEMES["cityscapes19"]
    assert len(labels) == 35
    for label in labels:
        assert scheme.table[label.id % 256] == label.trainId % 256
    evaluated = sorted((label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId)
    assert scheme.classes == [label.name for label in evaluated]
    assert scheme.colors.tolist() == [list(label.color) for label in evaluated]


def test_thin7_is_the_same_from_train_ids():
    thin_of_train_id = {4: 1, 13: 2, 8: 3, 5: 4, 7: 5, 6: 6}
    train_ids = common.SCHEMES["cityscapes19"].table
    for label_id in TABLE:
        expected = thin_of_train_id.get(int(train_ids[label_id % 256]), 0)
        assert common.SCHEMES["thin7"].table[label_id % 256] == expected


def test_the_legend_of_each_scheme_has_the_sources_order():
    assert common.SCHEMES["streets7"].classes == [
        "background", "road", "building", "vehicle", "person", "vegetation", "sky"]  # fmt: skip
    assert common.SCHEMES["thin7"].classes == [
        "background", "fence", "car", "vegetation", "pole", "traffic sign", "traffic light"]  # fmt: skip


@pytest.mark.parametrize("name, groups", [("streets7", "U_NET_REPORT"), ("thin7", "THIN_STRUCTURES")])
def test_the_table_built_in_the_notebook_is_the_one_that_the_course_uses(nb, name, groups):
    assert np.array_equal(nb.table_from_names(getattr(nb, groups)), common.SCHEMES[name].table)


# Ways to remap


def test_back_to_label_ids_in_place_the_road_becomes_a_traffic_sign_and_a_look_up_does_not_chain(nb):
    assert nb.to_label_ids_as_given(np.array([0])).tolist() == [20]
    back = np.arange(256, dtype=np.uint8)
    back[[row[0] for row in TABLE.values() if row[0] < 19]] = [i for i, row in TABLE.items() if row[0] < 19]
    assert back[np.array([0])].tolist() == [7]


def test_a_number_that_is_no_id_stops_with_its_value_and_its_place(nb):
    table = common.SCHEMES["cityscapes19"].table
    nb.require_known_ids(np.array([*range(34), 255]), table, "x.png")
    with pytest.raises(common.StreetsError, match=r"x\.png holds \[40, 77\]"):
        nb.require_known_ids(np.array([[7, 40], [77, 40]]), table, "x.png")


# Void


def test_void_survives_remapping_and_resizing_unmixed(nb):
    ids = np.zeros((32, 64), np.uint8)  # unlabeled
    ids[:, 31:] = 7  # road, from the middle of a 2x2 block
    label = common.SCHEMES["cityscapes19"].table[ids]
    assert (label[:, :31] == 255).all() and common.SCHEMES["cityscapes19"].table[255] == 255
    _, small = common.resize_pair(np.zeros((32, 64, 3), np.uint8), label, (16, 32))
    assert np.array_equal(small, label[1::2, 1::2])
    assert np.unique(nb.shrink_and_enlarge(label, 4)).tolist() == [0, 255]


# Counting


def test_pixels_are_counted_as_they_lie_on_disk(nb, toy):
    for frame in common.list_frames(toy, "train"):
        label = cv2.imread(str(frame.label), cv2.IMREAD_UNCHANGED)
        values, counts = np.unique(label, return_counts=True)
        counted = nb.count_ids(frame)
        assert counted.shape == (256,) and counted.sum() == label.size
        assert counted[values].tolist() == counts.tolist()
        assert nb.ids_in(frame).tolist() == values.tolist()


@pytest.mark.parametrize("column, name", list(enumerate(SCHEME_NAMES)))
def test_pixels_per_class_are_sums_of_pixels_per_id_without_void(nb, rng, column, name):
    pixels = rng.integers(0, 1000, 256) * np.isin(np.arange(256), [*range(34), 255])
    expected = np.zeros(len(common.SCHEMES[name].classes), int)
    for label_id, row in TABLE.items():
        if row[column] != 255:
            expected[row[column]] += pixels[label_id % 256]
    assert np.array_equal(nb.per_class(pixels, common.SCHEMES[name]), expected)


# Scores


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_the_notebooks_confusion_matrix_is_that_of_the_course(nb, rng, dtype):
    truth, prediction = rng.choice([0, 5, 18, 255], (7, 9)).astype(dtype), rng.integers(0, 19, (7, 9)).astype(dtype)
    assert np.array_equal(nb.confusion(prediction, truth, 19), common.confusion_matrix(prediction, truth, 19))


# Resizing


def test_nearest_invents_no_class_and_bilinear_invents_one_at_the_seam(nb):
    label = np.zeros((8, 16), np.uint8)
    label[:, 7:] = 2
    assert np.unique(nb.shrink_and_enlarge(label, 2)).tolist() == [0, 2]
    assert np.argwhere(nb.shrink_and_enlarge(label, 2, cv2.INTER_LINEAR) == 1).tolist() == [[r, c] for r in range(8) for c in (6, 7)]


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_shrinking_reads_one_pixel_per_cell_and_enlarging_repeats_it(nb, rng, factor):
    label = rng.integers(0, 19, (32, 48)).astype(np.uint8)
    cells = label[factor // 2 :: factor, factor // 2 :: factor]
    assert np.array_equal(nb.shrink_and_enlarge(label, factor), cells.repeat(factor, axis=0).repeat(factor, axis=1))


# On real photos, and as a whole


def run_notebook(data_dir, folder):
    """(text of all outputs, tables shown as {first column: the others}) of notebook 01, run as papermill runs it."""
    done = run_in_kernel("01_class_remapping", folder, data_dir=str(data_dir))
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"], "a warning or an error was printed"
    tables = []
    for output in outputs:
        rows = re.findall(r"(?s)<tr.*?</tr>", output.get("data", {}).get("text/html", ""))
        cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows[1:]]
        tables += [{first: rest for first, *rest in cells}] if rows else []
    return "".join(output.get("text", "") for output in outputs), tables


def test_the_notebook_runs_on_very_small_pictures(toy, tmp_path):
    text, tables = run_notebook(toy, tmp_path)
    assert text.count("256 of 256 entries agree") == 3 and text.count("the same matrix: True") == 2
    assert text.count(": not done yet\n") == 4
    assert tables[0]["-1"] == ["license plate", "255", "0", "0"]
    labels = np.concatenate([common.read_label(f.label).ravel() for f in common.list_frames(toy, "train")])
    shares = np.bincount(common.SCHEMES["thin7"].table[labels], minlength=7) / len(labels)
    laziest = [float(value) for value in tables[2]["thin7"][1:]]
    assert laziest == pytest.approx([shares.max(), shares.max() / (shares > 0).sum()], abs=6e-4)


def test_the_notebook_runs_on_real_photos(real_data, tmp_path):
    import data_prep

    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (tmp_path / "source" / folder).mkdir(parents=True)
            for path in sorted((real_data / "camvid11" / folder).iterdir())[:40:8]:
                shutil.copy(path, tmp_path / "source" / folder)
    data_prep.convert_camvid(tmp_path / "source", tmp_path / "camvid")
    _, tables = run_notebook(tmp_path / "camvid", tmp_path)
    pole, road = (np.array(tables[-1][name], float) for name in ("pole", "road"))
    assert len(pole) == 4 and (road > pole).all() and pole[-1] < 0.3
