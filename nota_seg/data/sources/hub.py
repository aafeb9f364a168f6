"""Data sets in the form of the `datasets` library: parquet files, or a hub id "owner/name"."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from nota_seg.data.sources.ade20k import ADE_CLASSES
from nota_seg.data.sources.base import (
    SegmentationSource,
    Split,
    canonical_split,
    hold_out,
    names_as_stored,
    names_without_other,
    to_label,
)
from util.errors import InputError
from util.images import read_image, read_mask

IMAGE_COLUMNS = ("image", "pixel_values", "img", "picture")
LABEL_COLUMNS = ("annotation", "label", "mask", "segmentation", "labels", "semantic_mask", "segmentation_mask")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ADE_LIKE = re.compile(r"scene_parse|ade20k|ade_20k|ade-20k", re.IGNORECASE)


class Hub(SegmentationSource):
    """A picture column and a mask column, both holding encoded files.

    Class names: `id2label.json` beside the parquet files or in the hub repository, otherwise the names of a
    list-of-ClassLabel column. Labels: a set that is called scene_parse_150 or ADE20K, or has 150 names, or 151 of
    which the first is "other", has 0 = other (255, the rest moves down by one); all others are read as they are,
    with 255 = ignore. Without splits in the file names, 20% of the rows are held out as `val`.
    """

    key = "hub"
    wants = "parquet files with an image and a mask column, or a hub id owner/name"

    def __init__(self, path: Path) -> None:
        tables, names_file, place = _load_local(path) if path.exists() else _load_hub(path.as_posix())
        first = next(iter(tables.values()))
        self._image_column = _column(place, first, IMAGE_COLUMNS, "picture")
        self._label_column = _column(place, first, LABEL_COLUMNS, "mask")
        names, reduce = _classes(place, first, names_file)
        self.reduce = reduce
        rule = "0 = other" if reduce else "labels as they are"
        held_out = list(tables) == ["train"]
        note = "; 20% of the rows held out as val" if held_out else ""
        super().__init__(place, f"datasets ({rule}{note})", names)

        self._tables: dict[str, Any] = {}
        self._rows: dict[str, list[int]] = {}
        for split, table in tables.items():
            table = _undecoded(table, (self._image_column, self._label_column))
            keys = [f"{split}-{row:07d}" for row in range(len(table))]
            for part, rows in (hold_out(keys) if held_out else {split: list(range(len(keys)))}).items():
                self._tables[part], self._rows[part] = table, rows
                self._add_split(part, Split([keys[row] for row in rows]))

    @classmethod
    def detect(cls, path: Path) -> bool:
        if path.exists():
            return bool(_parquet_files(path))
        # data/camvid with data/ in place is a mistyped folder, not something to ask the network about.
        return bool(_HUB_ID.fullmatch(path.as_posix())) and not path.parent.exists()

    def places(self, split: str, index: int) -> tuple[str, str]:
        row = f"{self.root}, {split} row {self._rows[split][index]}"
        return f"{row}, column {self._image_column}", f"{row}, column {self._label_column}"

    def _read_image(self, split: str, index: int, orient: bool) -> np.ndarray:
        place = self.places(split, index)[0]
        return read_image(self._cell(split, index, self._image_column, place), name=place, orient=orient)

    def _read_label(self, split: str, index: int) -> np.ndarray:
        place = self.places(split, index)[1]
        mask = read_mask(self._cell(split, index, self._label_column, place), name=place)
        return to_label(mask, self.num_labels, reduce=self.reduce, name=place)

    def _cell(self, split: str, index: int, column: str, place: str) -> bytes | str:
        value = self._tables[split].select_columns([column])[self._rows[split][index]][column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, bytes | str):
            raise InputError(f"{place}: empty; fill it in or drop the row")
        return value


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    return sorted(p for p in [*path.glob("*.parquet"), *path.glob("*/*.parquet")] if not p.name.startswith("."))


def _split_of(file: Path, root: Path) -> str | None:
    """From `train-00000-of-00001.parquet`, `train.parquet` or `train/0.parquet`."""
    words = [re.split(r"[-_.]", file.stem)[0]]
    if file.parent != root:
        words.append(file.parent.name)
    return next((split for word in words if (split := canonical_split(word))), None)


def _load_local(path: Path) -> tuple[dict[str, Any], Path | None, str]:
    import datasets

    root = path if path.is_dir() else path.parent
    files: dict[str, list[str]] = {}
    for file in _parquet_files(path):
        files.setdefault(_split_of(file, root) or "train", []).append(str(file))
    if not files:
        raise InputError(f"{path}: no parquet files")
    try:
        tables: dict[str, Any] = {
            split: datasets.load_dataset("parquet", data_files=files[split], split="train")
            for split in ("train", "val", "test")
            if split in files
        }
    except Exception as error:
        raise InputError(f"{path}: the parquet files cannot be read ({_short(error)})") from None
    names = next((p for p in (root / "id2label.json", root.parent / "id2label.json") if p.is_file()), None)
    return tables, names, str(path)


def _load_hub(name: str) -> tuple[dict[str, Any], Path | None, str]:
    import datasets

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        hint = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else _short(error)
        raise InputError(f"{name}: no such folder here, and as a hub data set it cannot be loaded ({hint})") from None
    tables = {split: table for key, table in loaded.items() if (split := canonical_split(str(key)))}
    if not tables:
        raise InputError(f"{name}: splits {', '.join(map(str, loaded))}; none is called train, val or test")
    return tables, _hub_names(name), name


def _hub_names(name: str) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "id2label.json", repo_type="dataset"))
    except Exception:
        return None  # most sets have none; whether the names are needed is decided later


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _column(place: str, table: Any, wanted: tuple[str, ...], what: str) -> str:
    for name in wanted:
        if name in table.features and _holds_files(table.features[name]):
            return name
    columns = ", ".join(table.features)
    raise InputError(f"{place}: no {what} column; looked for {', '.join(wanted)} holding files, found {columns}")


def _holds_files(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, dict) and "bytes" in feature


def _undecoded(table: Any, columns: tuple[str, ...]) -> Any:
    """Columns as encoded files: decoding is `util.images`' work, which knows orientations, palettes and truncation."""
    import datasets

    for column in columns:
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


def _classes(place: str, table: Any, names_file: Path | None) -> tuple[list[str], bool]:
    """Class names, and whether 0 is "other"."""
    ade = bool(_ADE_LIKE.search(place))
    if names_file is not None:
        kept = names_without_other(names_file)
        if ade or len(kept) == ADE_CLASSES:
            return kept, True
        return names_as_stored(names_file), False
    names = _feature_names(table)
    if names is not None:
        return names, ade or len(names) == ADE_CLASSES
    if ade:
        return [f"class {i + 1}" for i in range(ADE_CLASSES)], True
    raise InputError(f'{place}: no class names; add id2label.json beside the data: {{"0": "sky", "1": "road", ...}}')


def _feature_names(table: Any) -> list[str] | None:
    """Names of a list of ClassLabels: what a picture contains. A single ClassLabel would be its scene."""
    import datasets

    for feature in table.features.values():
        inner = getattr(feature, "feature", None)
        if isinstance(inner, datasets.ClassLabel) and inner.names:
            return list(inner.names)
    return None
