"""The generated data set: repeatable, correct boxes, and careful with folders."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from src.model_utils.errors import UserError
from src.tools.sample_data import (
    CLASS_NAMES,
    MARKER_FILE,
    SampleSpec,
    _annotation,
    _coverage,
    _outline,
    main,
    make_image,
    make_sample_data,
)
from tests.helpers import REPO_ROOT

SMALL = SampleSpec(num_train=6, num_val=3, width=160, height=128, seed=5)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "data"
    assert make_sample_data(folder, SMALL)
    return folder


def fingerprint(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(folder, subset):
    return json.loads((folder / "annotations" / f"instances_{subset}.json").read_text())


@pytest.mark.parametrize("subset, num_images", [("train2017", 6), ("val2017", 3)])
def test_coco_layout(sample, subset, num_images):
    data = read(sample, subset)
    assert [category["name"] for category in data["categories"]] == list(CLASS_NAMES)
    assert len(data["images"]) == num_images
    assert len({annotation["id"] for annotation in data["annotations"]}) == len(data["annotations"])
    assert min(annotation["id"] for annotation in data["annotations"]) == 1
    for image in data["images"]:
        pixels = cv2.imread(str(sample / subset / image["file_name"]))
        assert pixels.shape == (128, 160, 3) == (image["height"], image["width"], 3)
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 160 and y + height <= 128
        assert width > 20 and height > 20
        assert annotation["iscrowd"] == 0
        assert 0 < annotation["area"] <= width * height * 1.001


def test_subsets_differ_and_a_longer_set_begins_with_the_same_images(tmp_path, sample):
    longer = SampleSpec(num_train=7, num_val=3, width=160, height=128, seed=5)
    make_sample_data(tmp_path / "longer", longer)
    first, second = fingerprint(sample), fingerprint(tmp_path / "longer")
    assert all(second[name] == value for name, value in first.items() if name.endswith(".jpg"))
    images = [value for name, value in first.items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 9


def test_same_arguments_give_the_same_files_another_seed_others(tmp_path, sample):
    make_sample_data(tmp_path / "again", SMALL)
    assert fingerprint(tmp_path / "again") == fingerprint(sample)
    make_sample_data(tmp_path / "other", SampleSpec(num_train=6, num_val=3, width=160, height=128, seed=6))
    name = "train2017/000001.jpg"
    assert fingerprint(tmp_path / "other")[name] != fingerprint(sample)[name]


@pytest.mark.parametrize(
    "class_name, expected_area",
    [("disc", np.pi * 20**2), ("square", (0.6 * 40) ** 2 * 2), ("star", 10 * 0.5 * 20 * 9 * np.sin(np.pi / 5))],
)  # ten triangles between radii 20 and 0.45 * 20
def test_box_and_area_are_those_of_the_outline(class_name, expected_area):
    corners = _outline(class_name, 40, 0.3) + (60, 50)
    mask = _coverage(corners, 128, 96)
    record = _annotation(_Item(class_name, corners), 1, 1)
    assert mask.sum() == pytest.approx(expected_area, rel=0.03)
    assert record["area"] == pytest.approx(expected_area, rel=0.005)
    # each side of the box lies in the outermost touched pixel (OpenCV paints the border too: 1/8 pixel more)
    rows, columns = np.nonzero(mask.max(axis=1) > 0)[0], np.nonzero(mask.max(axis=0) > 0)[0]
    x, y, width, height = record["bbox"]
    painted = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_allclose((x, y, x + width, y + height), painted, atol=1.125)


class _Item:
    def __init__(self, class_name, corners):
        self.class_name, self.corners = class_name, corners


def test_objects_stay_visible_and_some_images_are_empty():
    spec = SampleSpec()
    counts = []
    for index in range(60):
        _, objects = make_image(spec, 0, index)
        counts.append(len(objects))
        for number, item in enumerate(objects):
            hidden = np.ones_like(item.mask)
            for above in objects[number + 1 :]:
                hidden *= 1 - above.mask
            assert (item.mask * hidden).sum() >= 0.6 * item.mask.sum() - 1e-3
    assert 0 in counts
    assert set(counts) <= set(range(7))
    assert np.mean(counts) > 2


def test_second_run_keeps_the_folder(sample, caplog):
    caplog.set_level("INFO", "src.tools.sample_data")
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert not make_sample_data(sample, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert "kept" in caplog.text


def test_a_folder_that_the_first_release_made_is_kept(tmp_path):
    marker = {"made_by": "src.sample_data", "format_version": 1} | asdict(SMALL)
    (tmp_path / MARKER_FILE).write_text(json.dumps(marker))
    assert not make_sample_data(tmp_path, SMALL)


def test_folders_of_others_are_left_alone(tmp_path, sample):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="did not make"):
        make_sample_data(tmp_path / "mine", SMALL)
    assert fingerprint(tmp_path / "mine").keys() == {"thesis.txt"}
    with pytest.raises(UserError, match="is a file"):
        make_sample_data(tmp_path / "mine" / "thesis.txt", SMALL)
    with pytest.raises(UserError, match="other arguments"):
        make_sample_data(sample, SampleSpec(num_train=7, num_val=3, width=160, height=128, seed=5))
    (tmp_path / "new.partial").mkdir()
    make_sample_data(tmp_path / "new", SMALL)
    assert (tmp_path / "new.partial").is_dir()


def test_an_interrupted_run_leaves_nothing_and_is_made_good(tmp_path, sample, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("src.tools.sample_data.make_image", interrupt)
        make_sample_data(tmp_path / "data", SMALL)
    assert list(tmp_path.iterdir()) == []
    # a run that was killed could not tidy up: its folder is removed by the next one
    (tmp_path / ".data.unfinished" / "train2017").mkdir(parents=True)
    assert make_sample_data(tmp_path / "data", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert fingerprint(tmp_path / "data") == fingerprint(sample)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = ["--num_train=1", "--num_val=1", "--width=96", "--height=96", "--seed=0"]
    assert main([f"--output_dir={tmp_path / 'empty'}", *arguments]) == 0
    assert len(list((tmp_path / "empty" / "train2017").iterdir())) == 1


def test_as_a_program_it_says_what_it_did_and_fails_with_one_message(tmp_path):
    command = [
        sys.executable,
        "-m",
        "src.tools.sample_data",
        f"--output_dir={tmp_path / 'data'}",
        "--num_train=1",
        "--num_val=1",
        "--width=96",
        "--height=96",
    ]
    first, second, third = (
        subprocess.run([*command, *more], capture_output=True, text=True, cwd=REPO_ROOT, check=False)
        for more in ([], [], ["--seed=2"])
    )
    assert (first.returncode, second.returncode, third.returncode) == (0, 0, 1)
    assert "wrote 1 training images" in first.stdout
    assert "['background', 'disc', 'square', 'star']" in first.stdout
    assert "kept as it is" in second.stdout
    assert "other arguments" in third.stdout
    assert "Traceback" not in third.stdout + third.stderr


@pytest.mark.parametrize("key, value", [("num_train", 0), ("num_val", -1), ("width", 95), ("seed", -1)])
def test_impossible_arguments_are_refused(key, value):
    with pytest.raises(UserError, match=f"--{key}={value}"):
        SampleSpec(**{key: value})


def test_unwritable_target_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        make_sample_data(tmp_path / "file" / "data", SMALL)
