"""COCO instance files: read, check, paint into label maps, and back from masks to annotations."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from util.contours import exact_polygons
from util.errors import InputError, did_you_mean
from util.files import write_text
from util.images import image_size, read_image

IMAGE_ROOT = "image_root"  # in `info`: the folder of the pictures, relative to the JSON file's
IGNORED = "ignored"  # in an image: RLE of its pixels of which nothing is known (pseudo-labels); neither COCO's nor lost
FORMS = ("rle", "polygon")
BACKGROUNDS = ("background", "backgroud", "_background_", "__background__")  # the second is a competition's spelling
_FARTHEST = 1e6  # pixels; coordinates beyond this are damage, and would make pycocotools trace them point by point


@dataclass
class CocoFile:
    """One COCO JSON file in memory.

    Attributes:
        path: Where it came from, for error messages.
        images: The `images` entries, in the file's order.
        annotations_by_image: Annotations of each image id; images without any have an empty list.
        categories: The `categories` entries in order of their id.
        info: The file's `info`, and `licenses` where it has them.
        dropped: Annotations that belong to nothing, and were left out where that was asked for.
        classes: The categories without the background, which some files list and none means as a class of its own.
        label_of: Category id of each class to its dense label, 0, 1, ... in order of id.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations_by_image: dict[int, list[dict[str, Any]]]
    categories: list[dict[str, Any]]
    info: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    classes: list[dict[str, Any]] = field(init=False)
    label_of: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.classes = [c for c in self.categories if str(c["name"]).strip().lower() not in BACKGROUNDS]
        self.label_of = {category["id"]: label for label, category in enumerate(self.classes)}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by dense label; names that several have get the id behind them."""
        times = Counter(str(category["name"]).lower() for category in self.classes)
        return [
            f"{c['name']} ({c['id']})" if times[str(c["name"]).lower()] > 1 else str(c["name"]) for c in self.classes
        ]

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """All annotations, image by image."""
        return [a for image in self.images for a in self.annotations_by_image[image["id"]]]

    @property
    def image_root(self) -> Path:
        """The folder that `file_name` is relative to, as far as the file says: its own unless `info` names another."""
        return self.path.parent / str(self.info.get("info", {}).get(IMAGE_ROOT, "."))

    def picture(self, image: dict[str, Any], root: str | Path | None = None) -> Path:
        """Where an image's file is: below `root` if given, else below `image_root` and the usual folders near it."""
        name, word = str(image["file_name"]), self.path.stem.removeprefix("instances_")
        bases = [Path(root)] if root is not None else [self.image_root, self.path.parent, self.path.parent.parent]
        folders = [base / sub for base in bases for sub in ("", "images", word, f"images/{word}")]
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        raise InputError(
            f"{self.path}: the picture {name} is missing; looked below {bases[0]}: name its folder, or leave such "
            "images out with `nota-seg data subset --existing`"
        )

    def has_picture(self, image: dict[str, Any], root: str | Path | None = None) -> bool:
        """Whether `picture` finds the image's file."""
        try:
            return self.picture(image, root).is_file()
        except InputError:
            return False

    def find_root(self) -> Path:
        """The folder that `file_name` is relative to, found by the first picture there is; else `image_root`."""
        for image in self.images:
            if self.has_picture(image):
                return self.picture(image).parents[len(Path(image["file_name"]).parts) - 1]
        return self.image_root

    def next_ids(self) -> tuple[int, int]:
        """The first id above all of the images, and of the annotations."""
        images, annotations = (
            [e["id"] for e in entries if isinstance(e.get("id"), int)] for entries in (self.images, self.annotations)
        )
        return max(images, default=0) + 1, max(annotations, default=0) + 1

    def orientation(self, image: dict[str, Any], root: str | Path | None = None) -> tuple[Path, bool]:
        """A picture, and whether it has the size that the file states when it is turned as EXIF says, or as stored."""
        path, size = self.picture(image, root), (image["height"], image["width"])
        for orient in (True, False):
            if image_size(path, orient=orient) == size:
                return path, orient
        raise InputError(f"{path} is {image_size(path)} (height, width), {self.path} says {size}; correct the file")

    def read_picture(self, image: dict[str, Any], root: str | Path | None = None) -> np.ndarray:
        """(height, width, 3) uint8 RGB of the size that the file states, which decides about the EXIF orientation."""
        path, orient = self.orientation(image, root)
        return read_image(path, orient=orient)

    def category_ids(self, names: Iterable[str]) -> list[int]:
        """Ids of categories that are given by name (in any case) or by id."""
        found = []
        by_name = {name.lower(): c["id"] for name, c in zip(self.class_names, self.classes, strict=True)}
        for name in names:
            if name.lower() in by_name:
                found.append(by_name[name.lower()])
            elif name.isdigit() and int(name) in self.label_of:
                found.append(int(name))
            else:
                raise InputError(f"{self.path}: no category {name!r}: {did_you_mean(name, self.class_names)}")
        return found

    def with_images(self, images: Iterable[dict[str, Any]]) -> CocoFile:
        """The same file with these of its images, and their annotations, only."""
        kept = list(images)
        return CocoFile(
            self.path, kept, {i["id"]: self.annotations_by_image[i["id"]] for i in kept}, self.categories, self.info
        )

    def write(self, path: str | Path, root: str | Path | None = None) -> None:
        """Write the file whole; never over another.

        Args:
            path: A new file.
            root: Where the pictures are; found by looking by default. It is noted relative to the new file.
        """
        path = Path(path)
        must_be_new(path)
        # Resolved: `..` behind a symbolic link leads elsewhere.
        relative = os.path.relpath(Path(root or self.find_root()).resolve(), path.parent.resolve())
        info = {k: v for k, v in self.info.get("info", {}).items() if k != IMAGE_ROOT}
        if relative != ".":
            info[IMAGE_ROOT] = Path(relative).as_posix()
        lists = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        # On one line: a number a line would make a polygon a page.
        write_text(path, json.dumps({**self.info, "info": info, **lists}, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path, *, annotated: bool = True, strict: bool = True) -> CocoFile:
        """Read and check a file.

        `area`, `bbox`, `iscrowd`, ids of annotations, licences and whatever else a file may have are not needed.

        Args:
            path: The JSON file.
            annotated: False for the list of a test set, which may lack annotations and categories.
            strict: False leaves annotations out that belong to no image or no category, or have no shape, and counts
                them in `dropped`.

        Raises:
            InputError: Not JSON, not COCO, repeated ids, or annotations of images or categories that are not listed.
        """
        path = Path(path)
        content = read_json(path)
        lists = {}
        for key in ("images", "annotations", "categories"):
            if not annotated and key != "images" and isinstance(content, dict):
                content.setdefault(key, [])
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise InputError(f"{path}: no list {key!r}; a COCO file has images, annotations and categories")
            lists[key] = content[key]
        _require(path, "images", lists["images"], ("id", "file_name", "height", "width"))
        _require(path, "annotations", lists["annotations"], ("image_id", "category_id"))
        _require(path, "categories", lists["categories"], ("id", "name"))
        for place, entry in enumerate(lists["images"]):
            for side in ("height", "width"):
                entry[side] = _pixels(path, f"images[{place}]", side, entry[side])
        for key, kinds in (("images", (int, str)), ("categories", (int,))):
            for place, entry in enumerate(lists[key]):
                if not isinstance(entry["id"], kinds) or isinstance(entry["id"], bool):
                    raise InputError(f"{path}: {key}[{place}] has the id {entry['id']!r}; give a whole number")
        _require_unique(path, "images", lists["images"])
        _require_unique(path, "categories", lists["categories"])

        by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in lists["images"]}
        known = {category["id"] for category in lists["categories"]}
        dropped = 0
        for annotation in lists["annotations"]:
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            of_image, of_category = (_hashable(i) in k for i, k in ((image_id, by_image), (category_id, known)))
            if not strict and not (of_image and of_category and annotation.get("segmentation")):
                dropped += 1
                continue
            if not of_image:
                raise InputError(
                    f"{path}: {_called(annotation)} belongs to image {image_id!r}, which is not in 'images'; "
                    "`nota-seg data subset --existing` leaves it out"
                )
            if not of_category:
                raise InputError(
                    f"{path}: {_called(annotation)} is of category {category_id!r}, which is not in 'categories'; "
                    "`nota-seg data subset --existing` leaves it out"
                )
            by_image[image_id].append(annotation)
        info = {k: v for k, v in content.items() if k in ("info", "licenses") and isinstance(v, dict | list)}
        if not isinstance(info.get("info", {}), dict):
            del info["info"]
        return cls(path, lists["images"], by_image, sorted(lists["categories"], key=lambda c: c["id"]), info, dropped)

    def paint(
        self, image: dict[str, Any], *, background: int = 255, first_label: int = 0, ignored: int = 255
    ) -> np.ndarray:
        """Paint an image's annotations into a label map, the largest first, so that small things lie on top.

        Polygons of one or more parts, uncompressed and compressed RLE, and crowds are painted alike. Polygon parts
        of fewer than three points cover nothing and are left out.

        Args:
            image: An entry of `images`.
            background: Value where no annotation is.
            first_label: Label of the category with the lowest id.
            ignored: Value of the image's ignored pixels, where it has any.

        Returns:
            (height, width) uint8.

        Raises:
            InputError: An annotation that cannot be painted.
        """
        height, width = image["height"], image["width"]
        shapes = []
        for order, annotation in enumerate(self.annotations_by_image[image["id"]]):
            rle = self._to_rle(annotation, height, width)
            if rle is not None:
                shapes.append((-float(rle_tools.area(rle)), order, rle, annotation))
        label = np.full((height, width), background, dtype=np.uint8)
        for _, _, rle, annotation in sorted(shapes, key=lambda shape: shape[:2]):
            dense = self.label_of.get(annotation["category_id"])
            label[self._decode(rle, annotation)] = background if dense is None else dense + first_label
        if IGNORED in image:
            label[self.ignored(image)] = ignored
        return label

    def ignored(self, image: dict[str, Any]) -> np.ndarray:
        """(height, width) bool: pixels of which nothing is known; they neither train nor count."""
        if IGNORED not in image:
            return np.zeros((image["height"], image["width"]), dtype=bool)
        return self.mask(image, {"id": f"of the ignored pixels of image {image['id']}", "segmentation": image[IGNORED]})

    def mask(self, image: dict[str, Any], annotation: dict[str, Any]) -> np.ndarray:
        """(height, width) bool: the pixels of one annotation."""
        height, width = image["height"], image["width"]
        rle = self._to_rle(annotation, height, width)
        return np.zeros((height, width), dtype=bool) if rle is None else self._decode(rle, annotation)

    def area(self, image: dict[str, Any], annotation: dict[str, Any]) -> int:
        """Pixels of one annotation, counted; what the file states is not believed."""
        rle = self._to_rle(annotation, image["height"], image["width"])
        return 0 if rle is None else int(rle_tools.area(rle))

    def _decode(self, rle: dict[str, Any], annotation: dict[str, Any]) -> np.ndarray:
        try:
            return rle_tools.decode(rle) != 0
        except ValueError as error:
            raise InputError(f"{self.path}: {_called(annotation)}: damaged RLE ({error})") from None

    def _to_rle(self, annotation: dict[str, Any], height: int, width: int) -> dict[str, Any] | None:
        """The shape as compressed RLE of the image's size; None if it covers nothing."""
        where = f"{self.path}: {_called(annotation)}"
        shape = annotation.get("segmentation")
        if isinstance(shape, dict):
            return _checked_rle(shape, height, width, where)
        if not isinstance(shape, list) or not shape:
            raise InputError(
                f"{where} has no segmentation; boxes alone cannot be painted; "
                "`nota-seg data subset --existing` leaves it out"
            )
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
    if size != [height, width]:  # whole numbers written as 8.0 are equal too
        raise InputError(f"{where}: RLE of size {size} in an image of [height, width] {[height, width]}")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii", "replace")}
    if not isinstance(counts, list) or not all(isinstance(c, int) and c >= 0 for c in counts):
        raise InputError(f"{where}: RLE counts are neither a string nor a list of lengths")
    if sum(counts) != height * width:
        raise InputError(f"{where}: RLE lengths add up to {sum(counts)}, the image has {height * width} pixels")
    return rle_tools.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def annotation_of(
    mask: np.ndarray, *, id: int, image_id: int, category_id: int, form: str = "rle", iscrowd: int = 0
) -> dict[str, Any]:
    """The annotation of a mask; reading it gives the mask back, pixel for pixel, in either form.

    Args:
        mask: (H, W) bool.
        id: Of the annotation, unique in its file.
        image_id: Of its image.
        category_id: Of its class.
        form: "rle" (compressed), or "polygon" along the borders of the pixels: one polygon a connected part, holes
            joined to it by a seam.
        iscrowd: 1 for a group of things.
    """
    if form not in FORMS:
        raise InputError(f"unknown form {form!r}: {did_you_mean(form, FORMS)}")
    rle = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    shape: Any = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
    if form == "polygon":
        shape = exact_polygons(mask)
    return {
        "id": id, "image_id": image_id, "category_id": category_id, "segmentation": shape,
        "area": int(rle_tools.area(rle)), "bbox": [float(v) for v in rle_tools.toBbox(rle)], "iscrowd": iscrowd,
    }  # fmt: skip


