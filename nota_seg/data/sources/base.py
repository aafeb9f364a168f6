"""What every segmentation data set looks like to the rest of the project, and what the layouts share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np

from util.coco import read_json
from util.errors import InputError, did_you_mean
from util.images import read_image, read_mask
from util.seed import derive

IGNORE = 255  # label of pixels that neither train nor count
MOST_CLASSES = 255  # labels are bytes, and 255 is taken
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
MASK_SUFFIXES = {".png", ".bmp", ".tif", ".tiff"}
HELD_OUT = 0.2  # share of the pictures that become `val` where the data has one unnamed split

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
_CANONICAL = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
NO_CLASS_WORDS = {
    "other", "others", "other objects", "background", "void", "unlabeled", "unlabelled", "unknown", "ignore",
    "ignored", "none", "nothing",
}  # fmt: skip


def canonical_split(name: str) -> str | None:
    """`train`, `val` or `test` for any of their aliases in any case; None for another word."""
    return _CANONICAL.get(name.lower())


@dataclass
class Split:
    """What a layout knows about a split: the pictures that can be read, and what is wrong with the others."""

    names: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class SegmentationSource(ABC):
    """Pictures and label maps of a data set, found in one layout.

    Subclasses fill `class_names` and call `_add_split` for every split in their constructor.

    Attributes:
        layout: Name of the layout, with its particulars, for the reader.
        root: Where the data is.
        class_names: Unique name of each label.
        splits: Pictures of every split that has any; keys are `train`, `val` and `test`.
    """

    key: ClassVar[str]  # the word that `open_source(layout=...)` takes
    wants: ClassVar[str]  # what the layout looks for, for the message when nothing was found

    def __init__(self, root: str | Path, layout: str, class_names: Sequence[str]) -> None:
        self.root, self.layout = str(root), layout
        self.class_names = unique_names(class_names)
        self.splits: dict[str, int] = {}
        self._splits: dict[str, Split] = {}
        if not 1 <= len(self.class_names) <= MOST_CLASSES:
            raise InputError(f"{root}: {len(self.class_names)} classes; labels are bytes: 1 to {MOST_CLASSES} classes")

    @classmethod
    @abstractmethod
    def detect(cls, path: Path) -> bool:
        """Whether `path` looks like this layout; looks at names only."""

    @classmethod
    def near_miss(cls, path: Path) -> str | None:
        """What `path` lacks to be this layout, when it is half of it."""
        return None

    @abstractmethod
    def _read_image(self, split: str, index: int, orient: bool) -> np.ndarray:
        """(H, W, 3) uint8; `split` is canonical and `index` valid."""

    @abstractmethod
    def _read_label(self, split: str, index: int) -> np.ndarray:
        """(H, W) uint8, checked; `split` is canonical and `index` valid."""

    @abstractmethod
    def places(self, split: str, index: int) -> tuple[str, str]:
        """What error messages call the picture and its mask."""

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def names(self, split: str) -> list[str]:
        """A unique name of each picture, its relative path without suffix, in a fixed order."""
        return list(self._splits[self.split(split)].names)

    def read_image(self, split: str, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, turned as its EXIF orientation says."""
        return self._read_image(self.split(split), index, True)

    def read_label(self, split: str, index: int) -> np.ndarray:
        """(H, W) uint8: 0 .. num_labels - 1, and 255 = ignore."""
        return self._read_label(self.split(split), index)

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A picture and its label map, of one size.

        A picture is turned as its EXIF orientation says, unless its mask fits only the picture as stored: the mask
        was drawn on what its author saw, and decides.

        Raises:
            InputError: A file that cannot be read, labels out of range, or sizes that differ.
        """
        split = self.split(split)
        image, label = self._read_image(split, index, True), self._read_label(split, index)
        return self.fit(split, index, image, label), label

    def fit(self, split: str, index: int, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The picture in the orientation that has the label map's size; InputError if neither has."""
        if image.shape[:2] == label.shape:
            return image
        if image.shape[1::-1] == label.shape:
            stored = self._read_image(self.split(split), index, False)
            if stored.shape[:2] == label.shape:
                return stored
        picture, mask = self.places(self.split(split), index)
        raise InputError(
            f"{picture} is {image.shape[0]}x{image.shape[1]} and {mask} is {label.shape[0]}x{label.shape[1]} "
            "(height x width); they must be of one size"
        )

    def problems(self, split: str) -> list[str]:
        """What is wrong with the split without reading a picture: missing and superfluous files, repeated names."""
        return list(self._splits[self.split(split, empty=True)].problems)

    def all_problems(self) -> list[str]:
        """`problems` of all splits, the empty ones included."""
        return [problem for split in self._splits.values() for problem in split.problems]

    def split(self, name: str, *, empty: bool = False) -> str:
        """The canonical name of a split; InputError if it is unknown or, unless `empty`, has no pictures."""
        split = canonical_split(name)
        if split in self.splits or (empty and split in self._splits):
            return str(split)
        there = ", ".join(f"{s} ({n} pictures)" for s, n in self.splits.items()) or "none"
        state = "is empty" if split in self._splits else "is not there"
        raise InputError(f"{self.root}: the split {name!r} {state}; splits: {there}")

    def describe(self) -> str:
        """One line: layout, place, classes, pictures of each split."""
        there = ", ".join(f"{split} {count}" for split, count in self.splits.items()) or "none"
        return f"{self.layout} at {self.root}: {self.num_labels} classes; pictures: {there}"

    def _add_split(self, name: str, split: Split) -> None:
        self._splits[name] = split
        if split.names:
            self.splits[name] = len(split.names)


