"""New pictures from old ones: objects cut out of some and pasted into others, pixels and labels alike.

An object is its mask, not its colour: black pixels inside it are pasted too, and what a mask does not cover stays.
Pictures are RGB from reading to writing. Every new picture is drawn from (seed, its number), so that more of them
leave the first ones as they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from util.coco import CocoFile, annotation_of, must_be_new, with_ignored
from util.coco_sets import merge
from util.errors import InputError
from util.files import whole_folder, write_json, write_text
from util.images import write_png
from util.palettes import grid, overlay, palette
from util.seed import derive

_UNKNOWN = -1  # in place of a category id: ignored pixels of the target, which stay so under what is pasted
_SHOWN, _THUMB = 16, 192  # pictures on the contact sheet, and their longer side in pixels


class Thing(NamedTuple):
    """One object: its (H, W) bool mask, and what its annotation says."""

    mask: np.ndarray
    category_id: int
    iscrowd: int = 0


@dataclass
class Patch:
    """A picture and its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        objects: In the order in which they are painted: later ones lie on top.
    """

    image: np.ndarray
    objects: list[Thing]

    @property
    def foreground(self) -> np.ndarray:
        """(H, W) bool."""
        covered = np.zeros(self.image.shape[:2], dtype=bool)
        for thing in self.objects:
            covered |= thing.mask
        return covered

    def map(self, picture: Callable[[np.ndarray], np.ndarray], mask: Callable[[np.ndarray], np.ndarray]) -> Patch:
        """The same change of the picture and of every mask."""
        objects = [t._replace(mask=mask(t.mask).astype(bool)) for t in self.objects]
        return Patch(np.ascontiguousarray(picture(self.image)), objects)

    def same(self, change: Callable[[np.ndarray], np.ndarray]) -> Patch:
        """`map` with a change that only moves pixels."""
        return self.map(change, change)

    def resized(self, height: int, width: int) -> Patch:
        """Nearest for the masks, bilinear for the picture; an object's rim takes colour from the object alone."""
        if (height, width) == self.image.shape[:2]:
            return self

        def picture(a: np.ndarray) -> np.ndarray:
            return cv2.resize(a, (width, height), interpolation=cv2.INTER_LINEAR)

        def mask(a: np.ndarray) -> np.ndarray:
            return cv2.resize(a.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

        result = self.map(picture, mask)
        for before, after in zip(self.objects, result.objects, strict=True):
            share = before.mask.astype(np.float32)
            colours, weight = picture(self.image * share[..., None])[after.mask], picture(share)[after.mask]
            result.image[after.mask] = np.rint(colours / np.maximum(weight, 1e-6)[:, None]).clip(0, 255)
        return result

    def placed(self, height: int, width: int, top: int, left: int) -> Patch:
        """On a canvas of another size, its corner at (top, left); what falls outside is cut off."""

        def place(a: np.ndarray) -> np.ndarray:
            canvas = np.zeros((height, width, *a.shape[2:]), dtype=a.dtype)
            y, x = max(0, top), max(0, left)
            piece = a[max(0, -top) : height - top, max(0, -left) : width - left]
            canvas[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
            return canvas

        return self.same(place)

    def fitted(self, height: int, width: int) -> Patch:
        """Scaled to lie whole in the middle of a canvas, its sides in proportion."""
        h, w = self.image.shape[:2]
        if (h, w) == (height, width):
            return self
        scale = min(height / h, width / w)
        h, w = max(1, round(h * scale)), max(1, round(w * scale))
        return self.resized(h, w).placed(height, width, (height - h) // 2, (width - w) // 2)

    def without_hidden(self) -> Patch:
        """Masks cut where later ones lie over them; objects of which nothing is left are dropped."""
        free = np.ones(self.image.shape[:2], dtype=bool)
        kept = []
        for thing in reversed(self.objects):
            seen = thing.mask & free
            free &= ~thing.mask
            if seen.any():
                kept.append(thing._replace(mask=seen))
        return Patch(self.image, kept[::-1])


def read_patch(
    coco: CocoFile,
    image: dict[str, Any],
    root: Path | None = None,
    classes: Sequence[int] = (),
    *,
    unknown: bool = False,
) -> Patch:
    """A picture with its objects, the largest painted first; of `classes` (category ids) only, if any are given.

    With `unknown` the image's ignored pixels are the last of the objects.
    """
    things = [_thing(coco, image, annotation) for annotation in coco.annotations_by_image[image["id"]]]
    things.sort(key=lambda thing: -int(thing.mask.sum()))
    if unknown:
        things.append(Thing(coco.ignored(image), _UNKNOWN))
    visible = Patch(coco.read_picture(image, root), things).without_hidden()
    chosen = set(classes or coco.label_of) | ({_UNKNOWN} if not classes else set())  # no background, which only covers
    return Patch(visible.image, [t for t in visible.objects if t.category_id in chosen])


def _thing(coco: CocoFile, image: dict[str, Any], annotation: dict[str, Any]) -> Thing:
    return Thing(coco.mask(image, annotation), annotation["category_id"], int(bool(annotation.get("iscrowd"))))


def paste(target: Patch, source: Patch) -> Patch:
    """The source's objects over the target, of equal size."""
    covered = source.foreground
    image = np.where(covered[..., None], source.image, target.image)
    return Patch(image, [*target.objects, *source.objects]).without_hidden()


def turned_and_flipped(patch: Patch, rng: np.random.Generator) -> Patch:
    """Turned by a multiple of 90 degrees and mirrored either way, all equally likely; brought back to its size."""
    height, width = patch.image.shape[:2]
    turns = int(rng.integers(4))
    patch = patch.same(lambda a: np.rot90(a, turns))
    if rng.random() < 0.5:
        patch = patch.same(lambda a: a[:, ::-1])
    if rng.random() < 0.5:
        patch = patch.same(lambda a: a[::-1])
    return patch.fitted(height, width)


def fitted_by_area(patch: Patch, rng: np.random.Generator, *, large: int = 20000, small: int = 5000) -> Patch:
    """Large objects smaller, small ones larger, by the area of the foreground; then turned and flipped.

    Over `large` pixels the picture is halved and padded to its size; under `small` half of it around the object is
    cut out and doubled (512 to 256 and back in a picture of 512).
    """
    height, width = patch.image.shape[:2]
    covered = patch.foreground
    area = int(covered.sum())
    if area > large:
        half = patch.resized(max(1, height // 2), max(1, width // 2))
        patch = half.placed(height, width, (height - half.image.shape[0]) // 2, (width - half.image.shape[1]) // 2)
    elif 0 < area < small:
        ys, xs = np.nonzero(covered)
        h, w = max(1, height // 2), max(1, width // 2)
        top = int(np.clip((int(ys.min()) + int(ys.max())) // 2 - h // 2, 0, height - h))
        left = int(np.clip((int(xs.min()) + int(xs.max())) // 2 - w // 2, 0, width - w))
        patch = patch.same(lambda a: a[top : top + h, left : left + w]).resized(height, width)
    return turned_and_flipped(patch, rng)


def jittered(patch: Patch, rng: np.random.Generator, low: float = 0.2, high: float = 2.0) -> Patch:
    """Large-scale jitter (Ghiasi et al., arXiv 2012.07177): a scale drawn from low..high, a place drawn at random."""
    height, width = patch.image.shape[:2]
    scale = float(rng.uniform(low, high))
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (int(rng.integers(min(0, a - b), max(0, a - b) + 1)) for a, b in ((height, h), (width, w)))
    return patch.resized(h, w).placed(height, width, top, left)


def elastic(patch: Patch, seed: int) -> Patch:
    """An elastic deformation (albumentations), the same for every object; the picture around them is left behind."""
    import albumentations

    image, objects = np.zeros_like(patch.image), []
    for thing in patch.objects:
        # Colours come weighted with the mask, so that the rim does not take any from around the object.
        weighted = np.concatenate([patch.image / 255 * thing.mask[..., None], thing.mask[..., None]], axis=2)
        transform = albumentations.Compose([albumentations.ElasticTransform(alpha=40, sigma=6, p=1.0)], seed=seed)
        moved = transform(image=weighted.astype(np.float32))["image"]
        mask = moved[..., 3] >= 0.5
        image[mask] = np.rint(255 * moved[mask, :3] / moved[mask, 3:]).clip(0, 255)
        objects.append(thing._replace(mask=mask))
    return Patch(image, objects)


@dataclass
class New:
    """A new picture, and what it was made of."""

    patch: Patch
    source: dict[str, Any]
    target: dict[str, Any]


@dataclass
class CopyPaste:
    """What `copy_paste` does.

    Attributes:
        patch: Category ids; a source shows one of them at least.
        remove: Category ids; a source shows none of them.
        extract: Category ids of what is pasted; empty: every object of the source.
        jitter: Lowest and highest scale of large-scale jitter, in place of the changes by area; None: these.
        flip: Probability that the target is mirrored.
    """

    patch: Sequence[int]
    remove: Sequence[int] = ()
    extract: Sequence[int] = ()
    jitter: tuple[float, float] | None = None
    flip: float = 0.5

    def draw(self, coco: CocoFile, count: int, seed: int, root: Path | None = None) -> Iterator[New]:
        """`count` new pictures, one at a time."""
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]:
            raise InputError(f"jitter {self.jitter}: give the lowest and the highest scale, above 0")
        sources = []
        for image in coco.images:
            shown = {a["category_id"] for a in coco.annotations_by_image[image["id"]]}
            wanted = shown & set(self.patch) and (not self.extract or shown & set(self.extract))
            if wanted and not shown & set(self.remove):
                sources.append(image)
        if not sources:
            raise InputError(f"{coco.path}: no image has the classes to paste without the classes to leave out")
        if len(coco.images) < 2:
            raise InputError(f"{coco.path}: pasting needs two images at least")

        def once(rng: np.random.Generator) -> New | None:
            source = sources[int(rng.integers(len(sources)))]
            target = coco.images[int(rng.integers(len(coco.images)))]
            if source is target:
                return None
            base = read_patch(coco, target, root, unknown=True)
            cut = read_patch(coco, source, root, self.extract)
            cut = cut.fitted(*base.image.shape[:2])
            if self.jitter is None:
                cut = fitted_by_area(cut, rng)
            else:
                cut = jittered(turned_and_flipped(cut, rng), rng, *self.jitter)
            if rng.random() < self.flip:
                base = base.same(lambda a: a[:, ::-1])
            return New(paste(base, cut), source, target) if cut.foreground.any() else None

        yield from _draw(once, count, "copy-paste", seed)


@dataclass
class Oversample:
    """What `oversample` does.

    Attributes:
        classes: Category ids of the objects that are pasted.
        onto: Category ids; a target has a single annotation, of one of them.
        min_area: Pixels that an object must have.
        flip: Probability that object and its picture are mirrored.
        deform: Probability of an elastic deformation.
    """

    classes: Sequence[int]
    onto: Sequence[int]
    min_area: int = 5000
    flip: float = 0.5
    deform: float = 0.5

    def draw(self, coco: CocoFile, count: int, seed: int, root: Path | None = None) -> Iterator[New]:
        """`count` new pictures, one at a time; objects keep their place."""
        objects, targets = [], []
        for image in coco.images:
            annotations = coco.annotations_by_image[image["id"]]
            for annotation in annotations:
                wanted = annotation["category_id"] in self.classes and not annotation.get("iscrowd")
                if wanted and coco.area(image, annotation) >= self.min_area:
                    objects.append((image, annotation))
            if len(annotations) == 1 and annotations[0]["category_id"] in self.onto:
                targets.append(image)
        if not objects:
            raise InputError(
                f"{coco.path}: no object of these classes has {self.min_area} pixels; lower the least area"
            )
        if not targets:
            raise InputError(
                f"{coco.path}: no image has a single annotation, of a background class; name other classes"
            )

        def once(rng: np.random.Generator) -> New | None:
            image, annotation = objects[int(rng.integers(len(objects)))]
            target = targets[int(rng.integers(len(targets)))]
            if image is target:
                return None
            cut = Patch(coco.read_picture(image, root), [_thing(coco, image, annotation)])
            base = read_patch(coco, target, root, unknown=True)
            cut = cut.fitted(*base.image.shape[:2])
            if rng.random() < self.flip:
                cut = cut.same(lambda a: a[:, ::-1])
            if rng.random() < self.deform:
                cut = elastic(cut, int(rng.integers(2**31)))
            return New(paste(base, cut), image, target) if cut.foreground.any() else None

        yield from _draw(once, count, "oversample", seed)


def _draw(once: Callable[[np.random.Generator], New | None], count: int, name: str, seed: int) -> Iterator[New]:
    for number in range(count):
        rng = np.random.default_rng(derive(name, seed, number))
        found = next((new for _ in range(100) if (new := once(rng)) is not None), None)
        if found is None:
            raise InputError("100 draws in a row pasted nothing: name other classes")
        yield found


def write_new(
    coco: CocoFile,
    recipe: CopyPaste | Oversample,
    output_dir: str | Path,
    *,
    count: int,
    seed: int = 0,
    start: int = 0,
    add: bool = False,
    form: str = "rle",
    json_name: str = "train.json",
    root: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Path:
    """Write new pictures, their COCO file, `manifest.jsonl` and `contact_sheet.png` into a new folder.

    Args:
        coco: Where objects and targets come from.
        recipe: How they are made.
        output_dir: New, or empty.
        count: New pictures.
        seed: Of everything random; picture i depends on it and on i alone.
        start: Number in the first picture's name.
        add: The COCO file lists the originals too (which stay where they are), not the new pictures alone.
        form: Of the annotations, "rle" or "polygon".
        json_name: Of the COCO file.
        root: Folder of the pictures; found by looking by default.
        progress: Called with 1 after every picture.

    Returns:
        The COCO file.
    """
    output_dir = Path(output_dir)
    must_be_new(output_dir)
    if count < 1:
        raise InputError(f"{count} new pictures: give 1 at least")
    next_image, next_annotation = coco.next_ids()
    kind = "paste" if isinstance(recipe, CopyPaste) else "oversample"
    images: list[dict[str, Any]] = []
    by_image: dict[int, list[dict[str, Any]]] = {}
    manifest: list[str] = []
    shown: list[np.ndarray] = []
    with whole_folder(output_dir) as folder:
        for number, new in enumerate(recipe.draw(coco, count, seed, root)):
            height, width = new.patch.image.shape[:2]
            entry = {
                "id": next_image + number, "file_name": f"images/{kind}_{start + number:06}.png",
                "height": height, "width": width,
            }  # fmt: skip
            write_png(folder / str(entry["file_name"]), new.patch.image)
            things = [thing for thing in new.patch.objects if thing.category_id != _UNKNOWN]
            unknown = [thing.mask for thing in new.patch.objects if thing.category_id == _UNKNOWN]
            images.append(with_ignored(entry, unknown[0]) if unknown else entry)
            by_image[next_image + number] = [
                annotation_of(
                    thing.mask, id=next_annotation + i, image_id=next_image + number, category_id=thing.category_id,
                    form=form, iscrowd=thing.iscrowd,
                )
                for i, thing in enumerate(things)
            ]  # fmt: skip
            next_annotation += len(things)
            origin = {
                name: {"id": old["id"], "file_name": old["file_name"]}
                for name, old in (("source", new.source), ("target", new.target))
            }
            facts = {"file_name": entry["file_name"], "id": entry["id"], **origin, "seed": seed, "number": number}
            manifest.append(json.dumps(facts, ensure_ascii=False) + "\n")
            if len(shown) < _SHOWN:
                shown.append(_thumbnail(new.patch, coco))
            if progress is not None:
                progress(1)
        # `output_dir`, not the temporary folder beside it: names must hold after the folder has been renamed.
        file, base = CocoFile(output_dir / json_name, images, by_image, coco.categories, coco.info), folder
        if add:
            file, base = merge([coco, file], [root or coco.find_root(), output_dir])
        file.write(folder / json_name, base)
        write_json(folder / "recipe.json", {"kind": kind, **asdict(recipe), "of": str(coco.path), "seed": seed})
        write_text(folder / "manifest.jsonl", "".join(manifest))
        write_png(folder / "contact_sheet.png", grid([shown[i : i + 4] for i in range(0, len(shown), 4)]))
    return output_dir / json_name


def _thumbnail(patch: Patch, coco: CocoFile) -> np.ndarray:
    """The picture beside itself with its classes, small."""
    label = np.full(patch.image.shape[:2], 255, dtype=np.uint8)
    for thing in patch.objects:
        label[thing.mask] = coco.label_of.get(thing.category_id, 255)
    both = np.concatenate([patch.image, overlay(patch.image, label, palette(len(coco.classes)))], axis=1)
    scale = 2 * _THUMB / max(both.shape[1], 2 * both.shape[0])
    size = max(1, round(both.shape[1] * scale)), max(1, round(both.shape[0] * scale))
    return cv2.resize(both, size, interpolation=cv2.INTER_AREA)
