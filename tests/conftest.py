"""What several tests need: drawn data sets, a model small enough to train in seconds, the command line in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is wrong
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

TINY = [
    "model.dims=[8,16,24,32]", "model.heads=[1,1,2,2]", "model.depths=[1,1,1,1]", "model.decoder.dim=16",
    "train.workers=0", "train.tracker=none", "train.log_every=2",
]  # fmt: skip


def sets(*items: str) -> list[str]:
    """`--set` words for the tiny model, followed by `items`."""
    return [word for item in (*TINY, *items) for word in ("--set", item)]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "nota_seg.cli", *map(str, words)]


def run_cli(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=600, **kwargs)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Textured shapes in Tiny-ImageNet's layout: 4 classes, 12 training and 3 validation pictures each."""
    from util.synthetic import draw_tiny_imagenet

    root = tmp_path_factory.mktemp("shapes")
    return draw_tiny_imagenet(root, classes=4, train_per_class=12, val_per_class=3, size=32, seed=0)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in ADE20K's layout: 10 training and 4 validation pictures."""
    from util.synthetic import draw_ade20k

    return draw_ade20k(tmp_path_factory.mktemp("scenes"), train=10, val=4, size=(48, 64), seed=0)


def pretrain_words(shapes: Path, folder: Path, *more: str, steps: int = 6, set_: tuple[str, ...] = ()) -> list[str]:
    """A pre-training of seconds."""
    return [
        "pretrain", "--data-path", str(shapes), "--output-dir", str(folder), "--batch-size", "4", "--input-size", "32",
        "--max-steps", str(steps), *sets("train.checkpoint_every=2", "train.eval_every=3", *set_), *more,
    ]  # fmt: skip


def finetune_words(scenes: Path, folder: Path, *more: str, steps: int = 6, set_: tuple[str, ...] = ()) -> list[str]:
    """A fine-tuning of seconds."""
    return [
        "finetune", "--data-dir", str(scenes), "--save-path", str(folder), "--batch-size", "2", "--crop-size", "32",
        "--max-steps", str(steps),
        *sets("train.checkpoint_every=2", "train.eval_every=3", "data.base_size=[64,48]", *set_), *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def waste(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file of 12 pictures of three sizes, see `draw_waste`."""
    return draw_waste(tmp_path_factory.mktemp("waste"), 12, seed=5)


def draw_waste(root: Path, count: int, seed: int) -> Path:
    """A COCO file, category ids 3, 17 and 90; rectangles of one colour a class on grey.

    Class "black" is drawn in RGB 0, 0, 0; a picture may hold a crowd (RLE), parts, or nothing.
    """
    import json

    import numpy as np
    from PIL import Image
    from pycocotools import mask as rle_tools

    colours = {3: (200, 30, 10), 17: (0, 0, 0), 90: (10, 60, 220)}
    images, annotations = [], []
    rng = np.random.default_rng(seed)
    for i in range(count):
        height, width = [(48, 64), (64, 48), (56, 56)][i % 3]
        picture = np.full((height, width, 3), 120, dtype=np.uint8)
        chosen = [] if i == 7 else [3] * (1 + i % 3) + [17] * (i % 2) + [90] * (i % 4 == 0)
        # The largest first, as a reader paints them.
        sizes = sorted(rng.integers(6, 20, (len(chosen), 2)).tolist(), key=lambda size: -size[0] * size[1])
        for category, (w, h) in zip(chosen, sizes, strict=True):
            x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
            picture[y : y + h, x : x + w] = colours[category]
            shape: object = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            if category == 90:
                mask = np.zeros((height, width), dtype=np.uint8, order="F")
                mask[y : y + h, x : x + w] = 1
                shape = {"size": [height, width], "counts": rle_tools.encode(mask)["counts"].decode()}
            annotations.append({
                "id": 100 + len(annotations), "image_id": 10 * i, "category_id": category, "segmentation": shape,
                "area": w * h, "bbox": [x, y, w, h], "iscrowd": int(category == 90),
            })  # fmt: skip
        (root / f"batch_{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / f"batch_{i % 2}" / f"{i // 2:04}.png")
        images.append({"id": 10 * i, "file_name": f"batch_{i % 2}/{i // 2:04}.png", "height": height, "width": width})
    categories = [{"id": 90, "name": "blue"}, {"id": 3, "name": "red"}, {"id": 17, "name": "black"}]
    content = {"images": images[::-1], "annotations": annotations, "categories": categories}
    (root / "all.json").write_text(json.dumps(content))
    return root / "all.json"
