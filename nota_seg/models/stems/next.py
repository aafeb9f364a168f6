"""Stem and patch embedding of Next-ViT (arXiv 2207.05501, figure 2 and table 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Pointwise
from nota_seg.models.registry import STEMS
from util.errors import InputError

NORM_EPS = 1e-5


class PatchEmbedding(nn.Module):
    """Average over 2 x 2 where the size halves, 1x1 convolution, BatchNorm; nothing where neither size nor channels
    change. At an odd size the last row and column average what is there.

    Args:
        in_channels: Channels in.
        dim: Channels out.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, dim: int, stride: int = 1) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise InputError(f"Next-ViT's patch embedding has stride 1 or 2, got {stride}")
        self.stride = stride
        self.changes = stride > 1 or in_channels != dim
        if self.changes:
            self.conv = Pointwise(in_channels, dim, bias=False)
            self.norm = nn.BatchNorm2d(dim, eps=NORM_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.changes:
            return x_BCHW
        if self.stride > 1:
            x_BCHW = F.avg_pool2d(x_BCHW, self.stride, ceil_mode=True, count_include_pad=False)
        return self.norm(self.conv(x_BCHW))


class ConvNormReLU(nn.Sequential):
    """3x3 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels, eps=NORM_EPS),
            nn.ReLU(),
        )


@STEMS.register("next")
class NextStem(nn.Module):
    """Before the first stage four convolutions (strides 2, 1, 1, 2) and the patch embedding of the first block; between
    stages the patch embedding alone.

    Args:
        in_channels: Channels in.
        dim: Channels out: those of the stage's first block.
        stride: 4 with the convolutions, 2 without.
        widths: Channels of the first three convolutions; the fourth keeps those of the third.
    """

    def __init__(self, in_channels: int, dim: int, stride: int, widths: Sequence[int] = (64, 32, 64)) -> None:
        super().__init__()
        if stride not in (2, 4):
            raise InputError(f"stem 'next': the stride must be 4 (first stage) or 2, got {stride}")
        self.convs = nn.Sequential()
        if stride == 4:
            for width, step in zip((*widths, widths[-1]), (2, 1, 1, 2), strict=True):
                self.convs.append(ConvNormReLU(in_channels, width, step))
                in_channels = width
        self.patch = PatchEmbedding(in_channels, dim, stride=1 if stride == 4 else 2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.patch(self.convs(x_BHWC.permute(0, 3, 1, 2))).permute(0, 2, 3, 1).contiguous()
