"""Every bad file is listed at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nota_seg.data.verify import verify
from util.images import write_png


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for i in range(6):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / f"images/{split}/p{i}.jpg")
            label = np.zeros((16, 20), dtype=np.uint8)
            label[:8] = 1
            label[0] = 255
            write_png(tmp_path / f"masks/{split}/p{i}.png", label)
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "sky", "1": "road", "2": "unicorn"}))
    return tmp_path


def test_good_data(root: Path) -> None:
    ticks: list[int] = []
    report = verify(root, progress=ticks.append)
    assert report.ok and not report.problems and report.unseen == ["unicorn"] and sum(ticks) == 12
    train = report.splits["train"]
    assert (train.pictures, train.good, train.ignored_pixels) == (6, 6, 6 * 20)
    assert train.class_pixels == [6 * 160, 6 * 140, 0] and train.class_pictures == [6, 6, 0]
    assert "all files are good" in report.summary() and "classes never seen: unicorn" in report.summary()
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_every_bad_file_is_listed(root: Path) -> None:
    train, masks = root / "images/train", root / "masks/train"
    (train / "p0.jpg").write_bytes((train / "p0.jpg").read_bytes()[:300])  # truncated
    write_png(masks / "p1.png", np.zeros((16, 21), dtype=np.uint8))  # wrong size
    write_png(masks / "p2.png", np.full((16, 20), 7, dtype=np.uint8))  # out of range
    Image.open(train / "p3.jpg").save(masks / "p3.png")  # colours
    (masks / "p4.png").unlink()  # missing
    write_png(masks / "more.png", np.zeros((16, 20), dtype=np.uint8))  # superfluous
    Image.open(train / "p5.jpg").save(train / "p5.png")  # stem twice
    (root / "images/val/p0.jpg").write_bytes(b"text")
    (root / "masks/val/p0.png").write_bytes(b"text")
    report = verify(root)
    assert not report.ok and len(report.problems) == 9
    parts = ["train/p0.jpg", "16x21", "value 7", "colour mask", "train/p4.jpg has no mask", "more.png has no picture"]
    for part in [*parts, "one stem", "val/p0.jpg: not a picture", "val/p0.png: not a picture"]:
        assert sum(part in problem for problem in report.problems) == 1, part
    assert (report.splits["train"].pictures, report.splits["train"].good) == (5, 1)
    assert report.splits["val"].good == 5
    assert report.summary().count("problem: ") == 9


def test_what_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert not report.ok and "no data set found" in report.problems[0] and report.summary()


def test_no_pictures_at_all(tmp_path: Path) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "masks/train").mkdir(parents=True)
    (tmp_path / "id2label.json").write_text('{"0": "a"}')
    assert "no pictures" in verify(tmp_path).problems[0]


@pytest.mark.skipif(not os.environ.get("NOTA_SEG_DATA"), reason="NOTA_SEG_DATA names no folder with data")
@pytest.mark.parametrize("folder", ["ADEChallengeData2016", "coco-mini"])
def test_real_data_is_good(folder: str) -> None:
    path = Path(os.environ["NOTA_SEG_DATA"]) / folder
    if not path.is_dir():
        pytest.skip(f"no {folder}")
    assert verify(path).problems == []
