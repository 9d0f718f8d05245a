"""Result files written here byte by byte, read back, and scored by postprocess.py."""

import json
import logging
import struct
import subprocess
import sys

import numpy as np
import pytest

import postprocess
from src.evaluation.result_files import read_result_files, result_name
from src.model_utils.errors import UserError
from tests.helpers import REPO_ROOT

CLASSES = "--coco_classes=['background','cat','dog']"
NAMES = ["a.b.jpg", "noextension", "dir/sub folder/two words.png", "größe 图片.jpeg", ".hidden", "a.jpg"]
STEMS = ["a.b", "noextension", "two words", "größe 图片", ".hidden", "a"]


def write(folder, name, boxes, labels, mask, *, float_format="f"):
    """The three files, from lists of numbers: what the format says, by struct."""
    folder.mkdir(exist_ok=True)
    numbers = [number for box in boxes for number in box]
    (folder / f"{name}_0.bin").write_bytes(struct.pack(f"<{len(numbers)}{float_format}", *numbers))
    (folder / f"{name}_1.bin").write_bytes(struct.pack(f"<{len(labels)}i", *labels))
    (folder / f"{name}_2.bin").write_bytes(bytes(mask))


def write_annotations(path, file_names):
    """COCO file: image i has the id 7 + i and one box of side 50 + i, of the category 3 (dog) or 18 (cat)."""
    images = [{"id": 7 + i, "file_name": name, "width": 200, "height": 200} for i, name in enumerate(file_names)]
    boxes = [
        {
            "id": i,
            "image_id": 7 + i,
            "category_id": [18, 3][i % 2],
            "bbox": [10, 20, 50 + i, 50 + i],
            "area": (50 + i) ** 2,
            "iscrowd": 0,
        }
        for i in range(len(file_names))
    ]
    path.write_text(
        json.dumps(
            {
                "images": images,
                "annotations": boxes,
                "categories": [{"id": 3, "name": "dog"}, {"id": 18, "name": "cat"}],
            }
        ),
        encoding="utf-8",
    )
    return path


def write_perfect_results(folder, stems):
    """For every image its box, and a padding row in front that would be wrong."""
    for i, stem in enumerate(stems):
        write(folder, stem, [[0, 0, 9, 9, 1], [10, 20, 60 + i, 70 + i, 0.5]], [0, i % 2], [0, 1])


@pytest.fixture
def case(tmp_path):
    """A folder with annotations of NAMES and perfect results; run(*flags) is postprocess.py on it."""
    annotations = write_annotations(tmp_path / "val.json", NAMES)
    write_perfect_results(tmp_path / "result_Files", STEMS)

    def run(*flags, result_path=tmp_path / "result_Files"):
        return postprocess.main(
            [
                CLASSES,
                f"--anno_path={annotations}",
                f"--result_path={result_path}",
                f"--eval_output_path={tmp_path / 'out'}",
                *flags,
            ]
        )

    run.folder, run.results = tmp_path, tmp_path / "result_Files"
    return run


# ---- one image


@pytest.mark.parametrize(("file_name", "name"), list(zip(NAMES, STEMS, strict=True)))
def test_name_is_the_file_name_without_folders_and_extension(file_name, name):
    assert result_name(file_name) == name


@pytest.mark.parametrize(
    "file_name", ["val\\gr\u00f6\u00dfe.jpg", "val\\sub\\gro\u0308\u00dfe.jpg", "C:\\x/gro\u0308\u00dfe.png"]
)
def test_name_is_the_same_for_all_spellings(file_name):
    assert result_name(file_name) == "gr\u00f6\u00dfe"  # o with two dots as one sign: form NFC


