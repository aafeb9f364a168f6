"""Tiny-ImageNet, found by looking: the publisher's folder or zip, class folders, parquet, a hub id.

Every layout becomes an `ImageSource`: encoded pictures and class indices by split. Classes are sorted by wnid, so that
an index means the same class in every layout.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagenet_pretrain.augment import EvalTransform, TrainTransform
from util.errors import InputError
from util.images import read_image

PICTURES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
LOOKED_FOR = (
    "the publisher's folder (train/, val/val_annotations.txt) or zip, class folders (train/<wnid>/*.JPEG, "
    "val/<wnid>/*.JPEG), parquet files named *train* and *val*, or a hub id owner/name"
)


@dataclass
class Split:
    """Pictures of a split: where each is, what to call it, and its class."""

    entries: Sequence[Any] = ()  # what the source's reader takes
    names: Sequence[str] = ()
    labels: Sequence[int] = ()


@dataclass
class ImageSource:
    """Pictures with one class each.

    Attributes:
        layout: In words.
        root: Where it was found.
        classes: wnids, sorted; an index into it is a label.
        class_names: A word for each.
        parts: By split, `train` and `val`.
        fetch: Encoded bytes of an entry, or its path.
    """

    layout: str
    root: str
    classes: list[str]
    class_names: list[str]
    parts: dict[str, Split] = field(repr=False)
    fetch: Callable[[Any], bytes | Path] = field(repr=False)

    @property
    def splits(self) -> dict[str, int]:
        """Pictures of each split."""
        return {name: len(part.labels) for name, part in self.parts.items()}

    def label(self, split: str, index: int) -> int:
        return int(self.parts[split].labels[index])

    def read(self, split: str, index: int) -> tuple[np.ndarray, int]:
        """(H, W, 3) uint8 RGB, grey files too, and the class index."""
        part = self.parts[split]
        return read_image(self.fetch(part.entries[index]), name=part.names[index]), int(part.labels[index])

    def describe(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in self.splits.items())
        return f"{self.layout} at {self.root}: {len(self.classes)} classes, {counts} pictures"

    def limited(self, per_class: int) -> ImageSource:
        """Only the first `per_class` training pictures of each class."""
        part, seen, keep = self.parts["train"], dict.fromkeys(range(len(self.classes)), 0), []
        for i, label in enumerate(part.labels):
            if seen[int(label)] < per_class:
                seen[int(label)] += 1
                keep.append(i)
        less = Split(*([column[i] for i in keep] for column in (part.entries, part.names, part.labels)))
        layout = f"{self.layout} (first {per_class} of a class)"
        return ImageSource(layout, self.root, self.classes, self.class_names, {**self.parts, "train": less}, self.fetch)


def open_images(path: str | Path, *, limit_per_class: int | None = None) -> ImageSource:
    """The classification set at a path or hub id.

    Raises:
        InputError: Nothing known is there; says what was looked for.
    """
    source = _open(str(path))
    for split in ("train", "val"):
        if not source.splits.get(split):
            raise InputError(f"{source.root} ({source.layout}) has no {split} pictures; found {source.splits}")
    return source.limited(limit_per_class) if limit_per_class else source


def _open(path: str) -> ImageSource:
    root = Path(path).expanduser()
    if not root.exists():
        if path.count("/") == 1 and not path.startswith((".", "/", "~")):
            return _hub(path)
        raise InputError(f"no data at {path!r}; looked for {LOOKED_FOR}")
    if root.is_file():
        if zipfile.is_zipfile(root):
            return _zip(root)
        if root.suffix == ".parquet":
            return _parquet(root.parent)
        raise InputError(f"{root} is neither a zip nor a parquet file; looked for {LOOKED_FOR}")
    for folder in (root, root / "tiny-imagenet-200"):
        if (folder / "train").is_dir():
            return _folder(folder)
    if list(root.rglob("*.parquet")):
        return _parquet(root)
    zips = sorted(root.glob("*.zip"))
    if len(zips) == 1:
        return _zip(zips[0])
    found = ", ".join(sorted(e.name for e in root.iterdir())[:8]) or "nothing"
    raise InputError(f"unknown layout at {root} (found {found}); looked for {LOOKED_FOR}")


def _build(
    layout: str,
    root: Path | str,
    train: list[tuple[str, str, Any]],
    val: list[tuple[str, str, Any]],
    words: str | None,
    fetch: Callable[[Any], bytes | Path],
) -> ImageSource:
    """A source from (name, wnid, entry) triples; validation classes must be training classes."""
    classes = sorted({wnid for _, wnid, _ in train})
    index = {wnid: i for i, wnid in enumerate(classes)}
    for name, wnid, _ in val:
        if wnid not in index:
            raise InputError(f"{root}: {name} has class {wnid!r}, which has no training picture")
    names = dict(line.split("\t", 1) for line in (words or "").splitlines() if "\t" in line)
    parts = {
        split: Split([t[2] for t in triples], [t[0] for t in triples], [index[t[1]] for t in triples])
        for split, triples in (("train", train), ("val", val))
    }
    class_names = [names.get(c, c).split(",")[0].strip() for c in classes]
    return ImageSource(layout, str(root), classes, class_names, parts, fetch)


def _annotations(text: str, where: str) -> dict[str, str]:
    """File name to wnid from `val_annotations.txt`."""
    pairs = {}
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise InputError(f"{where} line {number}: expected FILE<tab>WNID<tab>box, got {line[:60]!r}")
        pairs[columns[0]] = columns[1]
    return pairs


def _from_tree(
    layout_hint: str,
    root: str | Path,
    paths: Sequence[str],
    annotations: str | None,
    words: str | None,
    fetch: Callable[[Any], bytes | Path],
) -> ImageSource:
    """A source from relative paths `train/<wnid>/...` and `val/...`, of a folder or of a zip alike."""
    train = [(p, p.split("/")[1], p) for p in paths if p.startswith("train/") and p.count("/") >= 2]
    val_paths = [p for p in paths if p.startswith("val/")]
    if annotations is not None:
        labels = _annotations(annotations, f"{root}: val/val_annotations.txt")
        missing = [p for p in val_paths if p.rsplit("/", 1)[1] not in labels]
        if missing:
            raise InputError(f"{root}: {missing[0]} is not in val/val_annotations.txt ({len(missing)} such pictures)")
        absent = set(labels) - {p.rsplit("/", 1)[1] for p in val_paths}
        if absent:
            raise InputError(f"{root}: val/images/{sorted(absent)[0]} is missing ({len(absent)} such pictures)")
        val = [(p, labels[p.rsplit("/", 1)[1]], p) for p in val_paths]
        layout = f"Tiny-ImageNet, publisher's {layout_hint}"
    else:
        if any(p.split("/")[1] == "images" and p.count("/") == 2 for p in val_paths):
            raise InputError(f"{root}: val/images has no classes: val/val_annotations.txt is missing")
        val = [(p, p.split("/")[1], p) for p in val_paths if p.count("/") >= 2]
        layout = f"class folders in a {layout_hint}"
    return _build(layout, root, train, val, words, fetch)


def _folder(root: Path) -> ImageSource:
    paths = sorted(
        f.relative_to(root).as_posix()
        for split in ("train", "val")
        for f in (root / split).rglob("*")
        if f.suffix.lower() in PICTURES
    )
    annotations = root / "val" / "val_annotations.txt"
    words = root / "words.txt"
    return _from_tree(
        "folder",
        root,
        paths,
        annotations.read_text() if annotations.exists() else None,
        words.read_text() if words.exists() else None,
        FolderReader(root),
    )


@dataclass
class FolderReader:
    """Relative path to path."""

    root: Path

    def __call__(self, entry: str) -> Path:
        return self.root / entry


class ZipReader:
    """Member to bytes; every process opens the file for itself, because a shared file position is a shared mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: tuple[int, zipfile.ZipFile] | None = None

    def open(self) -> zipfile.ZipFile:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), zipfile.ZipFile(self.path))
        return self._handle[1]

    def __call__(self, entry: str) -> bytes:
        return self.open().read(entry)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_handle": None}


