"""Lawin decoder (arXiv 2201.01615, figures 2 and 3): spatial pyramid pooling by large window attention.

The fused map F (stages 2 to 4 at the size of stage 2) is cut into 8 x 8 windows. Each window attends to the 8R x 8R
region around it, pooled to 8 x 8, for R = 8, 4, 2. The three results join a short path and the global average, and
stage 1 sharpens them.

What differs: the regions of neighbouring windows overlap and share one grid of R x R cells (their offsets are multiples
of R), so F is pooled and normalised once and the regions are cut from the pooled grid, instead of cutting regions R^2
times larger and pooling each. Convolutions over resized maps run before the resizing (see `parts.fuse`). Both give
equal results. The published code takes multiples of 64 alone; here F is zero-padded to whole windows, as its border is,
and the result cropped.

Shapes: B batch, C channels, H W height and width of F, n windows, P = 64 positions of a window, h heads, d channels of
a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.decoders.parts import ConvNormReLU, fuse
from nota_seg.models.layers import Linear, Pointwise
from nota_seg.models.registry import DECODERS
from util.errors import InputError

WINDOW = 8  # side of a query window


class PositionMixing(nn.Module):
    """For each head a Linear over the positions of a window, shared by the head's channels (MLP-Mixer's token mixing).

    Args:
        heads: Heads h.
        positions: P.
    """

    def __init__(self, heads: int, positions: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(heads, positions, positions))
        self.bias = nn.Parameter(torch.zeros(heads * positions))
        self.init_own_weights()

    @torch.no_grad()
    def init_own_weights(self) -> None:
        """As the Linear that each head's slice is."""
        if not getattr(self.weight, "_is_hf_initialized", False):
            nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x_nPC: Tensor) -> Tensor:
        n, P, C = x_nPC.shape
        x_nPhd = x_nPC.view(n, P, self.heads, C // self.heads)
        mixed_nPhd = torch.einsum("hqp,nphd->nqhd", self.weight, x_nPhd)
        return (mixed_nPhd + self.bias.view(self.heads, P).transpose(0, 1)[:, :, None]).reshape(n, P, C)


class ZeroBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose scale starts from 0, so that the branch before it starts as nothing."""

    @torch.no_grad()
    def init_own_weights(self) -> None:
        """Only what no checkpoint has filled."""
        if not getattr(self.weight, "_is_hf_initialized", False):
            nn.init.zeros_(self.weight)
        if not getattr(self.running_mean, "_is_hf_initialized", False):
            self.reset_running_stats()


class LargeWindowAttention(nn.Module):
    """Every window of F attends to its pooled surroundings; added to F.

    Args:
        dim: Channels C of F.
        ratio: R: the surroundings are R times as long and wide as the window.
        heads: Heads h.
        reduction: Attention works with `dim` / reduction channels.
    """

    def __init__(self, dim: int, ratio: int, heads: int, reduction: int) -> None:
        super().__init__()
        inner = dim // reduction
        if dim % heads or inner % heads:
            raise InputError(f"decoder 'lawin': {heads} heads do not divide {dim} and {inner} channels")
        self.ratio = ratio
        self.heads = heads
        self.context_norm = nn.LayerNorm(dim, eps=1e-5)
        self.position_mixing = PositionMixing(heads, WINDOW * WINDOW)
        self.q = Linear(dim, inner)
        self.k = Linear(dim, inner)
        self.v = Linear(dim, inner)
        self.proj = Pointwise(inner, dim, bias=False)
        self.norm = ZeroBatchNorm(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        H, W = x_BCHW.shape[2:]
        padded_BCHW = F.pad(x_BCHW, (0, -W % WINDOW, 0, -H % WINDOW))
        B, C, Hp, Wp = padded_BCHW.shape
        rows, columns = Hp // WINDOW, Wp // WINDOW
        context_nPC = self.context(padded_BCHW)
        q_BHWc = self.q(padded_BCHW.permute(0, 2, 3, 1))
        q_nPc = q_BHWc.reshape(B, rows, WINDOW, columns, WINDOW, -1).permute(0, 1, 3, 2, 4, 5).flatten(3, 4)
        q_nhPd = self._heads(q_nPc.flatten(0, 2))
        k_nhPd, v_nhPd = self._heads(self.k(context_nPC)), self._heads(self.v(context_nPC))
        out_nhPd = F.scaled_dot_product_attention(q_nhPd, k_nhPd, v_nhPd)
        out_BrcPd = out_nhPd.permute(0, 2, 1, 3).reshape(B, rows, columns, WINDOW, WINDOW, -1)
        out_BcHW = out_BrcPd.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, Hp, Wp)[:, :, :H, :W]
        return x_BCHW + self.norm(self.proj(out_BcHW))

    def context(self, x_BCHW: Tensor) -> Tensor:
        """The pooled surroundings of every window, (n, P, C), n over pictures, rows, columns."""
        border = WINDOW * (self.ratio - 1) // 2
        x_BCHW = F.pad(x_BCHW, (border, border, border, border))  # zeros take part in the pooling, as published
        pooled_BCHW = 0.5 * (F.max_pool2d(x_BCHW, self.ratio) + F.avg_pool2d(x_BCHW, self.ratio))
        pooled_BHWC = self.context_norm(pooled_BCHW.permute(0, 2, 3, 1))
        step = WINDOW // self.ratio  # neighbouring windows are 8 pixels of F apart, that many cells
        regions_BrcCyx = pooled_BHWC.unfold(1, WINDOW, step).unfold(2, WINDOW, step)
        context_nPC = regions_BrcCyx.permute(0, 1, 2, 4, 5, 3).flatten(0, 2).flatten(1, 2)
        return context_nPC + self.position_mixing(context_nPC)

    def _heads(self, x_nPc: Tensor) -> Tensor:
        n, P, c = x_nPc.shape
        return x_nPc.reshape(n, P, self.heads, c // self.heads).transpose(1, 2)


@DECODERS.register("lawin")
class LawinASPP(nn.Module):
    """Fuse stages 2 to 4; short path, global average, three large window attentions; sharpen by stage 1; classify.

    Args:
        channels: Channels of each of the four stages, finest first.
        strides: Stride of each stage.
        num_labels: Classes.
        dim: Channels of F and of all that follows.
        embed_dim: Channels that stages 2 to 4 are brought to.
        low_level_dim: Channels that stage 1 is brought to.
        ratios: R of each attention; divisors of 8.
        heads: Heads of each attention; R^2 by default.
        reduction: Attention works with `dim` / reduction channels.
        dropout: Before the classifier, whole channels at a time.
        textbook: Fuse maps in the order of the paper (for comparison; same parameters, equal logits).

    Raises:
        InputError: Fewer than two stages, heads that do not divide the channels, ratios that do not divide 8.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_labels: int,
        dim: int = 512,
        embed_dim: int = 768,
        low_level_dim: int = 48,
        ratios: Sequence[int] = (8, 4, 2),
        heads: Sequence[int] | None = None,
        reduction: int = 2,
        dropout: float = 0.1,
        textbook: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise InputError(f"decoder 'lawin' needs 2 or more stages, got {len(channels)}")
        if any(r not in (2, 4, 8) for r in ratios):
            raise InputError(f"decoder 'lawin': ratios must be 2, 4 or 8 (divisors of the window of 8), got {ratios}")
        if heads is None:
            # A tiny model has fewer channels than 8^2 heads: as many heads as divide them.
            heads = [math.gcd(r * r, dim // reduction) for r in ratios]
        if len(heads) != len(ratios):
            raise InputError(f"decoder 'lawin': heads must be one a ratio, got {len(heads)} for {len(ratios)} ratios")
        self.stride = strides[0]
        self.textbook = textbook
        self.low_level = Linear(channels[0], low_level_dim)
        self.linears = nn.ModuleList(Linear(c, embed_dim) for c in channels[1:])
        self.fuse = ConvNormReLU(embed_dim * len(self.linears), dim, kernel=1)
        self.short_path = ConvNormReLU(dim, dim, kernel=1)
        self.image_pool = ConvNormReLU(dim, dim, kernel=1)
        self.attentions = nn.ModuleList(
            LargeWindowAttention(dim, r, h, reduction) for r, h in zip(ratios, heads, strict=True)
        )
        self.join = ConvNormReLU(dim * (2 + len(self.attentions)), dim, kernel=1)
        self.low_level_fuse = ConvNormReLU(dim + low_level_dim, dim, kernel=1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Pointwise(dim, num_labels)

    def forward(self, features: list[Tensor]) -> Tensor:
        fine, coarse = features[0].shape[2:], features[1].shape[2:]
        low_BCHW = _linear(self.low_level, features[0])
        embedded = [_linear(linear, x) for linear, x in zip(self.linears, features[1:], strict=True)]
        fused = fuse(self.fuse.conv, embedded[::-1], coarse, textbook=self.textbook)  # deepest first, as published
        x_BCHW = self.fuse.activate(fused)
        mean_BCHW = self.image_pool(x_BCHW.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *coarse)
        pyramid = [self.short_path(x_BCHW), mean_BCHW, *(attention(x_BCHW) for attention in self.attentions)]
        x_BCHW = self.join(torch.cat(pyramid, dim=1))
        sharpened = fuse(self.low_level_fuse.conv, [x_BCHW, low_BCHW], fine, textbook=self.textbook)
        return self.classifier(self.dropout(self.low_level_fuse.activate(sharpened)))


def _linear(linear: nn.Linear, x_BCHW: Tensor) -> Tensor:
    return linear(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
