"""Augmentation of the pre-training: timm's, as a function of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor

from util.errors import InputError
from util.seed import seeded

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainTransform:
    """Random resized crop, flip, RandAugment (or colour jitter), normalisation, random erasing.

    Args:
        input_size: Side of the result, pixels.
        auto_augment: timm's notation, e.g. `rand-m9-mstd0.5-inc1` (arXiv 1909.13719); None for colour jitter instead.
        color_jitter: Strength; timm leaves it out where `auto_augment` is on.
        random_erasing: Probability (arXiv 1708.04896).
        scale: Range of the crop's area.
        hflip: Probability.
        mean: Of the RGB picture scaled to 0..1.
        std: Likewise.
    """

    def __init__(
        self,
        input_size: int,
        *,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float | None = 0.4,
        random_erasing: float = 0.25,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        try:
            self._pipeline: Any = create_transform(
                input_size,
                is_training=True,
                auto_augment=auto_augment,
                color_jitter=color_jitter or None,
                re_prob=random_erasing,
                re_mode="pixel",
                scale=scale,
                hflip=hflip,
                interpolation="bicubic",
                mean=tuple(mean),
                std=tuple(std),
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(
                f"augment.auto_augment={auto_augment!r} is not timm's notation, e.g. rand-m9-mstd0.5-inc1 ({error})"
            ) from None

    def __call__(self, image: np.ndarray, seed: int) -> Tensor:
        """(H, W, 3) uint8 to (3, S, S) float32; everything random follows from `seed`."""
        with seeded(seed):  # timm and torchvision draw from the global generators
            return self._pipeline(Image.fromarray(image))


class EvalTransform:
    """Resize the shorter side, crop the centre, normalise.

    Args:
        input_size: Side of the result, pixels.
        crop_pct: Share of the resized picture that the crop keeps. 1 by default: Tiny-ImageNet's 64 pixels are cut to
            their object already, and a crop would cut into it.
        mean: Of the RGB picture scaled to 0..1.
        std: Likewise.
    """

    def __init__(
        self,
        input_size: int,
        *,
        crop_pct: float = 1.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self._pipeline: Any = create_transform(
            input_size, is_training=False, interpolation="bicubic", crop_pct=crop_pct, mean=tuple(mean), std=tuple(std)
        )

    def __call__(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 to (3, S, S) float32."""
        return self._pipeline(Image.fromarray(image))


def make_mixup(mixup: float, cutmix: float, smoothing: float, num_classes: int) -> Mixup | None:
    """timm's mixup (arXiv 1710.09412) and cutmix (1905.04899) for whole batches; None when both are off."""
    if mixup <= 0 and cutmix <= 0:
        return None
    return Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=num_classes)
