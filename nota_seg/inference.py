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

from nota_seg.models.configuration import IMAGENET_MEAN, IMAGENET_STD
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.pixels import normalise
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
        from nota_seg.data.transforms import resize_for_eval  # brings the whole augmentation library along

        image = resize_for_eval(image, base_size)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _autocast(device: torch.device, protocol: Protocol) -> AbstractContextManager:
    dtype = PRECISIONS[protocol.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _upsampled(logits: Tensor, size: Size) -> Tensor:
    logits = logits.float()
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _starts(length: int, crop: int, stride: int) -> Iterator[int]:
    """Where windows begin along one side; the last one is moved back to end at the border."""
    for i in range(-(-max(0, length - crop) // stride) + 1):
        yield max(0, min(i * stride, length - crop))


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
    H, W = pixel_values.shape[2:]
    (ch, cw), (sh, sw) = crop_size, stride
    pixel_values = F.pad(pixel_values, (0, max(0, cw - W), 0, max(0, ch - H)))
    height, width = pixel_values.shape[2:]
    total: Tensor | None = None
    count = torch.zeros(1, 1, height, width, device=pixel_values.device)
    for y in _starts(height, ch, sh):
        for x in _starts(width, cw, sw):
            window = (..., slice(y, y + ch), slice(x, x + cw))
            logits = _upsampled(model(pixel_values[window]).logits, crop_size)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[window] += logits
            count[window] += 1
    assert total is not None  # there is always a first window
    return total.div_(count)[..., :H, :W]


def _view_logits(model: nn.Module, x: Tensor, protocol: Protocol) -> Tensor:
    """Logits of one view: at its size when sliding, at the model's own resolution otherwise."""
    if protocol.mode == "slide":
        assert protocol.crop_size is not None and protocol.stride is not None  # Protocol sees to it
        return slide_logits(model, x, protocol.crop_size, protocol.stride)
    return model(x).logits


def _resized(x: Tensor, scale: float) -> Tensor:
    """The picture at a scale, rounded as mmseg does; bilinear without antialiasing, as OpenCV's linear."""
    H, W = x.shape[2:]
    return _upsampled(x, (max(1, int(H * scale + 0.5)), max(1, int(W * scale + 0.5))))


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
        protocol: Views, windows, precision. Its `base_size` is the caller's to apply, see `transforms.resize_for_eval`.

    Returns:
        (B, K, H, W) float32. At most this and one view are held at a time.
    """
    total: Tensor | None = None
    asked = (protocol.flip, protocol.vflip, protocol.rot90)
    changes = list(itertools.product(*((False, True) if one else (False,) for one in asked)))
    for intensity, scale in itertools.product(protocol.intensities, protocol.scales):
        pictures = normalise(_brightened(pixel_values, intensity), *statistics_of(model))
        view = _resized(pictures, scale)
        for mirrored, upside_down, turned in changes:
            axes = [3] * mirrored + [2] * upside_down
            seen = view.flip(axes) if axes else view
            with _autocast(view.device, protocol):
                logits = _view_logits(model, seen.rot90(1, (2, 3)) if turned else seen, protocol)
            logits = logits.rot90(-1, (2, 3)) if turned else logits
            logits = logits.flip(axes) if axes else logits
            # A copy only where the model's own tensor would be overwritten: everything below works in place.
            p = _upsampled(logits, size)
            p = p.clone() if p.data_ptr() == logits.data_ptr() else p
            p.sub_(p.amax(dim=1, keepdim=True)).exp_()
            p.div_(p.sum(dim=1, keepdim=True))
            total = p if total is None else total.add_(p)
    assert total is not None  # Protocol has at least one scale
    return total.div_(protocol.views)


@torch.inference_mode()
def predict_labels(model: nn.Module, pixel_values: Tensor, size: Size, protocol: Protocol) -> Tensor:
    """Label maps at `size`: the argmax of `predict_probabilities`, without the probabilities where one view suffices.

    Args:
        model: Anything with `forward(pixel_values).logits`, in evaluation mode.
        pixel_values: (B, 3, h, w) uint8 RGB on the model's device.
        size: (H, W) of the result.

    Returns:
        (B, H, W) int64.
    """
    if protocol.views > 1:
        return predict_probabilities(model, pixel_values, size, protocol).argmax(dim=1)
    pixel_values = _brightened(pixel_values, protocol.intensities[0])
    x = _resized(normalise(pixel_values, *statistics_of(model)), protocol.scales[0])
    own = getattr(model, "predict_labels", None)  # models of other libraries have none
    with _autocast(x.device, protocol):
        if protocol.mode == "whole" and own is not None:
            return own(x, size)
        return labels_from_logits(_view_logits(model, x, protocol), size)
