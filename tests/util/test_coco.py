"""COCO files: every form of a shape is painted alike, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from util.coco import CocoFile
from util.errors import InputError

BOX = [2, 1, 6, 1, 6, 4, 2, 4]  # x 2..5, y 1..3


def content(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 8, "width": 10}],
        "categories": [{"id": 90, "name": "kite"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}],
        "annotations": [{"id": i, "image_id": 5, "iscrowd": 0} | a for i, a in enumerate(annotations)],
    }


def read(tmp_path: Path, value: Any) -> CocoFile:
    path = tmp_path / "c.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return CocoFile.read(path)


def paint(tmp_path: Path, *annotations: dict[str, Any], **options: int) -> np.ndarray:
    file = read(tmp_path, content(*annotations))
    return file.paint(file.images[0], **options)


def test_categories_become_dense(tmp_path: Path) -> None:
    file = read(tmp_path, content())
    assert file.class_names == ["car", "cat", "kite"]
    assert file.label_of == {3: 0, 17: 1, 90: 2}
    assert file.annotations_by_image == {5: []}


def test_all_forms_paint_the_same(tmp_path: Path) -> None:
    truth = np.zeros((8, 10), dtype=np.uint8)
    truth[1:4, 2:6] = 1
    compressed = rle_tools.encode(np.asfortranarray(truth))
    flat = truth.ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    counts = np.diff(edges).tolist()
    shapes: list[Any] = [
        [BOX],
        [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 6, 1, 6, 4, 4, 4]],
        [BOX, [1, 1, 2, 2]],  # two points cover nothing; pycocotools would take them for a box
        {"size": [8, 10], "counts": counts},
        {"size": [8, 10], "counts": compressed["counts"].decode()},
    ]
    for crowd in (0, 1):
        for shape in shapes:
            label = paint(tmp_path, {"category_id": 17, "segmentation": shape, "iscrowd": crowd}, background=255)
            assert label.dtype == np.uint8
            assert np.array_equal(label, np.where(truth, 1, 255)), shape


def test_small_things_lie_on_top_in_any_order(tmp_path: Path) -> None:
    large = {
        "category_id": 3,
        "segmentation": [[0, 0, 10, 0, 10, 8, 0, 8]],
        "area": 1,
    }  # the stated area is not believed
    small = {"category_id": 90, "segmentation": [BOX], "area": 99}
    for order in ((large, small), (small, large)):
        label = paint(tmp_path, *order, background=0, first_label=1)
        assert label[2, 3] == 3 and label[0, 0] == 1
    assert (paint(tmp_path, background=0) == 0).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[1, 2, 3, 4, 5]], "x1, y1"),
        ([["a"] * 6], "list of numbers"),
        ([[1, 2, 3, 4, 5, 1e12]], "x1, y1"),
        ({"size": [10, 8], "counts": [80]}, "RLE of size"),
        ({"size": [8, 10], "counts": [70]}, "add up to 70"),
        ({"size": [8, 10], "counts": [81, -1]}, "neither a string"),
        ({"size": [8, 10], "counts": "ddddddddd"}, "damaged RLE"),
    ],
)
def test_bad_shapes_name_the_annotation(shape: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="annotation 0") as caught:
        paint(tmp_path, {"category_id": 3, "segmentation": shape})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "not JSON"),
        ([], "no list 'images'"),
        ({"annotations": None}, "no list 'annotations'"),
        ({"images": [{"id": 1}]}, "lacks file_name, height, width"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "have the id 1"),
        ({"annotations": [{"image_id": 6, "category_id": 3}]}, "belongs to image 6"),
        ({"annotations": [{"image_id": 5, "category_id": 4}]}, "of category 4"),
    ],
)
def test_bad_files(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.json") as caught:
        read(tmp_path, content() | change if isinstance(change, dict) else change)
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        CocoFile.read(tmp_path / "none.json")
