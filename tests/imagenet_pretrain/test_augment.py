"""Augmentation is a function of the picture and the seed, and disturbs nobody else's random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from imagenet_pretrain.augment import EvalTransform, TrainTransform, make_erasing, make_mixup
from util.errors import InputError
from util.seed import seeded

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "options", [{}, {"auto_augment": None}, {"auto_augment": "original"}, {"color_jitter": None, "auto_augment": None}]
)
def test_the_seed_alone_decides(options: dict) -> None:
    transform = TrainTransform(48, **options)
    results = []
    for surrounding in (1, 2):  # other draws in between must not matter
        with seeded(surrounding):
            results.append([transform(IMAGE, seed) for seed in range(8)])
    for one, two in zip(*results, strict=True):
        assert one.shape == (48, 48, 3)
        assert one.dtype == torch.uint8
        assert one.equal(two)
    assert len({one.numpy().tobytes() for one in results[0]}) == 8


def test_surrounding_generators_are_undisturbed() -> None:
    transform = TrainTransform(48)

    def draws(between: bool) -> list[float]:
        with seeded(5):
            if between:
                transform(IMAGE, np.int64(3))
            return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    assert draws(False) == draws(True)


def test_crop_and_flip_are_pillows_but_for_rounding() -> None:
    plain = {"auto_augment": None, "color_jitter": 0, "scale": (1.0, 1.0)}
    flipped, upright = TrainTransform(64, hflip=1.0, **plain), TrainTransform(64, hflip=0.0, **plain)
    assert flipped(IMAGE, 3).equal(upright(IMAGE, 3).flip(1))
    transform = TrainTransform(112, auto_augment=None, color_jitter=0, hflip=0)
    for seed in range(10):
        with seeded(seed):
            expected = np.asarray(transform.crop(Image.fromarray(IMAGE)))
        error = np.abs(transform(IMAGE, seed).numpy().astype(int) - expected)
        assert error.max() <= 3 and error.mean() < 0.3  # two passes, each rounded


def test_colour_jitter_acts_without_a_policy() -> None:
    image = np.full((64, 64, 3), (200, 100, 50), dtype=np.uint8)
    jittered = {tuple(TrainTransform(32, auto_augment=None)(image, seed)[5, 5].tolist()) for seed in range(8)}
    assert len(jittered) == 8 and TrainTransform(32, auto_augment=None, color_jitter=0)(image, 1)[5, 5, 0] == 200


def test_erasing_fills_boxes_with_noise() -> None:
    erase = make_erasing(0.5, torch.device("cpu"))
    with seeded(0):
        batch = erase(torch.full((200, 3, 32, 32), 7.0))
    changed = (batch != 7).any(dim=1).float().mean(dim=(1, 2))
    assert 70 < (changed > 0).sum() < 130  # half of the pictures
    assert changed[changed > 0].min() > 0.01 and changed.max() < 0.4
    noise = batch[batch != 7]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_wrong_notation_is_named() -> None:
    with pytest.raises(InputError, match=r"augment\.auto_augment='nonsense'"):
        TrainTransform(32, auto_augment="nonsense")


def test_evaluation_keeps_the_whole_tiny_picture() -> None:
    flat = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    whole = EvalTransform(64, **flat)(IMAGE)
    assert np.array_equal((whole * 255).round().byte().permute(1, 2, 0).numpy(), IMAGE)
    oblong = np.zeros((40, 80, 3), dtype=np.uint8)
    oblong[:, 20:60] = 255  # the middle
    assert EvalTransform(32, **flat)(oblong)[:, :, 2:-2].min() > 0.99
    assert EvalTransform(32, 0.5, **flat)(IMAGE).shape == (3, 32, 32)
    assert EvalTransform(64)(IMAGE).equal(EvalTransform(64)(IMAGE))
    with pytest.raises(InputError, match="crop_pct"):
        EvalTransform(32, 0.0)


@pytest.mark.parametrize("off", [(0.0, 0.0, 0.1, 5), (0.8, 1.0, 0.1, 5, 0.0)])
def test_mixup_off(off: tuple) -> None:
    assert make_mixup(*off) is None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mixup_targets(mixup: float, cutmix: float) -> None:
    mix = make_mixup(mixup, cutmix, 0.1, 5)
    assert mix is not None
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    with seeded(4):
        mixed, targets = mix(images.clone(), labels)
    assert mixed.shape == images.shape
    assert targets.shape == (4, 5)
    assert torch.allclose(targets.sum(1), torch.ones(4))
    assert targets.min() >= 0.1 / 5 - 1e-6
    with seeded(4):
        again, _ = mix(images.clone(), labels)
    assert mixed.equal(again)
    assert not mixed.equal(images)
