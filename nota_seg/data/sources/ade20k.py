"""ADE20K as its publisher packs it: images|annotations/{training,validation}, 8-bit masks in which 0 is "other"."""

from __future__ import annotations

from pathlib import Path

from nota_seg.data.sources.base import PairedFolders, names_without_other
from util.errors import InputError

ADE_CLASSES = 150


class Ade20k(PairedFolders):
    """Value 0 becomes 255 (ignore), the others move down by one.

    Class names: `objectInfo150.txt` (a table with tabs and a Name column; the first synonym counts), otherwise
    `id2label.json` by the rule of `names_without_other`, otherwise "class 1" .. "class 150".
    """

    key = "ade20k"
    wants = "images/ and annotations/ with training/ and validation/ (0 = other)"
    folders = ("images", "annotations")

    def __init__(self, path: Path) -> None:
        table, names = path / "objectInfo150.txt", path / "id2label.json"
        if table.is_file():
            class_names = read_object_info(table)
        elif names.is_file():
            class_names = names_without_other(names)
        else:
            class_names = [f"class {i + 1}" for i in range(ADE_CLASSES)]
        super().__init__(path, "ADE20K (images|annotations, 0 = other)", class_names, reduce=True)


def read_object_info(path: Path) -> list[str]:
    """Class names, by label, from the publisher's table `Idx Ratio Train Val Name`."""
    rows = [
        line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    head = [word.strip().lower() for word in rows[0]] if rows else []
    if "idx" not in head or "name" not in head:
        raise InputError(f"{path}: no columns Idx and Name, separated by tabs; take the publisher's file")
    idx, name = head.index("idx"), head.index("name")
    found: dict[int, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= max(idx, name) or not row[idx].strip().isdigit():
            raise InputError(f"{path}: line {number} lacks a number or a name; take the publisher's file")
        found[int(row[idx])] = row[name].split(",")[0].strip()
    if sorted(found) != list(range(1, len(found) + 1)):
        raise InputError(f"{path}: Idx must count up from 1 without a gap")
    return [found[i] for i in sorted(found)]
