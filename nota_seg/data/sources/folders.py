"""Two layouts of plain folders with an id2label.json: masks in which 0 = other, and masks that hold the labels."""

from __future__ import annotations

from pathlib import Path

from nota_seg.data.sources.base import PairedFolders, names_as_stored, names_without_other, required_id2label


class ImageMask(PairedFolders):
    """`image|mask/{train,val}`: value 0 becomes 255 (ignore), the others move down by one.

    `id2label.json` may name value 0 ("0": "other", "background", ...; dropped), begin at 1, or name the classes from
    0 as they are once "other" is gone.
    """

    key = "image-mask"
    wants = "image/ and mask/ with train/ and val/, and id2label.json (0 = other)"
    folders = ("image", "mask")

    def __init__(self, path: Path) -> None:
        names = names_without_other(required_id2label(path))
        super().__init__(path, "folders image|mask (0 = other)", names, reduce=True)


class ImagesMasks(PairedFolders):
    """`images|masks/{train,val}`: the values are the labels, `id2label.json` names them from 0, and 255 is ignored."""

    key = "images-masks"
    wants = "images/ and masks/ with train/ and val/, and id2label.json (labels as they are, 255 = ignore)"
    folders = ("images", "masks")

    def __init__(self, path: Path) -> None:
        names = names_as_stored(required_id2label(path))
        super().__init__(path, "folders images|masks (labels as they are)", names, reduce=False)
