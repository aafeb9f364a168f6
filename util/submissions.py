"""Submission files: `image_id,PredictionString`, a row a picture, ids row by row with spaces between them.

Read and written one row at a time: a file of a competition is hundreds of megabytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from util.coco import must_be_new
from util.errors import InputError
from util.files import whole_file

HEADER = ("image_id", "PredictionString")
SIDE = 256  # pixels of a row's square label map


def resized(label: np.ndarray, height: int, width: int) -> np.ndarray:
    """A label map at another size by nearest neighbour, as OpenCV takes it (512 to 256: every other pixel)."""
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)


def write_submission(
    path: str | Path,
    rows: Iterable[tuple[str, np.ndarray]],
    *,
    side: int | None = SIDE,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write rows as they come; the file is there when all are, and never takes another's place.

    Args:
        path: A new file.
        rows: Image id and (H, W) uint8 label map, which is brought to (side, side).
        side: Pixels; None leaves label maps as they are.
        progress: Called with 1 after every row.
    """
    path = Path(path)
    must_be_new(path)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for image_id, label in rows:
            square = label if side is None else resized(label, side, side)
            writer.writerow((image_id, " ".join(map(str, square.ravel().tolist()))))
            if progress is not None:
                progress(1)


class Submission:
    """A submission file: label maps by image id, one in memory at a time.

    Attributes:
        path: The file.
        image_ids: In the file's order.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._places: dict[str, int] = {}
        try:
            with self.path.open("rb") as file:
                head = next(csv.reader([file.readline().decode("utf-8-sig", "replace")]), [])
                if [h.strip() for h in head] != list(HEADER):
                    raise InputError(f"{path}: the first line is not {','.join(HEADER)}")
                while True:
                    place, line = file.tell(), file.readline()
                    if not line:
                        break
                    if line.strip():
                        image_id = self._row(line)[0]
                        if image_id in self._places:
                            raise InputError(f"{path}: two rows of {image_id!r}; keep one")
                        self._places[image_id] = place
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        if not self._places:
            raise InputError(f"{path}: no rows below the first line")
        self.image_ids = list(self._places)

    def _row(self, line: bytes) -> tuple[str, str]:
        csv.field_size_limit(max(csv.field_size_limit(), len(line) + 1))  # the default is below 256 x 256 ids
        cells = next(csv.reader(io.StringIO(line.decode("utf-8", "replace"), newline="")), [])
        if len(cells) != 2:
            raise InputError(f"{self.path}: a row has {len(cells)} cells instead of 2: {line[:40]!r}")
        return cells[0], cells[1]

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._places

    def label(self, image_id: str) -> np.ndarray:
        """(side, side) uint8.

        Raises:
            InputError: No such row, ids that are not 0..255, or not a square of them.
        """
        if image_id not in self._places:
            raise InputError(f"{self.path}: no row of {image_id!r}")
        with self.path.open("rb") as file:
            file.seek(self._places[image_id])
            words = self._row(file.readline())[1].split()
        try:
            ids = np.array(words, dtype=np.int64)
        except ValueError:
            raise InputError(f"{self.path}: the row of {image_id!r} has something that is not a number") from None
        side = round(len(ids) ** 0.5)
        if not len(ids) or side * side != len(ids) or ids.min() < 0 or ids.max() > 255:
            raise InputError(f"{self.path}: the row of {image_id!r} is not a square of ids 0..255 ({len(ids)} numbers)")
        return ids.astype(np.uint8).reshape(side, side)


def vote(labels: Sequence[np.ndarray]) -> np.ndarray:
    """The most frequent id of each pixel; a tie goes to the one among the tied whose voter is listed first.

    Args:
        labels: (H, W) integers of one voter each, in the order of their rank.
    """
    votes_NHW = np.stack(labels)
    agreeing_NHW = np.stack([(votes_NHW == one).sum(axis=0) for one in votes_NHW])
    winner = agreeing_NHW.argmax(axis=0)  # the first of equal ones
    return np.take_along_axis(votes_NHW, winner[None], axis=0)[0]


def hard_vote(paths: Sequence[str | Path], order: Sequence[str] | None = None) -> Iterable[tuple[str, np.ndarray]]:
    """Rows of the majority of several submissions, matched by image id whatever the order in each file.

    Args:
        paths: In the order of their rank.
        order: Image ids of the result; those of the first file by default.

    Raises:
        InputError: Before the first row: a file lacks an image. Later: rows of different sizes.
    """
    files = [Submission(path) for path in paths]
    if len(files) < 2:
        raise InputError("voting takes two submissions at least")
    ids = list(order) if order is not None else files[0].image_ids
    for file in files:
        missing = [i for i in ids if i not in file]
        if missing:
            raise InputError(f"{file.path}: no row of {missing[0]!r} (and {len(missing) - 1} more)")
        if order is None and len(file.image_ids) != len(ids):
            raise InputError(f"{file.path} has {len(file.image_ids)} rows, {files[0].path} {len(ids)}; give the list")
    return ((image_id, _voted(files, image_id)) for image_id in ids)


def _voted(files: Sequence[Submission], image_id: str) -> np.ndarray:
    labels = [file.label(image_id) for file in files]
    for file, label in zip(files, labels, strict=True):
        if label.shape != labels[0].shape:
            raise InputError(f"{file.path}: {image_id!r} is {label.shape}, in {files[0].path} {labels[0].shape}")
    return vote(labels)
