"""UPerNet (arXiv 1807.10221, figure 4): a pyramid pooling module on the last stage, then a feature pyramid.

Differs from `fpn` in the pooling on top, in norms and ReLUs on every level, and in that levels are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.decoders.parts import ConvNormReLU, resize
from nota_seg.models.layers import Pointwise
from nota_seg.models.registry import DECODERS


class PyramidPooling(nn.Module):
    """PSPNet's module (arXiv 1612.01105): averages over grids of several sizes, beside the map itself.

    Args:
        in_channels: Channels in.
        channels: Channels of each pooled map, and out.
        sizes: Sides of the grids.
    """

    def __init__(self, in_channels: int, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.branches = nn.ModuleList(ConvNormReLU(in_channels, channels, kernel=1) for _ in sizes)
        self.bottleneck = ConvNormReLU(in_channels + len(self.sizes) * channels, channels, kernel=3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        maps = [x_BCHW]
        for size, branch in zip(self.sizes, self.branches, strict=True):
            maps.append(resize(branch(F.adaptive_avg_pool2d(x_BCHW, size)), x_BCHW.shape[2:]))
        return self.bottleneck(torch.cat(maps, dim=1))


@DECODERS.register("uper")
class UPerNet(nn.Module):
    """Pooled top, lateral 1x1, top-down bilinear sums, 3x3; all levels at the finest one, concatenated, fused.

    Args:
        channels: Channels of each stage, finest first.
        strides: Stride of each stage.
        num_labels: Classes.
        dim: Channels of every level.
        pool_sizes: Grids of the pyramid pooling module.
        dropout: Before the classifier, whole channels at a time.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_labels: int,
        dim: int = 512,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.stride = strides[0]
        self.pooling = PyramidPooling(channels[-1], dim, pool_sizes)
        self.laterals = nn.ModuleList(ConvNormReLU(c, dim, kernel=1) for c in channels[:-1])
        self.smooths = nn.ModuleList(ConvNormReLU(dim, dim, kernel=3) for _ in channels[:-1])
        self.fuse = ConvNormReLU(len(channels) * dim, dim, kernel=3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Pointwise(dim, num_labels)

    def forward(self, features: list[Tensor]) -> Tensor:
        levels = [lateral(x) for lateral, x in zip(self.laterals, features[:-1], strict=True)]
        levels.append(self.pooling(features[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1].shape[2:])
        levels[:-1] = [smooth(x) for smooth, x in zip(self.smooths, levels[:-1], strict=True)]
        return self.classifier(self.dropout(self.fuse.activate(self._fused(levels))))

    def _fused(self, levels: list[Tensor]) -> Tensor:
        """The 3x3 convolution of all levels concatenated, as a sum over them: the concatenation, and the copy of it in
        another layout that kernels make, would be the largest tensors of the model."""
        conv, size = self.fuse.conv, levels[0].shape[2:]
        fused = None
        for x_BDHW, weight in zip(levels, conv.weight.split([x.shape[1] for x in levels], dim=1), strict=True):
            y_BDHW = F.conv2d(resize(x_BDHW, size), weight, padding=conv.padding)
            fused = y_BDHW if fused is None else fused + y_BDHW
        assert fused is not None  # there are levels
        return fused if conv.bias is None else fused + conv.bias[:, None, None]  # of a norm that was folded into it
