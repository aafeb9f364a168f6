"""Mix-FFN of DEST (Depth Estimation with Simplified Transformer, arXiv 2204.13791): BatchNorm and ReLU, no GELU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.fuse import fold
from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("dest")
class DESTFeedForward(nn.Module):
    """1x1 convolution, BatchNorm, depth-wise 3x3, BatchNorm, ReLU, 1x1 convolution.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)

    def fold_norm(self) -> None:
        """For evaluation: the norms become parts of the convolutions before them."""
        fold(self, "fc1", "norm1")
        fold(self, "dwconv", "norm2")

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = self.norm1(self.fc1(x_BHWC.permute(0, 3, 1, 2)))
        x_BCHW = self.fc2(F.relu(self.norm2(self.dwconv(x_BCHW))))
        return x_BCHW.permute(0, 2, 3, 1)
