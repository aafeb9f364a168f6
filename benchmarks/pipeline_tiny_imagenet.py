"""Pre-training's input pipeline: a 64x64 JPEG to 224 with RandAugment and erasing, for one core.

The peer is the usual loader: Pillow, timm's transform, collate. Both run in this process, so that the time is that of a
core. Mixup is the same for both, on the device, and left out. Normalisation and erasing are in the peer's loader; ours
does them on the device, and the note says what they add where that is the same core.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import default_collate

from benchmarks.common import MEAN, STD, Result, paired
from imagenet_pretrain.augment import TrainTransform, make_erasing
from nota_seg.models.pixels import normalise
from util.images import read_image

SIZE, BATCH = 224, 32
RECIPE = "rand-m9-mstd0.5-inc1"


def drawn(count: int) -> list[bytes]:
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        small = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def run(quick: bool) -> list[Result]:
    cv2.setNumThreads(0)
    files = drawn(BATCH)
    transform = TrainTransform(SIZE, auto_augment=RECIPE)
    erase = make_erasing(0.25, torch.device("cpu"))
    usual = create_transform(
        (3, SIZE, SIZE), is_training=True, auto_augment=RECIPE, re_prob=0.25, re_mode="pixel", interpolation="bicubic",
        mean=MEAN, std=STD,
    )  # fmt: skip
    seeds = iter(range(10**9))

    def load() -> torch.Tensor:
        return default_collate([transform(read_image(file), next(seeds)) for file in files])

    def finish(batch: torch.Tensor) -> torch.Tensor:
        return erase(normalise(batch.permute(0, 3, 1, 2), MEAN, STD))

    def load_usual() -> torch.Tensor:
        return default_collate([usual(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])

    repeats = 3 if quick else 21
    timing = paired(load, load_usual, repeats)
    whole = paired(lambda: finish(load()), load_usual, repeats)
    means = [[batch().mean().item() for _ in range(12)] for batch in (lambda: finish(load()), load_usual)]
    difference = abs(np.mean(means[0]) - np.mean(means[1])) / np.std(means)
    return [
        Result(
            "Tiny-ImageNet input to 224, a picture", timing.ours / BATCH, timing.theirs / BATCH, timing.ratio,
            2.0, 10.0,
            bool(difference < 2),
            f"{BATCH / timing.ours:.0f} against {BATCH / timing.theirs:.0f} pictures per second and core; "
            f"{whole.ratio:.2f}x with normalisation and erasing on the same core; the tests hold every operation to "
            "timm's, here the means of batches are compared; "
            f"quartiles {timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f}",
        )
    ]  # fmt: skip
