"""Token mixing by a perceptron over the positions (MLP-Mixer, arXiv 2105.01601, figure 1 and equation 1).

The weights of a token-mixing MLP belong to positions, so that it knows one number of tokens only. For any size, the map
is averaged to a fixed grid, mixed there, and what the mixing says is brought back to the map: bilinear where the map is
finer than the grid, averaged where it is coarser. On a map of the grid's own size it is MLP-Mixer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Linear
from nota_seg.models.registry import MIXERS
from util.errors import InputError


@MIXERS.register("mixer")
class TokenMixing(nn.Module):
    """Linear, GELU, Linear across the cells of a grid, the same for every channel.

    Args:
        dim: Channels.
        heads: Unused.
        grid: (rows, columns) that the token MLP is made for, or one number for both. 14 is MLP-Mixer's own: 16-pixel
            patches of 224 pixels.
        hidden: Hidden channels of the token MLP; dim / 2 by default, as in every MLP-Mixer.
    """

    def __init__(self, dim: int, heads: int, grid: int | list[int] = 14, hidden: int | None = None) -> None:
        super().__init__()
        size = (grid, grid) if isinstance(grid, int) else tuple(grid)
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"mixer 'mixer': grid must be one or two whole numbers of at least 1, got {grid!r}")
        self.grid = (int(size[0]), int(size[1]))
        tokens = self.grid[0] * self.grid[1]
        hidden = max(1, dim // 2) if hidden is None else hidden
        self.fc1 = Linear(tokens, hidden)
        self.fc2 = Linear(hidden, tokens)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        H, W = x_BCHW.shape[2:]
        x_BCN = F.adaptive_avg_pool2d(x_BCHW, self.grid).flatten(2)
        x_BCGG = self.fc2(F.gelu(self.fc1(x_BCN))).unflatten(2, self.grid)
        fine = (max(H, self.grid[0]), max(W, self.grid[1]))
        x_BCGG = F.interpolate(x_BCGG, size=fine, mode="bilinear", align_corners=False)
        return F.adaptive_avg_pool2d(x_BCGG, (H, W)).permute(0, 2, 3, 1)
