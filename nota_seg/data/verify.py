"""Check every file of a data set and list every bad one at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nota_seg.data.sources import IGNORE, SegmentationSource, open_source
from util.errors import InputError

Checked = tuple[list[str], np.ndarray | None]  # problems; pixels of each of 256 labels


@dataclass
class SplitReport:
    """Of one split.

    Attributes:
        pictures: Picture and mask pairs.
        good: Pairs without a problem.
        class_pixels: Labelled pixels of each class, in readable masks.
        class_pictures: Pictures that show each class.
        ignored_pixels: Pixels with label 255.
    """

    pictures: int = 0
    good: int = 0
    class_pixels: list[int] = field(default_factory=list)
    class_pictures: list[int] = field(default_factory=list)
    ignored_pixels: int = 0


@dataclass
class Report:
    """What `verify` found.

    Attributes:
        root: The data set.
        layout: Its layout; empty when none was recognised.
        class_names: Name of each label.
        splits: By split.
        problems: A line for every bad, missing or superfluous file.
        unseen: Classes that no mask of any split shows.
    """

    root: str
    layout: str = ""
    class_names: list[str] = field(default_factory=list)
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem; classes that are never seen are no problem."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self) | {"ok": self.ok}

    def summary(self, most: int = 10) -> str:
        """Lines for a reader: counts, the `most` frequent classes of each split, unseen classes, every problem."""
        lines = [f"{self.layout or 'unknown layout'} at {self.root}: {len(self.class_names)} classes"]
        for name, split in self.splits.items():
            total = sum(split.class_pixels)
            lines.append(f"{name}: {split.pictures} pictures, {split.good} good, {split.ignored_pixels} pixels ignored")
            order = sorted(range(len(split.class_pixels)), key=lambda i: -split.class_pixels[i])
            lines += [
                f"  {100 * split.class_pixels[i] / total:6.2f}% {self.class_names[i]} "
                f"({split.class_pictures[i]} pictures)"
                for i in order[:most]
                if split.class_pixels[i]
            ]
        if self.unseen:
            lines.append(f"classes never seen: {', '.join(self.unseen)}")
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append("all files are good" if self.ok else f"{len(self.problems)} problems")
        return "\n".join(lines)


def verify(
    source: str | Path | SegmentationSource,
    *,
    layout: str | None = None,
    workers: int = 2,
    progress: Callable[[int], Any] | None = None,
) -> Report:
    """Decode every picture and mask of every split.

    Args:
        source: A data set, or where it is.
        layout: The layout's key, to skip the looking.
        workers: Threads; decoding runs beside Python.
        progress: Called with 1 after every picture.

    Returns:
        The report; a data set that cannot be opened at all is its only problem.
    """
    if not isinstance(source, SegmentationSource):
        try:
            source = open_source(source, layout, strict=False)
        except InputError as error:
            return Report(str(source), problems=[str(error)])
    found = source
    report = Report(found.root, found.layout, found.class_names, problems=found.all_problems())
    seen = np.zeros(256, dtype=np.int64)
    for split, count in found.splits.items():
        pixels, pictures = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
        result = SplitReport(pictures=count)
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            for problems, counts in pool.map(lambda i, s=split: _check(found, s, i), range(count)):
                report.problems += problems
                result.good += not problems
                if counts is not None:
                    pixels += counts
                    pictures += counts > 0
                if progress is not None:
                    progress(1)
        result.class_pixels = pixels[: found.num_labels].tolist()
        result.class_pictures = pictures[: found.num_labels].tolist()
        result.ignored_pixels = int(pixels[IGNORE])
        report.splits[split] = result
        seen += pixels
    if not found.splits and not report.problems:
        report.problems.append(f"{found.root}: no pictures in any split")
    report.unseen = [name for name, count in zip(found.class_names, seen, strict=False) if not count]
    return report


def _check(source: SegmentationSource, split: str, index: int) -> Checked:
    """Read picture and mask separately, so that both are listed when both are bad."""
    problems: list[str] = []
    arrays: list[np.ndarray | None] = []
    for read, place in zip((source.read_image, source.read_label), source.places(split, index), strict=True):
        try:
            arrays.append(read(split, index))
        except InputError as error:
            arrays.append(None)
            problems.append(str(error))
        except Exception as error:  # a decoder's own bug must not hide the other bad files
            arrays.append(None)
            problems.append(f"{place}: {type(error).__name__}: {error}")
    image, label = arrays
    if image is not None and label is not None:
        try:
            source.fit(split, index, image, label)
        except InputError as error:
            problems.append(str(error))
    return problems, None if label is None else np.bincount(label.ravel(), minlength=256)
