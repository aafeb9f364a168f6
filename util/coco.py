"""COCO instance files: read, check, and paint into label maps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from util.errors import InputError

_FARTHEST = 1e6  # pixels; coordinates beyond this are damage, and would make pycocotools trace them point by point


@dataclass
class CocoFile:
    """One COCO JSON file in memory.

    Attributes:
        path: Where it came from, for error messages.
        images: The `images` entries, in the file's order.
        annotations_by_image: Annotations of each image id; images without any have an empty list.
        categories: The `categories` entries in order of their id.
        label_of: Category id to dense label, 0, 1, ... in order of id.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations_by_image: dict[int, list[dict[str, Any]]]
    categories: list[dict[str, Any]]
    label_of: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.label_of = {category["id"]: label for label, category in enumerate(self.categories)}

    @property
    def class_names(self) -> list[str]:
        """Category names, by dense label."""
        return [str(category["name"]) for category in self.categories]

    @classmethod
    def read(cls, path: str | Path) -> CocoFile:
        """Read and check a file.

        Raises:
            InputError: Not JSON, not COCO, repeated ids, or annotations of images or categories that are not listed.
        """
        path = Path(path)
        content = read_json(path)
        lists = {}
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise InputError(f"{path}: no list {key!r}; a COCO file has images, annotations and categories")
            lists[key] = content[key]
        _require(path, "images", lists["images"], ("id", "file_name", "height", "width"))
        _require(path, "annotations", lists["annotations"], ("image_id", "category_id"))
        _require(path, "categories", lists["categories"], ("id", "name"))
        _require_unique(path, "images", lists["images"])
        _require_unique(path, "categories", lists["categories"])

        by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in lists["images"]}
        known = {category["id"] for category in lists["categories"]}
        for annotation in lists["annotations"]:
            if annotation["image_id"] not in by_image:
                raise InputError(
                    f"{path}: {_called(annotation)} belongs to image {annotation['image_id']}, which is not in 'images'"
                )
            if annotation["category_id"] not in known:
                raise InputError(
                    f"{path}: {_called(annotation)} is of category {annotation['category_id']}, "
                    "which is not in 'categories'"
                )
            by_image[annotation["image_id"]].append(annotation)
        return cls(path, lists["images"], by_image, sorted(lists["categories"], key=lambda c: c["id"]))

    def paint(self, image: dict[str, Any], *, background: int = 255, first_label: int = 0) -> np.ndarray:
        """Paint an image's annotations into a label map, the largest first, so that small things lie on top.

        Polygons of one or more parts, uncompressed and compressed RLE, and crowds are painted alike. Polygon parts
        of fewer than three points cover nothing and are left out.

        Args:
            image: An entry of `images`.
            background: Value where no annotation is.
            first_label: Label of the category with the lowest id.

        Returns:
            (height, width) uint8.

        Raises:
            InputError: An annotation that cannot be painted.
        """
        height, width = int(image["height"]), int(image["width"])
        shapes = []
        for order, annotation in enumerate(self.annotations_by_image[image["id"]]):
            rle = self._to_rle(annotation, height, width)
            if rle is not None:
                shapes.append((-float(rle_tools.area(rle)), order, rle, annotation))
        label = np.full((height, width), background, dtype=np.uint8)
        for _, _, rle, annotation in sorted(shapes, key=lambda shape: shape[:2]):
            try:
                covered = rle_tools.decode(rle)
            except ValueError as error:
                raise InputError(f"{self.path}: {_called(annotation)}: damaged RLE ({error})") from None
            label[covered != 0] = self.label_of[annotation["category_id"]] + first_label
        return label

    def _to_rle(self, annotation: dict[str, Any], height: int, width: int) -> dict[str, Any] | None:
        """The shape as compressed RLE of the image's size; None if it covers nothing."""
        where = f"{self.path}: {_called(annotation)}"
        shape = annotation.get("segmentation")
        if isinstance(shape, dict):
            return _checked_rle(shape, height, width, where)
        if not isinstance(shape, list) or not shape:
            raise InputError(f"{where} has no segmentation; boxes alone cannot be painted")
        parts = []
        for part in shape:
            try:
                points = np.asarray(part, dtype=np.float64)
            except (TypeError, ValueError):
                raise InputError(f"{where}: a polygon that is not a list of numbers") from None
            if points.ndim != 1 or len(points) % 2 or not np.all(np.abs(points) < _FARTHEST):
                raise InputError(f"{where}: a polygon is a list x1, y1, x2, y2, ... of pixels, got {str(part)[:60]}")
            if len(points) >= 6:  # pycocotools takes four numbers for a box
                parts.append(points.tolist())
        if not parts:
            return None
        return rle_tools.merge(rle_tools.frPyObjects(parts, height, width))


def _checked_rle(shape: dict[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    size, counts = shape.get("size"), shape.get("counts")
    if not isinstance(size, list) or [int(v) for v in size] != [height, width]:
        raise InputError(f"{where}: RLE of size {size} in an image of [height, width] {[height, width]}")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii", "replace")}
    if not isinstance(counts, list) or not all(isinstance(c, int) and c >= 0 for c in counts):
        raise InputError(f"{where}: RLE counts are neither a string nor a list of lengths")
    if sum(counts) != height * width:
        raise InputError(f"{where}: RLE lengths add up to {sum(counts)}, the image has {height * width} pixels")
    return rle_tools.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; InputError where it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def _called(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation.get('id', '(without id)')}"


def _require(path: Path, key: str, entries: list[Any], fields: tuple[str, ...]) -> None:
    for place, entry in enumerate(entries):
        missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
        if missing:
            raise InputError(f"{path}: {key}[{place}] lacks {', '.join(missing)}")


def _require_unique(path: Path, key: str, entries: list[dict[str, Any]]) -> None:
    seen = set()
    for entry in entries:
        if entry["id"] in seen:
            raise InputError(f"{path}: two entries of {key!r} have the id {entry['id']}; ids must be unique")
        seen.add(entry["id"])
