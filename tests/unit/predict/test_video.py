"""Videos written and read: sizes, number of frames, colours, and what a failure leaves behind."""

import logging
import subprocess
import sys

import cv2
import numpy as np
import pytest

from src.data.image_files import ImageError
from src.model_utils.errors import UserError
from src.predict.video import VideoReader, VideoWriter
from tests.helpers import REPO_ROOT

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 220), (20, 20, 20), (200, 200, 30), (30, 200, 200)]


def frame(number, height=48, width=64):
    return np.full((height, width, 3), COLOURS[number % len(COLOURS)], np.uint8)


def write(path, frames, frame_rate=12.5):
    with VideoWriter(path, frame_rate) as video:
        for image in frames:
            video.write(image)


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def opened(path):
    """Frames, rate and size by OpenCV itself."""
    capture = cv2.VideoCapture(str(path))
    rate, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames, rate


@pytest.mark.parametrize("frame_rate", [12.5, 25, 30000 / 1001])
def test_frames_come_back_in_order_and_colour(tmp_path, frame_rate):
    write(tmp_path / "Größe %02d film.mp4", map(frame, range(7)), frame_rate)
    frames, rate = opened(tmp_path / "Größe %02d film.mp4")
    assert rate == pytest.approx(frame_rate, abs=1e-2)
    video = VideoReader(tmp_path / "Größe %02d film.mp4")
    assert video.frame_rate == rate
    assert video.num_frames == len(frames) == 7
    for number, (ours, theirs) in enumerate(zip(video, frames, strict=True)):
        assert ours.shape == (48, 64, 3)
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(ours.mean(axis=(0, 1)), COLOURS[number], atol=12)
    assert names_in(tmp_path) == ["Größe %02d film.mp4"]


@pytest.mark.parametrize(("height", "width"), [(49, 64), (48, 65), (1, 1), (47, 33)])
def test_odd_sizes_are_made_even(tmp_path, height, width):
    write(tmp_path / "a.mp4", [frame(number, height, width) for number in range(3)])
    frames, _ = opened(tmp_path / "a.mp4")
    assert [image.shape for image in frames] == [(height + height % 2, width + width % 2, 3)] * 3
    np.testing.assert_allclose(frames[1][-1, -1], COLOURS[1], atol=25)  # no black border


def test_frames_of_another_size_are_brought_to_that_of_the_first(tmp_path):
    write(tmp_path / "a.mp4", [frame(0), frame(1, 20, 20), frame(2)])
    frames, _ = opened(tmp_path / "a.mp4")
    assert [image.shape for image in frames] == [(48, 64, 3)] * 3


def test_an_error_in_between_leaves_the_old_file_and_no_rest(tmp_path):
    write(tmp_path / "a.mp4", map(frame, range(4)))
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 25) as video:
        video.write(frame(0))
        raise KeyboardInterrupt
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert names_in(tmp_path) == ["a.mp4"]


def test_no_frames_make_no_file(tmp_path):
    write(tmp_path / "a.mp4", [])
    assert names_in(tmp_path) == []


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*missing/a\.mp4: no MP4 file of 64 x 48 pixels"):
        write(tmp_path / "missing" / "a.mp4", [frame(0)])


FULL = """
import resource, sys
import numpy as np
from src.model_utils.errors import UserError
from src.predict.video import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))     # bytes of a file: as on a full disk
rng = np.random.default_rng(1)
try:
    with VideoWriter(sys.argv[1], 25) as video:
        for _ in range(30):
            video.write(rng.integers(0, 256, (240, 320, 3), np.uint8))
except UserError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_is_an_error(tmp_path):
    """OpenCV itself reports nothing."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "a.mp4"], cwd=REPO_ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout.startswith(f"cannot write {tmp_path}/a.mp4: 0 of 30 frames reached the file")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"<html></html>", bytes(range(256)) * 40])
def test_what_is_no_video_is_named(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.mp4: is not a video"):
        VideoReader(tmp_path / "a.mp4")


def test_a_video_that_ends_too_early_gives_what_it_has_and_a_warning(tmp_path, caplog):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (320, 240))
    rng = np.random.default_rng(2)
    for _ in range(20):
        writer.write(rng.integers(0, 256, (240, 320, 3), np.uint8))
    writer.release()
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2])
    video = VideoReader(tmp_path / "a.avi")
    frames = list(video)
    assert 0 < len(frames) < 20
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"{tmp_path}/a.avi: {video.num_frames} frames are announced and {len(frames)} could be read; "
        "the file may be cut off or damaged"
    ]
