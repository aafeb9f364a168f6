"""COCO files as people have them: what can be read is read, what cannot is named in one line, and there is a way on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nota_seg.cli import main
from nota_seg.data.sources import open_source
from util.coco import CocoFile
from util.coco_sets import stats
from util.errors import InputError
from util.folds import kfold
from util.pasting import CopyPaste, read_patch, write_new
from util.submissions import Submission

Content = dict[str, Any]


@pytest.fixture
def litter(tmp_path: Path) -> Path:
    """A file in the manner of TACO: batches, polygons and no more than they need, sizes as floats, NaN, ids with gaps,
    supercategories, extra lists; photographs that EXIF turns."""
    images, annotations = [], []
    for i in range(6):
        height, width = (40, 30) if i % 2 else (30, 40)
        name = f"batch_{i // 3 + 1}/{i:06}.jpg"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture = np.full((height, width, 3), 90, dtype=np.uint8)
        picture[5:20, 8:24] = (220, 40, 20)
        if i % 2:  # stored lying, shown upright: the annotator saw it upright
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(np.rot90(picture).copy()).save(tmp_path / name, exif=exif, quality=95)
        else:
            Image.fromarray(picture).save(tmp_path / name, quality=95)
        images.append({
            "id": 7 * i, "width": float(width), "height": float(height), "file_name": name, "license": None,
            "flickr_url": None, "date_captured": float("nan"),
        })  # fmt: skip
        annotations.append({"image_id": 7 * i, "category_id": 5, "segmentation": [[8, 5, 24, 5, 24, 20, 8, 20]]})
        if i < 2:  # a null id, a null crowd
            corner = [[0.0, 0.0, 3.0, 0.0, 3.0, 3.0, 0.0, 3.0]]
            extra = {"id": None, "iscrowd": None, "area": float("nan"), "bbox": []}
            annotations.append({"image_id": 7 * i, "category_id": 58, "segmentation": corner, **extra})
    categories = [
        {"supercategory": "Cigarette", "id": 58, "name": "Cigarette"},
        {"supercategory": "Bottle", "id": 5, "name": "Clear bottle"},
    ]
    content = {
        "info": None, "images": images, "annotations": annotations, "categories": categories,
        "scene_annotations": [], "scene_categories": [],
    }  # fmt: skip
    (tmp_path / "annotations.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    return tmp_path / "annotations.json"


def test_what_can_be_read_is_read(litter: Path, tmp_path: Path) -> None:
    coco = CocoFile.read(litter)
    assert coco.class_names == ["Clear bottle", "Cigarette"] and coco.label_of == {5: 0, 58: 1}
    for image in coco.images:
        pixels, label = coco.read_picture(image), coco.paint(image)
        assert pixels.shape[:2] == label.shape == (image["height"], image["width"])
        assert (pixels[label == 0][:, 0] > 150).mean() > 0.9 and (pixels[label == 255][:, 0] < 150).mean() > 0.9
    result = stats(coco)
    assert result["classes"]["Clear bottle"]["area"] == [240.0] * 5 and result["crowds"] == 0
    assert np.bincount(kfold(coco, 3)).tolist() == [2, 2, 2]
    source = open_source(litter)
    assert all(source.read(split, i)[1].max() >= 1 for split, n in source.splits.items() for i in range(n))

    new = CocoFile.read(write_new(coco, CopyPaste(patch=[5]), tmp_path / "new", count=3, add=True))
    ids = [a["id"] for a in new.annotations]
    assert len(ids) == len(set(ids)) and None not in ids
    assert main(["data", "subset", str(litter), "--fraction", "1", "--output", str(tmp_path / "again.json")]) == 0
    text = (tmp_path / "again.json").read_text()
    assert "NaN" not in text and CocoFile.read(tmp_path / "again.json").images == CocoFile.read(litter).images


def test_missing_pictures_and_lost_annotations(
    litter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is wrong and what leaves it out; afterwards the file is as good as any."""
    content = json.loads(litter.read_text(encoding="utf-8-sig"))
    (tmp_path / content["images"][0]["file_name"]).unlink()
    content["annotations"] += [
        {"image_id": 999, "category_id": 5, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        {"image_id": 7, "category_id": 6, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        {"image_id": [7], "category_id": 5, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        {"image_id": 7, "category_id": 5, "segmentation": [], "bbox": [0, 0, 4, 4]},
    ]
    litter.write_text(json.dumps(content))
    with pytest.raises(InputError, match="image 999, which is not in 'images'; `nota-seg data subset --existing`"):
        CocoFile.read(litter)
    assert main(["data", "stats", str(litter)]) == 2
    assert main(["data", "subset", str(litter), "--existing", "--output", str(tmp_path / "here.json")]) == 0
    assert "5 of 6 images" in (out := capsys.readouterr().out) and "4 of no image, class or shape left out" in out
    here = CocoFile.read(tmp_path / "here.json")
    assert [i["id"] for i in here.images] == [7, 14, 21, 28, 35] and len(here.annotations) == 6
    assert sum(open_source(tmp_path / "here.json").splits.values()) == 5

    content["annotations"] = content["annotations"][:-4]
    litter.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"000000\.jpg is missing.*--existing"):
        open_source(litter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(height=30.5), "images[1] has the height 30.5"),
        (lambda c: c["images"][1].update(width=None), "images[1] has the width None"),
        (lambda c: c["images"][1].update(height="40"), "images[1] has the height '40'"),
        (lambda c: c["images"][1].update(height=float("inf")), "images[1] has the height None"),
        (lambda c: c["images"][1].update(id=[1]), "images[1] has the id [1]"),
        (lambda c: c["images"][1].update(id=0), "two entries of 'images' have the id 0"),
        (lambda c: c["categories"][0].update(id="58"), "categories[0] has the id '58'"),
        (lambda c: c["categories"][0].pop("name"), "categories[0] lacks name"),
        (lambda c: c["annotations"].append(3), "annotations[8] lacks image_id"),
        (lambda c: c["annotations"][0].pop("segmentation"), "no segmentation; boxes alone"),
        (lambda c: c["images"][0].update(height=31, width=41), "correct the file"),
        (lambda c: c["images"][0].update(ignored={"size": [2, 2], "counts": [4]}), "ignored pixels of image 0"),
    ],
)
def test_what_cannot_be_read_is_one_line(change: Any, message: str, litter: Path, tmp_path: Path) -> None:
    content = json.loads(litter.read_text(encoding="utf-8-sig"))
    change(content)
    litter.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        coco = CocoFile.read(litter)
        for image in coco.images:
            coco.paint(image)
            coco.read_picture(image)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert main(["data", "from-coco", str(litter), "--output-dir", str(tmp_path / "set")]) == 2
    assert not (tmp_path / "set").exists()


