"""Pictures to probabilities and label maps; evaluation, prediction, pseudo-labels and ensembles stand on it.

The order is mmseg's: a view's logits are averaged over its windows at the view's size, resized to the target's size,
turned into probabilities, averaged over the views, and the largest wins. One thing is simpler here: without windows
the logits go to the target's size in one step rather than through the view's size, so that a single view gives the
same labels as `model.predict_labels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.data.resize import resize_for_eval
from nota_seg.models.architecture import IMAGENET_MEAN, IMAGENET_STD
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.pixels import normalise
from nota_seg.views import Change, View, band_height
from util.errors import InputError, did_you_mean

Size = tuple[int, int]
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("whole", "slide")


def _pair(name: str, value: Any) -> Size:
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in pair):
        raise InputError(f"{name} must be two positive whole numbers, got {value!r}")
    return pair[0], pair[1]


def _positive(name: str, values: Any) -> tuple[float, ...]:
    given = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if not given or not all(isinstance(v, int | float) and 0 < v < float("inf") for v in given):
        raise InputError(f"{name} must be one or more positive numbers, got {values!r}")
    return tuple(float(v) for v in given)


@dataclass
class Protocol:
    """How pictures become label maps; part of every result, because scores mean nothing without it."""

    mode: str = "whole"  # "whole" picture, or "slide": overlapping windows
    crop_size: Size | None = None  # (height, width) of a window, pixels
    stride: Size | None = None  # (vertical, horizontal) step of the windows, pixels; two thirds of the crop by default
    scales: tuple[float, ...] = (1.0,)  # of the views, relative to the (resized) picture
    flip: bool = False  # every view also mirrored left to right
    vflip: bool = False  # every view also mirrored top to bottom
    rot90: bool = False  # every view also turned by 90 degrees; with both flips that is every turn and mirror image
    intensities: tuple[float, ...] = (1.0,)  # the picture's values times this, kept within 0..255
    base_size: Size | None = None  # (long, short) side the picture is fitted to first, pixels; None: as it is
    precision: str = "no"  # of the forward pass: "no" (as the weights are), "bf16", "fp16"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"unknown inference mode {self.mode!r}: {did_you_mean(str(self.mode), MODES)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}: {did_you_mean(str(self.precision), PRECISIONS)}")
        if self.mode == "slide":
            if self.crop_size is None:
                raise InputError("sliding needs a window: give crop_size (height, width)")
            crop = self.crop_size = _pair("crop_size", self.crop_size)
            if self.stride is None:
                self.stride = (max(1, crop[0] * 2 // 3), max(1, crop[1] * 2 // 3))
            self.stride = _pair("stride", self.stride)
            if self.stride[0] > crop[0] or self.stride[1] > crop[1]:
                raise InputError(f"stride {self.stride} must not exceed crop_size {crop}: pixels would be left out")
        elif self.crop_size is not None or self.stride is not None:
            raise InputError('crop_size and stride belong to mode "slide", the mode is "whole": change or drop them')
        self.scales = _positive("scales", self.scales)
        self.intensities = _positive("intensities", self.intensities)
        if self.base_size is not None:
            self.base_size = _pair("base_size", self.base_size)

    @property
    def views(self) -> int:
        return len(self.scales) * len(self.intensities) * 2 ** (self.flip + self.vflip + self.rot90)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def trained_window(model: nn.Module) -> Size | None:
    """The crop that a model's position tables were made for: it is looked through on larger pictures. None: no such."""
    crop = getattr(getattr(model, "config", None), "crop_size", None)
    return None if crop is None else (int(crop[0]), int(crop[1]))


