"""Mode filter and conditional random field, against the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from util.cleanup import Permutohedral, crf_labels, dense_crf, mode_filter
from util.errors import InputError


def test_mode_filter_by_its_definition() -> None:
    label = np.random.default_rng(0).integers(0, 4, (13, 17)).astype(np.uint8)
    result = mode_filter(label)
    assert result.dtype == label.dtype
    for y in range(13):
        for x in range(17):
            near = label[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            counts = np.bincount(near.ravel(), minlength=4)
            tied = np.flatnonzero(counts == counts.max())
            assert result[y, x] == (label[y, x] if label[y, x] in tied else tied[0]), (y, x)
    with pytest.raises(InputError, match="odd"):
        mode_filter(label, 2)


def test_the_lattice_is_close_to_the_gaussian() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((800, 5)) * 3
    values = rng.random((800, 2))
    lattice = Permutohedral(features)
    exact = np.exp(-((features[:, None] - features[None]) ** 2).sum(axis=2) / 2)
    ours = lattice(values) / lattice(np.ones((800, 1)))
    wanted = (exact @ values) / exact.sum(axis=1, keepdims=True)
    assert np.corrcoef(ours[:, 0], wanted[:, 0])[0, 1] > 0.95
    assert np.abs(ours - wanted).mean() < 0.3 * np.abs(wanted - wanted.mean(axis=0)).mean()


def two_halves() -> tuple[np.ndarray, np.ndarray]:
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[:, 30:] = 200
    truth = np.zeros((48, 64), dtype=np.uint8)
    truth[:, 30:] = 1
    return image, truth


def test_the_field_follows_the_picture() -> None:
    image, truth = two_halves()
    noisy = np.where(np.random.default_rng(0).random(truth.shape) < 0.25, 1 - truth, truth)
    p_KHW = np.stack([np.where(noisy == k, 0.7, 0.3) for k in (0, 1)])
    refined = dense_crf(p_KHW, image, iterations=10)
    assert refined.shape == (2, 48, 64) and np.allclose(refined.sum(axis=0), 1, atol=1e-5)
    assert (refined.argmax(axis=0) == truth).mean() > 0.99
    assert (crf_labels(noisy, image, 2) == truth).mean() > 0.97
    still = dense_crf(p_KHW, image, gaussian=(3, 0), bilateral=(20, 3, 0), iterations=3)
    assert np.allclose(still, p_KHW, atol=1e-5)
    with pytest.raises(InputError, match="make them equal"):
        dense_crf(p_KHW, image[1:])
