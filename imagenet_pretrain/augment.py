"""Augmentation of pre-training, by timm: every draw is a function of the picture's seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor
from torch import Tensor

from imagenet_pretrain.pixel_ops import on_pillow, use_bytes
from util.errors import InputError
from util.seed import seeded


class TrainTransform:
    """Random resized crop, flip, RandAugment or colour jitter, on bytes.

    timm draws every parameter; RandAugment's pixel operations are `pixel_ops`', its bicubic resizing is torch's for
    bytes, equal to Pillow's but for rounding. Normalisation and erasing follow on the device, see `make_erasing`.

    Args:
        input_size: Side of the result in pixels.
        auto_augment: timm's notation of RandAugment (arXiv 1909.13719) and its like, or None.
        color_jitter: Strength of brightness, contrast and saturation. As in timm it acts only without `auto_augment`,
            which has colour operations of its own.
        scale: Share of the picture's area that the crop takes, smallest and largest.
        hflip: Probability of a horizontal flip.
        mean: RGB, 0..1; what geometric operations fill with.

    Raises:
        InputError: timm does not understand `auto_augment`.
    """

    def __init__(
        self,
        input_size: int,
        *,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float | None = 0.4,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    ) -> None:
        try:
            steps = create_transform(
                (3, input_size, input_size),
                is_training=True,
                auto_augment=auto_augment,
                color_jitter=color_jitter or None,
                scale=scale,
                hflip=0,
                interpolation="bicubic",
                mean=tuple(mean),
            ).transforms
        except (AssertionError, KeyError, ValueError, TypeError, IndexError):
            raise InputError(
                f"augment.auto_augment={auto_augment!r} is not timm's notation; e.g. rand-m9-mstd0.5-inc1, or null"
            ) from None
        self.input_size = input_size
        self.hflip = hflip
        self.crop, *colours = steps[: next(i for i, step in enumerate(steps) if isinstance(step, MaybeToTensor))]
        self.colours = [use_bytes(step) if isinstance(step, RandAugment) else on_pillow(step) for step in colours]

    def __call__(self, image: np.ndarray, seed: int) -> Tensor:
        """(H, W, 3) uint8 RGB -> (S, S, 3) uint8; the same seed gives the same result."""
        with seeded(int(seed)):  # timm draws from Python's, NumPy's and torch's global generators
            picture = torch.from_numpy(image).permute(2, 0, 1)
            top, left, height, width = self.crop.get_params(picture, self.crop.scale, self.crop.ratio)
            cut = picture[None, :, top : top + height, left : left + width].contiguous()
            size = (self.input_size, self.input_size)
            resized = F.interpolate(cut, size, mode="bicubic", antialias=True)
            pixels = cv2.merge(list(resized[0].numpy()))  # planes to (H, W, 3), faster than a transposing copy
            if random.random() < self.hflip:
                pixels = cv2.flip(pixels, 1)
            for step in self.colours:
                pixels = step(pixels)
        return torch.from_numpy(pixels)


def make_erasing(probability: float, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Random erasing (arXiv 1708.04896) of normalised batches (B, C, H, W), in place: boxes of noise for each pixel.

    It draws from Python's and torch's global generators, which the training loop seeds for every step.
    """
    return RandomErasing(probability, mode="pixel", device=device)


class EvalTransform:
    """Shorter side to input_size / crop_pct, bicubic, then the middle.

    Args:
        input_size: Side of the result in pixels.
        crop_pct: Share of the side that is kept. 1.0 keeps everything: Tiny-ImageNet's pictures are already cropped
            to 64 x 64, and the 0.875 that is usual for ImageNet would cut a quarter of so little away.
        mean: RGB, 0..1.
        std: RGB, 0..1.

    Raises:
        InputError: `crop_pct` is not in (0, 1].
    """

    def __init__(
        self,
        input_size: int,
        crop_pct: float = 1.0,
        *,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        if not 0 < crop_pct <= 1:
            raise InputError(f"crop_pct={crop_pct}: must be above 0 and at most 1")
        self.transform = create_transform(
            (3, input_size, input_size),
            interpolation="bicubic",
            crop_pct=crop_pct,
            mean=tuple(mean),
            std=tuple(std),
        )

    def __call__(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB -> (3, S, S) float32, normalised."""
        return self.transform(Image.fromarray(image))


def make_mixup(mixup: float, cutmix: float, smoothing: float, num_classes: int, prob: float = 1.0) -> Mixup | None:
    """Mixing of whole batches, which also smooths the labels: (x_BCHW, labels_B) -> (x_BCHW, targets_BK).

    Args:
        mixup: Alpha of mixup (arXiv 1710.09412); 0 switches it off.
        cutmix: Alpha of CutMix (arXiv 1905.04899); 0 switches it off. With both on, every batch gets one of them.
        smoothing: Label smoothing.
        num_classes: K.
        prob: Share of the batches that are mixed.

    Returns:
        None when nothing would be mixed; the smoothing is then the loss' work. It draws from NumPy's global generator
        and wants an even batch.
    """
    if prob <= 0 or (mixup <= 0 and cutmix <= 0):
        return None
    return Mixup(mixup, cutmix, prob=prob, label_smoothing=smoothing, num_classes=num_classes)
