"""Which files an input stands for, in which order, and where their drawn copies go."""

import random
from pathlib import Path

import pytest
from PIL import Image

from src.data.image_files import FORMATS, IMAGE_SUFFIXES
from src.model_utils.errors import UserError
from src.predict.image_sources import find_inputs, is_video, left_out_summary, natural_key, output_paths

NATURAL = ["1.jpg", "2.JPG", "10.jpg", "a1b2.png", "a1b10.png", "A2.png", "a10.png", "b.png"]


@pytest.fixture
def folder(tmp_path):
    """A folder with images and much else."""
    for name in [*NATURAL, "notes.txt", ".hidden.jpg", "film.mp4", "sub/deep/3.jpg", "[1].jpg", "noextension"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_numbers_in_names_count_as_numbers():
    shuffled = random.Random(5).sample(NATURAL, len(NATURAL))
    assert sorted(shuffled, key=lambda name: natural_key(Path(name))) == NATURAL


@pytest.mark.parametrize("name", ["a²", "٣.jpg", "", "007", "1a", "a1"])
def test_any_two_names_can_be_compared(name):
    for other in ("1", "a", "²"):
        assert natural_key(Path(name)) != natural_key(Path(other))
        assert (natural_key(Path(name)) < natural_key(Path(other))) in (True, False)


def test_a_folder_stands_for_its_images_alone(folder):
    assert names(find_inputs(str(folder)).files) == ["1.jpg", "2.JPG", "10.jpg", "[1].jpg", *NATURAL[3:]]


def test_what_a_folder_holds_besides_is_left_out(folder):
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    left_out = find_inputs(str(folder)).left_out
    assert names(left_out) == [
        ".hidden.jpg",
        "dangling.jpg",
        "film.mp4",
        "folder.jpg",
        "noextension",
        "notes.txt",
        "sub",
    ]
    assert left_out_summary(left_out) == (
        "7 other files or folders left out: .hidden.jpg; dangling.jpg; film.mp4; folder.jpg/; noextension; notes.txt; "
        "sub/ (a video is detected in when it is named by itself)"
    )
    assert left_out_summary(left_out[-2:]) == "2 other files or folders left out: notes.txt; sub/"
    assert left_out_summary(left_out[-1:]) == "1 other file or folder left out: sub/"


def test_all_suffixes_are_taken_in_any_case(tmp_path):
    every = [
        f"{index}{suffix}"
        for index, suffix in enumerate(
            [*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES), *map(str.title, IMAGE_SUFFIXES)]
        )
    ]
    for name in [*every, "a.gif", "b.jpg.txt"]:
        (tmp_path / name).touch()
    assert names(find_inputs(str(tmp_path)).files) == every
    assert names(find_inputs(str(tmp_path)).left_out) == ["a.gif", "b.jpg.txt"]


def test_every_suffix_is_one_of_a_format_that_is_read():
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS) - {"MPO"}


@pytest.mark.parametrize("name", ["noextension", "[1].jpg", "film.mp4", "notes.txt"])
def test_a_file_that_exists_is_taken_whatever_its_name(folder, name):
    assert find_inputs(str(folder / name)) == ([folder / name], [])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["1.jpg", "10.jpg", "[1].jpg"]),
        ("a*", ["a1b2.png", "a1b10.png", "a10.png"]),
        ("**/3.jpg", ["3.jpg"]),
        ("*.mp4", ["film.mp4"]),
        ("?.[jJ][pP][gG]", ["1.jpg", "2.JPG"]),
    ],
)
def test_a_pattern_stands_for_all_files_that_fit(folder, pattern, expected):
    assert names(find_inputs(str(folder / pattern)).files) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["dangling", "folder.jpg", "sub"]),
        ("**", ["dangling", "folder.jpg"]),
        ("**/*.jpg", ["folder.jpg"]),
        ("*.png", []),
        ("[ds]*", ["dangling", "sub"]),
    ],
)
def test_what_fits_a_pattern_and_is_no_file_is_left_out(folder, pattern, expected):
    """Folders that ** goes through are no part of it."""
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "dark.png").touch()
    assert names(find_inputs(str(folder / pattern)).left_out) == expected


@pytest.mark.parametrize("what", ["", "missing.jpg", "*.tif", "missing/*.jpg"])
def test_nothing_is_an_error(folder, monkeypatch, what):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="no such file or folder"):
        find_inputs(what)


def test_a_folder_without_images_is_an_error_that_helps(folder):
    with pytest.raises(
        UserError,
        match=r"sub holds no images \(\.bmp .*'.*sub/\*\*/\*\.jpg'\. 1 other file or "
        r"folder left out: deep/$",
    ):
        find_inputs(str(folder / "sub"))


@pytest.mark.parametrize(("name", "expected"), [("a.mp4", True), ("a.MOV", True), ("a.jpg", False), ("mp4", False)])
def test_videos_are_told_by_their_suffix(name, expected):
    assert is_video(Path(name)) is expected


def test_outputs_are_all_different():
    inputs = ["x/a.jpg", "x/a.png", "y/A.jpg", "x/a_2.jpg", "x/a.mp4", "y/a.avi", "noextension", "a.b.jpg"]
    paths = output_paths(list(map(Path, inputs)), Path("out"), ".png")
    assert {path.parent for path in paths} == {Path("out")}
    assert names(paths) == [
        "a.png",
        "a_2.png",
        "A_3.png",
        "a_2_2.png",
        "a.mp4",
        "a_2.mp4",
        "noextension.png",
        "a.b.png",
    ]


@pytest.mark.parametrize("output_dir", [".", "link", "sub/.."])
def test_the_folder_of_an_input_is_no_output_folder(folder, monkeypatch, output_dir):
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(folder)
    with pytest.raises(UserError, match=r"holds the input 1\.jpg, which must not be overwritten"):
        output_paths([folder / "1.jpg"], Path(output_dir), ".png")


def test_an_input_that_is_a_link_to_an_output_is_refused(folder):
    (folder / "out").mkdir()
    (folder / "out" / "old.png").touch()
    (folder / "link.png").symlink_to(folder / "out" / "old.png")
    with pytest.raises(UserError, match=r"holds the input link\.png"):
        output_paths([folder / "link.png"], folder / "out", ".png")
