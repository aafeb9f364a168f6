"""Multi-scale convolutional attention of SegNeXt (arXiv 2209.08575, figure 2b and equations 1 and 2).

Depth-wise strips see 7, 11 and 21 pixels far; their sum weighs the map it came from. Around it, as published: 1x1,
GELU, MSCA, 1x1, and the module's own (normed) input added. The block's skip adds the map itself besides.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Pointwise
from nota_seg.models.registry import MIXERS


class MSCA(nn.Module):
    """Weights from a depth-wise 5x5 and three pairs of strips on it, times the input. (B, C, H, W), size kept.

    Args:
        dim: Channels.
        strips: Lengths of the strips, odd.
    """

    def __init__(self, dim: int, strips: tuple[int, ...] = (7, 11, 21)) -> None:
        super().__init__()
        self.local = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim)
        self.strips = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, dim, kernel_size=(1, n), padding=(0, n // 2), groups=dim),
                nn.Conv2d(dim, dim, kernel_size=(n, 1), padding=(n // 2, 0), groups=dim),
            )
            for n in strips
        )
        self.mix = Pointwise(dim, dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        local_BCHW = self.local(x_BCHW)
        scales_BCHW = local_BCHW
        for strip in self.strips:
            scales_BCHW = scales_BCHW + strip(local_BCHW)
        return self.mix(scales_BCHW) * x_BCHW


@MIXERS.register("msca")
class MSCAttention(nn.Module):
    """x + 1x1(MSCA(GELU(1x1(x)))).

    Args:
        dim: Channels.
        heads: Unused.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.proj_1 = Pointwise(dim, dim)
        self.msca = MSCA(dim)
        self.proj_2 = Pointwise(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        out_BCHW = self.proj_2(self.msca(F.gelu(self.proj_1(x_BCHW))))
        return (x_BCHW + out_BCHW).permute(0, 2, 3, 1)
