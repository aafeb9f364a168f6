"""Pasted pictures: masks that agree with pixels, black ones too; nothing lost, nothing drawn twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from util.coco import CocoFile
from util.errors import InputError
from util.pasting import (
    CopyPaste,
    Oversample,
    Patch,
    Thing,
    elastic,
    fitted_by_area,
    jittered,
    paste,
    read_patch,
    turned_and_flipped,
    write_new,
)  # fmt: skip

COLOURS = {3: (200, 30, 10), 17: (0, 0, 0), 90: (10, 60, 220)}


def square(height: int, width: int, top: int, left: int, side: int, colour: int = 0, category: int = 1) -> Patch:
    image, mask = np.full((height, width, 3), 255, dtype=np.uint8), np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    image[mask] = colour
    return Patch(image, [Thing(mask, category)])


def test_black_pixels_of_an_object_are_pasted_and_colours_stay() -> None:
    target = Patch(np.full((20, 20, 3), 90, dtype=np.uint8), [])
    source = square(20, 20, 5, 5, 8)
    source.image[6, 6] = (250, 20, 3)
    result = paste(target, source)
    mask = source.objects[0].mask
    assert np.array_equal(result.image[mask], source.image[mask]) and (result.image[~mask] == 90).all()
    assert (result.image[7, 7] == 0).all() and tuple(result.image[6, 6]) == (250, 20, 3)


def test_what_is_covered_leaves_its_mask() -> None:
    target, source = square(20, 20, 4, 4, 6, 9), square(20, 20, 6, 6, 10, 50, 2)
    result = paste(target, source)
    assert [t.category_id for t in result.objects] == [1, 2]
    assert result.objects[0].mask.sum() == 36 - 16 and not (result.objects[0].mask & result.objects[1].mask).any()
    assert [t.category_id for t in paste(target, square(20, 20, 0, 0, 20, 1, 3)).objects] == [3]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_changes_move_pixels_and_masks_alike(height: int, width: int) -> None:
    changes = {
        "turned": turned_and_flipped,
        "jittered": jittered,
        "by area": lambda p, rng: fitted_by_area(p, rng, large=200, small=50),
        "elastic": lambda p, rng: elastic(p, int(rng.integers(100))),
    }
    for name, change in changes.items():
        for side in (4, 12, 24):
            for seed in range(8):
                patch = change(square(height, width, 9, 11, side), np.random.default_rng(seed))
                assert patch.image.shape == (height, width, 3)
                colours = patch.image[patch.objects[0].mask]
                assert (colours == 0).all(), (name, side, seed)


def test_an_elastic_deformation_moves_the_rim_only_a_little() -> None:
    patch = square(64, 64, 16, 16, 32)
    moved = elastic(patch, 3)
    mask = moved.objects[0].mask
    assert not np.array_equal(mask, patch.objects[0].mask)
    both = (mask & patch.objects[0].mask).sum() / (mask | patch.objects[0].mask).sum()
    assert both > 0.7 and np.array_equal(elastic(patch, 3).objects[0].mask, mask)


def test_small_objects_grow_and_large_ones_shrink() -> None:
    areas = {}
    for side in (20, 40, 100):
        patch = fitted_by_area(square(256, 256, 60, 60, side), np.random.default_rng(0), large=8000, small=1000)
        areas[side] = int(patch.foreground.sum())
    assert areas == {20: 1600, 40: 1600, 100: 2500}


def pasted(waste: Path, folder: Path, **options: object) -> CocoFile:
    coco = CocoFile.read(waste)
    recipe = options.pop("recipe", CopyPaste(patch=[3], jitter=(1.0, 1.0)))
    return CocoFile.read(write_new(coco, recipe, folder, count=6, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["rle", "polygon"])
@pytest.mark.parametrize(
    "recipe",
    [
        CopyPaste(patch=[3], jitter=(1.0, 1.0)), CopyPaste(patch=[3]), CopyPaste(patch=[3, 17], jitter=(0.2, 2.0)),
        Oversample([17, 3], [3], min_area=20), Oversample([17], [3], min_area=20, deform=1.0),
    ],
    ids=["as it is", "by area", "jitter", "oversample", "elastic"],
)  # fmt: skip
def test_masks_of_new_pictures_agree_with_their_pixels(
    waste: Path, tmp_path: Path, form: str, recipe: CopyPaste | Oversample
) -> None:
    """Every colour is exact: red and blue change places if a file is read as BGR, black stays out if
    zeros count as empty."""
    new = pasted(waste, tmp_path / "new", form=form, recipe=recipe)
    seen = set()
    for image in new.images:
        with Image.open(new.picture(image)) as file:  # read by others, who take it for RGB
            pixels, label = np.asarray(file), new.paint(image, background=255)
        for label_id, category in enumerate((3, 17, 90)):
            seen |= {category} if (label == label_id).any() else set()
            assert np.array_equal(label == label_id, (pixels == COLOURS[category]).all(axis=2)), (image, category)
    assert seen >= {3, 17}


def test_ids_names_and_origin(waste: Path, tmp_path: Path) -> None:
    old = CocoFile.read(waste)
    new = pasted(waste, tmp_path / "new", start=40)
    assert new.images[0]["file_name"] == "images/paste_000040.png"
    assert not {i["id"] for i in new.images} & {i["id"] for i in old.images}
    ids = [a["id"] for a in new.annotations]
    assert len(set(ids)) == len(ids) and min(ids) > max(a["id"] for a in old.annotations)
    origin = [json.loads(line) for line in (tmp_path / "new" / "manifest.jsonl").read_text().splitlines()]
    assert [o["id"] for o in origin] == [i["id"] for i in new.images]
    assert all(o["source"]["id"] != o["target"]["id"] for o in origin)
    sizes = {i["id"]: (i["height"], i["width"]) for i in old.images}
    assert all(sizes[o["target"]["id"]] == (i["height"], i["width"]) for o, i in zip(origin, new.images, strict=True))
    assert (tmp_path / "new" / "contact_sheet.png").is_file()


def test_added_to_the_originals(waste: Path, tmp_path: Path) -> None:
    old, new = CocoFile.read(waste), pasted(waste, tmp_path / "new", add=True)
    assert len(new.images) == 18 and len({i["id"] for i in new.images}) == 18
    ids = [a["id"] for a in new.annotations]
    assert len(set(ids)) == len(ids) > len(old.annotations)
    for image in new.images:
        assert new.read_picture(image).shape[:2] == (image["height"], image["width"])
    for before, after in zip(old.images, new.images, strict=False):
        assert np.array_equal(old.paint(before), new.paint(after))


def test_deterministic_and_longer_runs_begin_alike(waste: Path, tmp_path: Path) -> None:
    coco, recipe = CocoFile.read(waste), CopyPaste(patch=[3, 17], jitter=(0.2, 2.0))
    for name, count, seed in (("a", 3, 1), ("b", 5, 1), ("c", 3, 2)):
        write_new(coco, recipe, tmp_path / name, count=count, seed=seed)
    pictures = {n: [(tmp_path / n / f"images/paste_00000{i}.png").read_bytes() for i in range(3)] for n in "abc"}
    assert pictures["a"] == pictures["b"] != pictures["c"]
    with pytest.raises(InputError, match="exists"):
        write_new(coco, recipe, tmp_path / "a", count=3)


def test_sources_by_class_and_every_one_is_drawn(waste: Path) -> None:
    coco = CocoFile.read(waste)
    fit = {
        i["id"] for i in coco.images
        if {3} <= (shown := {a["category_id"] for a in coco.annotations_by_image[i["id"]]}) and 90 not in shown
    }  # fmt: skip
    drawn = list(CopyPaste(patch=[3], remove=[90], jitter=(1.0, 1.0)).draw(coco, 120, seed=0))
    assert {new.source["id"] for new in drawn} == fit
    assert {new.target["id"] for new in drawn} == {i["id"] for i in coco.images}


def test_only_the_extracted_classes_are_pasted(waste: Path) -> None:
    coco = CocoFile.read(waste)
    empty = next(i for i in coco.images if not coco.annotations_by_image[i["id"]])
    drawn = CopyPaste(patch=[3], extract=[17], jitter=(1.0, 1.0)).draw(coco, 150, seed=0)
    onto_nothing = [new for new in drawn if new.target is empty]
    assert onto_nothing and {t.category_id for new in onto_nothing for t in new.patch.objects} == {17}


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_target_is_flipped_as_often_as_asked(waste: Path, flip: float) -> None:
    coco = CocoFile.read(waste)
    for new in CopyPaste(patch=[17], extract=[17], jitter=(0.3, 0.3), flip=flip).draw(coco, 10, seed=0):
        before = read_patch(coco, new.target).image
        before = before[:, ::-1] if flip else before
        kept = (new.patch.image == before).all(axis=2).mean()
        assert kept > 0.9


def test_oversampling_keeps_the_place_and_the_size(waste: Path) -> None:
    coco = CocoFile.read(waste)
    recipe = Oversample(classes=[17], onto=[3], min_area=40, flip=0.0, deform=0.0)
    for new in recipe.draw(coco, 20, seed=0):
        assert len(coco.annotations_by_image[new.target["id"]]) == 1
        cut = next(t for t in new.patch.objects if t.category_id == 17)
        if (new.source["height"], new.source["width"]) == new.patch.image.shape[:2]:
            annotation = next(a for a in coco.annotations_by_image[new.source["id"]] if a["category_id"] == 17)
            assert np.array_equal(cut.mask, coco.mask(new.source, annotation))
        assert (new.patch.image[cut.mask] == 0).all()


def test_nothing_to_paste(waste: Path, tmp_path: Path) -> None:
    coco = CocoFile.read(waste)
    for recipe in (
        CopyPaste(patch=[3], remove=[3]), CopyPaste(patch=[3], jitter=(2.0, 1.0)), Oversample([17], [3], 10**6),
        Oversample([17], [17], 1),
    ):  # fmt: skip
        with pytest.raises(InputError):
            write_new(coco, recipe, tmp_path / "new", count=2)
        assert not list(tmp_path.iterdir())
