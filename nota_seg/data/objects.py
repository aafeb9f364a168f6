"""Objects in label maps, where they are taken from, and how they are laid on another picture.

An object is a connected part of one class. What is pasted is decided by its mask alone, for pixels and label alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from nota_seg.data.sources.base import IGNORE, NO_CLASS_WORDS, SegmentationSource
from util.errors import InputError, did_you_mean
from util.progress import Progress

Pair = tuple[np.ndarray, np.ndarray]  # (H, W, 3) uint8 picture and (H, W) uint8 label map, 255 = ignored
IN_BATCH = "BatchCopyPaste"  # the one extra transform of whole batches


class Thing(NamedTuple):
    """Something to paste: pixels (h, w, 3), mask (h, w) bool, its class, and where its corner goes."""

    pixels: np.ndarray
    mask: np.ndarray
    label: int
    corner: tuple[int, int] = (0, 0)


def pasted(image: np.ndarray, label: np.ndarray, things: Sequence[Thing]) -> Pair:
    """New arrays with the things on top, the first lowest."""
    return paste_pixels(image, things), paste_labels(label, things)


def paste_pixels(image: np.ndarray, things: Sequence[Thing]) -> np.ndarray:
    image = image.copy()
    for thing in things:
        image[_window(thing)][thing.mask] = thing.pixels[thing.mask]
    return image


def paste_labels(label: np.ndarray, things: Sequence[Thing]) -> np.ndarray:
    label = label.copy()
    for thing in things:
        label[_window(thing)][thing.mask] = thing.label
    return label


def _window(thing: Thing) -> tuple[slice, slice]:
    (top, left), (height, width) = thing.corner, thing.mask.shape
    return slice(top, top + height), slice(left, left + width)


def objects(label: np.ndarray, classes: Sequence[int], min_area: int) -> list[tuple[int, np.ndarray]]:
    """Class and mask of each connected part (8 neighbours) of at least `min_area` pixels, in a fixed order."""
    found = []
    for c in classes:
        count, parts, stats, _ = cv2.connectedComponentsWithStats((label == c).astype(np.uint8), connectivity=8)
        found += [(int(c), parts == i) for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= min_area]
    return found


def things_of(names: Sequence[str]) -> list[int]:
    """Classes that name something: not `background`, `other`, ..."""
    return [i for i, name in enumerate(names) if name.strip().lower() not in NO_CLASS_WORDS]


def chosen_classes(classes: Sequence[str | int] | None, names: Sequence[str]) -> list[int]:
    """Classes given by name or number as numbers; all that name something by default."""
    if classes is None:
        return things_of(names)
    result = []
    for one in classes:
        if isinstance(one, int) and 0 <= one < len(names):
            result.append(one)
        elif one in names:
            result.append(list(names).index(str(one)))
        else:
            raise InputError(f"no class {one!r} to paste: {did_you_mean(str(one), names)}")
    return result


class ObjectBank:
    """Labelled pictures to take objects from, and which of them have which class.

    Args:
        source: Of the pictures.
        names: Classes of the training set; those of the source are matched by name, and others left out.
        limit: The first so many pictures only.
        fit: Factor by which a picture of (height, width) is brought to the size that training starts from.

    Attributes:
        read: Reads a picture; the owner of decoded ones may put its own in place.
    """

    def __init__(
        self,
        source: SegmentationSource,
        names: Sequence[str],
        *,
        limit: int | None = None,
        fit: Callable[[int, int], float] | None = None,
    ) -> None:
        self.names, self.fit = list(names), fit
        split = next((s for s in ("train", "val", "test") if source.splits.get(s)), "train")
        self.count = min(source.splits[split], limit or source.splits[split])
        number = {name: i for i, name in enumerate(self.names)}
        self.translate = np.full(256, IGNORE, dtype=np.uint8)
        for i, name in enumerate(source.class_names):
            self.translate[i] = number.get(name, IGNORE)
        if not things_of([n for n in source.class_names if n in number]):
            raise InputError(
                f"{source.root} has no class of the training data to paste: it has {', '.join(source.class_names[:8])}"
            )
        self.source, self.split = source, split
        self.read: Callable[[int], Pair] = self._read
        self._areas: np.ndarray | None = None

    def _read(self, index: int) -> Pair:
        return self.source.read(self.split, index)

    def pair(self, index: int) -> Pair:
        """A picture, and its label map in the classes of the training set."""
        image, label = self.read(index)
        return image, self.translate[label]

    @property
    def areas(self) -> np.ndarray:
        """(pictures, classes) pixels; reads every label map once."""
        if self._areas is None:
            areas = np.zeros((self.count, len(self.names)), dtype=np.int64)
            with Progress(self.count, "looking for objects") as progress:
                for i in range(self.count):
                    label = self.translate[self.source.read_label(self.split, i)]
                    areas[i] = np.bincount(label.ravel(), minlength=256)[: len(self.names)]
                    progress()
            self._areas = areas
        return self._areas


class Banks:
    """The object banks of a run: the training set's own, and others by path, each opened once.

    Args:
        source: The training data.
        limit: Pictures of it that are trained on.
        fit: As in `ObjectBank`.
    """

    def __init__(self, source: SegmentationSource, limit: int | None, fit: Callable[[int, int], float] | None) -> None:
        self.source, self.limit, self.fit = source, limit, fit
        self._banks: dict[str | None, ObjectBank] = {}

    def __call__(self, path: str | None) -> ObjectBank:
        if path not in self._banks:
            from nota_seg.data.sources import open_source

            source = self.source if path is None else open_source(path)
            limit = self.limit if path is None else None
            self._banks[path] = ObjectBank(source, self.source.class_names, limit=limit, fit=self.fit)
        return self._banks[path]

    def read_through(self, read: Callable[[int], Pair]) -> None:
        """Take the training set's own pictures from where they are decoded already."""
        if None in self._banks:
            self._banks[None].read = read
