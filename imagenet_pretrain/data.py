"""Tiny-ImageNet and sets like it, found by looking: pictures with one class each, in whichever layout they lie."""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from util.errors import InputError
from util.images import read_image

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "pixel_values"), ("label", "labels")
LOOKED_FOR = (
    "tiny-imagenet-200 (train/<wnid>/images, val/images, val/val_annotations.txt), class folders "
    "(train/<class>/*.JPEG, val/<class>/*.JPEG), a zip of either, *train*.parquet with *val*.parquet"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT_WORD = re.compile(r"(?<![a-z])(?:(train|training)|(val|valid|validation))(?![a-z])", re.IGNORECASE)


# --- where the encoded pictures of a split are


class Pictures(Protocol):
    """Encoded pictures by number."""

    def place(self, index: int) -> str:
        """What an error message calls the picture."""

    def encoded(self, index: int) -> bytes | Path:
        """The file, or its content."""


class FilePictures:
    """Files under a folder; `names` are relative to it."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def place(self, index: int) -> str:
        return str(self.root / self.names[index])

    def encoded(self, index: int) -> Path:
        return self.root / self.names[index]


class ZipPictures:
    """Members of a zip, read where they lie.

    A `ZipFile` seeks in one shared file, which neither threads nor forked workers survive, and opening it again in
    every worker parses 120,000 directory entries each time. So the directory is read once, and a picture is fetched
    by its position with `pread`, which has no state to share.
    """

    def __init__(self, path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
        self.path = path
        self.names = [member.filename for member in members]
        fields = [(m.header_offset, m.compress_size, m.CRC, m.compress_type) for m in members]
        self._entries = np.array(fields, dtype=np.int64).reshape(-1, 4)
        self._file: BinaryIO | None = None
        for member in members:
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{path}: {member.filename} is encrypted or packed in an unusual way; unpack the zip")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # a spawned worker opens its own

    def place(self, index: int) -> str:
        return f"{self.path}: {self.names[index]}"

    def encoded(self, index: int) -> bytes:
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        offset, size, checksum, method = self._entries[index].tolist()
        descriptor = self._file.fileno()
        header = os.pread(descriptor, 30, offset)  # the local header ends with the lengths of a name and extra fields
        start = offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        packed = os.pread(descriptor, size, start)
        try:
            content = packed if method == zipfile.ZIP_STORED else zlib.decompress(packed, -zlib.MAX_WBITS)
        except zlib.error:
            content = b""
        if zlib.crc32(content) != checksum:
            raise InputError(f"{self.place(index)}: damaged inside the zip; fetch the zip again")
        return content


class TablePictures:
    """A column of encoded pictures. Arrow's buffers hold no Python objects, so forked workers share one copy."""

    def __init__(self, what: str, column: pa.ChunkedArray) -> None:
        self.what, self.column = what, column

    def place(self, index: int) -> str:
        return f"{self.what}, row {index}"

    def encoded(self, index: int) -> bytes:
        content = self.column[index].as_py()
        if not content:
            raise InputError(f"{self.place(index)}: no picture in the row; fill it in or drop the row")
        return content


# --- the source


class Part(NamedTuple):
    """A split as a layout finds it: pictures and, for each, the name of its class."""

    pictures: Pictures
    keys: Sequence[str]


class ImageSource:
    """Pictures with one class each.

    Attributes:
        layout: Where they were found, in words.
        root: The folder, file or hub id.
        classes: Names (wnids) of the classes that the training pictures have, sorted, so that a class has the same
            label whichever layout the set is read from; whole numbers sort as numbers. A label is a position in it.
        class_names: The first synonym of `words.txt` where there is one, otherwise the class itself.
        splits: Number of pictures in `train` and in `val`.
    """

    def __init__(
        self,
        layout: str,
        root: str,
        parts: dict[str, Part],
        words: dict[str, str],
        *,
        expected: Iterable[str] = (),
        limit_per_class: int | None = None,
    ) -> None:
        self.layout, self.root, self.limit_per_class = layout, root, limit_per_class
        for split in SPLIT_FOLDERS:
            if split not in parts or not len(parts[split].keys):
                raise InputError(f"{root}: no {split} pictures; looked for {LOOKED_FOR}")
        self.classes = sorted(set(parts["train"].keys), key=lambda k: (int(k), "") if k.isdecimal() else (0, k))
        self.class_names = [words.get(c, c) for c in self.classes]
        numbers = {c: i for i, c in enumerate(self.classes)}
        for c in expected:
            if c not in numbers:
                raise InputError(f"{root}: class {c} of wnids.txt has no training pictures; unpack the set again")
        self._pictures = {split: part.pictures for split, part in parts.items()}
        self._labels: dict[str, np.ndarray] = {}
        self._rows: dict[str, np.ndarray] = {}
        for split, part in parts.items():
            unknown = next((key for key in part.keys if key not in numbers), None)
            if unknown is not None:
                raise InputError(f"{root}: class {unknown} of the {split} pictures has no training pictures; add some")
            labels = np.array([numbers[key] for key in part.keys], dtype=np.int64)
            rows = np.arange(len(labels))
            if split == "train" and limit_per_class is not None:
                rows = _first_of_each(labels, limit_per_class)
            self._labels[split], self._rows[split] = labels[rows], rows
        self.splits = {split: len(rows) for split, rows in self._rows.items()}

    def describe(self) -> str:
        """One line for the reader."""
        limit = f" (at most {self.limit_per_class} a class)" if self.limit_per_class else ""
        return (
            f"{self.root}: {self.layout}, {len(self.classes)} classes, {self.splits['train']:,} training{limit} and "
            f"{self.splits['val']:,} validation pictures"
        )

    def label(self, split: str, index: int) -> int:
        """The class of a picture, a position in `classes`."""
        return int(self._labels[self._known(split)][index])

    def labels(self, split: str) -> np.ndarray:
        """(n,) int64, the classes of a whole split."""
        return self._labels[self._known(split)].copy()

    def place(self, split: str, index: int) -> str:
        """What error messages call a picture."""
        return self._pictures[self._known(split)].place(int(self._rows[split][index]))

    def read(self, split: str, index: int) -> tuple[np.ndarray, int]:
        """A picture, (H, W, 3) uint8 RGB whatever its file holds, and its class.

        Raises:
            InputError: The file cannot be read or decoded.
        """
        pictures, row = self._pictures[self._known(split)], int(self._rows[split][index])
        return read_image(pictures.encoded(row), name=pictures.place(row)), self.label(split, index)

    def _known(self, split: str) -> str:
        if split not in self.splits:
            raise InputError(f"{self.root}: no split {split!r}; there are {', '.join(self.splits)}")
        return split


def _first_of_each(labels: np.ndarray, most: int) -> np.ndarray:
    """Positions of the first `most` pictures of every class, in their order."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    rank = np.arange(len(labels)) - starts[labels[order]]
    return np.sort(order[rank < most])


# --- finding


def open_images(path: str | Path, *, limit_per_class: int | None = None) -> ImageSource:
    """Find a set of pictures with classes: what lies at `path` decides the layout.

    Args:
        path: A folder (or its parent), a zip, a parquet file or a folder of them, or a hub id "owner/name".
        limit_per_class: Keep the first so many training pictures of every class; the validation pictures all stay.

    Raises:
        InputError: Nothing there, an unknown layout, a split without pictures, or classes that do not agree.
    """
    if limit_per_class is not None and limit_per_class < 1:
        raise InputError(f"limit_per_class={limit_per_class}: must be 1 or more")
    path = Path(path).expanduser()
    if not path.exists():
        # data/tiny with data/ in place is a mistyped folder, not something to ask the network about.
        if _HUB_ID.fullmatch(path.as_posix()) and not path.parent.exists():
            return _open_hub(path.as_posix(), limit_per_class)
        raise InputError(f"{path}: no such file or folder; looked for {LOOKED_FOR}")
    if path.is_file():
        found = _open_file(path, limit_per_class)
    else:
        found = _open_folder(path, limit_per_class)
    if found is None:
        raise InputError(f"{path}: not a set of pictures with classes; looked for {LOOKED_FOR}")
    return found


def _open_file(path: Path, limit: int | None) -> ImageSource | None:
    if path.suffix.lower() == ".parquet":
        return _open_parquet(path, _parquet_files(path.parent), limit)
    if path.suffix.lower() == ".zip":
        return _open_zip(path, limit)
    return None


def _open_folder(path: Path, limit: int | None) -> ImageSource | None:
    for folder in (path, path / "tiny-imagenet-200"):
        if _split_folder(folder, "train"):
            return _open_tree(folder, limit)
    files = _parquet_files(path)
    if files:
        return _open_parquet(path, files, limit)
    zips = [p for p in sorted(path.glob("*.zip")) if _zip_prefix(_zip_members(p)) is not None]
    if len(zips) > 1:
        raise InputError(f"{path}: {len(zips)} zips with pictures ({zips[0].name}, {zips[1].name}); name one of them")
    return _open_zip(zips[0], limit) if zips else None


# --- folders and zips: the same names in both


def _split_folder(folder: Path, split: str) -> str | None:
    return next((name for name in SPLIT_FOLDERS[split] if (folder / name).is_dir()), None)


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not PurePosixPath(name).name.startswith(".")


def _open_tree(root: Path, limit: int | None) -> ImageSource:
    def walk(top: str) -> list[str]:
        return sorted(
            Path(folder, name).relative_to(root).as_posix()
            for folder, _, names in os.walk(root / top, followlinks=True)
            for name in names
            if _is_picture(name)
        )

    def text(name: str) -> str | None:
        file = root / name
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None

    tops = {split: _split_folder(root, split) for split in SPLIT_FOLDERS}
    names = {split: walk(top) for split, top in tops.items() if top}
    parts = _parts(str(root), names, tops, text, lambda chosen: FilePictures(root, chosen))
    return _from_tree(str(root), parts, text, limit, "folder")


def _zip_members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [m for m in archive.infolist() if not m.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read as a zip ({error}); fetch it again") from None


def _zip_prefix(members: list[zipfile.ZipInfo]) -> str | None:
    """What stands before `train/` in the members' names: nothing, or one folder."""
    trains = "|".join(SPLIT_FOLDERS["train"])
    pattern = re.compile(rf"((?:(?!__MACOSX)[^/]+/)?)(?:{trains})/")
    return min({match[1] for m in members if (match := pattern.match(m.filename))}, key=len, default=None)


def _open_zip(path: Path, limit: int | None) -> ImageSource | None:
    members = _zip_members(path)
    prefix = _zip_prefix(members)
    if prefix is None:
        return None
    inside = {m.filename[len(prefix) :]: m for m in members if m.filename.startswith(prefix)}
    heads = {name.split("/", 1)[0] for name in inside if "/" in name}
    tops = {split: next((top for top in tops if top in heads), None) for split, tops in SPLIT_FOLDERS.items()}

    def text(name: str) -> str | None:
        if name not in inside:
            return None
        with zipfile.ZipFile(path) as archive:
            return archive.read(inside[name]).decode("utf-8", errors="replace")

    names = {
        split: sorted(name for name in inside if name.startswith(f"{top}/") and _is_picture(name))
        for split, top in tops.items()
        if top
    }
    parts = _parts(str(path), names, tops, text, lambda chosen: ZipPictures(path, [inside[name] for name in chosen]))
    return _from_tree(str(path), parts, text, limit, "zip")


def _from_tree(
    root: str, parts: dict[str, Part], text: Callable[[str], str | None], limit: int | None, kind: str
) -> ImageSource:
    wnids = (text("wnids.txt") or "").split()
    layout = f"publisher's {kind}" if wnids else ("class folders" if kind == "folder" else "class folders in a zip")
    words = _words(text("words.txt") or "")
    return ImageSource(layout, root, parts, words, expected=wnids, limit_per_class=limit)


def _parts(
    root: str,
    names: dict[str, list[str]],
    tops: dict[str, str | None],
    text: Callable[[str], str | None],
    pictures: Callable[[list[str]], Pictures],
) -> dict[str, Part]:
    """Splits of a tree of files: the class is the folder below `train/` or `val/`, or stands in the annotations."""
    parts = {}
    for split, found in names.items():
        top = tops[split]
        annotations = text(f"{top}/val_annotations.txt") if split == "val" else None
        if annotations is not None:
            found, keys = _annotated(root, found, f"{top}/val_annotations.txt", annotations)
        else:
            found = [name for name in found if name.count("/") >= 2]  # a loose picture has no class
            keys = [name.split("/", 2)[1] for name in found]
            if split == "val" and set(keys) == {"images"}:
                raise InputError(
                    f"{root}: {top}/val_annotations.txt is missing, and with it the classes of {top}/images"
                )
            if "images" in keys:
                raise InputError(f"{root}: {top}/images is no class; looked for {LOOKED_FOR}")
        parts[split] = Part(pictures(found), keys)
    return parts


def _annotated(root: str, found: list[str], file: str, annotations: str) -> tuple[list[str], list[str]]:
    """Names and classes of the publisher's validation pictures, in the order of the annotations."""
    names = {PurePosixPath(name).name: name for name in found}
    classes: dict[str, str] = {}
    for number, line in enumerate(annotations.splitlines(), start=1):
        fields = line.split("\t")
        if not line.strip():
            continue
        if len(fields) < 2:
            raise InputError(f"{root}: {file} line {number} is not `picture, tab, class`; take the publisher's file")
        classes[fields[0].strip()] = fields[1].strip()
    differences = {
        "listed but not there": classes.keys() - names.keys(),
        "there but not listed": names.keys() - classes.keys(),
    }
    for what, missing in differences.items():
        if missing:
            raise InputError(f"{root}: {min(missing)} is {what} ({len(missing)} such) by {file}; unpack the set again")
    return [names[name] for name in classes], list(classes.values())


def _words(text: str) -> dict[str, str]:
    """First synonym by wnid."""
    rows = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {wnid.strip(): synonyms.split(",")[0].strip() for wnid, synonyms in rows}


# --- parquet and the hub


def _split_of(file: Path) -> str | None:
    """`train` or `val`, from the last such word in the file's name or else its folder's."""
    for text in (file.stem, file.parent.name):
        match = _last_split_word(text)
        if match:
            return "train" if match[1] else "val"
    return None


def _last_split_word(text: str) -> re.Match[str] | None:
    return next(reversed(list(_SPLIT_WORD.finditer(text))), None)


def _parquet_files(folder: Path) -> list[Path]:
    files = sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")])
    return [f for f in files if not f.name.startswith(".") and _split_of(f)]


def _set_name(file: Path) -> str:
    """What the file's name says before the word train or val."""
    match = _last_split_word(file.stem)
    return file.stem[: match.start()] if match else ""


def _open_parquet(path: Path, files: list[Path], limit: int | None) -> ImageSource:
    if path.is_file():
        if path not in files:
            raise InputError(f"{path}: its name says neither train nor val; rename it")
        files = [f for f in files if _set_name(f) == _set_name(path) and f.parent == path.parent]
    names = sorted({_set_name(f) for f in files})
    if len(names) > 1:
        raise InputError(
            f"{path}: parquet files of several sets ({names[0]}*, {names[1]}*); name a file of one of them"
        )
    tables: dict[str, pa.Table] = {}
    for split in SPLIT_FOLDERS:
        chosen = [f for f in files if _split_of(f) == split]
        if chosen:
            tables[split] = pa.concat_tables([_read_parquet(f) for f in chosen])
    folder = files[0].parent
    candidates = [folder / f"{names[0]}words.txt", folder / "words.txt", folder.parent / "words.txt"]
    words = next((p.read_text(encoding="utf-8", errors="replace") for p in candidates if p.is_file()), "")
    return _from_tables("parquet", str(path), tables, _words(words), limit)


def _read_parquet(file: Path) -> pa.Table:
    """The two columns that matter. Parquet keeps no offsets, so single rows cannot be read: all come into memory."""
    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            wanted = {"bytes", "wnid", *IMAGE_COLUMNS, *LABEL_COLUMNS}
            return parquet.read(columns=[name for name in parquet.schema_arrow.names if name in wanted])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot be read as parquet ({_first_line(error)}); fetch it again") from None


def _open_hub(name: str, limit: int | None) -> ImageSource:
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # what the library and its network code may raise has no common base
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        hint = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else _first_line(error)
        raise InputError(f"{name}: no such folder here, and as a hub data set it cannot be loaded ({hint})") from None
    tables = {}
    for split, aliases in SPLIT_FOLDERS.items():
        key = next((alias for alias in aliases if alias in loaded), None)
        if key is not None:
            table = loaded[key]
            features = {c: datasets.Image(decode=False) for c in IMAGE_COLUMNS if c in table.column_names}
            for column, feature in features.items():
                table = table.cast_column(column, feature)
            arrow = table.with_format("arrow")[:]  # memory-mapped, no copy
            tables[split] = arrow.replace_schema_metadata(table.features.arrow_schema.metadata)
    return _from_tables("hub data set", name, tables, {}, limit)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _from_tables(
    layout: str, root: str, tables: dict[str, pa.Table], words: dict[str, str], limit: int | None
) -> ImageSource:
    parts = {}
    for split, table in tables.items():
        what = f"{root}, {split}"
        parts[split] = Part(TablePictures(what, _image_column(what, table)), _class_column(what, table))
    return ImageSource(layout, root, parts, words, limit_per_class=limit)


def _image_column(what: str, table: pa.Table) -> pa.ChunkedArray:
    for name in ("bytes", *IMAGE_COLUMNS):
        if name in table.column_names:
            column = table[name]
            if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
                column = pc.struct_field(column, "bytes")
            if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
                return column
    raise _no_column(what, "of encoded pictures", ("bytes", *IMAGE_COLUMNS), table)


def _class_column(what: str, table: pa.Table) -> list[str]:
    """The class of every row by name; a number without a name is its own name."""
    for name in ("wnid", *LABEL_COLUMNS):
        if name not in table.column_names:
            continue
        kind, values = table[name].type, table[name].to_pylist()
        if None in values or (pa.types.is_integer(kind) and min(values, default=0) < 0):
            raise InputError(f"{what}: column {name} has rows without a class; drop them")
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return values
        if pa.types.is_integer(kind):
            names = _label_names(table, name)
            if names and max(values, default=0) >= len(names):
                raise InputError(f"{what}: column {name} has label {max(values)}, but only {len(names)} names")
            return [names[value] if names else str(value) for value in values]
    raise _no_column(what, "of classes", ("wnid", *LABEL_COLUMNS), table)


def _label_names(table: pa.Table, column: str) -> list[str]:
    """Names of a ClassLabel, which `datasets` keeps in the schema's metadata."""
    try:
        features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return list(features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return []


def _no_column(what: str, kind: str, wanted: tuple[str, ...], table: pa.Table) -> InputError:
    return InputError(
        f"{what}: no column {kind}; looked for {', '.join(wanted)}, found {', '.join(table.column_names)}"
    )


# --- for the loader, and for `nota-seg data verify`


class TrainImages(Dataset):
    """Training pictures, each with the seed of its augmentation."""

    def __init__(self, source: ImageSource, split: str, transform: Callable[[np.ndarray, int], Tensor]) -> None:
        self.source, self.split, self.transform = source, split, transform

    def __len__(self) -> int:
        return self.source.splits[self.split]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """`key` is (index, seed); gives pixels (S, S, 3) uint8 and labels () int64."""
        index, seed = key
        image, label = self.source.read(self.split, index)
        return {"pixels": self.transform(image, seed), "labels": torch.tensor(label)}


class EvalImages(Dataset):
    """Pictures as they are judged."""

    def __init__(self, source: ImageSource, split: str, transform: Callable[[np.ndarray], Tensor]) -> None:
        self.source, self.split, self.transform = source, split, transform

    def __len__(self) -> int:
        return self.source.splits[self.split]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """pixel_values (3, S, S) float32 and labels () int64."""
        image, label = self.source.read(self.split, index)
        return {"pixel_values": self.transform(image), "labels": torch.tensor(label)}


def verify_images(source: ImageSource, progress: Callable[[int], Any] | None = None) -> list[str]:
    """Decode every picture of all splits.

    Args:
        source: What to check.
        progress: Called with 1 after every picture.

    Returns:
        A line for each picture that cannot be read.
    """
    problems = []
    for split, count in source.splits.items():
        for index in range(count):
            try:
                source.read(split, index)
            except InputError as error:
                problems.append(str(error))
            if progress is not None:
                progress(1)
    return problems
