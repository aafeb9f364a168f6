"""What every picture adds to the confusion matrix: enough to score any resampling of the pictures, in a small file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nota_seg.metrics import IGNORE
from util.errors import InputError
from util.files import whole_file

Row = tuple[str, np.ndarray]  # name of a picture; (4, n): the classes present, their hit, truth and predicted pixels


def count_picture(name: str, prediction: np.ndarray, truth: np.ndarray, num_labels: int, ignore: int = IGNORE) -> Row:
    """Pixels of one picture by class, of the classes that are in its truth or its prediction.

    Args:
        name: Of the picture.
        prediction: Class ids (H, W), any integer type.
        truth: Class ids (H, W); pixels with the value `ignore` do not count.
        num_labels: Classes K.
        ignore: Label of pixels without truth.
    """
    valid = truth != ignore
    pairs = truth[valid].astype(np.int64) * num_labels + prediction[valid]
    confusion = np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)
    hit, of_truth, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    present = np.flatnonzero(of_truth + predicted)
    return name, np.stack([present, hit[present], of_truth[present], predicted[present]])


@dataclass(frozen=True)
class PictureCounts:
    """Pixels by picture and class: right (`hit`), in the truth, in the prediction; (N, K) int64 each."""

    names: list[str]
    class_names: list[str]
    protocol: dict[str, Any]
    hit: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    @classmethod
    def collect(cls, rows: Iterable[Row], class_names: Sequence[str], protocol: Mapping[str, Any]) -> PictureCounts:
        """Rows of `count_picture`, in the order in which they come."""
        rows = list(rows)
        dense = np.zeros((3, len(rows), len(class_names)), dtype=np.int64)
        for i, (_, row) in enumerate(rows):
            dense[:, i, row[0]] = row[1:]
        return cls([name for name, _ in rows], list(class_names), dict(protocol), *dense)

    @property
    def union(self) -> np.ndarray:
        return self.truth + self.predicted - self.hit

    def miou(self) -> float:
        """Mean IoU of the summed confusion, 0..1; classes in neither truth nor prediction are left out."""
        hit, union = self.hit.sum(axis=0), self.union.sum(axis=0)
        return float((hit[union > 0] / union[union > 0]).mean())

    def save(self, path: str | Path) -> None:
        """A compressed `.npz` of plain arrays, sparse; about 100 bytes a picture."""
        picture, label = np.nonzero(self.truth + self.predicted)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(self.names, dtype=np.str_),
                class_names=np.array(self.class_names, dtype=np.str_),
                protocol=np.array(json.dumps(self.protocol)),
                picture=picture.astype(np.int32),
                label=label.astype(np.int16),
                hit=self.hit[picture, label],
                truth=self.truth[picture, label],
                predicted=self.predicted[picture, label],
            )

    @classmethod
    def load(cls, path: str | Path) -> PictureCounts:
        """Read what `save` wrote.

        Raises:
            InputError: No such file, or another one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names, class_names = file["names"].tolist(), file["class_names"].tolist()
                dense = np.zeros((3, len(names), len(class_names)), dtype=np.int64)
                for plane, key in zip(dense, ("hit", "truth", "predicted"), strict=True):
                    plane[file["picture"], file["label"]] = file[key]
                return cls(names, class_names, json.loads(str(file["protocol"])), *dense)
        except FileNotFoundError:
            raise InputError(f"no per-picture counts {path}: `nota-seg eval --json FILE` writes them") from None
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} holds no per-picture counts ({error}): `nota-seg eval --json FILE` does"
            ) from None
