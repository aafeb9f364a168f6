"""Linear spatial-reduction attention of PVTv2 (arXiv 2106.13797, section 3.2, figure 1b).

Keys and values come from a map that average pooling has brought to 7 x 7, whatever the size of the input: the cost is
linear in the number of tokens. Without `proj` it is the attention of the study's final model.

Shapes: B batch, H W height and width, C channels, h heads, N tokens, M = pool^2 tokens, d channels of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.attention import attention
from nota_seg.models.layers import Linear, Pointwise
from nota_seg.models.mixers.spatial_reduction import check_heads
from nota_seg.models.registry import MIXERS
from util.errors import InputError


class PooledTokens(nn.Module):
    """Average pooling to pool x pool, 1x1 convolution, LayerNorm, GELU: (B, H, W, C) to (B, M, C).

    A map smaller than `pool` repeats cells, so that there are always M tokens.

    Args:
        dim: Channels C.
        pool: Side of the pooled map.
    """

    def __init__(self, dim: int, pool: int) -> None:
        super().__init__()
        if pool < 1:
            raise InputError(f"pool must be at least 1 cell a side, got {pool}")
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.reduce = Pointwise(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        pooled_BCPP = self.reduce(self.pool(x_BHWC.permute(0, 3, 1, 2)))
        return F.gelu(self.norm(pooled_BCPP.flatten(2).transpose(1, 2)))


@MIXERS.register("lsra")
class LinearSpatialReductionAttention(nn.Module):
    """Multi-head attention to pool^2 pooled tokens.

    Args:
        dim: Channels C.
        heads: Heads h; must divide `dim`.
        pool: Side of the pooled map.
        proj: With the output projection.
        qkv_bias: Biases in the q and kv projections.
    """

    def __init__(self, dim: int, heads: int, pool: int = 7, proj: bool = True, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = check_heads("lsra", dim, heads)
        self.tokens = PooledTokens(dim, pool)
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim) if proj else nn.Identity()

    def forward(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        q_BhNd = self.q(x_BHWC).view(B, H * W, self.heads, self.head_dim).transpose(1, 2)
        kv_BMC = self.kv(self.tokens(x_BHWC))
        kv_BM2hd = kv_BMC.view(B, kv_BMC.shape[1], 2, self.heads, self.head_dim)
        k_BhMd, v_BhMd = kv_BM2hd.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(q_BhNd, k_BhMd, v_BhMd).reshape(B, H, W, C))
