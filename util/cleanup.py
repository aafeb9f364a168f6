"""Cleaning label maps: a mode filter, and a dense conditional random field."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter

from util.errors import InputError


def mode_filter(label: np.ndarray, side: int = 3) -> np.ndarray:
    """The most frequent id of each pixel's neighbourhood; a tie keeps the pixel's own id if it is among the tied.

    Args:
        label: (H, W) integers.
        side: Of the square neighbourhood, odd, pixels; at the border it is cut off.

    Returns:
        (H, W) of the same type.
    """
    if side < 1 or side % 2 == 0:
        raise InputError(f"a neighbourhood of {side} pixels has no middle: give an odd number")
    reach = side // 2
    height, width = label.shape
    best = np.zeros(label.shape, dtype=np.int64)
    result = label.copy()
    for value in np.unique(label):
        ones = np.pad((label == value).astype(np.int64), reach)
        count = sum(ones[y : y + height, x : x + width] for y, x in itertools.product(range(side), repeat=2))
        # Halves settle ties: for the pixel's own id, then for the lower one, which came first.
        count = 2 * count + (label == value)
        better = count > best
        result[better], best = value, np.maximum(best, count)
    return result


def dense_crf(
    probabilities: np.ndarray,
    image: np.ndarray,
    *,
    gaussian: tuple[float, float] = (3, 3),
    bilateral: tuple[float, float, float] = (20, 3, 4),
    iterations: int = 50,
) -> np.ndarray:
    """Mean field of a fully connected conditional random field (Krähenbühl and Koltun, arXiv 1210.5644), Potts model.

    Both kernels are normalised symmetrically. The Gaussian one is filtered exactly, the bilateral one on the
    permutohedral lattice (Adams, Baek, Davis, 2010).

    Args:
        probabilities: (K, H, W), 0..1.
        image: (H, W, 3) uint8 RGB.
        gaussian: Standard deviation in pixels, and weight.
        bilateral: Standard deviation in pixels, in colour values (0..255), and weight.
        iterations: Of the mean field.

    Returns:
        (K, H, W) float32, refined.
    """
    K, height, width = probabilities.shape
    if image.shape[:2] != (height, width):
        raise InputError(f"probabilities of {(height, width)} and a picture of {image.shape[:2]}: make them equal")
    unary = np.log(np.clip(probabilities.reshape(K, -1).T.astype(np.float32), 1e-8, 1.0))  # pixels x K
    spread_xy, weight_xy = gaussian
    spread, spread_rgb, weight = bilateral
    ys, xs = np.mgrid[:height, :width].reshape(2, -1)
    features = np.concatenate([np.stack([ys, xs], 1) / spread, image.reshape(-1, 3) / spread_rgb], axis=1)
    lattice = Permutohedral(features)

    def blur(values: np.ndarray) -> np.ndarray:
        grid = values.reshape(height, width, -1)
        sigma = (spread_xy, spread_xy, 0)
        return gaussian_filter(grid, sigma, mode="constant").reshape(values.shape)

    ones = np.ones((height * width, 1), dtype=np.float32)
    norm_xy, norm = 1 / np.sqrt(blur(ones) + 1e-20), 1 / np.sqrt(lattice(ones) + 1e-20)
    belief = _softmax(unary)
    for _ in range(iterations):
        message = weight_xy * norm_xy * blur(norm_xy * belief) + weight * norm * lattice(norm * belief)
        belief = _softmax(unary + message)
    return np.ascontiguousarray(belief.T.reshape(K, height, width))


def crf_labels(label: np.ndarray, image: np.ndarray, num_labels: int, certainty: float = 0.7) -> np.ndarray:
    """A label map refined without probabilities: its labels hold with `certainty`, the others share the rest.

    The settings are those for labels: Gaussian 3, 10; bilateral 10, 70, 5; 40 iterations.

    Args:
        label: (H, W) ids below `num_labels`.
        image: (H, W, 3) uint8 RGB.
    """
    if num_labels < 2:
        return label
    other = (1 - certainty) / (num_labels - 1)
    p_KHW = np.where(label[None] == np.arange(num_labels)[:, None, None], certainty, other).astype(np.float32)
    refined = dense_crf(p_KHW, image, gaussian=(3, 10), bilateral=(10, 70, 5), iterations=40)
    return refined.argmax(axis=0).astype(label.dtype)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class Permutohedral:
    """Gaussian filtering of values at scattered points: splat on a lattice of simplices, blur along it, slice.

    Args:
        features: (N, d) positions, in standard deviations of the filter.
    """

    def __init__(self, features: np.ndarray) -> None:
        N, d = features.shape
        # Into the plane whose coordinates add up to 0, scaled so that the lattice's own blur has variance 1.
        scale = (d + 1) * np.sqrt(2 / 3) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
        scaled = features * scale
        elevated = np.zeros((N, d + 1))
        below = np.zeros(N)
        for i in range(d, 0, -1):
            elevated[:, i] = below - i * scaled[:, i - 1]
            below += scaled[:, i - 1]
        elevated[:, 0] = below
        # The nearest point whose coordinates are multiples of d + 1, and the order of the distances to it.
        nearest = np.rint(elevated / (d + 1)).astype(np.int64)
        surplus = nearest.sum(axis=1)
        distance = elevated - nearest * (d + 1)
        rank = np.argsort(np.argsort(-distance, axis=1, kind="stable"), axis=1) + surplus[:, None]
        low, high = rank < 0, rank > d
        nearest += low.astype(np.int64) - high
        rank += (d + 1) * (low.astype(np.int64) - high)
        rows = np.arange(N)[:, None]
        weights = np.zeros((N, d + 2))
        offset = (elevated - nearest * (d + 1)) / (d + 1)
        np.add.at(weights, (rows, d - rank), offset)
        np.add.at(weights, (rows, d + 1 - rank), -offset)
        weights[:, 0] += 1 + weights[:, d + 1]
        keys = np.empty((d + 1, N, d), dtype=np.int64)
        for corner in range(d + 1):
            keys[corner] = (nearest * (d + 1) + corner - (d + 1) * (rank > d - corner))[:, :d]
        low_key = keys.reshape(-1, d).min(axis=0) - d - 2
        span = keys.reshape(-1, d).max(axis=0) - low_key + d + 3
        factors = np.concatenate([[1], np.cumprod(span[:-1])])
        codes = ((keys.reshape(-1, d) - low_key) * factors).sum(axis=1)
        points, place = np.unique(codes, return_inverse=True)
        M = len(points)
        self.splat = sparse.csr_matrix(
            (weights[:, : d + 1].T.ravel().astype(np.float32), (place.ravel(), np.tile(np.arange(N), d + 1))), (M, N)
        )
        self.slice = self.splat.T.tocsr()
        self.blurs = []
        for axis in range(d + 1):
            step = np.ones(d, dtype=np.int64)
            if axis < d:
                step[axis] -= d + 1
            shift = int((step * factors).sum())
            self.blurs.append(sparse.identity(M, dtype=np.float32, format="csr") * 0.5)
            for sign in (1, -1):
                found = np.minimum(np.searchsorted(points, points + sign * shift), M - 1)
                there = np.flatnonzero(points[found] == points + sign * shift)
                quarter = np.full(len(there), 0.25, dtype=np.float32)
                self.blurs[-1] = self.blurs[-1] + sparse.csr_matrix((quarter, (there, found[there])), (M, M))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(N, channels) filtered; up to a factor that normalising takes away."""
        at_points = self.splat @ values.astype(np.float32)
        forth = at_points
        for blur in self.blurs:
            forth = blur @ forth
        return self.slice @ forth
