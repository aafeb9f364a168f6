"""The page: what it shows of a picture, through its own server; and that it asks nobody else for anything."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nota_seg
from nota_seg.cli import main
from nota_seg.serve import DIFFERENT, Candidate, build, launch, look
from util.palettes import colourise, palette

SMALL: dict[str, Any] = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for seed, names in ((1, ["sky", "tree", "road"]), (2, ["road", "sky", "tree"])):
        torch.manual_seed(seed)
        labels = dict(enumerate(names))
        model = nota_seg.create_model(
            "segformer-b0", **SMALL, id2label=labels, label2id={v: k for k, v in labels.items()}, image_size=None
        )
        torch.nn.init.normal_(model.decoder.classifier.weight)
        folders.append(tmp_path_factory.mktemp("models") / f"run-{seed}" / "best")
        model.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_pictures_and_table(saved: list[Path], picture: np.ndarray) -> None:
    a, b = (Candidate.load(folder, "cpu") for folder in saved)
    assert a.name == "run-1" and a.cost is not None
    pictures, table = look([a, b], picture)
    assert len(pictures) == 5
    first, second = a.label(picture)[0], b.label(picture)[0]
    same_name = np.array([2, 0, 1])[second]  # road, sky, tree of the second in the order of the first
    assert np.array_equal(pictures[1][:40], colourise(first, palette(3)))
    assert np.array_equal(pictures[3][:40], colourise(same_name, palette(3)))
    marked = (pictures[4] == DIFFERENT).all(axis=2)
    assert np.array_equal(marked, first != same_name)
    assert f"{100 * marked.mean():.1f}% of the pixels" in table
    assert f"{a.cost['params'] / 1e6:.3f} M" in table and "| run-2 |" in table
    alone, text = look([a], picture)
    assert len(alone) == 2 and "differ" not in text
    assert not (look([a, a], picture)[0][4] == DIFFERENT).all(axis=2).any()


def test_through_its_server_and_from_nowhere_else(saved: list[Path], picture: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    page = build([Candidate.load(folder, "cpu") for folder in saved])
    address = launch(page, block=False)
    try:
        assert address.startswith("http://127.0.0.1") and not page.share_url
        with urllib.request.urlopen(address, timeout=30) as answer:
            policy, html = answer.headers["content-security-policy"], answer.read().decode()
        # Whatever the page names, a browser fetches none of it.
        assert "default-src 'self'" in policy and "connect-src 'self'" in policy and "http" not in policy
        assert "fonts.googleapis.com/css" not in html  # nor does the theme ask for its fonts
        file = tmp_path / "picture.png"
        Image.fromarray(picture).save(file)
        result = client.Client(address, verbose=False).predict(client.handle_file(str(file)), 0.5, api_name="/look")
        assert len(result) == 6 and "They differ on" in result[-1]
        shown = np.asarray(Image.open(result[1]).convert("RGB"))
        expected = look([Candidate.load(folder, "cpu") for folder in saved], picture)[0][1]
        assert np.array_equal(shown, expected)
    finally:
        page.close()


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere", "--device", "cpu"]) == 2
    assert "no model at nowhere" in capsys.readouterr().err
    assert main(["serve", "a", "b", "c"]) == 2
    assert "one or two" in capsys.readouterr().err