def _zip(path: Path) -> ImageSource:
    reader = ZipReader(path)
    members = [m for m in reader.open().namelist() if not m.endswith("/")]
    prefix = next((m.split("train/", 1)[0] for m in sorted(members) if "train/" in m), None)
    if prefix is None:
        raise InputError(f"{path}: no train/ inside; looked for {LOOKED_FOR}")
    inside = {m.removeprefix(prefix): m for m in members if m.startswith(prefix)}

    def text(name: str) -> str | None:
        return reader(inside[name]).decode() if name in inside else None

    paths = sorted(p for p in inside if Path(p).suffix.lower() in PICTURES)
    source = _from_tree("zip", path, paths, text("val/val_annotations.txt"), text("words.txt"), reader)
    for part in source.parts.values():
        part.entries = [inside[p] for p in part.entries]
    return source


class TableReader:
    """(split, row) to bytes, from memory-mapped Arrow columns: workers share the pages."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def __call__(self, entry: tuple[str, int]) -> bytes:
        split, row = entry
        return self.columns[split][row].as_py()


def _parquet(root: Path) -> ImageSource:
    import pyarrow.parquet as pq

    files = sorted(root.rglob("*.parquet"))
    by_split: dict[str, list[Path]] = {
        "train": [f for f in files if "train" in f.name.lower()],
        "val": [f for f in files if "val" in f.name.lower() and "train" not in f.name.lower()],
    }
    for split, chosen in by_split.items():
        if not chosen:
            raise InputError(f"{root}: no parquet file with {split!r} in its name; found {[f.name for f in files][:6]}")
    triples: dict[str, list[tuple[str, str, Any]]] = {}
    columns: dict[str, Any] = {}
    for split, chosen in by_split.items():
        try:
            table = pq.read_table(chosen, memory_map=True)
        except Exception as error:
            raise InputError(f"{root}: {chosen[0].name} is not a readable parquet file: {error}") from None
        have = set(table.column_names)
        if {"bytes", "wnid"} <= have:
            columns[split] = table["bytes"]
            wnids = table["wnid"].to_pylist()
            names = table["path"].to_pylist() if "path" in have else [f"{split} row {i}" for i in range(len(wnids))]
        elif {"image", "label"} <= have:
            image = table["image"].combine_chunks()
            columns[split] = (image.chunk(0) if hasattr(image, "chunk") else image).field("bytes")
            words = _feature_names(table.schema.metadata)
            wnids = [words[i] if words else f"{i:05d}" for i in table["label"].to_pylist()]
            names = [f"{split} row {i}" for i in range(len(wnids))]
        else:
            raise InputError(f"{chosen[0]}: columns {sorted(have)}; expected image and label, or bytes and wnid")
        triples[split] = [(n, w, (split, i)) for i, (n, w) in enumerate(zip(names, wnids, strict=True))]
    words_file = root / "words.txt"
    words_text = words_file.read_text() if words_file.exists() else None
    return _build("parquet", root, triples["train"], triples["val"], words_text, TableReader(columns))


def _feature_names(metadata: dict[bytes, bytes] | None) -> list[str]:
    """Class names that `datasets` keeps in a parquet file's schema."""
    import json

    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features["label"]["names"])
    except (KeyError, ValueError, TypeError):
        return []