def protocol_for(model: nn.Module, **chosen: Any) -> Protocol:
    """How a model looks at pictures: as chosen, else at the size it names, through the windows that it was made for.

    Args:
        model: Its configuration may name `image_size` (long, short) and `crop_size`.
        chosen: Fields of `Protocol`. None is not chosen, but for `base_size`, where it means pictures as they are.
    """
    values = {k: v for k, v in chosen.items() if v is not None or k == "base_size"}
    window = trained_window(model)
    if values.setdefault("mode", "whole" if window is None else "slide") == "slide":
        values.setdefault("crop_size", window or (512, 512))
    size = getattr(getattr(model, "config", None), "image_size", None)
    values.setdefault("base_size", tuple(size) if size else None)
    return Protocol(**values)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; after it every part has its own mode back (frozen norms stay frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def statistics_of(model: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that a model's pictures are normalised with; ImageNet's where it names none."""
    config = getattr(model, "config", None)
    return getattr(config, "image_mean", IMAGENET_MEAN), getattr(config, "image_std", IMAGENET_STD)


def to_pixels(image: np.ndarray, base_size: Size | None) -> Tensor:
    """A picture (H, W, 3) uint8 RGB, fitted to `base_size` (long, short) if there is one, as a (3, h, w) tensor."""
    if base_size is not None:
        image = resize_for_eval(image, base_size)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _autocast(device: torch.device, protocol: Protocol) -> AbstractContextManager:
    dtype = PRECISIONS[protocol.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def slide_logits(model: nn.Module, pixel_values: Tensor, crop_size: Size, stride: Size) -> Tensor:
    """Logits at the input's size, averaged where windows overlap.

    Args:
        pixel_values: (B, 3, H, W), normalised. A side shorter than the window is padded with zeros (the mean colour)
            at its end, because some models take one size only; the padding's logits are cut off.
        crop_size: (height, width) of the window.
        stride: (vertical, horizontal) step.

    Returns:
        (B, K, H, W) float32.
    """
    H, W = int(pixel_values.shape[2]), int(pixel_values.shape[3])
    view = View(lambda x: model(x).logits, pixel_values, 1.0, (H, W), Change(), crop_size, stride)
    return view.rows(0, H)


def _views(model: nn.Module, pixel_values: Tensor, size: Size, protocol: Protocol) -> Iterator[View]:
    """All views of a protocol; nothing is computed yet."""

    def forward(x: Tensor) -> Tensor:
        with _autocast(x.device, protocol):
            return model(x).logits

    asked = (protocol.flip, protocol.vflip, protocol.rot90)
    changes = [Change(*one) for one in itertools.product(*((False, True) if one else (False,) for one in asked))]
    for intensity in protocol.intensities:
        pictures = normalise(_brightened(pixel_values, intensity), *statistics_of(model))
        for scale, change in itertools.product(protocol.scales, changes):
            yield View(forward, pictures, scale, size, change, protocol.crop_size, protocol.stride)


def _bands(model: nn.Module, pixel_values: Tensor, size: Size, protocol: Protocol) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the result and their scores (B, K, rows, W), from the top: mean probabilities; of one view its logits."""
    views = list(_views(model, pixel_values, size, protocol))
    B, K = views[0].rows(0, 1).shape[:2]  # the windows it looked through are kept
    step = band_height(views, B * K)
    for first in range(0, size[0], step):
        last = min(first + step, size[0])
        if len(views) == 1:
            yield slice(first, last), views[0].rows(first, last)
            continue
        total: Tensor | None = None
        for view in views:
            p = view.rows(first, last).softmax(dim=1)
            total = p if total is None else total.add_(p)
        assert total is not None  # Protocol has at least one scale
        yield slice(first, last), total.div_(len(views))


def _resized(x: Tensor, scale: float) -> Tensor:
    """The picture at a scale, as `View` has it."""
    size = tuple(max(1, int(side * scale + 0.5)) for side in x.shape[2:])
    if size == tuple(x.shape[2:]):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _brightened(pixel_values: Tensor, intensity: float) -> Tensor:
    """Bytes times a factor, before any normalisation: the factor is of 0..255."""
    if intensity == 1.0:
        return pixel_values
    return (pixel_values.float() * intensity).round_().clamp_(0, 255).to(torch.uint8)


@torch.inference_mode()
def predict_probabilities(model: nn.Module, pixel_values: Tensor, size: Size, protocol: Protocol) -> Tensor:
    """Class probabilities, averaged over all views.

    Args:
        model: Anything with `forward(pixel_values).logits`, in evaluation mode.
        pixel_values: (B, 3, h, w) uint8 RGB on the model's device.
        size: (H, W) of the result.
        protocol: Views, windows, precision. Its `base_size` is the caller's to apply, see `resize_for_eval`.

    Returns:
        (B, K, H, W) float32. Beside this only bands of it, and the model's coarse logits of the windows in the band at
        hand (without windows, of every view), are held at a time.
    """
    result: Tensor | None = None
    for rows, scores in _bands(model, pixel_values, size, protocol):
        if result is None:
            result = scores.new_empty(*scores.shape[:2], *size)
        result[:, :, rows] = scores.softmax(dim=1) if protocol.views == 1 else scores
    assert result is not None  # a picture has a row
    return result


@torch.inference_mode()
def predict_labels(model: nn.Module, pixel_values: Tensor, size: Size, protocol: Protocol) -> Tensor:
    """Label maps at `size`: the argmax of `predict_probabilities`, which are never held but for some rows of them.

    Args:
        model: Anything with `forward(pixel_values).logits`, in evaluation mode.
        pixel_values: (B, 3, h, w) uint8 RGB on the model's device.
        size: (H, W) of the result.

    Returns:
        (B, H, W) int64.
    """
    if protocol.views == 1 and protocol.mode == "whole":
        pictures = normalise(_brightened(pixel_values, protocol.intensities[0]), *statistics_of(model))
        x, own = _resized(pictures, protocol.scales[0]), getattr(model, "predict_labels", None)
        with _autocast(x.device, protocol):  # models of other libraries have no `predict_labels`
            return own(x, size) if own is not None else labels_from_logits(model(x).logits, size)
    bands = _bands(model, pixel_values, size, protocol)
    return torch.cat([scores.argmax(dim=1) for _, scores in bands], dim=1)
