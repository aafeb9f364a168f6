"""Folds: every image once, and the classes even."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nota_seg.data.sources import open_source
from util.coco import CocoFile
from util.errors import InputError
from util.folds import SCHEMES, class_counts, fold_report, kfold, write_folds


def drawn(images: int = 400, seed: int = 0) -> CocoFile:
    """Ten classes, the rarest a fiftieth of the most frequent, several annotations an image."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, 11) ** 1.7
    entries = [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 4} for i in range(images)]
    by_image = {
        i: [{"category_id": int(c), "image_id": i} for c in rng.choice(10, rng.poisson(3), p=share / share.sum())]
        for i in range(images)
    }
    return CocoFile(Path("x.json"), entries, by_image, [{"id": i, "name": f"c{i}"} for i in range(10)])


def test_label_shares_within_a_tenth_of_the_whole() -> None:
    coco = drawn()
    fold_of = kfold(coco, 5, seed=3)
    assert sorted(np.bincount(fold_of)) == [80] * 5
    for name, one in fold_report(coco, fold_of)["classes"].items():
        counts = one["annotations"]
        assert max(counts) - min(counts) <= max(1, 0.1 * np.mean(counts)), name
        if sum(counts) >= 100:
            assert np.allclose(one["shares"], one["share_of_whole"], rtol=0.1), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_classes_and_crowded_pictures(scheme: str) -> None:
    """As in TACO: many classes, most of them rare, and pictures with dozens of things."""
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, 31) ** 1.1
    entries = [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 4} for i in range(400)]
    by_image = {}
    for i in range(400):
        count = int(np.clip(rng.lognormal(0.9, 0.9), 1, 60))
        kinds = rng.choice(30, min(5, -(-count // 2)), p=share / share.sum())
        by_image[i] = [{"category_id": int(c), "image_id": i} for c in rng.choice(kinds, count)]
    coco = CocoFile(Path("x.json"), entries, by_image, [{"id": i, "name": f"c{i}"} for i in range(30)])
    fold_of = kfold(coco, 5, scheme=scheme)
    report = fold_report(coco, fold_of)["classes"]
    frequent = [one for one in report.values() if sum(one["annotations"]) >= 60]
    assert len(frequent) >= 5
    for one in frequent:
        assert np.allclose(one["shares"], one["share_of_whole"], rtol=0.1), one


@pytest.mark.parametrize("seed", [4, 5, 11])
def test_every_fold_has_every_class_that_enough_images_show(seed: int) -> None:
    """Five classes in five images each, in five folds; the most even shares alone leave folds without one of them."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((30, 6), dtype=int)
    counts[:, 0] = rng.integers(0, 14, 30)
    for c in range(1, 6):
        for i in rng.choice(30, 5, replace=False):
            counts[i, c] = rng.integers(1, 4)
    entries = [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 4} for i in range(30)]
    by_image = {
        i: [{"category_id": c, "image_id": i} for c in range(6) for _ in range(counts[i, c])] for i in range(30)
    }
    coco = CocoFile(Path("x.json"), entries, by_image, [{"id": c, "name": f"c{c}"} for c in range(6)])
    report = fold_report(coco, kfold(coco, 5))["classes"]
    assert min(min(one["annotations"]) for one in report.values()) >= 1


def test_the_rarest_class_is_spread() -> None:
    coco = drawn(seed=1)
    fold_of = kfold(coco, 4, scheme="rarest-class")
    rarest = int(class_counts(coco).sum(axis=0).argmin())
    shown = np.bincount(fold_of[class_counts(coco)[:, rarest] > 0], minlength=4)
    assert shown.max() - shown.min() <= 1
    totals = [class_counts(coco)[fold_of == f].sum() for f in range(4)]
    assert max(totals) - min(totals) <= 0.1 * np.mean(totals)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_deterministic_by_seed(scheme: str, waste: Path) -> None:
    coco = CocoFile.read(waste)
    same = [kfold(coco, 3, scheme=scheme, seed=1) for _ in range(2)]
    assert np.array_equal(*same) and np.bincount(same[0]).tolist() == [4, 4, 4]
    assert any(not np.array_equal(same[0], kfold(coco, 3, scheme=scheme, seed=s)) for s in range(2, 6))


def test_files(waste: Path, tmp_path: Path) -> None:
    coco = CocoFile.read(waste)
    fold_of = kfold(coco, 3)
    write_folds(coco, fold_of, tmp_path / "folds")
    held_out = []
    for i in range(3):
        train, val = (CocoFile.read(tmp_path / "folds" / f"kfold_{i}_{part}.json") for part in ("train", "val"))
        names = [{image["file_name"] for image in part.images} for part in (train, val)]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 12
        assert len(train.annotations) + len(val.annotations) == len(coco.annotations)
        held_out += sorted(names[1])
        source = open_source(tmp_path / "folds" / f"kfold_{i}_train.json")  # finds the pictures where they are
        assert source.splits == {"train": 8, "val": 4} and source.read("val", 0)[0].ndim == 3
    assert len(set(held_out)) == 12
    assert len(json.loads((tmp_path / "folds" / "folds.json").read_text())["held_out_in"]) == 12
    with pytest.raises(InputError, match="exists"):
        write_folds(coco, fold_of, tmp_path / "folds")


def test_mistakes(waste: Path) -> None:
    coco = CocoFile.read(waste)
    with pytest.raises(InputError, match="13 folds of 12"):
        kfold(coco, 13)
    with pytest.raises(InputError, match="did you mean"):
        kfold(coco, 3, scheme="rarest")


@pytest.mark.skipif(not os.environ.get("NOTA_SEG_DATA"), reason="NOTA_SEG_DATA names no folder with data")
def test_real_pictures() -> None:
    coco = CocoFile.read(Path(os.environ["NOTA_SEG_DATA"]) / "coco-mini" / "instances.json")
    for seed in range(4):
        person = fold_report(coco, kfold(coco, 5, seed=seed))["classes"]["person"]
        assert np.allclose(person["shares"], person["share_of_whole"], rtol=0.1), seed
