"""The crop is what resizing the whole picture first would give, and picture and mask stay together."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from itertools import permutations

import cv2
import numpy as np
import pytest

from nota_seg.data.extra import build_extra
from nota_seg.data.resize import fit_factor
from nota_seg.data.transforms import GREY, RandomScaleCrop, TrainTransform, Twist
from util.errors import InputError


def ramps(height: int, width: int) -> np.ndarray:
    """Channel 0 is the row, channel 1 the column, in source pixels (below 256)."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("size", [(180, 240), (240, 101), (64, 64)])
@pytest.mark.parametrize("base", [None, (512, 128)])
@pytest.mark.parametrize("seed", range(25))
def test_crop_equals_resizing_the_whole(size: tuple[int, int], base: tuple[int, int] | None, seed: int) -> None:
    image, crop = ramps(*size), (96, 80)
    transform = RandomScaleCrop(crop, base, max_class_share=1.0)  # the first window is taken
    label = image[..., 0] % 200
    window = transform.window(label, random.Random(seed))
    out, mask = transform(image, label, random.Random(seed))
    height, width = window.size

    # The same draws, the long way round: resize everything, then cut the window out.
    draws = random.Random(seed)
    factor = draws.uniform(0.5, 2.0) * (fit_factor(*size, base) if base else 1.0)
    scaled = int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)
    whole = cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_LINEAR)
    top, left = draws.randint(0, scaled[0] - height), draws.randint(0, scaled[1] - width)
    naive = whole[top : top + height, left : left + width].astype(float)
    error = np.abs(out[:height, :width].astype(float) - naive)
    assert error.max() < 1.5, error.max()
    assert error.mean() < 0.75
    assert (out[height:] == 0).all() and (mask[height:] == 255).all()
    assert (out[:, width:] == 0).all() and (mask[:, width:] == 255).all()
    assert (height, width) == (min(96, scaled[0]), min(80, scaled[1]))
    assert all(part.stop <= side for part, side in zip(window.cut, size, strict=True))
    # In source pixels the picture's row and the mask's row agree.
    rows = out[:height, :width, 0].astype(int)
    inside = rows < 199
    assert np.abs(rows - mask[:height, :width])[inside].max() <= 1


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("seed", range(5))
def test_a_mirrored_crop_is_the_mirror_image_of_the_crop(scale: float, seed: int) -> None:
    """Picture and mask alike, mirrored before they are resized or after; what is padded stays at the right."""
    image = cv2.resize(photo(), (160, 120), interpolation=cv2.INTER_CUBIC)
    label = image[..., 0] // 8
    transform = RandomScaleCrop((96, 110), scale=(scale, scale), jitter=(0.1, 0.1, 0.1, 0.02), flip=1.0)
    mirrored = transform.window(label, random.Random(seed))
    assert mirrored.mirror and mirrored.enlarged == (scale > 1)
    plain = mirrored._replace(mirror=False)
    height, width = plain.size
    expected = transform.of_image(image, plain)[:height, :width][:, ::-1].astype(int)
    out = transform.of_image(image, mirrored)
    assert np.abs(out[:height, :width] - expected).max() <= 1 and not out[:, width:].any()
    mask = transform.of_label(label, mirrored)
    assert np.array_equal(mask[:height, :width], transform.of_label(label, plain)[:height, :width][:, ::-1])
    assert (mask[:, width:] == 255).all()


def test_without_cutting_it_is_the_plain_resize() -> None:
    image = ramps(50, 60)
    transform = RandomScaleCrop((300, 300), scale=(1.5, 1.5))
    out, _ = transform(image, image[..., 0], random.Random(0))
    assert np.array_equal(out[:75, :90], cv2.resize(image, (90, 75), interpolation=cv2.INTER_LINEAR))


def test_all_windows_are_reached() -> None:
    image = ramps(100, 100)
    transform = RandomScaleCrop((50, 50), scale=(1.0, 1.0))
    tops = set()
    for seed in range(400):
        out, _ = transform(image, image[..., 0], random.Random(seed))
        tops.add(int(out[0, 0, 0]))
    assert min(tops) == 0 and max(tops) == 50 and len(tops) > 45


def test_one_pixel_and_thin_pictures() -> None:
    for size in ((1, 1), (1, 200), (3, 2)):
        image = np.zeros((*size, 3), dtype=np.uint8)
        out, label = TrainTransform((32, 48), base_size=(64, 32))(image, image[..., 0], 3)
        assert out.shape == (32, 48, 3) and label.shape == (32, 48)


def test_no_class_covers_most_of_a_crop() -> None:
    label = np.zeros((200, 200), dtype=np.uint8)
    label[:, 150:] = 1  # a quarter; half of all windows see class 0 alone
    image = np.zeros((200, 200, 3), dtype=np.uint8)

    def share(limit: float) -> list[float]:
        transform = RandomScaleCrop((50, 50), scale=(1.0, 1.0), max_class_share=limit)
        shares = []
        for seed in range(60):
            _, crop = transform(image, label, random.Random(seed))
            shares.append(float(np.bincount(crop.ravel()).max() / crop.size))
        return shares

    assert np.mean(np.array(share(0.75)) > 0.76) < 0.35 < 0.7 < np.mean(np.array(share(1.0)) > 0.76)


