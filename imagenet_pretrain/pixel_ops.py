"""The pixel operations of timm's RandAugment on bytes (H, W, 3), by look-up tables and OpenCV.

timm decides what is done and how strongly; it works on Pillow images, whose operations cost five times as much. Each
function here takes the place of the one of the same name in `timm.data.auto_augment` and gives the same picture, but
for rounding, and for the interpolation kernel of the geometric ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image
from timm.data import auto_augment as timm_ops

Operation = Callable[..., np.ndarray]
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13  # Pillow's ImageFilter.SMOOTH
LUMA = np.array([[0.299, 0.587, 0.114]])
VALUES = np.arange(256)


def table(values: np.ndarray) -> np.ndarray:
    """A look-up table for `cv2.LUT`: (256) or (256, 3), rounded and clipped to bytes."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def affine(img: np.ndarray, matrix: tuple[float, ...], fillcolor: Any) -> np.ndarray:
    """Pillow's AFFINE: (a, b, c, d, e, f) take a point of the result to one of `img`, corners of pixels at integers.

    Always bilinear: what comes here was magnified a moment ago, so that there is nothing finer for bicubic to keep.
    """
    a, b, c, d, e, f = matrix
    # OpenCV counts from the centres of pixels.
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(img, centred, img.shape[1::-1], flags=flags, borderValue=fillcolor)


def shear_x(img: np.ndarray, factor: float, fillcolor: Any = 0, **_: Any) -> np.ndarray:
    return affine(img, (1, factor, 0, 0, 1, 0), fillcolor)


def shear_y(img: np.ndarray, factor: float, fillcolor: Any = 0, **_: Any) -> np.ndarray:
    return affine(img, (1, 0, 0, factor, 1, 0), fillcolor)


def translate_x_rel(img: np.ndarray, pct: float, fillcolor: Any = 0, **_: Any) -> np.ndarray:
    return affine(img, (1, 0, pct * img.shape[1], 0, 1, 0), fillcolor)


def translate_y_rel(img: np.ndarray, pct: float, fillcolor: Any = 0, **_: Any) -> np.ndarray:
    return affine(img, (1, 0, 0, 0, 1, pct * img.shape[0]), fillcolor)


def rotate(img: np.ndarray, degrees: float, fillcolor: Any = 0, **_: Any) -> np.ndarray:
    """Counter-clockwise around the middle."""
    x, y = img.shape[1] / 2, img.shape[0] / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return affine(img, matrix, fillcolor)


def histograms(img: np.ndarray) -> np.ndarray:
    """(3, 256) counts."""
    counts = [cv2.calcHist([img], [channel], None, [256], [0, 256]) for channel in range(3)]
    return np.stack(counts).reshape(3, 256).astype(np.int64)


def auto_contrast(img: np.ndarray, **_: Any) -> np.ndarray:
    columns = []
    for histogram in histograms(img):
        low, high = np.flatnonzero(histogram)[[0, -1]]
        columns.append(np.floor((VALUES - low) * (255 / (high - low))) if high > low else VALUES)
    return cv2.LUT(img, table(np.stack(columns, axis=1))[:, None])


def equalize(img: np.ndarray, **_: Any) -> np.ndarray:
    columns = []
    for histogram in histograms(img):
        used = histogram[histogram > 0]
        step = (used.sum() - used[-1]) // 255
        below = np.cumsum(histogram) - histogram
        columns.append(VALUES if len(used) < 2 or not step else (step // 2 + below) // step)
    return cv2.LUT(img, table(np.stack(columns, axis=1))[:, None])


def invert(img: np.ndarray, **_: Any) -> np.ndarray:
    return cv2.bitwise_not(img)


def solarize(img: np.ndarray, thresh: float, **_: Any) -> np.ndarray:
    return cv2.LUT(img, table(np.where(thresh > VALUES, VALUES, 255 - VALUES)))


def solarize_add(img: np.ndarray, add: float, thresh: float = 128, **_: Any) -> np.ndarray:
    return cv2.LUT(img, table(np.where(thresh > VALUES, VALUES + add, VALUES)))


def posterize(img: np.ndarray, bits_to_keep: int, **_: Any) -> np.ndarray:
    return img if bits_to_keep >= 8 else cv2.LUT(img, table(VALUES & -(1 << (8 - bits_to_keep))))


def contrast(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    middle = int(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY).mean() + 0.5)
    return cv2.LUT(img, table(middle + factor * (VALUES - middle)))


def color(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    return cv2.transform(img, factor * np.eye(3) + (1 - factor) * np.tile(LUMA, (3, 1)))


def brightness(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    return cv2.LUT(img, table(factor * VALUES))


def sharpness(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    smooth = cv2.filter2D(img, -1, SMOOTH)
    for edge in (np.s_[[0, -1]], np.s_[:, [0, -1]]):  # Pillow leaves the border as it is
        smooth[edge] = img[edge]
    return cv2.addWeighted(img, factor, smooth, 1 - factor, 0)


OPERATIONS: dict[Callable[..., Any], Operation] = {
    getattr(timm_ops, operation.__name__): operation
    for operation in (
        shear_x, shear_y, translate_x_rel, translate_y_rel, rotate, auto_contrast, equalize, invert, solarize,
        solarize_add, posterize, contrast, color, brightness, sharpness,
    )
}  # fmt: skip


def on_pillow(operation: Callable[..., Image.Image]) -> Operation:
    """An operation that has no faster form here."""

    def run(img: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
        return np.array(operation(Image.fromarray(img), *arguments, **options))

    return run


def use_bytes(policy: timm_ops.RandAugment) -> timm_ops.RandAugment:
    """Make timm's policy work on (H, W, 3) bytes; its draws stay as they are."""
    for one in policy.ops:
        one.aug_fn = OPERATIONS.get(one.aug_fn) or on_pillow(one.aug_fn)
    return policy
