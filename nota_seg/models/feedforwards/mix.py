"""Mix-FFN of SegFormer (arXiv 2105.15203, equation 3): a 3x3 depth-wise convolution between the two layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.feedforwards.rows import Weights, by_rows
from nota_seg.models.layers import Linear, eager_on_cpu, untouched
from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("mix")
class MixFeedForward(nn.Module):
    """Linear, depth-wise 3x3, GELU, Linear. The zero padding of the convolution is what tells positions apart.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    relu_first = False

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        layers = (self.fc1, self.dwconv, self.fc2)
        if eager_on_cpu(x_BHWC) and untouched(*layers):
            return by_rows(x_BHWC, Weights.of(*layers), relu_first=self.relu_first)
        x_BHWC = self.fc1(x_BHWC)
        if self.relu_first:
            x_BHWC = F.relu(x_BHWC)
        x_BHWC = self.dwconv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x_BHWC))