def test_a_folder_behind_a_link(waste: Path, tmp_path: Path) -> None:
    """`..` is resolved behind symbolic links: the way to the pictures is from where the file really is."""
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    CocoFile.read(waste).write(tmp_path / "link" / "a.json")
    again = CocoFile.read(tmp_path / "link" / "a.json")
    assert all(again.has_picture(image) for image in again.images)


def test_a_background_among_the_categories_is_no_class(litter: Path, tmp_path: Path) -> None:
    """As in files with ids 0..10 of which 0 is the background: counted as a class, it would shift every other label
    and every id of a submission by one."""
    content = json.loads(litter.read_text(encoding="utf-8-sig"))
    content["categories"].insert(0, {"id": 0, "name": "Backgroud"})
    window = [[10, 8, 14, 8, 14, 12, 10, 12]]  # of an object, through which the background is seen
    content["annotations"].append({"image_id": 0, "category_id": 0, "segmentation": window})
    (tmp_path / "eleven.json").write_text(json.dumps(content))
    coco, plain = CocoFile.read(tmp_path / "eleven.json"), CocoFile.read(litter)
    assert coco.class_names == plain.class_names and coco.label_of == plain.label_of
    expected = plain.paint(plain.images[0], background=0, first_label=1)
    assert (expected[8:12, 10:14] == 1).all()
    expected[8:12, 10:14] = 0
    assert (coco.paint(coco.images[0], background=0, first_label=1) == expected).all()
    assert stats(coco)["classes"].keys() == {"Clear bottle", "Cigarette"} and np.bincount(kfold(coco, 2)).tolist() == [
        3,
        3,
    ]
    assert open_source(tmp_path / "eleven.json").class_names == ["background", "Clear bottle", "Cigarette"]
    cut = read_patch(coco, coco.images[0])
    assert {thing.category_id for thing in cut.objects} == {5, 58} and not cut.foreground[8:12, 10:14].any()
    coco.write(tmp_path / "again.json")
    assert CocoFile.read(tmp_path / "again.json").categories == coco.categories

    for command in ("to-submission", "from-submission"):  # there and back: ids 0..2
        names = (str(tmp_path / "eleven.json"), "--output", str(tmp_path / "a.csv"))
        if command == "from-submission":
            names = (names[2], "--test-json", names[0], "--output", str(tmp_path / "back.json"))
        assert main(["data", command, *names]) == 0
    assert {int(i) for i in np.unique(Submission(tmp_path / "a.csv").label("batch_1/000000.jpg"))} == {0, 1, 2}
    assert {a["category_id"] for a in CocoFile.read(tmp_path / "back.json").annotations} == {5, 58}


def test_classes_of_one_name_stay_apart(litter: Path) -> None:
    """Results are by name: of two classes of one name, one would be lost."""
    content = json.loads(litter.read_text(encoding="utf-8-sig"))
    content["categories"][0]["name"] = "clear bottle"
    litter.write_text(json.dumps(content))
    coco = CocoFile.read(litter)
    assert coco.class_names == ["Clear bottle (5)", "clear bottle (58)"]
    assert [one["annotations"] for one in stats(coco)["classes"].values()] == [6, 2]
    assert coco.category_ids(["Clear bottle (5)", "58"]) == [5, 58]


def test_one_picture_is_not_in_two_folds(litter: Path) -> None:
    content = json.loads(litter.read_text(encoding="utf-8-sig"))
    content["images"][1]["file_name"] = content["images"][0]["file_name"]
    litter.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"two images are the picture batch_1/000000\.jpg"):
        kfold(CocoFile.read(litter), 2)
