"""Semantic FPN: the top-down pyramid (arXiv 1612.03144) with the semantic branch of Panoptic FPN (arXiv 1901.02446).

As in PoolFormer's and PVT's semantic segmentation: 256 channels in the pyramid, 128 in the branch, sums not concats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.decoders.parts import ConvNormReLU, resize
from nota_seg.models.layers import Pointwise
from nota_seg.models.registry import DECODERS


class ScaleHead(nn.Module):
    """3x3 conv + BN + ReLU as often as the level is octaves above the finest one, doubling the size after each."""

    def __init__(self, in_channels: int, channels: int, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.convs = nn.ModuleList(
            ConvNormReLU(in_channels if i == 0 else channels, channels, kernel=3) for i in range(max(1, octaves))
        )

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        for conv in self.convs:
            x = conv(x)
            if self.octaves:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return resize(x, size)  # at odd sizes the doublings overshoot by a few pixels


@DECODERS.register("fpn")
class FPN(nn.Module):
    """Lateral 1x1, top-down nearest sums, 3x3 smoothing; each level brought to the finest one, summed, classified.

    Args:
        channels: Channels of each stage, finest first.
        strides: Stride of each stage.
        num_labels: Classes.
        dim: Channels of the pyramid.
        branch_dim: Channels of the semantic branch.
        dropout: Before the classifier, whole channels at a time.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_labels: int,
        dim: int = 256,
        branch_dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.stride = strides[0]
        self.laterals = nn.ModuleList(Pointwise(c, dim) for c in channels)
        self.smooths = nn.ModuleList(nn.Conv2d(dim, dim, kernel_size=3, padding=1) for _ in channels)
        self.scale_heads = nn.ModuleList(
            ScaleHead(dim, branch_dim, octaves=round(math.log2(s / strides[0]))) for s in strides
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Pointwise(branch_dim, num_labels)

    def forward(self, features: list[Tensor]) -> Tensor:
        size, out = features[0].shape[2:], None
        for x, head in zip(self.pyramid(features), self.scale_heads, strict=True):
            y = head(x, size)
            out = y if out is None else out + y
        return self.classifier(self.dropout(out))

    def pyramid(self, features: list[Tensor]) -> list[Tensor]:
        """The neck alone: one (B, dim, H_i, W_i) level a stage."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1].shape[2:], "nearest")
        return [smooth(x) for smooth, x in zip(self.smooths, levels, strict=True)]
