"""The plain two-layer perceptron of ViT (arXiv 2010.11929)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.layers import Linear
from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("mlp")
class MLP(nn.Module):
    """Linear, GELU, Linear, on each token alone.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BHWC)))
