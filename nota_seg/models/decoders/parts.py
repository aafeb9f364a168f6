"""What several decoders are made of: convolution with norm and ReLU, resizing, the fusion of maps of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.fuse import fold
from nota_seg.models.layers import Pointwise, pointwise
from util.errors import InputError


class ConvNormReLU(nn.Module):
    """Convolution that keeps the size, BatchNorm, ReLU.

    Args:
        in_channels: Channels in.
        channels: Channels out.
        kernel: Side of the kernel, odd.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = (
            Pointwise(in_channels, channels, bias=False)
            if kernel == 1
            else nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.activate(self.conv(x_BCHW))

    def fold_norm(self) -> None:
        """For evaluation: the norm becomes a part of the convolution."""
        fold(self, "conv", "norm")

    def activate(self, x_BCHW: Tensor) -> Tensor:
        """Norm and ReLU of what the convolution gave."""
        if self.training and x_BCHW.shape[0] == x_BCHW.shape[2] == x_BCHW.shape[3] == 1:
            raise InputError(
                "batch normalisation of a picture's global average has a single value a channel when it trains on a "
                "batch of 1: train with a batch size of at least 2"
            )
        return F.relu(self.norm(x_BCHW))


def resize(x_BCHW: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """To `size` (height, width), bilinear with align_corners False by default; as it is where it has that size."""
    if tuple(x_BCHW.shape[2:]) == tuple(size):
        return x_BCHW
    return F.interpolate(x_BCHW, size=tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)


def fuse(conv: nn.Conv2d, maps: Sequence[Tensor], size: Sequence[int], *, textbook: bool) -> Tensor:
    """A 1x1 convolution over maps that are resized to one size and concatenated.

    The textbook order multiplies every map at the large size. The convolution acts on channels and the resizing on
    positions, so they commute: each map meets its slice of the weights at its own size, and the sums are equal.

    Args:
        conv: 1x1; its input channels are those of all maps, in their order.
        maps: (B, C_i, H_i, W_i).
        size: (H, W) of the result.
        textbook: Compute in the order of the paper (for comparison).

    Returns:
        (B, D, H, W).
    """
    if textbook:
        return conv(torch.cat([resize(x, size) for x in maps], dim=1))
    slices = conv.weight.split([x.shape[1] for x in maps], dim=1)
    fused = None
    for x_BCHW, weight in zip(maps, slices, strict=True):
        y_BDHW = resize(pointwise(x_BCHW, weight), size)
        fused = y_BDHW if fused is None else fused + y_BDHW
    if conv.bias is not None and fused is not None:  # of a norm that was folded into it
        fused = fused + conv.bias[:, None, None]
    return fused
