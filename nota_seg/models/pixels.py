"""Bytes to what a model takes, on the device where the bytes are: a quarter of the floats to move there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from util.errors import InputError


def normalise(pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes to the model's float32 input.

    Args:
        pixel_values: (B, C, H, W) uint8; in whatever order of memory, which the result keeps.
        mean: C values, of pictures scaled to 0..1.
        std: C values, likewise.

    Raises:
        InputError: Not bytes, or not four dimensions.
    """
    if pixel_values.dtype != torch.uint8 or pixel_values.dim() != 4:
        shape = tuple(pixel_values.shape)
        raise InputError(f"pictures must be (B, C, H, W) of uint8 (0..255), got {shape} of {pixel_values.dtype}")
    mean_C, std_C = (
        # Not waited for: a copy that blocks would stop the queue of a GPU at every step.
        255 * torch.tensor(values, dtype=torch.float32).to(pixel_values.device, non_blocking=True)
        for values in (mean, std)
    )
    result = pixel_values.float()
    values_BHWC = result.permute(0, 2, 3, 1)
    if result.device.type == "cpu" and values_BHWC.is_contiguous():
        # A row at a time: a pixel at a time, three values, takes seven times as long.
        width = result.shape[3]
        values_BHWC.flatten(2).sub_(mean_C.repeat(width)).div_(std_C.repeat(width))
        return result
    return result.sub_(mean_C[:, None, None]).div_(std_C[:, None, None])