@pytest.mark.parametrize("float_format", ["f", "e"])
def test_boxes_of_either_type_are_read(tmp_path, float_format):
    boxes = [[1.5, 2, 30, 40.25, 0.75], [0, 0, 0, 0, 0], [5, 6, 70, 80, 0.125]]  # exact in float16 too
    write(tmp_path, "a", boxes, [2, 0, -1], [1, 0, 1], float_format=float_format)
    found_boxes, labels, mask = read_result_files(tmp_path, "a")
    assert (found_boxes.dtype, labels.dtype, mask.dtype) == (np.float32, np.int32, bool)
    assert found_boxes.tolist() == boxes
    assert labels.tolist() == [[2], [0], [-1]]
    assert mask.tolist() == [[True], [False], [True]]


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("0", b"x" * 59, r"a_0\.bin: has 59 bytes; the mask has 3 rows, for which 60 \(float32\) or 30 \(float16\)"),
        ("0", b"x" * 48, r"a_0\.bin: has 48 bytes"),  # four numbers a row
        ("0", b"x" * 31, r"a_0\.bin: has 31 bytes"),  # float16 and a byte
        ("0", b"", r"a_0\.bin: has 0 bytes"),
        ("1", b"x" * 11, r"a_1\.bin: has 11 bytes; the mask has 3 rows, for which 12 \(int32\)"),
        ("1", b"x" * 24, r"a_1\.bin: has 24 bytes"),  # int64
        ("2", b"\1\1", r"a_0\.bin: has 60 bytes; the mask has 2 rows"),
        ("2", b"", r"a_2\.bin: is empty"),
        ("2", b"\1\0\7", r"a_2\.bin: holds the byte 7"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, suffix, content, message):
    write(tmp_path, "a", [[0] * 5] * 3, [0] * 3, [0] * 3)
    (tmp_path / f"a_{suffix}.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_result_files(tmp_path, "a")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, "a", [[0] * 5], [0], [0])
    (tmp_path / "a_1.bin").unlink()
    (tmp_path / "a_1.bin").mkdir()
    with pytest.raises(UserError, match=r"a_1\.bin: cannot be read \(Is a directory\)"):
        read_result_files(tmp_path, "a")


# ---- the program


def test_results_are_scored_with_the_categories_of_the_file(case):
    assert case() == 0
    metrics = json.loads((case.folder / "out" / "metrics.json").read_text())
    assert (metrics["AP"], metrics["AR1"]) == pytest.approx((1, 1))
    assert metrics["num_images"] == metrics["num_detections"] == len(NAMES)
    rows = json.loads((case.folder / "out" / "results.bbox.json").read_text())
    assert rows == [
        {"image_id": 7 + i, "category_id": [18, 3][i % 2], "bbox": [10, 20, 50 + i, 50 + i], "score": 0.5}
        for i in range(len(NAMES))
    ]


def test_boxes_in_half_precision_give_the_same_metrics(case):
    write(case.results, "a.b", [[10, 20, 60, 70, 0.5]], [0], [1], float_format="e")
    case()
    assert json.loads((case.folder / "out" / "metrics.json").read_text())["AP"] == pytest.approx(1)


def test_classes_may_be_those_of_the_annotations_in_their_order(tmp_path, caplog):
    """There the dog comes first, so it is label 0."""
    annotations = write_annotations(tmp_path / "val.json", ["a.png", "b.png"])
    write(tmp_path / "results", "a", [[10, 20, 60, 70, 0.5]], [1], [1])  # a cat
    write(tmp_path / "results", "b", [[10, 20, 61, 71, 0.5]], [0], [1])
    paths = [f"--anno_path={annotations}", f"--result_path={tmp_path}/results", f"--eval_output_path={tmp_path}/out"]
    assert postprocess.main(["--coco_classes=auto", *paths]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["AP"] == pytest.approx(1)
    assert "which must be that of the training: coco_classes = ['background', 'dog', 'cat']" in caplog.text


def test_any_number_of_rows_the_best_hundred_count(case):
    """The published program writes 1000 rows for every class."""
    boxes = [[i % 50, 0, 90, 90, (i + 1) / 4096] for i in range(2000)]
    write(case.results, "a", boxes, [i % 2 for i in range(2000)], [1] * 2000)
    case()
    rows = json.loads((case.folder / "out" / "results.bbox.json").read_text())
    scores = [row["score"] for row in rows if row["image_id"] == 7 + NAMES.index("a.jpg")]
    assert scores == [(i + 1) / 4096 for i in range(1999, 1899, -1)]


def test_text_lists_are_scored_too(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "val.txt").write_text('x.jpg 10,20,60,70,2\n"sub/two words.png" 10,20,61,71,1\n')
    write(tmp_path / "results", "x", [[10, 20, 60, 70, 0.5]], [1], [1])
    write(tmp_path / "results", "two words", [[10, 20, 61, 71, 0.5]], [0], [1])
    assert (
        postprocess.main(
            [
                CLASSES,
                "--dataset=other",
                f"--image_dir={images}",
                f"--anno_path={tmp_path}/val.txt",
                f"--result_path={tmp_path}/results",
                f"--eval_output_path={tmp_path}/out",
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["AP"] == pytest.approx(1)


def test_more_rows_than_a_hundred_count_when_they_are_asked_for(tmp_path):
    """130 perfect boxes: all of them with --test_max_per_img=130, 100 by default, 30 where 30 are asked for."""
    corners = [(20 * (i % 13), 20 * (i // 13)) for i in range(130)]
    annotations = write_annotations(tmp_path / "val.json", ["a.png"])
    content = json.loads(annotations.read_text())
    content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 3, "bbox": [x, y, 15, 15], "area": 225, "iscrowd": 0}
        for i, (x, y) in enumerate(corners)
    ]
    annotations.write_text(json.dumps(content))
    write(tmp_path / "results", "a", [[x, y, x + 15, y + 15, 0.9] for x, y in corners], [1] * 130, [1] * 130)
    for flags, recall, last in (
        (["--test_max_per_img=130"], 1, 130),
        ([], 100 / 130, 100),
        (["--test_max_per_img=30"], 30 / 130, 100),
    ):
        postprocess.main(
            [
                CLASSES,
                f"--anno_path={annotations}",
                f"--result_path={tmp_path}/results",
                f"--eval_output_path={tmp_path}",
                *flags,
            ]
        )
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert (metrics["AR100"], metrics["max_dets"]) == (pytest.approx(recall), [1, 10, last])


@pytest.mark.parametrize(
    ("file_name", "stem"),
    [
        ("val2017\\a.jpg", "a"),
        ("val2017\\sub\\a.jpg", "a"),
        ("b\\a.jpg", "b\\a"),
        ("a.jpg", "b\\a"),
        ("caf\u00e9.jpg", "cafe\u0301"),
        ("cafe\u0301.jpg", "caf\u00e9"),
        ("d\\cafe\u0301.jpg", "caf\u00e9"),
    ],
)
def test_other_slashes_and_other_unicode_forms_are_the_same_image(tmp_path, caplog, file_name, stem):
    annotations = write_annotations(tmp_path / "val.json", [file_name, "other.jpg"])
    write_perfect_results(tmp_path / "results", [stem, "other"])
    postprocess.main(
        [
            CLASSES,
            f"--anno_path={annotations}",
            f"--result_path={tmp_path}/results",
            f"--eval_output_path={tmp_path}/out",
        ]
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["AP"] == pytest.approx(1)
    assert "left out" not in caplog.text


def test_two_spellings_of_one_name_are_refused(case):
    write(case.results, "gro\u0308\u00dfe 图片", [[0] * 5], [0], [0])
    with pytest.raises(UserError, match=r"result_Files holds '.*_0\.bin' and '.*_0\.bin', two spellings of one name"):
        case()


def test_missing_files_are_counted_and_the_first_named(case):
    (case.results / "a.b_0.bin").unlink()
    (case.results / "two words_2.bin").unlink()
    with pytest.raises(
        UserError,
        match=r"lacks 2 of the 18 result files that 6 images .* need: "
        r"a\.b_0\.bin; two words_2\.bin\. ",
    ):
        case()
    assert list((case.folder / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("result_path", "message"),
    [
        ("", "result_path is empty"),
        ("missing", r"result_path missing cannot be read \(No such file"),
        ("val.json", r"result_path val\.json cannot be read \(Not a directory\)"),
    ],
)
def test_a_folder_that_is_none_is_named(case, monkeypatch, result_path, message):
    monkeypatch.chdir(case.folder)
    with pytest.raises(UserError, match=message):
        case(result_path=result_path)


def test_images_that_share_their_files_are_refused(case):
    write_annotations(case.folder / "val.json", [*NAMES, "other/a.png"])
    with pytest.raises(UserError, match=r"'a\.jpg' and 'other/a\.png' have the same result files a_0\.bin"):
        case()


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_without_a_class_is_refused(case, label):
    write(case.results, "a", [[0, 0, 9, 9, 0.5]], [label], [1])
    with pytest.raises(UserError, match=f"image id 12 has a detection of class {label}, but there are 2 classes"):
        case()


def test_files_of_other_images_are_mentioned(case, caplog):
    write(case.results, "stranger", [[0] * 5], [0], [0])
    (case.results / "notes.txt").write_text("")
    case()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "3 files of no image" in warnings[0] and "stranger_0.bin; stranger_1.bin" in warnings[0]


def test_the_program_ends_with_the_lines_or_with_one_message(case):
    command = [sys.executable, REPO_ROOT / "postprocess.py", CLASSES, "--anno_path=val.json"]
    done = subprocess.run(
        [*command, "--result_path=result_Files"], cwd=case.folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(" Average Precision ") == done.stdout.count(" Average Recall ") == 6
    assert (case.folder / "metrics.json").is_file() and (case.folder / "results.bbox.json").is_file()
    done = subprocess.run(command, cwd=case.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("ERROR: result_path is empty")
    assert "Traceback" not in done.stdout + done.stderr


def test_reading_needs_no_mindspore():
    code = "import sys, src.evaluation.result_files; print('mindspore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
