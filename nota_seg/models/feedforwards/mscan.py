"""Feed-forward of SegNeXt's MSCAN (arXiv 2209.08575, figure 2a)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.feedforwards.rows import Weights, by_rows
from nota_seg.models.layers import eager_on_cpu, untouched
from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("mscan")
class MSCANFeedForward(nn.Module):
    """1x1, depth-wise 3x3, GELU, 1x1: `mix` with convolutions, which start from other weights than Linears do.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        layers = (self.fc1, self.dwconv, self.fc2)
        if eager_on_cpu(x_BHWC) and untouched(*layers):
            return by_rows(x_BHWC, Weights.of(*layers))
        x_BCHW = self.dwconv(self.fc1(x_BHWC.permute(0, 3, 1, 2)))
        return self.fc2(F.gelu(x_BCHW)).permute(0, 2, 3, 1)
