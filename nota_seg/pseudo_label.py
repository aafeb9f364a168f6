"""Pseudo-labels: what a model is sure of on pictures without labels, as a COCO file and masks to train on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nota_seg.ensemble import Member, probabilities
from util.coco import CocoFile, annotations_of, inner_name, must_be_new, with_ignored
from util.errors import InputError
from util.files import whole_folder, write_text
from util.images import write_png
from util.palettes import grid, overlay, palette

IGNORE = 255
_SHOWN = 12  # pictures on the contact sheet


@dataclass
class Thresholds:
    """Confidence is the largest probability of a pixel.

    Attributes:
        pixel: Pixels below it are left out.
        classes: By label: a class whose pixels in a picture have a lower mean is left out there.
        image: Pictures with a lower mean over all their pixels are left out.
    """

    pixel: float = 0.0
    classes: Mapping[int, float] = field(default_factory=dict)
    image: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.pixel, self.image, *self.classes.values()):
            if not 0 <= value <= 1:
                raise InputError(f"threshold {value}: probabilities are 0 to 1")

    def apply(self, p_KHW: np.ndarray) -> tuple[np.ndarray | None, float, dict[int, float]]:
        """Labels of a picture.

        Returns:
            (H, W) uint8 with 255 where nothing is sure, or None for a picture that is left out; the mean confidence
            of the picture, and of each class in it.
        """
        label, sure = p_KHW.argmax(axis=0).astype(np.uint8), p_KHW.max(axis=0)
        mean = float(sure.mean())
        by_class = {int(k): float(sure[label == k].mean()) for k in np.unique(label)}
        if mean < self.image:
            return None, mean, by_class
        unsure = sure < self.pixel
        for k, confidence in by_class.items():
            if confidence < self.classes.get(k, 0.0):
                unsure |= label == k
        label[unsure] = IGNORE
        return label, mean, by_class


def pseudo_label(
    members: Sequence[Member],
    coco: CocoFile,
    output_dir: str | Path,
    thresholds: Thresholds,
    *,
    device: torch.device | str,
    form: str = "rle",
    masks: bool = False,
    root: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Write `pseudo.json` (one annotation a picture and class), `manifest.jsonl`, a contact sheet, and masks if asked.

    Pixels that nothing is sure of are neither background nor a class: they are the `ignored` ones of their image in
    the COCO file, which neither train nor count, and 255 in the masks. A picture without a sure pixel is left out.
    One picture's probabilities are in memory at a time.

    Args:
        members: Models that vote; label 0 is the background, the others follow the categories in order of id.
        coco: The pictures, and the categories; its annotations are not looked at.
        output_dir: New, or empty.
        thresholds: What is kept.
        device: Where the models are.
        form: Of the annotations.
        masks: Also write label PNGs, `masks/NAME.png`.
        root: Folder of the pictures.
        progress: Called with 1 after every picture.

    Returns:
        `kept`, `left_out` (pictures), `annotations`, `confidence` (mean over all pictures).
    """
    output_dir = Path(output_dir)
    must_be_new(output_dir)
    if not coco.categories:
        raise InputError(f"{coco.path} lists no categories: pseudo-labels need their names and ids")
    if not coco.images:
        raise InputError(f"{coco.path} lists no images")
    kept: list[dict[str, Any]] = []
    by_image: dict[int, list[dict[str, Any]]] = {}
    total, count = 0.0, 0
    lines: list[str] = []
    shown: list[np.ndarray] = []
    colours = palette(len(coco.classes) + 1)
    category_of = {label + 1: category_id for category_id, label in coco.label_of.items()}
    with whole_folder(output_dir) as folder:
        for image, picture, p_KHW in probabilities(members, coco, device, root):
            label, confidence, by_class = thresholds.apply(p_KHW)
            total += confidence
            if label is not None and (label == IGNORE).all():
                label = None
            names = {members[0].class_names[k]: round(v, 6) for k, v in by_class.items()}
            facts = {"file_name": image["file_name"], "id": image["id"], "kept": label is not None}
            lines.append(json.dumps({**facts, "confidence": round(confidence, 6), "classes": names}) + "\n")
            if label is not None:
                kept.append(with_ignored(image, label == IGNORE))
                by_image[image["id"]] = annotations_of(
                    label, category_of, first_id=count + 1, image_id=image["id"], form=form
                )
                count += len(by_image[image["id"]])
                if masks:
                    write_png(folder / "masks" / inner_name(image, ".png"), label)
                if len(shown) < _SHOWN:
                    shown.append(overlay(picture, np.where(label, label, IGNORE), colours))
            if progress is not None:
                progress(1)
        if not kept:
            raise InputError("no picture and no pixel is above the thresholds: lower them")
        file = CocoFile(coco.path, kept, by_image, coco.categories, coco.info)
        file.write(folder / "pseudo.json", root or coco.find_root())
        write_text(folder / "manifest.jsonl", "".join(lines))
        write_png(folder / "contact_sheet.png", grid([shown[i : i + 3] for i in range(0, len(shown), 3)]))
    return {
        "kept": len(kept), "left_out": len(coco.images) - len(kept), "annotations": count,
        "confidence": total / len(coco.images),
    }  # fmt: skip
