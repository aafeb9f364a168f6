"""Simplified attention of DEST (Depth Estimation with Simplified Transformer, arXiv 2204.13791, figure 2).

No softmax: the weight of a token in a head is the largest of its scaled products with the keys, and what it weighs is
the mean of the map. Keys come from a strided convolution and a BatchNorm.

Every head weighs the same mean, so that the weights of the heads add up before they meet it; and the output projection
acts on the mean once instead of on every token: proj(s_n * mean) = s_n * (W mean) + b. `textbook` projects every token.

Shapes: B batch, H W height and width, C channels, h heads, N tokens, M reduced tokens, d channels of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Linear
from nota_seg.models.mixers.spatial_reduction import check_heads
from nota_seg.models.registry import MIXERS


@MIXERS.register("dest_attn")
class SimplifiedAttention(nn.Module):
    """The mean of the map, weighed for every token by its largest similarity to a key.

    Args:
        dim: Channels C.
        heads: Heads h; must divide `dim`.
        ratio: Spatial reduction of the keys along each side; 1 compares with every token.
        qkv_bias: Biases in the q and k projections.
        textbook: Compute in the order of the paper (for comparison; same parameters, equal output).
    """

    def __init__(self, dim: int, heads: int, ratio: int = 1, qkv_bias: bool = True, textbook: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = check_heads("dest_attn", dim, heads)
        self.ratio = ratio
        self.textbook = textbook
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.k = Linear(dim, dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        if ratio > 1:
            self.reduce = nn.Conv2d(dim, dim, kernel_size=ratio, stride=ratio)
            self.norm = nn.BatchNorm2d(dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        q_BhNd = self._heads(self.q(x_BHWC)) * self.head_dim**-0.5
        k_BhMd = self._heads(self.k(self._reduce(x_BHWC) if self.ratio > 1 else x_BHWC))
        weight_BN = (q_BhNd @ k_BhMd.transpose(2, 3)).amax(dim=3).sum(dim=1)
        weight_BHW1 = weight_BN.view(B, H, W, 1)
        mean_B11C = x_BHWC.mean(dim=(1, 2), keepdim=True)
        if self.textbook:
            return self.proj(weight_BHW1 * mean_B11C)
        return weight_BHW1 * F.linear(mean_B11C, self.proj.weight) + self.proj.bias

    def _heads(self, x_BHWC: Tensor) -> Tensor:
        """(B, ., ., C) to (B, h, N, d)."""
        return x_BHWC.flatten(1, 2).unflatten(2, (self.heads, self.head_dim)).transpose(1, 2)

    def _reduce(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        H, W = x_BCHW.shape[2:]
        # A picture smaller than one window would leave no key at all: repeat its border up to one window.
        x_BCHW = F.pad(x_BCHW, (0, max(0, self.ratio - W), 0, max(0, self.ratio - H)), mode="replicate")
        return self.norm(self.reduce(x_BCHW)).permute(0, 2, 3, 1)
