"""Convolutional stem of SegNeXt's encoder MSCAN (arXiv 2209.08575, section 3.1 and table 2)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from nota_seg.models.registry import STEMS
from util.errors import InputError


@STEMS.register("conv")
class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, each with BatchNorm, GELU between them: two (over dim / 2 channels) at first, one
    between stages.

    Args:
        in_channels: Channels in.
        dim: Channels out.
        stride: The map becomes this many times smaller along each side; a power of two, a convolution each.
    """

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        if stride < 2 or stride & (stride - 1):
            raise InputError(f"stem 'conv': the stride must be a power of two from 2 on, got {stride}")
        count = stride.bit_length() - 1
        channels = [in_channels, *(max(1, dim >> i) for i in range(count - 1, -1, -1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            if layers:
                layers.append(nn.GELU())
            layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.BatchNorm2d(after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.layers(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
