"""Feed-forward of PVTv2's linear variant (arXiv 2106.13797, section 3.3; the published code for the ReLU)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Linear
from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("pvt")
class PVTFeedForward(nn.Module):
    """Linear, ReLU, depth-wise 3x3, GELU, Linear. Only PVTv2's linear variant has the ReLU; without it, it is `mix`.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = F.relu(self.fc1(x_BHWC))
        x_BHWC = self.dwconv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x_BHWC))
