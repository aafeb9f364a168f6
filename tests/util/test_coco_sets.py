"""Statistics, merging and choosing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from util.coco import CocoFile
from util.coco_sets import format_stats, merge, stats, subset
from util.errors import InputError


def test_stats(waste: Path) -> None:
    coco = CocoFile.read(waste)
    result = json.loads(json.dumps(stats(coco)))
    assert list(result["classes"]) == ["red", "black", "blue"]
    assert result["images"] == 12 and result["images_without_annotations"] == 1 and result["crowds"] == 3
    assert result["sizes"] == {"48x64": 4, "64x48": 4, "56x56": 4}
    for name, one in result["classes"].items():
        stated = [a["area"] for a in coco.annotations if coco.class_names[coco.label_of[a["category_id"]]] == name]
        assert one["annotations"] == len(stated) and one["pixels"] == sum(stated)
        assert one["area"][2] == np.median(stated) and one["area"][4] == max(stated)
        assert result["cooccurrence"][name][name] == one["images"]
    assert result["cooccurrence"]["red"]["black"] == result["cooccurrence"]["black"]["red"] == 5
    assert "red" in format_stats(result)


def test_merge_of_two_folders_with_the_same_ids(waste: Path, tmp_path: Path) -> None:
    """Ids that collide are given anew; annotations stay with their picture."""
    shutil.copytree(waste.parent, tmp_path / "other")
    files = [CocoFile.read(waste), CocoFile.read(tmp_path / "other" / "all.json")]
    merged, root = merge(files)
    merged.write(tmp_path / "merged.json", root)
    again = CocoFile.read(tmp_path / "merged.json")
    ids = [a["id"] for a in again.annotations]
    assert len(again.images) == 24 and len(set(ids)) == len(ids) == 2 * len(files[0].annotations)
    for old, new in zip([*files[0].images, *files[1].images], again.images, strict=True):
        assert new["file_name"].endswith(old["file_name"])
        assert np.array_equal(again.paint(new), files[0].paint(old))
        assert again.read_picture(new).shape[:2] == (new["height"], new["width"])


def test_merge_keeps_what_is_free_and_refuses_what_is_there_twice(waste: Path) -> None:
    coco = CocoFile.read(waste)
    parts = [coco.with_images(coco.images[:5]), coco.with_images(coco.images[5:])]
    merged, _ = merge(parts)
    assert merged.images == coco.images and merged.annotations == coco.annotations
    with pytest.raises(InputError, match="is in"):
        merge([coco, parts[0]])
    renamed = CocoFile(coco.path, [], {}, [{"id": 3, "name": "other"}])
    with pytest.raises(InputError, match="categories differ"):
        merge([coco, renamed])


def test_a_subset_is_drawn_without_replacement(waste: Path) -> None:
    coco = CocoFile.read(waste)
    for seed in range(10):
        chosen = [image["id"] for image in subset(coco, count=8, seed=seed).images]
        assert len(set(chosen)) == 8
        assert chosen == [image["id"] for image in coco.images if image["id"] in chosen]
    assert subset(coco, count=8, seed=1).images == subset(coco, count=8, seed=1).images
    assert len(subset(coco, fraction=1.0).images) == 12 and len(subset(coco, fraction=0.25).images) == 3


def test_a_subset_by_class(waste: Path) -> None:
    coco = CocoFile.read(waste)
    assert len(subset(coco, with_classes=coco.category_ids(["BLACK"])).images) == 5
    assert len(subset(coco, with_classes=[3], without_classes=[17, 90]).images) == 3
    assert len(subset(coco, without_classes=[3, 17, 90]).images) == 1
    with pytest.raises(InputError, match="did you mean 'black'"):
        coco.category_ids(["blak"])
    for wrong in ({"count": 13}, {"fraction": 0.5, "count": 2}, {"fraction": 0.0}):
        with pytest.raises(InputError):
            subset(coco, **wrong)  # type: ignore[arg-type]


def test_nothing_is_overwritten(waste: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        CocoFile.read(waste).write(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "mine"
