"""Next convolution block of Next-ViT (arXiv 2207.05501, figure 2, left; equations 1 to 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.common import DropPath, make_divisible
from nota_seg.models.layers import Pointwise
from nota_seg.models.registry import BLOCKS
from nota_seg.models.stems.next import PatchEmbedding
from util.errors import InputError


class MultiHeadConvolutionalAttention(nn.Module):
    """Grouped 3x3 convolution (a group a head), BatchNorm, ReLU, 1x1 convolution across the heads.

    Args:
        dim: Channels.
        head_dim: Channels of a head; must divide `dim`.
        eps: Of the BatchNorm.
    """

    def __init__(self, dim: int, head_dim: int, eps: float) -> None:
        super().__init__()
        if dim % head_dim:
            raise InputError(f"Next-ViT block: heads of {head_dim} channels do not divide {dim} channels")
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim // head_dim, bias=False)
        self.norm = nn.BatchNorm2d(dim, eps=eps)
        self.proj = Pointwise(dim, dim, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(F.relu(self.norm(self.conv(x_BCHW))))


class ConvMLP(nn.Module):
    """1x1 convolution, ReLU, 1x1 convolution.

    Args:
        dim: Channels in and out.
        ratio: Hidden channels / dim, before rounding to a multiple of 32.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = make_divisible(dim * ratio, 32)
        self.fc1 = Pointwise(dim, hidden)
        self.fc2 = Pointwise(hidden, dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x_BCHW)))


@BLOCKS.register("ncb")
class NextConvolutionBlock(nn.Module):
    """Patch embedding where the channels change; x + MHCA(x); x + MLP(BN(x)).

    Args:
        in_dim: Channels in.
        dim: Channels out.
        drop_path: Stochastic depth of both branches.
        eps: Of the BatchNorms.
        head_dim: Channels of a head.
        mlp_ratio: Hidden channels of the MLP / dim.
    """

    def __init__(
        self, in_dim: int, dim: int, drop_path: float, eps: float, head_dim: int = 32, mlp_ratio: float = 3
    ) -> None:
        super().__init__()
        self.patch = PatchEmbedding(in_dim, dim)
        self.mhca = MultiHeadConvolutionalAttention(dim, head_dim, eps)
        self.norm = nn.BatchNorm2d(dim, eps=eps)
        self.mlp = ConvMLP(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = self.patch(x_BHWC.permute(0, 3, 1, 2))
        x_BCHW = x_BCHW + self.drop_path(self.mhca(x_BCHW))
        x_BCHW = x_BCHW + self.drop_path(self.mlp(self.norm(x_BCHW)))
        return x_BCHW.permute(0, 2, 3, 1)
