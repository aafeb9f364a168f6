"""Training augmentation, a function of the picture and a seed.

The recipe is the usual one of SegFormer and SegNeXt: scale by 0.5 to 2, crop so that no class covers most of it, flip
left to right, jitter the colours. That is one step here, on as few pixels as can be; albumentations' transforms can
follow. Pictures stay bytes; they are normalised on the device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from nota_seg.data.objects import IN_BATCH, ObjectBank
from nota_seg.data.resize import fit_factor, scaled_size
from nota_seg.data.sources.base import IGNORE
from util.errors import InputError
from util.memory import keep_freed_memory

if TYPE_CHECKING:
    from albumentations import Compose

keep_freed_memory()

_SAMPLE = (64, 64)  # pixels on which class shares and mean colours are measured


class Window(NamedTuple):
    """Where a crop lies in the source picture, and what becomes of it."""

    cut: tuple[slice, slice]  # source pixels, rows and columns
    size: tuple[int, int]  # (height, width) that the cut is resized to
    twist: Twist | None
    mirror: bool

    @property
    def enlarged(self) -> bool:
        rows, columns = self.cut
        return (rows.stop - rows.start) * (columns.stop - columns.start) < self.size[0] * self.size[1]


class RandomScaleCrop:
    """A random crop of the randomly scaled picture, mirrored or not and with its colours jittered, without scaling the
    whole picture.

    A window is chosen in the scaled picture, mapped back to the source, cut out there, and only the cut is resized.
    The window's corners are rounded to source pixels, for picture and mask alike. It is mirrored and its colours are
    changed where there are fewer pixels, before or after the resizing: they commute but for the rounding and clipping.

    Args:
        crop_size: (height, width) of the result. A smaller scaled picture is padded at the right and the bottom, with
            0 in the picture and `ignore` in the mask.
        base_size: (long side, short side) that the picture is fitted into before the random scale; None takes the
            picture's own size.
        scale: Range of the random scale.
        short_side: (lowest, highest, step) in pixels: the short side is drawn from these instead of scaling by `scale`.
        max_class_share: A window in which one class covers more of the labelled pixels is drawn again.
        tries: Most draws of a window; the last one is kept.
        ignore: Label of unlabelled pixels.
        jitter: Strengths of the changes in colour, see `Twist.draw`; None for no change.
        flip: Probability of being mirrored left to right.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        base_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        tries: int = 10,
        ignore: int = IGNORE,
        short_side: tuple[int, int, int] | None = None,
        jitter: tuple[float, float, float, float] | None = None,
        flip: float = 0.0,
    ) -> None:
        self.crop_size, self.base_size, self.scale = crop_size, base_size, scale
        self.short_side, self.jitter, self.flip = short_side, jitter, flip
        self.max_class_share, self.tries, self.ignore = max_class_share, tries, ignore

    def __call__(self, image: np.ndarray, label: np.ndarray, draw: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """The crop of a picture (H, W, 3) uint8 and its label map (H, W) uint8, with the numbers that `draw` gives."""
        window = self.window(label, draw)
        return self.of_image(image, window), self.of_label(label, window)

    def window(self, label: np.ndarray, draw: random.Random) -> Window:
        """One at random."""
        height, width = label.shape
        factor = draw.uniform(*self.scale)
        if self.short_side is not None:
            low, high, step = self.short_side
            factor = draw.choice(range(low, high + 1, step)) / min(height, width)
        elif self.base_size is not None:
            factor *= fit_factor(height, width, self.base_size)
        scaled = scaled_size(height, width, factor)
        size = min(self.crop_size[0], scaled[0]), min(self.crop_size[1], scaled[1])
        for _ in range(max(1, self.tries)):
            top, left = draw.randint(0, scaled[0] - size[0]), draw.randint(0, scaled[1] - size[1])
            rows = _source_range(top, size[0], height / scaled[0], height)
            columns = _source_range(left, size[1], width / scaled[1], width)
            if self._varied(label[rows, columns]):
                break
        twist = None if self.jitter is None else Twist.draw(draw, self.jitter)
        return Window((rows, columns), size, twist, draw.random() < self.flip)

    def _varied(self, cut: np.ndarray) -> bool:
        """Whether no class covers too much of the labelled pixels, judged on a grid of them."""
        sample = _sampled(cut)
        counts = np.bincount(sample.ravel(), minlength=256)
        labelled = sample.size - int(counts[self.ignore])
        counts[self.ignore] = 0
        return labelled > 0 and int(counts.max()) <= self.max_class_share * labelled

    def of_image(self, image: np.ndarray, window: Window) -> np.ndarray:
        """(h, w, 3) uint8."""

        def change(part: np.ndarray) -> np.ndarray:
            part = part if window.twist is None else window.twist(part)
            return cv2.flip(part, 1) if window.mirror else part

        part = image[window.cut]
        if window.enlarged:
            part = change(part)
        part = cv2.resize(part, window.size[::-1], interpolation=cv2.INTER_LINEAR)
        return self._padded(part if window.enlarged else change(part), 0)

    def of_label(self, label: np.ndarray, window: Window) -> np.ndarray:
        """(h, w) uint8."""
        # NEAREST_EXACT takes the pixel at the same centre as LINEAR does; plain NEAREST is off by up to half a pixel.
        part = cv2.resize(label[window.cut], window.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return self._padded(cv2.flip(part, 1) if window.mirror else part, self.ignore)

    def _padded(self, array: np.ndarray, pad: int) -> np.ndarray:
        below, right = self.crop_size[0] - array.shape[0], self.crop_size[1] - array.shape[1]
        if not (below or right):
            return array
        return cv2.copyMakeBorder(array, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(pad,) * 3)


def _sampled(array: np.ndarray) -> np.ndarray:
    """Pixels at equal distances: they give a share to a percent and a mean to a fraction of a level."""
    return cv2.resize(array, _SAMPLE, interpolation=cv2.INTER_NEAREST)


def _source_range(start: int, length: int, step: float, limit: int) -> slice:
    """The source pixels under `length` scaled ones from `start`; `step` source pixels each; at least one."""
    first = min(round(start * step), limit - 1)
    return slice(first, max(first + 1, min(round((start + length) * step), limit)))


GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
YIQ = np.array([GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# What an RGB colour is made of: its grey, what is left without that, and this turned by a quarter around the grey axis.
_GREY = np.tile(GREY, (3, 1))
_COLOUR = np.eye(3) - _GREY
_QUARTER_TURN = np.linalg.inv(YIQ) @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ YIQ


class Twist(NamedTuple):
    """Changes of the colours.

    All four are linear in RGB once the hue turns around the grey axis of YIQ instead of HSV's (as in NVIDIA DALI's
    ColorTwist), and then their order does not matter: brightness and contrast scale everything, saturation and hue
    leave the greys alone. A picture is passed over once, and clipped once. The four passes of albumentations'
    ColorJitter cost more than all the rest of the augmentation.

    Attributes:
        brightness: Factor of all values.
        contrast: Factor of the distance to the picture's mean grey.
        saturation: Factor of the distance of each pixel to its grey.
        hue: Share of a full turn.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    @classmethod
    def draw(cls, draw: random.Random, strengths: Sequence[float]) -> Twist:
        """One at random.

        Args:
            draw: Where the numbers come from.
            strengths: Of brightness, contrast and saturation: a factor is drawn from 1 - strength .. 1 + strength, not
                below 0. Of the hue: a share of a full turn is drawn from -strength .. strength.
        """
        *factors, hue = strengths
        brightness, contrast, saturation = (draw.uniform(max(0.0, 1 - s), 1 + s) for s in factors)
        return cls(brightness, contrast, saturation, draw.uniform(-hue, hue))

    def matrix(self, grey: float) -> np.ndarray:
        """The (3, 4) matrix that changes an RGB colour with a 1 behind it, in a picture of this mean grey."""
        angle = 2 * math.pi * self.hue
        colour = math.cos(angle) * _COLOUR + math.sin(angle) * _QUARTER_TURN
        matrix = np.empty((3, 4))
        matrix[:, :3] = self.brightness * self.contrast * (_GREY + self.saturation * colour)
        matrix[:, 3] = self.brightness * (1 - self.contrast) * grey
        return matrix

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The picture, (H, W, 3) uint8, with its colours changed."""
        red, green, blue, _ = cv2.mean(_sampled(image))
        return cv2.transform(image, self.matrix(red * GREY[0] + green * GREY[1] + blue * GREY[2]))


class TrainTransform:
    """Scale, crop, flip and jitter a picture with its mask, as a function of a seed.

    Args:
        crop_size: (height, width) of the result.
        base_size: (long side, short side) that a picture is fitted into first; None keeps its size.
        scale: Range of the random scale.
        short_side: See `RandomScaleCrop`.
        max_class_share: Most that one class may cover of a crop's labelled pixels.
        flip: Probability of a flip left to right. There is no vertical one.
        jitter: Strength of brightness, contrast, saturation and hue; None for no jitter.
        extra: More transforms of the crop, after the others, see `extra.build_extra`. What works on whole batches is
            left to the data set.
        banks: Where pasted objects come from, by path; None is the training set.

    Raises:
        InputError: An extra transform that albumentations does not know, or arguments it does not take.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        *,
        base_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] | None = (0.25, 0.25, 0.25, 0.1),
        extra: Sequence[dict[str, Any]] = (),
        short_side: tuple[int, int, int] | None = None,
        banks: Callable[[str | None], ObjectBank] | None = None,
    ) -> None:
        extra = [item for item in extra if not (isinstance(item, dict) and item.get("type") == IN_BATCH)]
        self.crop_size = (crop_size[0], crop_size[1])
        self._crop = RandomScaleCrop(
            self.crop_size, base_size, scale, max_class_share, short_side=short_side, jitter=jitter, flip=flip
        )
        self._extra: Compose | None = None
        if extra:
            from nota_seg.data.extra import compose  # most recipes have none, and albumentations takes long to import

            self._extra = compose(extra, banks)
            self._rehearse()

    def __call__(self, image: np.ndarray, label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The crop of a picture.

        Args:
            image: (H, W, 3) uint8.
            label: (H, W) uint8, 255 = ignore.
            seed: Decides everything that is random.

        Returns:
            (h, w, 3) uint8 and (h, w) uint8.
        """
        draw = random.Random(seed)
        image, label = self._crop(image, label, draw)
        if self._extra is None:
            return image, label
        # One pair of generators for all of them. Compose.set_random_seed would start every transform from the same
        # number, and what one does would follow from what another did.
        self._extra.set_random_state(np.random.default_rng(seed), draw)
        result = self._extra(image=image, mask=label)
        return result["image"], result["mask"]

    def _rehearse(self) -> None:
        """Run once on a made-up picture, so that a bad extra transform fails here and not in a worker."""
        image = np.random.default_rng(0).integers(0, 256, (*self.crop_size, 3), dtype=np.uint8)
        label = np.zeros(self.crop_size, dtype=np.uint8)
        try:
            image, label = self(image, label, 0)
        except Exception as error:
            raise InputError(f"the extra transforms fail: {type(error).__name__}: {error}") from None
        for array, shape in ((image, (*self.crop_size, 3)), (label, self.crop_size)):
            if array.shape != shape or array.dtype != np.uint8:
                raise InputError(
                    f"the extra transforms turn {shape} uint8 into {array.shape} {array.dtype}; "
                    "leave out those that resize or normalise"
                )
