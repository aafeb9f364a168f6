"""Patch merging between the stages of Swin (arXiv 2103.14030, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Linear
from nota_seg.models.registry import STEMS


@STEMS.register("merge")
class PatchMerging(nn.Module):
    """The pixels of a stride x stride patch concatenated, LayerNorm, Linear without bias. The right and bottom border
    are zero-padded up to a whole patch, so that any input size works.

    Args:
        in_channels: Channels in.
        dim: Channels out.
        stride: Side of a patch.
    """

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(stride * stride * in_channels, eps=1e-5)
        self.reduction = Linear(stride * stride * in_channels, dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        H, W = x_BHWC.shape[1:3]
        s = self.stride
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, -W % s, 0, -H % s))
        # Published order of the pixels: down a column of the patch first.
        pixels = [x_BHWC[:, row::s, column::s] for column in range(s) for row in range(s)]
        return self.reduction(self.norm(torch.cat(pixels, dim=-1)))
