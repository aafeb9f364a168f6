"""Next transformer block of Next-ViT (arXiv 2207.05501, figure 2, right; equations 4 to 6).

Most channels pass attention (low frequencies), the rest a convolution of what came out of it (high frequencies).

Shapes: B batch, H W height and width, C channels of the attention, h heads, d channels of a head, N = H * W tokens,
M pooled tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.attention import attention
from nota_seg.models.blocks.next_convolution import ConvMLP, MultiHeadConvolutionalAttention
from nota_seg.models.common import DropPath, make_divisible
from nota_seg.models.layers import Linear
from nota_seg.models.registry import BLOCKS
from nota_seg.models.stems.next import PatchEmbedding
from util.errors import InputError


class EfficientSelfAttention(nn.Module):
    """E-MHSA: keys and values from tokens averaged over runs of ratio^2, then BatchNorm.

    The published code averages consecutive tokens of the flattened map (pieces of a row), not squares of it, and leaves
    out what does not fill the last run; the published weights were trained so.

    Args:
        dim: Channels C.
        head_dim: d.
        ratio: Reduction along each side that one run stands for; 1 keeps all tokens.
        eps: Of the BatchNorm.
    """

    def __init__(self, dim: int, head_dim: int, ratio: int, eps: float) -> None:
        super().__init__()
        if dim % head_dim:
            raise InputError(f"block 'ntb': heads of {head_dim} channels do not divide {dim} channels")
        self.heads = dim // head_dim
        self.run = ratio * ratio
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.proj = Linear(dim, dim)
        if self.run > 1:
            self.norm = nn.BatchNorm1d(dim, eps=eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        x_BCN = x_BCHW.flatten(2)
        x_BNC = x_BCN.transpose(1, 2)
        pooled_BMC = self._pool(x_BCN).transpose(1, 2) if self.run > 1 else x_BNC
        q_BhNd, k_BhMd, v_BhMd = (
            self._heads(self.q(x_BNC)),
            self._heads(self.k(pooled_BMC)),
            self._heads(self.v(pooled_BMC)),
        )
        out_BNC = attention(q_BhNd, k_BhMd, v_BhMd).reshape(B, H * W, C)
        return self.proj(out_BNC).transpose(1, 2).reshape(B, C, H, W)

    def _pool(self, x_BCN: Tensor) -> Tensor:
        # A map of fewer tokens than one run would leave no key at all: all of it is then one run.
        return self.norm(F.avg_pool1d(x_BCN, min(self.run, x_BCN.shape[2])))

    def _heads(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        return x_BNC.view(B, N, self.heads, C // self.heads).transpose(1, 2)


@BLOCKS.register("ntb")
class NextTransformerBlock(nn.Module):
    """Patch embedding to the attention's channels; x + E-MHSA(BN(x)); y = project(x), y + MHCA(y); both concatenated;
    z + MLP(BN(z)).

    Args:
        in_dim: Channels in.
        dim: Channels out.
        drop_path: Stochastic depth of the MLP; the two mixers share it in proportion to their channels.
        eps: Of the BatchNorms.
        ratio: Spatial reduction of the attention's keys and values.
        mix: Share of the channels that pass the attention, before rounding to a multiple of 32.
        head_dim: Channels of a head.
        mlp_ratio: Hidden channels of the MLP / dim.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        drop_path: float,
        eps: float,
        ratio: int = 1,
        mix: float = 0.75,
        head_dim: int = 32,
        mlp_ratio: float = 2,
    ) -> None:
        super().__init__()
        attention_dim = make_divisible(int(dim * mix), 32)
        if attention_dim >= dim:
            raise InputError(f"block 'ntb': {attention_dim} of {dim} channels for the attention leave none to convolve")
        self.patch = PatchEmbedding(in_dim, attention_dim)
        self.norm1 = nn.BatchNorm2d(attention_dim, eps=eps)
        self.attention = EfficientSelfAttention(attention_dim, head_dim, ratio, eps)
        self.project = PatchEmbedding(attention_dim, dim - attention_dim)
        self.mhca = MultiHeadConvolutionalAttention(dim - attention_dim, head_dim, eps)
        self.norm2 = nn.BatchNorm2d(dim, eps=eps)
        self.mlp = ConvMLP(dim, mlp_ratio)
        self.drop_path_attention = DropPath(drop_path * mix)
        self.drop_path_mhca = DropPath(drop_path * (1 - mix))
        self.drop_path_mlp = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        low_BCHW = self.patch(x_BHWC.permute(0, 3, 1, 2))
        low_BCHW = low_BCHW + self.drop_path_attention(self.attention(self.norm1(low_BCHW)))
        high_BCHW = self.project(low_BCHW)
        high_BCHW = high_BCHW + self.drop_path_mhca(self.mhca(high_BCHW))
        x_BCHW = torch.cat([low_BCHW, high_BCHW], dim=1)
        x_BCHW = x_BCHW + self.drop_path_mlp(self.mlp(self.norm2(x_BCHW)))
        return x_BCHW.permute(0, 2, 3, 1)
