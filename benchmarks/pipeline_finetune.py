"""Fine-tuning's input pipeline: a 683x512 JPEG and its mask to a 512 crop with colour jitter, for one core.

The peer decodes with Pillow, as most loaders do, resizes the whole picture, crops, flips, jitters and normalises with
albumentations, all in the loader. Ours gives bytes, which the device normalises; the note says what that adds where the
device is the same core. Pictures are ADE20K's of that size where `NOTA_SEG_DATA` names a folder that holds some, drawn
elsewhere.
"""

from __future__ import annotations

import io
import random
from functools import partial

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.common import MEAN, STD, Result, paired, real_data
from nota_seg.data.transforms import RandomScaleCrop, TrainTransform
from nota_seg.models.pixels import normalise
from util.images import image_size, read_image, read_mask

SIZE = (512, 683)
CROP = (512, 512)
PICTURES = 16


def drawn(count: int) -> list[tuple[bytes, np.ndarray]]:
    """Pictures with detail at every scale, as JPEG files in memory, and masks."""
    draws = np.random.default_rng(0)
    result = []
    for _ in range(count):
        image = np.zeros((*SIZE, 3), dtype=np.float32)
        for cells in (4, 16, 64, 256):
            noise = draws.normal(size=(cells, cells, 3)).astype(np.float32)
            image += cv2.resize(noise, SIZE[::-1], interpolation=cv2.INTER_CUBIC) * 60 / cells**0.5
        file = io.BytesIO()
        Image.fromarray(np.clip(image + 120, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        mask = cv2.resize(draws.integers(0, 150, (16, 16), dtype=np.uint8), SIZE[::-1], interpolation=0)
        result.append((file.getvalue(), mask))
    return result


def real() -> list[tuple[bytes, np.ndarray]]:
    """ADE20K's pictures of the size, as files in memory, and their masks; none where there are none."""
    root = real_data() / "ADEChallengeData2016"
    fitting = [f for f in sorted(root.glob("images/*/*.jpg")) if image_size(f) == SIZE][:PICTURES]
    return [
        (f.read_bytes(), read_mask(root / "annotations" / f.parent.name / f"{f.stem}.png").astype(np.uint8))
        for f in fitting
    ]


def run(quick: bool) -> list[Result]:
    cv2.setNumThreads(0)
    found = real()
    data, what = (found, "of ADE20K") if found else (drawn(PICTURES), "drawn")
    count = len(data)
    ours = TrainTransform(CROP)
    usual = A.Compose(
        [
            A.RandomScale(scale_limit=(-0.5, 1.0), p=1),
            A.PadIfNeeded(*CROP, border_mode=cv2.BORDER_CONSTANT, fill_mask=255),
            A.RandomCrop(*CROP),
            A.HorizontalFlip(),
            A.ColorJitter(0.25, 0.25, 0.25, 0.1, p=1),
            A.Normalize(MEAN, STD),
        ],
        seed=0,
    )
    seeds = iter(range(10**9))

    def run_ours() -> None:
        for file, mask in data:
            ours(read_image(file), mask, next(seeds))

    def run_ours_normalised() -> None:
        for file, mask in data:
            pixels, _ = ours(read_image(file), mask, next(seeds))
            normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None], MEAN, STD)

    def run_theirs() -> None:
        for file, mask in data:
            result = usual(image=np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), mask=mask)
            torch.from_numpy(np.ascontiguousarray(result["image"].transpose(2, 0, 1)))

    def run_kept() -> None:
        for image, mask in decoded:
            ours(image, mask, next(seeds))

    decoded = [(read_image(file), mask) for file, mask in data]
    repeats = 3 if quick else 15
    timing = paired(run_ours, run_theirs, repeats)
    whole = paired(run_ours_normalised, run_theirs, repeats)
    kept = paired(run_kept, run_theirs, repeats)
    quartiles = f"quartiles {timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f}"
    return [
        Result(
            "fine-tuning input, a picture", timing.ours / count, timing.theirs / count, timing.ratio, 3.5, 6.0,
            all(map(partial(same_crop, ours), data[:4])),
            f"{count / timing.ours:.0f} against {count / timing.theirs:.0f} pictures, {what}, per second and core; "
            f"{whole.ratio:.2f}x with normalisation on the same core; our crop is within 2 levels (mean) of resizing "
            f"the whole; {quartiles}",
        ),
        Result(
            "the same, decoded before", kept.ours / count, kept.theirs / count, kept.ratio, 3.5, 6.0, True,
            "sets that fit into data.cache_gib are decoded once; the peer decodes every time",
        )
    ]  # fmt: skip


def same_crop(ours: TrainTransform, item: tuple[bytes, np.ndarray]) -> bool:
    """Whether the crop that was resized alone is that of the picture resized whole."""
    image = read_image(item[0])
    step = RandomScaleCrop(CROP, max_class_share=1.0, scale=(1.5, 1.5))
    window = step.window(item[1], random.Random(1))
    crop = step.of_image(image, window).astype(int)
    whole = cv2.resize(image, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_LINEAR)
    top, left = (round(source.start * 1.5) for source in window.cut)
    best = min(
        np.abs(whole[t : t + CROP[0], s : s + CROP[1]].astype(int) - crop).mean()
        for t in (top - 1, top, top + 1)
        for s in (left - 1, left, left + 1)
        if 0 <= t <= whole.shape[0] - CROP[0] and 0 <= s <= whole.shape[1] - CROP[1]
    )
    return bool(best < 2)
