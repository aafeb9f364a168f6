"""Augmentation is a function of the picture and the seed, and disturbs nobody else's random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from imagenet_pretrain.augment import EvalTransform, TrainTransform, make_mixup
from util.errors import InputError
from util.seed import seeded

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "options", [{}, {"auto_augment": None}, {"random_erasing": 1.0}, {"color_jitter": None, "auto_augment": None}]
)
def test_the_seed_alone_decides(options: dict) -> None:
    transform = TrainTransform(48, **options)
    results = []
    for surrounding in (1, 2):  # other draws in between must not matter
        with seeded(surrounding):
            results.append([transform(IMAGE, seed) for seed in range(8)])
    for one, two in zip(*results, strict=True):
        assert one.shape == (3, 48, 48)
        assert one.dtype == torch.float32
        assert one.equal(two)
    assert len({one.numpy().tobytes() for one in results[0]}) == 8


def test_surrounding_generators_are_undisturbed() -> None:
    transform = TrainTransform(48, random_erasing=1.0)

    def draws(between: bool) -> list[float]:
        with seeded(5):
            if between:
                transform(IMAGE, np.int64(3))
            return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    assert draws(False) == draws(True)


def test_erasing_and_flips_are_seen() -> None:
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    plain = TrainTransform(32, auto_augment=None, color_jitter=0, random_erasing=0)
    erased = TrainTransform(32, auto_augment=None, color_jitter=0, random_erasing=1)
    assert plain(white, 1).flatten(1).std(dim=1).max() < 1e-6
    assert all(erased(white, seed).flatten(1).std(dim=1).min() > 0.1 for seed in range(4))
    same = {"auto_augment": None, "color_jitter": 0, "random_erasing": 0, "scale": (1.0, 1.0)}
    flipped, upright = TrainTransform(64, hflip=1.0, **same), TrainTransform(64, hflip=0.0, **same)
    # With no flip to draw, the crop is still drawn first from the same seed.
    assert flipped(IMAGE, 3).equal(upright(IMAGE, 3).flip(-1))


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
