"""RandAugment on bytes gives the pictures that timm's gives on Pillow images, and draws the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment as timm_ops
from timm.data.auto_augment import rand_augment_transform

from imagenet_pretrain.pixel_ops import OPERATIONS, use_bytes
from util.seed import seeded

FILL = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BILINEAR}
ARGUMENTS = {
    "shear_x": [0.3, -0.2], "shear_y": [0.25, -0.3], "translate_x_rel": [0.2, -0.45], "translate_y_rel": [0.1, -0.3],
    "rotate": [30.0, -12.5], "auto_contrast": [None], "equalize": [None], "invert": [None], "solarize": [26, 200, 256],
    "solarize_add": [100, 11], "posterize": [0, 1, 4, 8], "contrast": [0.1, 0.6, 1.9], "color": [0.1, 1.9],
    "brightness": [0.1, 1.9], "sharpness": [0.1, 1.9],
}  # fmt: skip
PHOTO = cv2.resize(
    np.random.default_rng(3).integers(20, 220, (9, 11, 3), dtype=np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC
)
CASES = [(name, value) for name, values in ARGUMENTS.items() for value in values]


def test_every_operation_of_the_recipe_is_here() -> None:
    policy = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL["fillcolor"]})
    assert {op.aug_fn for op in policy.ops} == set(OPERATIONS)
    assert {function.__name__ for function in OPERATIONS} == set(ARGUMENTS)


@pytest.mark.parametrize(("name", "value"), CASES, ids=str)
def test_against_timm(name: str, value: float | None) -> None:
    theirs = getattr(timm_ops, name)
    arguments = [] if value is None else [value]
    expected = np.asarray(theirs(Image.fromarray(PHOTO), *arguments, **FILL)).astype(int)
    error = np.abs(OPERATIONS[theirs](PHOTO, *arguments, **FILL).astype(int) - expected)
    if name in ("shear_x", "shear_y", "translate_x_rel", "translate_y_rel", "rotate"):
        # Pillow does not blend with the filling: a line of pixels along the border differs.
        assert np.percentile(error, 90) <= 2 and error.mean() < 2.5
    else:
        assert error.max() <= 2


def test_a_flat_picture_stays() -> None:
    flat = np.full((8, 8, 3), 77, dtype=np.uint8)
    for name in ("auto_contrast", "equalize"):
        assert np.array_equal(OPERATIONS[getattr(timm_ops, name)](flat), flat)


def test_the_policy_draws_as_timms() -> None:
    hints = {"img_mean": FILL["fillcolor"], "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", dict(hints))
    ours = use_bytes(rand_augment_transform("rand-m9-mstd0.5-inc1", dict(hints)))
    errors = []
    for seed in range(150):
        with seeded(seed):
            expected = np.asarray(theirs(Image.fromarray(PHOTO))).astype(int)
        with seeded(seed):
            errors.append(np.abs(ours(PHOTO).astype(int) - expected).mean())
    assert np.median(errors) < 0.5 and np.percentile(errors, 95) < 4, sorted(errors)[-10:]


def test_what_is_not_here_runs_on_pillow() -> None:
    policy = use_bytes(rand_augment_transform("rand-m9-tweights-p1", {"img_mean": FILL["fillcolor"]}))
    blurred = use_bytes(rand_augment_transform("rand-m9-p1-n1", {}, {"Desaturate": 1.0}))
    with seeded(0):
        assert policy(PHOTO).shape == PHOTO.shape
        grey = blurred(PHOTO)
    assert grey.std(axis=2).mean() < PHOTO.std(axis=2).mean() / 2
