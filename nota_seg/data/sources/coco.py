"""COCO JSON: instances painted into label maps; label 0 is the background, the classes follow in order of id."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path, PurePosixPath

import numpy as np

from nota_seg.data.sources.base import SPLITS, SegmentationSource, Split, canonical_split, hold_out
from util.coco import CocoFile
from util.errors import InputError
from util.images import read_image


class Coco(SegmentationSource):
    """Finds `{train,val,test}.json` at the root, or `annotations/instances_{train,val}*.json`, or one JSON file.

    A lone file has no splits: 20% of its pictures, chosen by a hash of `file_name`, are `val`, the others `train`.
    A file named `..._train.json` brings the `..._val.json` beside it along. Pictures are looked for at `file_name`
    relative to the folder that the file's `info` names (`image_root`) and to the root, then below `images/`,
    `images/<split>/`, `<split>/` and the folder that the JSON file is named after (`train2017/`).
    """

    key = "coco"
    wants = "COCO JSON: train.json and val.json, annotations/instances_train*.json, or one JSON file"

    def __init__(self, path: Path) -> None:
        root = path if path.is_dir() else path.parent
        files = find_files(path)
        if not files:
            raise InputError(f"{path}: no COCO JSON; looked for {self.wants}")
        read = {split: CocoFile.read(file) for split, file in files.items()}
        first = next(iter(read.values()))
        for other in read.values():
            if [(c["id"], c["name"]) for c in other.categories] != [(c["id"], c["name"]) for c in first.categories]:
                raise InputError(f"{other.path}: its categories differ from those of {first.path}; make them equal")
        held_out = list(files) == ["all"]
        layout = "COCO JSON (0 = background)"
        if held_out:
            layout = f"COCO JSON {first.path.name} (0 = background; 20% of the pictures held out as val)"
        super().__init__(root, layout, ["background", *first.class_names])

        self._files: dict[str, CocoFile] = {}
        self._items: dict[str, list[tuple[int, Path]]] = {}  # place in the file's images, picture
        for split, file in read.items():
            found, problems = _match(file, [file.image_root, *_folders(root, file.path, split)])
            if not held_out:
                self._fill(split, file, found, problems)
                continue
            parts = hold_out([str(file.images[place]["file_name"]) for place, _ in found])
            for part, chosen in parts.items():
                # Problems belong to the file as a whole; they are told once, with `train`.
                self._fill(part, file, [found[i] for i in chosen], problems if part == "train" else [])

    def _fill(self, split: str, file: CocoFile, found: list[tuple[int, Path]], problems: list[str]) -> None:
        found = sorted(found, key=lambda item: _stem(file.images[item[0]]["file_name"]))
        self._files[split], self._items[split] = file, found
        self._add_split(split, Split([_stem(file.images[place]["file_name"]) for place, _ in found], problems))

    @classmethod
    def detect(cls, path: Path) -> bool:
        return bool(find_files(path))

    @classmethod
    def near_miss(cls, path: Path) -> str | None:
        if path.is_dir() and not cls.detect(path) and (names := sorted(p.name for p in path.glob("*.json"))):
            return f"{', '.join(names[:5])} has no COCO keys (images, annotations), or several files have them"
        return None

    def places(self, split: str, index: int) -> tuple[str, str]:
        place, picture = self._items[split][index]
        file = self._files[split]
        return str(picture), f"the image {file.images[place]['id']} in {file.path}"

    def as_file(self, split: str) -> tuple[CocoFile, Path]:
        """A split as a COCO file of its own in the file's order, and the folder that its file names are relative to."""
        split = self.split(split)
        file, items = self._files[split], sorted(self._items[split])
        pictures = [picture.resolve() for _, picture in items]
        root = Path(os.path.commonpath([picture.parent for picture in pictures]))
        images = [
            {**file.images[place], "file_name": picture.relative_to(root).as_posix()}
            for (place, _), picture in zip(items, pictures, strict=True)
        ]
        return file.with_images(images), root

    def _read_image(self, split: str, index: int, orient: bool) -> np.ndarray:
        return read_image(self._items[split][index][1], orient=orient)

    def _read_label(self, split: str, index: int) -> np.ndarray:
        file = self._files[split]
        return file.paint(file.images[self._items[split][index][0]], background=0, first_label=1)


def find_files(path: Path) -> dict[str, Path]:
    """The JSON file of every split; the key is "all" for a lone file without splits. Empty if there is none."""
    if path.is_file():
        held_out = path.with_name(path.name.replace("_train.json", "_val.json"))
        if path.name.endswith("_train.json") and held_out.is_file():
            return {"train": path, "val": held_out}  # a fold, say
        return {"all": path} if path.suffix.lower() == ".json" else {}
    if not path.is_dir():
        return {}
    found: dict[str, Path] = {}
    candidates: list[tuple[Path, str]] = [(p, p.stem) for p in sorted(path.glob("*.json"))]
    for p in sorted(path.glob("annotations/instances_*.json")):
        if found_word := re.match(r"instances_([A-Za-z]+)", p.stem):
            candidates.append((p, found_word[1]))
    for file, word in candidates:
        split = canonical_split(word)
        if split is not None and _looks_like_coco(file):
            found.setdefault(split, file)
    if found:
        return {split: found[split] for split in SPLITS if split in found}
    lone = [p for p in sorted(path.glob("*.json")) if _looks_like_coco(p)]
    return {"all": lone[0]} if len(lone) == 1 else {}


def _looks_like_coco(path: Path) -> bool:
    """Whether the keys are in the file, without parsing it: COCO's own are hundreds of megabytes."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b'"images"') >= 0 and content.find(b'"annotations"') >= 0
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def _folders(root: Path, file: Path, split: str) -> list[Path]:
    aliases = SPLITS.get(split, ())
    named_after = file.stem.removeprefix("instances_")
    names = ["", "images", *(f"images/{a}" for a in aliases), *aliases, named_after, f"images/{named_after}"]
    bases = [root] if file.parent in (root, root / "annotations") else [file.parent, root]
    return [base / name for base in bases for name in dict.fromkeys(names)]


def _match(file: CocoFile, folders: list[Path]) -> tuple[list[tuple[int, Path]], list[str]]:
    """The picture of each image entry that has one, and a line for every entry without or with a repeated name."""
    found, problems = [], []
    seen: set[str] = set()
    order = list(folders)
    for place, image in enumerate(file.images):
        name = str(image["file_name"])
        if _stem(name) in seen:
            problems.append(f"{file.path}: two images have the stem {_stem(name)!r}; keep one of them")
            continue
        seen.add(_stem(name))
        folder = next((f for f in order if (f / name).is_file()), None)
        if folder is None:
            looked = ", ".join(dict.fromkeys(str(f) for f in folders[:2]))
            problems.append(
                f"{file.path}: the picture {name} is missing; looked in {looked} and the split's folders: name "
                "the folder in info.image_root, or leave such images out with `nota-seg data subset --existing`"
            )
            continue
        if folder != order[0]:
            order.remove(folder)  # the next picture is most likely here too
            order.insert(0, folder)
        found.append((place, folder / name))
    return found, problems


def _stem(file_name: str) -> str:
    return PurePosixPath(str(file_name)).with_suffix("").as_posix()
