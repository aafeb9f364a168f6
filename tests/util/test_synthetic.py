"""The drawn sets: deterministic, in the real layouts, and with textures that tell the classes apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from util.errors import InputError
from util.synthetic import SCENE_CLASSES, TEXTURES, draw_ade20k, draw_shape, draw_tiny_imagenet


def digest(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_seed_decides(tmp_path: Path) -> None:
    shapes = [
        draw_tiny_imagenet(tmp_path / str(i), classes=2, train_per_class=3, val_per_class=2, size=32, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    scenes = [
        draw_ade20k(tmp_path / str(i), train=3, val=2, size=(48, 64), seed=seed) for i, seed in enumerate((0, 0, 1))
    ]
    for sets in (shapes, scenes):
        one, same, other = (digest(s) for s in sets)
        assert one == same
        assert set(one) >= {name for name in other if name.endswith((".JPEG", ".jpg", ".png"))}
        assert all(one[name] != other[name] for name in one if name.endswith((".JPEG", ".jpg")))
        assert len(set(one.values())) == len(one)  # no picture twice


def test_tiny_imagenet_layout(tmp_path: Path) -> None:
    folder = draw_tiny_imagenet(tmp_path, classes=3, train_per_class=5, val_per_class=4, size=32)
    assert folder == tmp_path / "tiny-imagenet-200"
    wnids = (folder / "wnids.txt").read_text().split()
    assert [line.split("\t")[0] for line in (folder / "words.txt").read_text().splitlines()] == wnids
    for wnid in wnids:
        boxes = [line.split("\t") for line in (folder / "train" / wnid / f"{wnid}_boxes.txt").read_text().splitlines()]
        names = sorted(f.name for f in (folder / "train" / wnid / "images").iterdir())
        assert sorted(box[0] for box in boxes) == names == [f"{wnid}_{i}.JPEG" for i in range(5)]
        assert all(0 <= int(x0) < int(x1) < 32 and 0 <= int(y0) < int(y1) < 32 for _, x0, y0, x1, y1 in boxes)
    lines = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == [f"val_{i}.JPEG" for i in range(12)]
    assert sorted(line[1] for line in lines) == sorted(wnids * 4)
    pictures = [cv2.imread(str(f), cv2.IMREAD_UNCHANGED) for f in sorted(folder.rglob("*.JPEG"))]
    assert {p.shape for p in pictures} == {(32, 32, 3), (32, 32)}  # some are greyscale files
    assert sum(p.ndim == 2 for p in pictures) == 4


def test_ade20k_layout(tmp_path: Path) -> None:
    folder = draw_ade20k(tmp_path, train=12, val=4, size=(64, 96))
    assert folder == tmp_path / "ADEChallengeData2016"
    sizes, values = set(), np.zeros(256, dtype=np.int64)
    for split, count, prefix in (("training", 12, "ADE_train_"), ("validation", 4, "ADE_val_")):
        images = sorted((folder / "images" / split).iterdir())
        masks = sorted((folder / "annotations" / split).iterdir())
        assert [f.name for f in images] == [f"{prefix}{i:08d}.jpg" for i in range(1, count + 1)]
        assert [f.stem for f in masks] == [f.stem for f in images]
        for image, mask in zip(images, masks, strict=True):
            ids = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
            assert ids.dtype == np.uint8 and ids.shape == cv2.imread(str(image)).shape[:2]
            sizes.add(ids.shape)
            values += np.bincount(ids.ravel(), minlength=256)
    assert len(sizes) > 8
    assert np.flatnonzero(values).tolist() == list(range(len(SCENE_CLASSES) + 1))
    assert 0 < values[0] / values.sum() < 0.1  # other: a small part
    rows = [line.split("\t") for line in (folder / "objectInfo150.txt").read_text().splitlines()]
    assert rows[0] == ["Idx", "Ratio", "Train", "Val", "Name"]
    assert [row[0] for row in rows[1:]] == [str(i + 1) for i in range(len(SCENE_CLASSES))]
    assert [row[4] for row in rows[1:]] == list(SCENE_CLASSES)
    assert rows[1][2:4] == ["12", "4"]  # every picture has a sky


def test_the_scenes_show_the_default_classes() -> None:
    assert sorted(SCENE_CLASSES.values()) == sorted(list(TEXTURES)[:8])


def test_colours_do_not_tell_the_classes_apart() -> None:
    means = np.array([
        [draw_shape(np.random.default_rng((c, i)), name, 48)[0].mean(axis=(0, 1)) for i in range(40)]
        for c, name in enumerate(TEXTURES)
    ])  # fmt: skip
    between, within = means.mean(axis=1).std(axis=0), means.std(axis=1).mean(axis=0)
    assert (between < 0.4 * within).all()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="classes=99: must be 1 to"):
        draw_tiny_imagenet(tmp_path, classes=99)
    with pytest.raises(InputError, match="train=0"):
        draw_ade20k(tmp_path, train=0)
    assert list(tmp_path.iterdir()) == []
    draw_ade20k(tmp_path, train=1, val=1, size=(32, 32))
    with pytest.raises(InputError, match="exists"):
        draw_ade20k(tmp_path, train=1, val=1)
