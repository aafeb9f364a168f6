"""Overlapping patch embedding of SegFormer (arXiv 2105.15203, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from nota_seg.models.registry import STEMS


@STEMS.register("overlap")
class OverlapPatchEmbedding(nn.Module):
    """A strided convolution whose windows overlap, then LayerNorm: k7 s4 p3 at first, k3 s2 p1 between stages.

    Args:
        in_channels: Channels in.
        dim: Channels out.
        stride: The map becomes this many times smaller along each side; the kernel is 2 * stride - 1.
    """

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=2 * stride - 1, stride=stride, padding=stride - 1)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.norm(self.proj(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
