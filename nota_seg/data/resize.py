"""To which size a picture is brought, and bringing it there for evaluation; without the augmentation library."""

from __future__ import annotations

import cv2
import numpy as np

# Loader workers are the parallelism; OpenCV's own threads in each of them would only compete.
cv2.setNumThreads(0)


def fit_factor(height: int, width: int, base_size: tuple[int, int]) -> float:
    """The factor by which a picture fits into (long side, short side), aspect kept, either way up."""
    longest, shortest = max(base_size), min(base_size)
    return min(longest / max(height, width), shortest / min(height, width))


def scaled_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """(H, W) of a picture at a factor, rounded, at least 1 each."""
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_for_eval(image: np.ndarray, base_size: tuple[int, int] | None) -> np.ndarray:
    """Fit a picture into (long side, short side), aspect kept, bilinear; None leaves it.

    Args:
        image: (H, W, 3) uint8.
        base_size: Pixels.

    Returns:
        (H', W', 3) uint8.
    """
    if base_size is None:
        return image
    height, width = image.shape[:2]
    size = scaled_size(height, width, fit_factor(height, width, base_size))
    if size == (height, width):
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))
