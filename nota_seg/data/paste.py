"""Objects pasted into training crops: of pseudo-labelled pictures, of rare classes, of the other pictures of a batch.

Everything random follows from the crop's seed, so that neither loader workers nor a resumed run change it.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from nota_seg.data.objects import (
    IN_BATCH,
    ObjectBank,
    Pair,
    Thing,
    chosen_classes,
    objects,
    paste_labels,
    paste_pixels,
    pasted,
)
from util.errors import InputError, did_you_mean
from util.seed import derive


def _seeded(pipeline: A.Compose, seed: int) -> A.Compose:
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return pipeline


def _mover(hflip: float, vflip: float, shift: float, scale: Sequence[float], rotate: float) -> A.Compose:
    """Moves a picture with a mask as one; pixels that come in from outside are not of the mask."""
    steps = [
        A.HorizontalFlip(p=hflip),
        A.VerticalFlip(p=vflip),
        A.Affine(
            translate_percent={"x": (-shift, shift), "y": (-shift, shift)},
            scale=(1 + scale[0], 1 + scale[1]),
            rotate=(-rotate, rotate),
            mask_interpolation=cv2.INTER_NEAREST,
            fill_mask=0,
            p=1.0,
        ),
    ]
    return A.Compose(steps)


class _Paste(A.DualTransform):
    """A transform whose parameters are the things that it pastes."""

    def apply(self, img: np.ndarray, things: Sequence[Thing] = (), **_: Any) -> np.ndarray:
        return paste_pixels(img, things)

    def apply_to_mask(self, mask: np.ndarray, things: Sequence[Thing] = (), **_: Any) -> np.ndarray:
        return paste_labels(mask, things)


class PseudoObjectPaste(_Paste):
    """Objects of one picture of a (pseudo-labelled) data set, resized to the crop, moved and pasted.

    Args:
        bank: The pictures.
        max_objects: Most objects of the picture, chosen at random.
        classes: To paste; all that name something by default.
        min_area: Of an object, in pixels of the crop.
        max_share: An object that covers more of its picture than this is scenery, and is not pasted.
        hflip: Probability of a flip left to right.
        vflip: And upside down.
        shift: Most that an object moves, relative to the crop.
        scale: Range that is added to a scale of 1.
        rotate: Most degrees either way.
        p: Probability of pasting anything.
    """

    class InitSchema(A.DualTransform.InitSchema):
        bank: Any
        max_objects: int
        classes: Any
        min_area: int
        max_share: float
        hflip: float
        vflip: float
        shift: float
        scale: tuple[float, float]
        rotate: float

    def __init__(
        self,
        bank: ObjectBank,
        max_objects: int = 5,
        classes: Sequence[str | int] | None = None,
        min_area: int = 64,
        max_share: float = 0.5,
        hflip: float = 0.5,
        vflip: float = 0.25,
        shift: float = 0.5,
        scale: tuple[float, float] = (-0.25, 0.2),
        rotate: float = 60.0,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.bank, self.max_objects, self.min_area = bank, _at_least_one("max_objects", max_objects), min_area
        self.classes, self.max_share = chosen_classes(classes, bank.names), max_share
        self.mover = _mover(hflip, vflip, shift, scale, rotate)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        image, label = self.bank.pair(self.py_random.randrange(self.bank.count))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return {"things": _moved(image, label, self, self.py_random)}


def _moved(image: np.ndarray, label: np.ndarray, how: Any, rng: random.Random) -> list[Thing]:
    """Some objects of a picture of the crop's size, each moved on its own."""
    found = [(c, mask) for c, mask in objects(label, how.classes, how.min_area) if mask.mean() <= how.max_share]
    rng.shuffle(found)
    things = []
    for c, mask in found[: how.max_objects]:
        moved = _seeded(how.mover, rng.getrandbits(32))(image=image, mask=mask.astype(np.uint8))
        things.append(Thing(moved["image"], moved["mask"].astype(bool), c))
    return things


