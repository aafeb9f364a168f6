"""Non-overlapping patch embedding (ViT, arXiv 2010.11929; Swin, arXiv 2103.14030)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.registry import STEMS


@STEMS.register("patch")
class PatchEmbedding(nn.Module):
    """A stride x stride convolution with that stride, then LayerNorm. The right and bottom border are zero-padded up
    to a whole patch, so that any input size works and no pixel is lost.

    Args:
        in_channels: Channels in.
        dim: Channels out.
        stride: Side of a patch.
    """

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=stride, stride=stride)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        H, W = x_BHWC.shape[1:3]
        x_BCHW = F.pad(x_BHWC.permute(0, 3, 1, 2), (0, -W % self.stride, 0, -H % self.stride))
        return self.norm(self.proj(x_BCHW).permute(0, 2, 3, 1))
