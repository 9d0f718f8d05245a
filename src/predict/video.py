"""Videos frame by frame: reading, and writing MP4 files that appear whole or not at all."""

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from src.common.files import PARTIAL_PREFIX, cannot_write, write_whole
from src.data.image_files import ImageError

LOGGER = logging.getLogger(__name__)

FALLBACK_FRAME_RATE = 25.0  # frames a second, for files that state none
_CODEC = cv2.VideoWriter.fourcc(*"mp4v")


class VideoReader:
    """The frames of a video, one in memory at a time.

    A rotation stated in the file is applied, so frames look as players show them.

    Args:
        path (str | Path): any video file that OpenCV's FFmpeg reads.

    Attributes:
        frame_rate (float): frames a second.
        num_frames (int): as the file announces it, 0 if it does not; only reading tells.

    Raises:
        ImageError: the file is not a video; names it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        # An absolute path cannot be taken for a protocol such as concat:, and FFmpeg alone does not take a % in
        # the name for a series of images.
        self._capture = cv2.VideoCapture(str(self.path.absolute()), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise ImageError(f"{path}: is not a video that can be read")
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.frame_rate = self._capture.get(cv2.CAP_PROP_FPS)
        if not (math.isfinite(self.frame_rate) and self.frame_rate > 0):
            LOGGER.warning("%s: states no frame rate; %g a second are assumed", path, FALLBACK_FRAME_RATE)
            self.frame_rate = FALLBACK_FRAME_RATE

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames (h, w, 3) uint8 RGB, once; a file that ends too early gives a warning."""
        number = 0
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    break
                number += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
        if number < self.num_frames:
            LOGGER.warning(
                "%s: %d frames are announced and %d could be read; the file may be cut off or damaged",
                self.path,
                self.num_frames,
                number,
            )


class VideoWriter:
    """An MP4 file, MPEG-4 without sound, that takes its place when the last frame is in it.

    Use it in a `with` block. Frames go to a partial file beside the target; an error in the block removes it.

    Args:
        path (str | Path): ends in .mp4; its folder must exist.
        frame_rate (float): frames a second.

    Raises:
        UserError: the file cannot be written, or does not hold all frames in the end, as on a full disk.
    """

    def __init__(self, path: str | Path, frame_rate: float):
        self.path = Path(path)
        self.frame_rate = frame_rate
        self.num_frames = 0
        self._partial = self.path.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-frames-{self.path.name}")
        self._size: tuple[int, int] = (0, 0)
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error_type: type | None, *_) -> None:
        try:
            if self._writer is not None:
                self._writer.release()
            if error_type is None and self.num_frames:
                self._check_complete()
                write_whole(self.path, self._partial.replace)
        finally:
            self._partial.unlink(missing_ok=True)

    def write(self, frame_rgb: np.ndarray) -> None:
        """Add a frame.

        Args:
            frame_rgb (np.ndarray): (h, w, 3) uint8. The first one decides the size, made even as MPEG-4 needs it by
                repeating the last row or column; later frames of another size are brought to it.

        Raises:
            UserError: the file cannot be written.
        """
        frame = cv2.cvtColor(frame_rgb, cv2.COLOR_RGB2BGR)
        height, width = frame.shape[:2]
        frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        size = frame.shape[1], frame.shape[0]
        if self._writer is None:
            self._size = size
            self._writer = cv2.VideoWriter(str(self._partial.absolute()), cv2.CAP_FFMPEG, _CODEC, self.frame_rate, size)
            if not self._writer.isOpened():
                raise cannot_write(self.path, OSError(f"no MP4 file of {width} x {height} pixels could be begun there"))
        if size != self._size:
            frame = cv2.resize(frame, self._size)
        self._writer.write(frame)
        self.num_frames += 1

    def _check_complete(self) -> None:
        """OpenCV says nothing when a frame or the index at the end could not be written."""
        written = cv2.VideoCapture(str(self._partial.absolute()), cv2.CAP_FFMPEG)
        found = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if found != self.num_frames:
            raise cannot_write(self.path, OSError(f"{found} of {self.num_frames} frames reached the file"))
