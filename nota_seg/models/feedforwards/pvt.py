"""Feed-forward of PVTv2's linear variant (arXiv 2106.13797, section 3.3; the published code for the ReLU)."""

from __future__ import annotations

from nota_seg.models.feedforwards.mix import MixFeedForward
from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("pvt")
class PVTFeedForward(MixFeedForward):
    """Linear, ReLU, depth-wise 3x3, GELU, Linear. Only PVTv2's linear variant has the ReLU; without it, it is `mix`.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    relu_first = True
