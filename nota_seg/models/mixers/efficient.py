"""Efficient attention (arXiv 1812.01243, figure 1 right), and LSREA, its form with LSRA's pooled keys and values.

Instead of N x N similarities each head builds one small d_k x d_v context of the whole map and every token reads from
it: out = softmax_channels(q) (softmax_positions(k)^T v). No scale factor; cost and memory are linear in N.

The published module adds its input (here the normed map that the block hands it) to its output: `residual`. The block's
skip still adds the map itself; the two are different terms, x + (LN x + attention(LN x)). The study kept both. Its
efficient attention also kept SegFormer's output projection after the module (`proj`), its LSREA did not: the parameters
that it printed say so. `residual=True, proj=False` is the published module.

Shapes: B batch, H W height and width, C channels, K and V channels of keys and values, h heads, N tokens of the map,
M tokens that are attended to, k and v channels of a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from nota_seg.models.layers import Linear, Pointwise
from nota_seg.models.mixers.linear_spatial_reduction import PooledTokens
from nota_seg.models.registry import MIXERS
from util.errors import InputError


@MIXERS.register("efficient")
class EfficientAttention(nn.Module):
    """Multi-head efficient attention.

    Args:
        dim: Channels C.
        heads: Heads h; must divide `key_dim` and `value_dim` (not `dim`).
        key_dim: Channels K of queries and keys, all heads together.
        value_dim: Channels V of values, all heads together.
        residual: Add the module's own input, as published.
        proj: A Linear after all that, as in the study's hybrids.
    """

    NAME = "efficient"

    def __init__(
        self,
        dim: int,
        heads: int,
        key_dim: int = 64,
        value_dim: int = 32,
        residual: bool = True,
        proj: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or key_dim % heads or value_dim % heads:
            raise InputError(
                f"mixer {self.NAME!r}: {heads} heads do not divide both key_dim {key_dim} and value_dim {value_dim}; "
                "choose heads that do"
            )
        self.heads = heads
        self.residual = residual
        self.queries = Pointwise(dim, key_dim)
        self.keys = Pointwise(dim, key_dim)
        self.values = Pointwise(dim, value_dim)
        self.reprojection = Pointwise(value_dim, dim)
        self.proj = Linear(dim, dim) if proj else nn.Identity()

    @classmethod
    def fitting_heads(cls, dim: int, heads: int) -> int:
        """Heads for a model name such as `segformer-b2-efficient`: SegFormer's 5 do not divide 64, the study took 4."""
        return 2 ** (heads.bit_length() - 1)

    def source(self, x_BHWC: Tensor) -> Tensor:
        """The map (B, C, ., .) that keys and values are made of."""
        return x_BHWC.permute(0, 3, 1, 2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        H, W = x_BCHW.shape[2:]
        source = self.source(x_BHWC)
        q_BhkN = self._heads(self.queries(x_BCHW)).softmax(dim=2)
        k_BhkM = self._heads(self.keys(source)).softmax(dim=3)
        v_BhvM = self._heads(self.values(source))
        context_Bhvk = v_BhvM @ k_BhkM.transpose(2, 3)
        out_BVHW = (context_Bhvk @ q_BhkN).flatten(1, 2).unflatten(2, (H, W))
        out_BHWC = self.reprojection(out_BVHW).permute(0, 2, 3, 1)
        return self.proj(out_BHWC + x_BHWC if self.residual else out_BHWC)

    def _heads(self, x_BKHW: Tensor) -> Tensor:
        """(B, K, ., .) to (B, h, k, N)."""
        return x_BKHW.flatten(2).unflatten(1, (self.heads, -1))


@MIXERS.register("lsrea")
class LinearSpatialReductionEfficientAttention(EfficientAttention):
    """Efficient attention whose keys and values come from LSRA's pooled tokens.

    Args:
        dim: Channels C.
        heads: Heads h; must divide `key_dim` and `value_dim`.
        pool: Side of the pooled map.
        key_dim: Channels K of queries and keys, all heads together.
        value_dim: Channels V of values, all heads together.
        residual: Add the module's own input.
        proj: A Linear after all that; the study had it after efficient attention only.
    """

    NAME = "lsrea"

    def __init__(
        self,
        dim: int,
        heads: int,
        pool: int = 7,
        key_dim: int = 64,
        value_dim: int = 32,
        residual: bool = True,
        proj: bool = False,
    ) -> None:
        super().__init__(dim, heads, key_dim, value_dim, residual, proj)
        self.tokens = PooledTokens(dim, pool)

    def source(self, x_BHWC: Tensor) -> Tensor:
        # One row of M tokens is as good as a square of them: keys and values are taken from each token alone.
        return self.tokens(x_BHWC).transpose(1, 2).unsqueeze(2)
