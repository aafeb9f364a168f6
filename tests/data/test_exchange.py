"""Layouts to COCO and back, and submissions to COCO and back: the labels stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nota_seg.cli import main
from nota_seg.data.exchange import from_coco, from_submission, submission_rows, to_coco
from nota_seg.data.sources import open_source
from util.coco import CocoFile
from util.errors import InputError
from util.submissions import Submission, write_submission


@pytest.mark.parametrize("form", ["rle", "polygon"])
@pytest.mark.parametrize("parts", [False, True])
def test_coco_masks_coco(waste: Path, tmp_path: Path, form: str, parts: bool) -> None:
    coco = CocoFile.read(waste)
    from_coco(coco, tmp_path / "set", split="val")
    source = open_source(tmp_path / "set")
    assert source.class_names == ["background", "red", "black", "blue"] and source.splits == {"val": 12}
    file, root = to_coco(source, "val", form=form, parts=parts)
    file.write(tmp_path / "back.json", root)
    back = CocoFile.read(tmp_path / "back.json")
    assert [c["name"] for c in back.categories] == ["red", "black", "blue"]
    before = {i["file_name"]: coco.paint(i, background=0, first_label=1) for i in coco.images}
    for image in back.images:
        assert np.array_equal(back.paint(image, background=0, first_label=1), before[image["file_name"]])
        assert np.array_equal(back.read_picture(image), coco.read_picture(next(
            i for i in coco.images if i["file_name"] == image["file_name"]
        )))  # fmt: skip


def test_ignored_pixels_and_every_class(scenes: Path) -> None:
    source = open_source(scenes)
    file, _ = to_coco(source, "val")
    assert len(file.categories) == source.num_labels
    for index, image in enumerate(file.images):
        assert np.array_equal(file.paint(image), source.read_label("val", index))
    with pytest.raises(InputError, match="no class"):
        to_coco(source, "val", background="nothing like it")


def test_submissions(waste: Path, tmp_path: Path) -> None:
    coco = CocoFile.read(waste)
    square = coco.with_images([i for i in coco.images if i["height"] == i["width"]])
    write_submission(tmp_path / "a.csv", submission_rows(square), side=56)
    for form in ("rle", "polygon"):
        back = from_submission(Submission(tmp_path / "a.csv"), square, form=form)
        assert all(np.array_equal(back.paint(i), square.paint(i)) for i in square.images)
        ids = [a["id"] for a in back.annotations]
        assert len(ids) == len(set(ids)) and {a["category_id"] for a in back.annotations} <= {3, 17, 90}
    fewer = CocoFile(square.path, square.images, square.annotations_by_image, square.categories[:1])
    with pytest.raises(InputError, match="has 1 categories"):
        from_submission(Submission(tmp_path / "a.csv"), fewer)
    with pytest.raises(InputError, match="no row"):
        from_submission(Submission(tmp_path / "a.csv"), coco)


def test_names_that_lead_out_of_the_folder(waste: Path, tmp_path: Path) -> None:
    coco = CocoFile.read(waste)
    coco.images[0]["file_name"] = "../" + waste.parent.name + "/batch_0/0000.png"
    with pytest.raises(InputError, match="leads out"):
        from_coco(coco, tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_options_that_repeat_and_flags(waste: Path, tmp_path: Path) -> None:
    """Lists and flags mean what they say: two classes are two classes, and no --add is no."""
    words = ["data", "copy-paste", str(waste), "--patch", "red", "--patch", "black", "--remove", "blue", "--count", "2"]
    assert main([*words, "--output_dir", str(tmp_path / "a")]) == 0
    assert main([*words, "--output-dir", str(tmp_path / "b"), "--add", "--form", "polygon"]) == 0
    a, b = (CocoFile.read(tmp_path / name / "train.json") for name in "ab")
    assert len(a.images) == 2 and len(b.images) == 14
    assert main([*words, "--output-dir", str(tmp_path / "a")]) == 2
    words = ["data", "subset", str(waste), "--with-class", "black", "--with-class", "blue", "--output"]
    assert main([*words, str(tmp_path / "c.json")]) == 0
    assert len(CocoFile.read(tmp_path / "c.json").images) == 8
