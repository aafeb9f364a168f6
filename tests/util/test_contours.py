"""Masks to polygons and back, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from util.coco import CocoFile, annotation_of, annotations_of
from util.contours import exact_polygons
from util.errors import InputError


def painted(polygons: list[list[int]], height: int, width: int) -> np.ndarray:
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return rle_tools.decode(rle_tools.merge(rle_tools.frPyObjects(polygons, height, width))) != 0


def test_a_square_does_not_shift() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:50, 12:52] = True
    assert exact_polygons(mask) == [[12, 10, 52, 10, 52, 50, 12, 50]]
    assert np.array_equal(painted(exact_polygons(mask), 64, 64), mask)


def test_holes_stay_open_and_parts_stay_apart() -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:35, 5:30] = True
    mask[10:15, 8:12] = mask[20:30, 15:25] = False
    mask[24:26, 18:20] = True  # an island in the hole
    mask[3:6, 40:50] = True
    polygons = exact_polygons(mask)
    assert len(polygons) == 3
    assert np.array_equal(painted(polygons, 40, 60), mask)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_any_mask(density: float) -> None:
    rng = np.random.default_rng(round(10 * density))
    for _ in range(40):
        height, width = rng.integers(1, 20, 2).tolist()
        mask = rng.random((height, width)) < density
        assert np.array_equal(painted(exact_polygons(mask), height, width), mask)


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_annotation_mask_annotation_mask(form: str) -> None:
    rng = np.random.default_rng(0)
    image = {"id": 4, "file_name": "a.png", "height": 23, "width": 31}
    for _ in range(20):
        mask = rng.random((23, 31)) < 0.6
        first = annotation_of(mask, id=1, image_id=4, category_id=9, form=form)
        file = CocoFile("a.json", [image], {4: [first]}, [{"id": 9, "name": "x"}])  # type: ignore[arg-type]
        assert np.array_equal(file.mask(image, first), mask)
        assert first["area"] == mask.sum() == file.area(image, first)
        assert annotation_of(file.mask(image, first), id=1, image_id=4, category_id=9, form=form) == first
    ys, xs = np.nonzero(mask)
    assert first["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
    with pytest.raises(InputError, match="polygon"):
        annotation_of(mask, id=1, image_id=4, category_id=9, form="polygone")


@pytest.mark.parametrize("form", ["rle", "polygon"])
@pytest.mark.parametrize("parts", [False, True])
def test_label_maps_come_back(form: str, parts: bool) -> None:
    """Contours of a picture joined into one polygon, or parts dropped, would show here."""
    label = np.random.default_rng(1).integers(0, 4, (20, 30)).astype(np.uint8)
    image = {"id": 1, "file_name": "a.png", "height": 20, "width": 30}
    made = annotations_of(label, {1: 3, 2: 17, 3: 90}, first_id=5, image_id=1, form=form, parts=parts)
    assert [a["id"] for a in made] == list(range(5, 5 + len(made)))
    assert len(made) == 3 if not parts else len(made) > 30
    categories = [{"id": i, "name": str(i)} for i in (3, 17, 90)]
    file = CocoFile("a.json", [image], {1: made}, categories)  # type: ignore[arg-type]
    assert np.array_equal(file.paint(image, background=0, first_label=1), label)


def test_many_corners_do_not_make_a_thing_large() -> None:
    """Sorted by the length of the polygon, the small comb would be painted first and lost."""
    comb = np.zeros((30, 40), dtype=bool)
    comb[10:14, 5:35:2] = comb[13, 5:35] = True
    image = {"id": 1, "file_name": "a.png", "height": 30, "width": 40}
    small = annotation_of(comb, id=1, image_id=1, category_id=1, form="polygon")
    large = annotation_of(np.ones((30, 40), dtype=bool), id=2, image_id=1, category_id=2, form="polygon")
    assert len(small["segmentation"][0]) > len(large["segmentation"][0])
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    for order in ([small, large], [large, small]):
        file = CocoFile("a.json", [image], {1: order}, categories)  # type: ignore[arg-type]
        assert np.array_equal(file.paint(image) == 0, comb)