class PairedFolders(SegmentationSource):
    """Pictures and masks in two folders with one sub-folder a split, matched by relative path without suffix.

    Attributes:
        reduce: Value 0 of the masks is "other": it becomes 255 and the other values move down by one.
    """

    folders: ClassVar[tuple[str, str]]  # of the pictures, of the masks

    def __init__(self, root: Path, layout: str, class_names: Sequence[str], *, reduce: bool) -> None:
        super().__init__(root, layout, class_names)
        self.reduce = reduce
        self._pairs: dict[str, list[tuple[Path, Path]]] = {}
        pictures, masks = (split_folders(root / folder) for folder in self.folders)
        for name in SPLITS:
            if name in pictures and name in masks:
                split, self._pairs[name] = match_pairs(pictures[name], masks[name])
                self._add_split(name, split)
            elif name in masks or (name in pictures and name != "test"):  # a test set may be without masks
                there, lacking = (pictures, self.folders[1]) if name in pictures else (masks, self.folders[0])
                place = root / lacking / there[name].name
                self._add_split(name, Split(problems=[f"{there[name]} has no counterpart {place}"]))

    @classmethod
    def detect(cls, path: Path) -> bool:
        pictures, masks = (split_folders(path / folder) for folder in cls.folders)
        return bool(pictures.keys() & masks.keys())

    @classmethod
    def near_miss(cls, path: Path) -> str | None:
        pictures, masks = (path / folder for folder in cls.folders)
        if not pictures.is_dir() or cls.detect(path):
            return None
        if not masks.is_dir():
            return f"{pictures.name}/ is there but {masks.name}/ is missing"
        return f"{pictures.name}/ and {masks.name}/ have no split in common (train or training, val or validation)"

    def places(self, split: str, index: int) -> tuple[str, str]:
        picture, mask = self._pairs[split][index]
        return str(picture), str(mask)

    def _read_image(self, split: str, index: int, orient: bool) -> np.ndarray:
        return read_image(self._pairs[split][index][0], orient=orient)

    def _read_label(self, split: str, index: int) -> np.ndarray:
        path = self._pairs[split][index][1]
        return to_label(read_mask(path), self.num_labels, reduce=self.reduce, name=str(path))


def split_folders(path: Path) -> dict[str, Path]:
    """The sub-folders of `path` that are named like a split, by canonical name."""
    if not path.is_dir():
        return {}
    found: dict[str, Path] = {}
    for entry in sorted(path.iterdir()):
        split = canonical_split(entry.name)
        if split is not None and entry.is_dir():
            found.setdefault(split, entry)
    return found


def files_by_stem(folder: Path, suffixes: set[str]) -> tuple[dict[str, Path], list[str]]:
    """Files below `folder` by relative path without suffix, and a line for every repeated stem; no hidden files."""
    found: dict[str, Path] = {}
    problems = []
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            path = Path(directory, file)
            if file.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                problems.append(f"{path} and {found[stem].name} have one stem; keep one of them")
            else:
                found[stem] = path
    return found, problems


def match_pairs(pictures: Path, masks: Path) -> tuple[Split, list[tuple[Path, Path]]]:
    """Pair the files of two folders; what stays alone or is there twice goes into the split's problems."""
    image_of, problems = files_by_stem(pictures, IMAGE_SUFFIXES)
    mask_of, mask_problems = files_by_stem(masks, MASK_SUFFIXES)
    problems += mask_problems
    problems += [f"{image_of[s]} has no mask {masks / s}.png" for s in sorted(image_of.keys() - mask_of.keys())]
    problems += [f"{mask_of[s]} has no picture {pictures / s}.jpg" for s in sorted(mask_of.keys() - image_of.keys())]
    names = sorted(image_of.keys() & mask_of.keys())
    return Split(names, problems), [(image_of[name], mask_of[name]) for name in names]


