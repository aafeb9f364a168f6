"""Window and shifted-window attention of Swin (arXiv 2103.14030, figures 2 and 4, equations 3 and 4).

Attention inside windows of size x size; in every second block the map is rolled by half a window before, so that
neighbouring windows exchange. At sizes that are no multiple of the window the normed map is padded with zeros before it
is rolled, as published (timm rolls before it pads, which gives other outputs at such sizes).

Shapes: B batch, H W height and width, C channels, P Q padded height and width, w side of a window, n windows, T = w^2
tokens of a window, h heads, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Linear
from nota_seg.models.mixers.spatial_reduction import check_heads
from nota_seg.models.registry import MIXERS
from util.errors import InputError


@MIXERS.register("window")
class WindowAttention(nn.Module):
    """W-MSA in the blocks 0, 2, 4, ... of a stage, SW-MSA in the others.

    Args:
        dim: Channels C.
        heads: Heads h; must divide `dim`.
        index: Number of the block in its stage, from 0.
        size: Side w of a window.
        shift: Roll the map by size // 2 in every second block; without, no block does.
        shift_single: Shift also where a map's shorter side is one window. Published segmentation code does; published
            classification, whose last stage is one window at its training size, does not.
        qkv_bias: Biases in the qkv projection.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        index: int = 0,
        size: int = 7,
        shift: bool = True,
        shift_single: bool = True,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"mixer 'window': size must be at least 1, got {size}")
        self.heads = heads
        self.head_dim = check_heads("window", dim, heads)
        self.size = size
        self.shift = size // 2 if shift and index % 2 else 0
        self.shift_single = shift_single
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        # One bias a head for each offset (dy, dx) between two tokens of a window, dy and dx from 1 - w to w - 1.
        self.position_bias = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        self.init_own_weights()

    @torch.no_grad()
    def init_own_weights(self) -> None:
        if not getattr(self.position_bias, "_is_hf_initialized", False):
            nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        w = self.size
        s = self.shift if self.shift_single or min(H, W) != w else 0
        rows, columns = (H + w - 1) // w, (W + w - 1) // w
        P, Q = rows * w, columns * w
        x_BPQC = F.pad(x_BHWC, (0, 0, 0, Q - W, 0, P - H))
        if s:
            x_BPQC = x_BPQC.roll((-s, -s), dims=(1, 2))
        x_nTC = self._to_windows(x_BPQC, rows, columns)
        qkv_nT3hd = self.qkv(x_nTC).view(-1, w * w, 3, self.heads, self.head_dim)
        q_nhTd, k_nhTd, v_nhTd = qkv_nT3hd.permute(2, 0, 3, 1, 4).unbind(0)
        out_nhTd = F.scaled_dot_product_attention(
            q_nhTd, k_nhTd, v_nhTd, attn_mask=self._mask(B, rows, columns, s, q_nhTd)
        )
        x_BPQC = self._to_map(self.proj(out_nhTd.transpose(1, 2).flatten(2)), B, rows, columns)
        if s:
            x_BPQC = x_BPQC.roll((s, s), dims=(1, 2))
        return x_BPQC[:, :H, :W].contiguous()

    def _to_windows(self, x_BPQC: Tensor, rows: int, columns: int) -> Tensor:
        B, w, C = x_BPQC.shape[0], self.size, x_BPQC.shape[3]
        x_BrwcwC = x_BPQC.reshape(B, rows, w, columns, w, C)
        return x_BrwcwC.transpose(2, 3).reshape(B * rows * columns, w * w, C)

    def _to_map(self, x_nTC: Tensor, B: int, rows: int, columns: int) -> Tensor:
        w, C = self.size, x_nTC.shape[-1]
        return x_nTC.reshape(B, rows, columns, w, w, C).transpose(2, 3).reshape(B, rows * w, columns * w, C)

    def _mask(self, B: int, rows: int, columns: int, shift: int, like: Tensor) -> Tensor:
        """What is added to the logits: position bias (1, h, T, T); in shifted blocks with the mask, (n, h, T, T)."""
        w = self.size
        y_T = torch.arange(w, device=like.device).repeat_interleave(w)
        x_T = torch.arange(w, device=like.device).repeat(w)
        offset_TT = (y_T[:, None] - y_T + w - 1) * (2 * w - 1) + x_T[:, None] - x_T + w - 1
        bias_1hTT = self.position_bias[offset_TT].permute(2, 0, 1)[None].to(like.dtype)
        if not shift:
            return bias_1hTT
        # The roll brought the far border next to the near one. Of the last window of a row or column, tokens on the
        # two sides of that seam must not see each other.
        region_PQ = 3 * self._side(rows * w, like)[:, None] + self._side(columns * w, like)
        region_nT = self._to_windows(region_PQ[None, :, :, None], rows, columns)[..., 0]
        apart_n1TT = (region_nT[:, None, :, None] != region_nT[:, None, None, :]).to(like.dtype)
        return (bias_1hTT - 100 * apart_n1TT).repeat(B, 1, 1, 1)

    def _side(self, length: int, like: Tensor) -> Tensor:
        """Along one side of the rolled map: 0 up to the last window, 1 before the seam in it, 2 after the seam."""
        i = torch.arange(length, device=like.device)
        return (i >= length - self.size).long() + (i >= length - self.shift).long()
