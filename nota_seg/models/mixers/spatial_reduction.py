"""Spatial-reduction attention of SegFormer's encoder (arXiv 2105.15203, equation 2; first in PVT, 2102.12122).

Keys and values come from a map that a strided r x r convolution has made r^2 times smaller.
Parameters follow the published MiT: one projection for q, one for k and v together.

Shapes: B batch, H W height and width, C channels, h heads, N tokens, M reduced tokens, d channels of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.attention import attention
from nota_seg.models.layers import Linear
from nota_seg.models.registry import MIXERS
from util.errors import InputError


def check_heads(mixer: str, dim: int, heads: int) -> int:
    """Channels of a head; heads that do not divide the channels are an error that names both numbers."""
    if dim % heads:
        raise InputError(f"mixer {mixer!r}: {heads} heads do not divide {dim} channels; choose heads that do")
    return dim // heads


@MIXERS.register("sra")
class SpatialReductionAttention(nn.Module):
    """Multi-head attention over a spatially reduced map.

    Args:
        dim: Channels C.
        heads: Heads h; must divide `dim`.
        ratio: Spatial reduction r of keys and values along each side; 1 is plain attention.
        qkv_bias: Biases in the q and kv projections.
    """

    def __init__(self, dim: int, heads: int, ratio: int = 1, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = check_heads("sra", dim, heads)
        self.ratio = ratio
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        if ratio > 1:
            self.reduce = nn.Conv2d(dim, dim, kernel_size=ratio, stride=ratio)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        q_BhNd = self.q(x_BHWC).view(B, H * W, self.heads, self.head_dim).transpose(1, 2)
        kv_BMC = self.norm(self._reduce(x_BHWC)) if self.ratio > 1 else x_BHWC.view(B, H * W, C)
        kv_BM2hd = self.kv(kv_BMC).view(B, kv_BMC.shape[1], 2, self.heads, self.head_dim)
        k_BhMd, v_BhMd = kv_BM2hd.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(q_BhNd, k_BhMd, v_BhMd).reshape(B, H, W, C))

    def _reduce(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        H, W = x_BCHW.shape[2:]
        if self.ratio > H or self.ratio > W:
            # A picture smaller than one reduction window would leave no key at all: repeat its border up to one window.
            x_BCHW = F.pad(x_BCHW, (0, max(0, self.ratio - W), 0, max(0, self.ratio - H)), mode="replicate")
        return self.reduce(x_BCHW).flatten(2).transpose(1, 2)