class BalancedObjectPaste(_Paste):
    """Objects of classes drawn the more often the rarer they are, at their natural size, somewhere in the crop.

    Args:
        bank: The pictures, the training set's own by default.
        max_objects: Most objects; from 1 to so many are pasted.
        classes: To draw from; all that name something by default.
        power: A class is drawn in proportion to its share of the pixels to the power of minus this.
        min_area: Of an object, in its own picture's pixels.
        scale: Range of the random scale.
        hflip: Probability of a flip left to right.
        p: Probability of pasting anything.
    """

    class InitSchema(A.DualTransform.InitSchema):
        bank: Any
        max_objects: int
        classes: Any
        power: float
        min_area: int
        scale: tuple[float, float]
        hflip: float

    def __init__(
        self,
        bank: ObjectBank,
        max_objects: int = 3,
        classes: Sequence[str | int] | None = None,
        power: float = 0.5,
        min_area: int = 256,
        scale: tuple[float, float] = (0.5, 1.5),
        hflip: float = 0.5,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        if not 0 < scale[0] <= scale[1]:
            raise InputError(f"BalancedObjectPaste: scale is a range of positive factors, got {scale}")
        self.bank, self.max_objects, self.min_area = bank, _at_least_one("max_objects", max_objects), min_area
        self.scale, self.hflip = scale, hflip
        there = [c for c in chosen_classes(classes, bank.names) if (bank.areas[:, c] >= min_area).any()]
        if not there:
            raise InputError(f"BalancedObjectPaste: {bank.source.root} has no object of {min_area} pixels to paste")
        frequency = bank.areas.sum(axis=0)[there] / bank.areas.sum()
        self.classes, self.odds = there, (frequency**-power).tolist()
        self.pictures = {c: np.flatnonzero(bank.areas[:, c] >= min_area).tolist() for c in there}

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        rng = self.py_random
        drawn = (self._draw(params["shape"][:2], rng) for _ in range(rng.randint(1, self.max_objects)))
        return {"things": [thing for thing in drawn if thing is not None]}

    def _draw(self, shape: tuple[int, int], rng: random.Random) -> Thing | None:
        c = rng.choices(self.classes, self.odds)[0]
        image, label = self.bank.pair(rng.choice(self.pictures[c]))
        found = objects(label, [c], self.min_area)
        factor, mirrored = rng.uniform(*self.scale), rng.random() < self.hflip
        place = rng.random(), rng.random()
        if not found:
            return None  # enough pixels of the class, but in small parts
        mask = rng.choice(found)[1]
        if self.bank.fit is not None:
            factor *= self.bank.fit(*label.shape)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        pixels, mask = image[box], mask[box]
        factor = min(factor, shape[0] / mask.shape[0], shape[1] / mask.shape[1])
        height, width = (max(1, min(int(n * factor + 0.5), most)) for n, most in zip(mask.shape, shape, strict=True))
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
        if mirrored:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        corner = int(place[0] * (shape[0] - height + 1)), int(place[1] * (shape[1] - width + 1))
        return Thing(pixels, mask, c, corner)


class BatchCopyPaste:
    """Copy-paste (arXiv 2012.07177) within a batch: each crop gets objects of another one, as that was before.

    Args:
        names: Classes of the training set.
        max_objects: Most objects, chosen at random.
        classes: To paste; all that name something by default.
        min_area: Of an object, in pixels.
        max_share: An object that covers more of its crop than this is scenery, and is not pasted.
        hflip: Probability of a flip left to right, of each object.
        shift: Most that an object moves, relative to the crop.
        scale: Range that is added to a scale of 1.
        rotate: Most degrees either way.
        p: Probability that a crop gets anything.
    """

    def __init__(
        self,
        names: Sequence[str],
        max_objects: int = 5,
        classes: Sequence[str | int] | None = None,
        min_area: int = 64,
        max_share: float = 0.5,
        hflip: float = 0.5,
        shift: float = 0.25,
        scale: tuple[float, float] = (-0.5, 0.5),
        rotate: float = 0.0,
        p: float = 0.5,
    ) -> None:
        if not 0 <= p <= 1 or not 0 < max_share <= 1:
            raise InputError(f"BatchCopyPaste: p is in [0, 1] and max_share in (0, 1], got {p} and {max_share}")
        self.max_objects, self.min_area, self.p = _at_least_one("max_objects", max_objects), min_area, p
        self.max_share = max_share
        self.classes = chosen_classes(classes, names)
        self.mover = _mover(hflip, 0.0, shift, scale, rotate)

    def __call__(self, crops: Sequence[Pair], seeds: Sequence[int]) -> list[Pair]:
        """
        Args:
            crops: Pictures and label maps of one size.
            seeds: Of each crop's augmentation.
        """
        result = []
        for i, ((image, label), seed) in enumerate(zip(crops, seeds, strict=True)):
            rng = random.Random(derive(seed, "copy-paste"))
            if len(crops) < 2 or rng.random() >= self.p:
                result.append((image, label))
                continue
            other = rng.choice([j for j in range(len(crops)) if j != i])
            result.append(pasted(image, label, _moved(*crops[other], self, rng)))
        return result


PASTES: dict[str, type[_Paste]] = {"PseudoObjectPaste": PseudoObjectPaste, "BalancedObjectPaste": BalancedObjectPaste}


def build_paste(name: str, arguments: dict[str, Any], banks: Callable[[str | None], ObjectBank] | None) -> _Paste:
    """A pasting transform by name; `data` among its arguments is where the objects are from, the training set if None.

    Raises:
        InputError: Arguments that it does not take, or no data to paste from.
    """
    arguments = dict(arguments)
    path = arguments.pop("data", None)
    if banks is None or (path is None and name == "PseudoObjectPaste"):
        raise InputError(f"{name} needs pictures to paste from: give args.data, a data set's folder or COCO JSON file")
    check_arguments(name, PASTES[name], arguments, more=("data",))
    return PASTES[name](banks(path), **arguments)


def batch_part(extra: Sequence[dict[str, Any]], names: Sequence[str]) -> BatchCopyPaste | None:
    """The part of the extra transforms that works on whole batches."""
    parts = [item for item in extra if isinstance(item, dict) and item.get("type") == IN_BATCH]
    if not parts:
        return None
    if len(parts) > 1:
        raise InputError(f"data.extra has {IN_BATCH} {len(parts)} times: give it once, with a higher p or max_objects")
    arguments = dict(parts[0].get("args") or {})
    check_arguments(IN_BATCH, BatchCopyPaste, arguments)
    try:
        return BatchCopyPaste(names, **arguments)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{IN_BATCH} refuses {arguments}: {' '.join(str(error).split())}") from None


def check_arguments(name: str, kind: Any, arguments: dict[str, Any], more: Sequence[str] = ()) -> None:
    """InputError for an argument that the class does not take, with the nearest that it does."""
    taken = [
        a for a in inspect.signature(kind.__init__).parameters if a not in ("self", "args", "kwargs", "bank", "names")
    ]
    for argument in arguments:
        if argument not in taken:
            raise InputError(f"{name} takes no argument {argument!r}: {did_you_mean(argument, [*taken, *more])}")


def _at_least_one(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