class HubReader:
    """(split, row) to bytes, from a `datasets` data set that does not decode."""

    def __init__(self, tables: dict[str, Any]) -> None:
        self.tables = tables

    def __call__(self, entry: tuple[str, int]) -> bytes:
        split, row = entry
        image = self.tables[split][row]["image"]
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def _hub(name: str) -> ImageSource:
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no folder {name!r}, and as a hub id it cannot be loaded: {reason}") from None
    splits = {"train": "train", "val": next((s for s in ("valid", "validation", "val") if s in loaded), "val")}
    tables, triples = {}, {}
    for split, theirs in splits.items():
        if theirs not in loaded or not {"image", "label"} <= set(loaded[theirs].column_names):
            raise InputError(f"{name}: needs splits train and valid with columns image and label, has {dict(loaded)}")
        table = loaded[theirs].cast_column("image", datasets.Image(decode=False))
        feature = table.features["label"]
        labels = table["label"]
        wnids = [feature.int2str(i) if hasattr(feature, "int2str") else f"{i:05d}" for i in labels]
        tables[split] = table
        triples[split] = [(f"{name} {split} row {i}", wnid, (split, i)) for i, wnid in enumerate(wnids)]
    return _build("hub", name, triples["train"], triples["val"], None, HubReader(tables))


def verify_images(source: ImageSource, progress: Callable[[int], Any] | None = None) -> list[str]:
    """A line for every picture of every split that cannot be decoded."""
    problems = []
    for split, count in source.splits.items():
        for i in range(count):
            try:
                source.read(split, i)
            except (InputError, OSError) as error:
                problems.append(str(error))
            if progress is not None:
                progress(1)
    return problems


class TrainImages(Dataset[dict[str, Tensor]]):
    """Augmented pictures; a key is (picture, seed of its augmentation)."""

    def __init__(self, source: ImageSource, split: str, transform: TrainTransform) -> None:
        self.source, self.split, self.transform = source, split, transform

    def __len__(self) -> int:
        return self.source.splits[self.split]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """`pixel_values` (3, S, S) float32, normalised, and `labels`, an int64 scalar."""
        index, seed = key
        image, label = self.source.read(self.split, index)
        return {"pixel_values": self.transform(image, seed), "labels": torch.tensor(label)}


class EvalImages(Dataset[dict[str, Tensor]]):
    """Pictures in order, resized and cropped the same way every time."""

    def __init__(self, source: ImageSource, split: str, transform: EvalTransform) -> None:
        self.source, self.split, self.transform = source, split, transform

    def __len__(self) -> int:
        return self.source.splits[self.split]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self.source.read(self.split, index)
        return {"pixel_values": self.transform(image), "labels": torch.tensor(label)}
