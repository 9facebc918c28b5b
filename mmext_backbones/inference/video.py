"""Reads and writes videos frame by frame."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..datasets.bad_data.images import file_fault
from ..utils.files import move_into_place, remove
from .images import ImageError

__all__ = ['VideoFile', 'VideoOutput']

FALLBACK_FPS = 25.0  # of a video that does not say


class VideoFile:
    """A video that can be read.

    Attributes:
        fps: Frames a second.
        num_frames: As its header says: now and then wrong, 0 where it does not say.

    Raises:
        ImageError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fault = file_fault(str(path))
        if fault is not None:
            raise ImageError(f'video {str(path)!r}: {fault.detail}.')
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise ImageError(f'video {str(path)!r} cannot be read: it is damaged, no video, or of an unknown codec.')
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else FALLBACK_FPS
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, uint8 [H, W, 3] in RGB, turned as the video asks for."""
        while True:
            read, frame = self._capture.read()
            if not read:
                return
            yield np.ascontiguousarray(frame[..., ::-1])

    def close(self) -> None:
        self._capture.release()


class VideoOutput:
    """An MP4 (MPEG-4) that is there when it is complete.

    Args:
        path: Ends in ``.mp4``.
        fps: Frames a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self.count = 0
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] = (0, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f'{path.stem}.partial.mp4')  # the suffix chooses the format

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 [H, W, 3] in RGB, all of one size; an odd edge loses its last pixel.

        Raises:
            RuntimeError: if this OpenCV writes no MP4.
        """
        height, width = (edge - edge % 2 for edge in frame.shape[:2])  # the format knows even ones only
        if self._writer is None:
            self._size = (width, height)
            self._writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*'mp4v'), self.fps, self._size)
            if not self._writer.isOpened():
                raise RuntimeError(f'{self.path}: this OpenCV ({cv2.__version__}) cannot write MP4 here')
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
        self.count += 1

    def finish(self) -> None:
        """Closes the file and gives it its name.

        Raises:
            RuntimeError: if frames are missing in it, as on a full disk, which OpenCV does not tell.
        """
        self._release()
        written = cv2.VideoCapture(str(self._partial))
        count = int(written.get(cv2.CAP_PROP_FRAME_COUNT))
        written.release()
        if count != self.count:
            remove(self._partial)
            raise RuntimeError(f'{self.path}: {count} of {self.count} frames could be written. Is the disk full?')
        move_into_place(self._partial, self.path)

    def discard(self) -> None:
        """Leaves nothing."""
        self._release()
        remove(self._partial)

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
