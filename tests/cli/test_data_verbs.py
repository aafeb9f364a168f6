"""`nota-seg data ...` from one end to the other: labels that go round come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nota_seg.cli import main
from util.coco import CocoFile


def run(*words: object) -> None:
    assert main(["data", *map(str, words)]) == 0, words


def test_round(waste: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folds = tmp_path / "folds"
    run("kfold", waste, "--output-dir", folds, "--folds", 3, "--scheme", "rarest-class")
    run("merge", *(folds / f"kfold_{i}_val.json" for i in range(3)), "--output", tmp_path / "all.json")
    capsys.readouterr()
    run("stats", waste, "--json")
    run("stats", tmp_path / "all.json", "--json")
    text = capsys.readouterr().out
    first, end = json.JSONDecoder().raw_decode(text)
    second = json.loads(text[end:])
    assert first["classes"] == second["classes"] and first["cooccurrence"] == second["cooccurrence"]

    square = tmp_path / "square.json"  # sizes that a submission's square keeps
    coco = CocoFile.read(tmp_path / "all.json")
    coco.with_images(i for i in coco.images if i["height"] == i["width"]).write(square)
    run("to-submission", square, "--output", tmp_path / "a.csv", "--size", 56)
    run(
        "from-submission",
        tmp_path / "a.csv",
        "--test-json",
        square,
        "--form",
        "polygon",
        "--output",
        tmp_path / "b.json",
    )
    run("from-coco", tmp_path / "b.json", "--output-dir", tmp_path / "set", "--split", "val")
    run("to-coco", tmp_path / "set", "--split", "val", "--parts", "--output", tmp_path / "c.json")
    run("to-submission", tmp_path / "c.json", "--output", tmp_path / "c.csv", "--size", 56)
    rows = [sorted((tmp_path / f"{name}.csv").read_text().splitlines()[1:]) for name in "ac"]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    truth = CocoFile.read(waste)
    for image in CocoFile.read(tmp_path / "b.json").images:
        before = next(i for i in truth.images if i["file_name"] == image["file_name"])
        assert np.array_equal(CocoFile.read(tmp_path / "b.json").paint(image), truth.paint(before))


def test_oversample(waste: Path, tmp_path: Path) -> None:
    words = ("oversample", waste, "--class", "black", "--onto", "red", "--min_area", 30, "--count", 3)
    run(*words, "--output-dir", tmp_path / "a", "--seed", 4)
    run(*words, "--output-dir", tmp_path / "b", "--seed", 4)
    for file in sorted((tmp_path / "a").rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    new = CocoFile.read(tmp_path / "a" / "train.json")
    assert all(17 in {a["category_id"] for a in new.annotations_by_image[i["id"]]} for i in new.images)