def with_ignored(image: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """An image's entry that says which of its pixels, (H, W) bool, are unknown: `paint` gives them 255."""
    entry = {key: value for key, value in image.items() if key != IGNORED}
    if mask.any():
        rle = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
        entry[IGNORED] = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
    return entry


def inner_name(image: dict[str, Any], suffix: str) -> str:
    """An image's `file_name` with another suffix, for a file below some folder; InputError if it leads out of it."""
    name = PurePosixPath(str(image["file_name"]))
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"file_name {str(name)!r} leads out of its folder; correct the COCO file")
    return name.with_suffix(suffix).as_posix()


def annotations_of(
    label: np.ndarray,
    category_of: dict[int, int],
    *,
    first_id: int,
    image_id: int,
    form: str = "rle",
    parts: bool = False,
) -> list[dict[str, Any]]:
    """Annotations of a label map, which paint it again: one for each class, or for each connected part of one.

    Args:
        label: (H, W) ids.
        category_of: Label to category id; other labels are not annotated.
        first_id: Of the annotations; they count up from it.
        image_id: Of the image.
        form: "rle" or "polygon".
        parts: One for each part that hangs together by the sides of its pixels.
    """
    masks = []
    for value, category in category_of.items():
        mask = label == value
        if parts and mask.any():
            count, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
            masks += [(pieces == piece, category) for piece in range(1, count)]
        elif mask.any():
            masks.append((mask, category))
    return [
        annotation_of(mask, id=first_id + i, image_id=image_id, category_id=category, form=form)
        for i, (mask, category) in enumerate(masks)
    ]


def must_be_new(path: Path) -> None:
    """InputError if the path is taken: results never go over what is there."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists: nothing is overwritten, name another")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; InputError where it is missing or is not JSON."""
    try:
        # NaN is no JSON, but pandas writes it for a missing number.
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), parse_constant=lambda _: None)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def _hashable(value: Any) -> Any:
    return None if isinstance(value, dict | list) else value


def _pixels(path: Path, where: str, side: str, value: Any) -> int:
    """A side of an image as a whole number; some files say 512.0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and float(value).is_integer():
        return int(value)
    raise InputError(f"{path}: {where} has the {side} {value!r}; give pixels, a whole number")


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