def test_ignored_pixels_do_not_count_as_a_class() -> None:
    label = np.full((80, 80), 255, dtype=np.uint8)
    label[:4], label[4:8] = 1, 2
    assert RandomScaleCrop((80, 80))._varied(label)
    assert not RandomScaleCrop((80, 80))._varied(np.full((80, 80), 255, dtype=np.uint8))
    assert not RandomScaleCrop((80, 80))._varied(np.zeros((80, 80), dtype=np.uint8))


def test_picture_and_mask_stay_together_through_everything() -> None:
    rows, columns = np.mgrid[:150, :200]
    label = ((rows // 25 + columns // 25) % 2).astype(np.uint8)
    image = np.repeat(label[..., None] * np.uint8(255), 3, axis=2)
    transform = TrainTransform(
        (96, 96), base_size=(300, 160), extra=[{"type": "Affine", "args": {"rotate": 20, "p": 1}}]
    )
    for seed in range(10):
        out, mask = transform(image, label, seed)
        inside = mask != 255
        agree = (out[..., 0] > 110) == (mask == 1)
        assert inside.mean() > 0.3 and agree[inside].mean() > 0.93
        assert set(np.unique(mask)) <= {0, 1, 255}


def test_the_seed_decides_everything() -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    label = image[..., 0] % 5
    extra = [{"type": "GridDropout", "args": {"p": 0.5}}, {"type": "GaussNoise", "args": {"p": 0.5}}]
    first, second = (TrainTransform((64, 64), extra=extra) for _ in range(2))
    expected = [first(image, label, seed) for seed in range(12)]
    np.random.seed(5)  # the global state has no say
    for seed in reversed(range(12)):
        out, mask = second(image, label, seed)
        assert np.array_equal(out, expected[seed][0]) and np.array_equal(mask, expected[seed][1])
    assert len({out.tobytes() for out, _ in expected}) == 12


@pytest.mark.parametrize(
    ("flip", "extra"), [(0.5, []), (0.0, [{"type": "HorizontalFlip", "args": {"p": 0.5}}])], ids=["own", "extra"]
)
def test_flip_does_not_follow_from_the_scale(flip: float, extra: list[dict[str, object]]) -> None:
    """With one seed for every transform, each would begin with the same number."""
    image, label = ramps(100, 100), np.zeros((100, 100), np.uint8)
    label[:, 50:] = 1
    # The crop is larger than any scaled picture: the scale can be read off.
    transform = TrainTransform((400, 400), jitter=None, flip=flip, extra=extra)
    scales: dict[bool, list[int]] = {True: [], False: []}
    for seed in range(300):
        row = transform(image, label, seed)[1][0]
        scales[bool(row[row != 255][0] == 1)].append(int((row != 255).sum()))
    assert 100 < len(scales[True]) < 200
    assert abs(np.mean(scales[True]) - np.mean(scales[False])) < 15


def test_no_vertical_flip() -> None:
    image = ramps(100, 100)
    transform = TrainTransform((64, 64), scale=(1.0, 1.0), jitter=None)
    for seed in range(30):
        out, _ = transform(image, image[..., 0] % 3, seed)
        assert out[0, 0, 0] < out[63, 0, 0]


def test_the_inputs_are_not_written_to() -> None:
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    label = np.zeros((64, 64), dtype=np.uint8)
    image.flags.writeable = label.flags.writeable = False
    for seed in range(5):
        TrainTransform((64, 64), scale=(1.0, 1.0))(image, label, seed)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "GridDropuot"}, "did you mean 'GridDropout'"),
        ({"type": "GridDropout", "args": {"ration": 0.5}}, "did you mean 'ratio'"),
        ({"type": "GridDropout", "args": {"ratio": 7}}, "refuses GridDropout"),
        ({"name": "GridDropout"}, "an extra transform is"),
        ({"type": "Compose"}, "no albumentations transform 'Compose'"),
        ({"type": "RandomCrop", "args": {"height": 8, "width": 8}}, "leave out those that resize or normalise"),
        ({"type": "Normalize"}, "leave out those that resize or normalise"),
    ],
)
def test_bad_extra_transforms(item: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainTransform((32, 32), extra=[item])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_borders_of_extra_transforms_are_ignored_pixels() -> None:
    assert build_extra({"type": "Affine", "args": {"rotate": 30}}).fill_mask == 255
    assert build_extra({"type": "Affine", "args": {"rotate": 30, "fill_mask": 1}}).fill_mask == 1


def photo() -> np.ndarray:
    """Muted colours in smooth patches: no change below reaches 0 or 255."""
    noise = np.random.default_rng(0).integers(90, 160, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC)


def grey_of(image: np.ndarray) -> float:
    return float((image @ GREY).mean())


def twisted(image: np.ndarray, **changes: float) -> np.ndarray:
    return cv2.transform(image, Twist(**changes).matrix(grey_of(image)))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_one_colour_change_is_torchvisions(name: str, factor: float) -> None:
    import torch
    from torchvision.transforms.v2 import functional as tv

    image = photo()
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    expected = getattr(tv, f"adjust_{name}")(pixels, factor).permute(1, 2, 0).numpy()
    assert np.abs(twisted(image, **{name: factor}).astype(int) - expected).max() <= 1


def test_colour_changes_are_those_one_after_the_other_in_any_order() -> None:
    image = photo().astype(np.float64)  # nothing is rounded or clipped
    changes = {"contrast": 0.8, "hue": 0.05, "brightness": 1.2, "saturation": 1.1}
    at_once = twisted(image, **changes)
    for order in permutations(changes):
        one_by_one = image
        for name in order:
            one_by_one = twisted(one_by_one, **{name: changes[name]})
        np.testing.assert_allclose(one_by_one, at_once, rtol=0, atol=1e-9)


def test_a_picture_is_changed_around_its_own_mean_grey() -> None:
    """Of any layout, as cut out of a larger one: the mean is measured on a grid."""
    image = cv2.resize(photo(), (683, 512), interpolation=cv2.INTER_CUBIC)[5:405, 10:500]
    twist = Twist(0.9, 1.4, 1.1, 0.02)
    assert np.abs(twist(image).astype(int) - cv2.transform(image, twist.matrix(grey_of(image)))).max() <= 1


@pytest.mark.parametrize("turn", [-0.1, 0.07])
def test_hue_turns_the_way_hsv_does_and_keeps_greys(turn: float) -> None:
    hsv = cv2.cvtColor(photo(), cv2.COLOR_RGB2HSV)[..., 0]
    after = cv2.cvtColor(twisted(photo(), hue=turn), cv2.COLOR_RGB2HSV)[..., 0]
    degrees = (after.astype(int) - hsv + 90) % 180 - 90  # OpenCV counts 180 to a turn
    assert np.median(degrees) == pytest.approx(180 * turn, abs=4)
    grey = np.full((4, 4, 3), 120, dtype=np.uint8)
    assert np.abs(twisted(grey, hue=turn).astype(int) - 120).max() <= 1
    luma = photo() @ GREY
    assert np.abs(twisted(photo(), hue=turn) @ GREY - luma).max() <= 1.5


def test_colours_are_drawn_from_the_ranges() -> None:
    generator = random.Random(0)
    draws = [Twist.draw(generator, (0.25, 0.4, 2.0, 0.1)) for _ in range(400)]
    for name, low, high in (
        ("brightness", 0.75, 1.25),
        ("contrast", 0.6, 1.4),
        ("saturation", 0, 3),
        ("hue", -0.1, 0.1),
    ):
        values = [getattr(draw, name) for draw in draws]
        assert low <= min(values) < low + 0.05 * (high - low) and high - 0.05 * (high - low) < max(values) <= high


@pytest.mark.parametrize("scale", [0.6, 1.7])
@pytest.mark.parametrize("seed", range(5))
def test_colours_change_alike_before_and_after_the_resizing(scale: float, seed: int) -> None:
    """Enlarged or reduced, padded or not: the twist of the plain crop; what is padded stays 0."""
    image = cv2.resize(photo(), (160, 120), interpolation=cv2.INTER_CUBIC)
    label = np.zeros((120, 160), np.uint8)
    results = []
    for jitter in (None, (0.1, 0.1, 0.1, 0.02)):
        transform = RandomScaleCrop((96, 96), scale=(scale, scale), max_class_share=1.0, jitter=jitter)
        window = transform.window(label, random.Random(seed))
        results.append(transform.of_image(image, window))
    plain, coloured = results
    height, width = window.size
    assert window.twist is not None
    expected = cv2.transform(plain[:height, :width], window.twist.matrix(grey_of(image[window.cut]))).astype(int)
    assert np.abs(coloured[:height, :width] - expected).max() <= 2
    assert not coloured[height:].any() and not coloured[:, width:].any()
    assert np.abs(expected - plain[:height, :width]).mean() > 1


def test_freed_memory_is_kept() -> None:
    """Given back after every picture, its pages would cost as much as the augmentation."""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("of the C library of Linux")
    script = """
import resource
import numpy as np
import nota_seg.data.transforms
def touch(): return len([np.ones(1 << 20, np.uint8) for _ in range(4)])
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) < 1000  # 20480 pages are touched


def test_short_sides_are_drawn_in_steps() -> None:
    """The whole picture is in the crop: what is padded tells its size."""
    image, label = np.full((50, 100, 3), 200, np.uint8), np.zeros((50, 100), np.uint8)
    transform = TrainTransform((96, 192), short_side=(64, 96, 16), max_class_share=1.0, flip=0.0, jitter=None)
    seen = {int((transform(image, label, seed)[1] == 0).any(axis=1).sum()) for seed in range(60)}
    assert seen == {64, 80, 96}
