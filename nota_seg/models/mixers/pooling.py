"""Pooling as the token mixer (PoolFormer / MetaFormer, arXiv 2111.11418, algorithm 1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.registry import MIXERS
from util.errors import InputError


@MIXERS.register("pool")
class Pooling(nn.Module):
    """Average over a window minus the token itself: the block's residual adds it back. No parameters.

    Args:
        dim: Channels; unused, a pool sees each channel alone.
        heads: Unused.
        size: Side of the window, odd.
    """

    def __init__(self, dim: int, heads: int, size: int = 3) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise InputError(f"mixer 'pool': size must be odd so that the window has a centre, got {size}")
        self.size = size

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        mean_BCHW = F.avg_pool2d(x_BCHW, self.size, stride=1, padding=self.size // 2, count_include_pad=False)
        return (mean_BCHW - x_BCHW).permute(0, 2, 3, 1)
