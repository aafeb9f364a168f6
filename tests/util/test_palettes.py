"""Colours are distinct and stable; the pictures made of them have the sizes they should have."""

from __future__ import annotations

import numpy as np
import pytest

from util.palettes import colourise, grid, legend, overlay, palette


@pytest.mark.parametrize("count", [1, 2, 11, 150, 600])
def test_colours_are_distinct_and_never_black(count: int) -> None:
    colours = palette(count)
    assert colours.shape == (count, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == count
    assert colours.astype(int).sum(axis=1).min() > 40
    assert np.array_equal(colours, palette(count + 7)[:count])


def test_a_few_colours_are_far_apart() -> None:
    colours = palette(12).astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(12, dtype=int)
    assert distance.min() > 100


def test_palette_cannot_be_spoilt_by_a_caller() -> None:
    palette(3)[:] = 0
    assert palette(3).any()


def test_colourise_and_overlay() -> None:
    colours = palette(3)
    label = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    assert np.array_equal(colourise(label, colours)[1, 0], colours[2])
    assert colourise(label, colours, (9, 9, 9))[1, 1].tolist() == [9, 9, 9]
    assert colourise(label.astype(np.int64) - 1, colours)[0, 0].tolist() == [0, 0, 0]
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    mixed = overlay(image, label, colours, alpha=0.5)
    assert np.abs(mixed[0, 0].astype(float) - (100 + colours[0].astype(float)) / 2).max() <= 0.5
    assert mixed[1, 1].tolist() == [100, 100, 100]


def test_legend_adds_a_strip() -> None:
    picture = np.zeros((40, 120, 3), dtype=np.uint8)
    names = [f"class {i}" for i in range(30)]
    colours = palette(30)
    result = legend(picture, np.array([[3, 255], [7, 3]]), names, colours)
    assert result.shape[1:] == (120, 3) and result.shape[0] > 40
    present = {tuple(p) for p in result[40:].reshape(-1, 3).tolist()}
    assert tuple(colours[3].tolist()) in present and tuple(colours[4].tolist()) not in present
    assert legend(picture, range(30), names, colours).shape[0] > result.shape[0]
    assert legend(picture, [255], names, colours) is picture


def test_grid_pads_and_keeps_the_pixels() -> None:
    small, large = np.full((4, 5, 3), 7, dtype=np.uint8), np.full((8, 6, 3), 9, dtype=np.uint8)
    plain = grid([[small, large], [large]])
    assert plain.shape[0] > 16 and plain.shape[1] >= 12
    assert np.array_equal(plain[:4, :5], small)
    assert (plain == 9).all(axis=2).sum() == 2 * 48
    assert grid([[small, large]], titles=["picture", "truth"]).shape[0] > 8