def to_label(mask: np.ndarray, num_labels: int, *, reduce: bool, name: str) -> np.ndarray:
    """Checked labels from the ids of a mask.

    Args:
        mask: (H, W) integers.
        num_labels: Classes.
        reduce: 0 is "other" and becomes 255; the other ids move down by one.
        name: The mask, for the error message.

    Returns:
        (H, W) uint8: 0 .. num_labels - 1, and 255 = ignore (255 in the mask stays so).

    Raises:
        InputError: A value that is no class, with its place and the valid range.
    """
    highest = num_labels if reduce else num_labels - 1
    bad = (mask > highest) & (mask != IGNORE)
    if mask.dtype.kind == "i":
        bad |= mask < 0
    if bad.any():
        row, column = np.unravel_index(int(bad.argmax()), mask.shape)
        zero = "0 = other, " if reduce else ""
        raise InputError(
            f"{name}: value {mask[row, column]} at row {row}, column {column}; valid are {zero}{1 if reduce else 0}.."
            f"{highest} and {IGNORE} = ignore; correct the mask or the list of classes"
        )
    label = mask.astype(np.uint8)
    if reduce:
        label = np.where(label == IGNORE, np.uint8(IGNORE), label - np.uint8(1))  # 0 - 1 wraps round to 255
    return label


def unique_names(names: Iterable[str]) -> list[str]:
    """Names with a number behind those that are there already: results are reported by name."""
    seen: set[str] = set()
    result = []
    for name in names:
        candidate, count = name, 1
        while candidate in seen:
            count += 1
            candidate = f"{name} ({count})"
        seen.add(candidate)
        result.append(candidate)
    return result


def read_id2label(path: Path) -> dict[int, str]:
    """Names by id, in order of id, from a JSON object such as {"0": "wall", "1": "building"}.

    Raises:
        InputError: Missing, not JSON, or ids that do not count up from 0 or 1 without a gap.
    """
    content = read_json(path)
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: not an object of names such as {{"0": "wall", "1": "building"}}')
    try:
        names = {int(key): str(name).strip() for key, name in content.items()}
    except ValueError as error:
        raise InputError(f"{path}: a key is not a number ({error}); keys are class ids") from None
    ids = sorted(names)
    if ids[0] not in (0, 1) or ids != list(range(ids[0], ids[0] + len(ids))):
        gap = next((a + 1 for a, b in pairwise(ids) if b != a + 1), ids[0])
        raise InputError(f"{path}: ids must count up from 0 without a gap; look at {gap}")
    return {i: names[i] for i in ids}


def names_as_stored(path: Path) -> list[str]:
    """Class names for masks whose values are the labels: ids 0 .. n - 1."""
    names = read_id2label(path)
    if 0 not in names:
        raise InputError(f"{path}: ids begin at 1, but masks are read as they are; give the name of id 0 too")
    return list(names.values())


def names_without_other(path: Path) -> list[str]:
    """Class names for masks whose value 0 is "other", which is no class.

    The file may name 0 as such (`other`, `background`, `void`, `unlabeled`, ...), and that entry is dropped; it may
    begin at 1; or it may name the classes from 0 as they are after 0 has been removed, as ADE20K's does.
    """
    names = read_id2label(path)
    if len(names) > 1 and names.get(0, "").lower() in NO_CLASS_WORDS:
        del names[0]
    return list(names.values())


def required_id2label(root: Path) -> Path:
    """The path of id2label.json under `root`; InputError that says what to write if it is missing."""
    path = root / "id2label.json"
    if not path.is_file():
        raise InputError(f'{path}: missing; add one with the class names: {{"0": "sky", "1": "road", ...}}')
    return path


def hold_out(names: Sequence[str]) -> dict[str, list[int]]:
    """Divide one unnamed split into `train` and `val` (20%) by a hash of the names.

    A picture keeps its side when others come or go. A handful of pictures yields at least one for each side.

    Returns:
        Indices into `names` of each split.
    """
    draws = [derive("held out", name) / 2**32 for name in names]
    val = [i for i, draw in enumerate(draws) if draw < HELD_OUT]
    if len(names) > 1 and len(val) in (0, len(names)):
        val = [int(np.argmin(draws))]
    chosen = set(val)
    return {"train": [i for i in range(len(names)) if i not in chosen], "val": val}


def unknown_layout(layout: str, known: Iterable[str]) -> InputError:
    """The error for a layout that is asked for by a wrong name."""
    return InputError(f"unknown layout {layout!r}: {did_you_mean(layout, known)}")
