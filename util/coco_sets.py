"""Whole COCO files: statistics, merging, and choosing a part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.coco import CocoFile
from util.errors import InputError
from util.seed import derive


def stats(coco: CocoFile) -> dict[str, Any]:
    """Annotations, images, pixels and areas of every class, which classes appear together, and sizes of pictures.

    Returns:
        JSON-ready: `images`, `images_without_annotations`, `annotations`, `crowds`, `sizes` ("HxW" to images),
        `classes` (name to `annotations`, `images`, `pixels`, `pixel_share`, `area` quartiles) and `cooccurrence`
        (name to name to images that show both). Areas and pixels are counted from the shapes, overlaps included.
    """
    names = coco.class_names
    areas: list[list[int]] = [[] for _ in names]
    shown = np.zeros((len(coco.images), len(names)), dtype=np.int64)
    sizes: dict[str, int] = {}
    total = 0
    for row, image in enumerate(coco.images):
        size = f"{image['height']}x{image['width']}"
        sizes[size] = sizes.get(size, 0) + 1
        total += image["height"] * image["width"]
        for annotation in coco.annotations_by_image[image["id"]]:
            label = coco.label_of.get(annotation["category_id"])
            if label is None:  # the background
                continue
            areas[label].append(coco.area(image, annotation))
            shown[row, label] = 1
    together = shown.T @ shown
    classes = {}
    for label, name in enumerate(names):
        pixels = sum(areas[label])
        classes[name] = {
            "annotations": len(areas[label]),
            "images": int(shown[:, label].sum()),
            "pixels": pixels,
            "pixel_share": pixels / max(1, total),
            "area": [float(q) for q in np.percentile(areas[label], (0, 25, 50, 75, 100))] if areas[label] else None,
        }
    return {
        "images": len(coco.images),
        "images_without_annotations": int((shown.sum(axis=1) == 0).sum()),
        "annotations": len(coco.annotations),
        "crowds": sum(bool(a.get("iscrowd")) for a in coco.annotations),
        "sizes": sizes,
        "classes": classes,
        "cooccurrence": {a: dict(zip(names, map(int, together[i]), strict=True)) for i, a in enumerate(names)},
    }


def format_stats(result: dict[str, Any]) -> str:
    """Plain text for people."""
    wide = max([5, *(len(name) for name in result["classes"])])
    lines = [f"{'class':<{wide}}  annotations  images  pixels %  median area"]
    for name, one in result["classes"].items():
        median = "-" if one["area"] is None else f"{one['area'][2]:.0f}"
        share = 100 * one["pixel_share"]
        lines.append(f"{name:<{wide}}  {one['annotations']:>11}  {one['images']:>6}  {share:>8.2f}  {median:>11}")
    sizes = sorted(result["sizes"].items(), key=lambda item: -item[1])
    lines.append(
        f"{result['images']} images ({result['images_without_annotations']} without annotations), "
        f"{result['annotations']} annotations ({result['crowds']} crowds); "
        f"sizes: {', '.join(f'{size} ({n})' for size, n in sizes[:5])}{', ...' if len(sizes) > 5 else ''}"
    )
    return "\n".join(lines)


def merge(files: Sequence[CocoFile], roots: Sequence[Path | None] | None = None) -> tuple[CocoFile, Path]:
    """One file of several; images and annotations keep their ids where these are free and get new ones otherwise.

    Args:
        files: Of equal categories.
        roots: The picture folder of each; what the file says by default.

    Returns:
        The merged file and its picture folder. Where the folders differ, `file_name` becomes relative to what they
        have in common.

    Raises:
        InputError: Categories differ, or two files list the same picture.
    """
    first = files[0]
    folders = [
        (root or file.find_root()).resolve() for file, root in zip(files, roots or [None] * len(files), strict=True)
    ]
    common = Path(os.path.commonpath(folders))
    images: list[dict[str, Any]] = []
    by_image: dict[int, list[dict[str, Any]]] = {}
    annotation_ids: set[int] = set()
    origin: dict[str, Path] = {}
    next_image, next_annotation = (max(ids) for ids in zip(*(file.next_ids() for file in files), strict=True))
    for file, folder in zip(files, folders, strict=True):
        if [(c["id"], c["name"]) for c in file.categories] != [(c["id"], c["name"]) for c in first.categories]:
            raise InputError(f"{file.path}: its categories differ from those of {first.path}; make them equal")
        for image in file.images:
            path = folder / str(image["file_name"])
            name = path.relative_to(common).as_posix() if path.is_relative_to(common) else str(image["file_name"])
            if name in origin:
                raise InputError(
                    f"{file.path}: the picture {name} is in {origin[name]} too; remove it from one of them"
                )
            origin[name] = file.path
            image_id = image["id"]
            if image_id in by_image:
                image_id, next_image = next_image, next_image + 1
            images.append({**image, "id": image_id, "file_name": name})
            by_image[image_id] = []
            for annotation in file.annotations_by_image[image["id"]]:
                annotation_id = annotation.get("id")
                if annotation_id is None or annotation_id in annotation_ids:
                    annotation_id, next_annotation = next_annotation, next_annotation + 1
                annotation_ids.add(annotation_id)
                by_image[image_id].append({**annotation, "id": annotation_id, "image_id": image_id})
    return CocoFile(first.path, images, by_image, first.categories, first.info), common


def subset(
    coco: CocoFile,
    *,
    fraction: float | None = None,
    count: int | None = None,
    with_classes: Sequence[int] = (),
    without_classes: Sequence[int] = (),
    existing: bool = False,
    root: Path | None = None,
    seed: int = 0,
) -> CocoFile:
    """Some of the images, drawn without replacement, in the file's order.

    Args:
        coco: The whole.
        fraction: Share of the images that remain after the choice by class, 0 to 1.
        count: So many of them instead.
        with_classes: Category ids; an image needs one of them at least.
        without_classes: Category ids; an image must show none of them.
        existing: Only images whose picture is there.
        root: Folder of the pictures; found by looking by default.
        seed: Of the draw.
    """
    if fraction is not None and count is not None:
        raise InputError("a fraction or a count: give one of them")
    chosen = []
    for image in coco.images:
        shown = {a["category_id"] for a in coco.annotations_by_image[image["id"]]}
        fits = (not with_classes or shown & set(with_classes)) and not shown & set(without_classes)
        if fits and (not existing or coco.has_picture(image, root)):
            chosen.append(image)
    if fraction is not None:
        count = round(fraction * len(chosen))
    if count is not None:
        if not 1 <= count <= len(chosen):
            raise InputError(f"{coco.path}: {count} of {len(chosen)} images were asked for; give 1 to {len(chosen)}")
        rng = np.random.default_rng(derive("subset", seed))
        places = sorted(rng.choice(len(chosen), count, replace=False).tolist())
        chosen = [chosen[place] for place in places]
    if not chosen:
        raise InputError(f"{coco.path}: no image fits; ask for other classes, or name the pictures' folder")
    return coco.with_images(chosen)
