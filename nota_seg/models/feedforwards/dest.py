"""Mix-FFN of DEST (Depth Estimation with Simplified Transformer, arXiv 2204.13791): BatchNorm and ReLU, no GELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nota_seg.models.feedforwards.rows import Weights, evaluate_by_rows
from nota_seg.models.fuse import fold
from nota_seg.models.layers import eager_on_cpu, untouched
from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("dest")
class DESTFeedForward(nn.Module):
    """1x1 convolution, BatchNorm, depth-wise 3x3, BatchNorm, ReLU, 1x1 convolution.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)

    def fold_norm(self) -> None:
        """For evaluation: the norms become parts of the convolutions before them."""
        fold(self, "fc1", "norm1")
        fold(self, "dwconv", "norm2")

    def forward(self, x_BHWC: Tensor) -> Tensor:
        # With the batch's own statistics nothing can be done a row at a time.
        if (
            not (self.training or torch.is_grad_enabled())
            and eager_on_cpu(x_BHWC)
            and untouched(self.fc1, self.norm1, self.dwconv, self.norm2, self.fc2)
        ):
            (w1, b1), (wd, bd) = _folded(self.fc1, self.norm1), _folded(self.dwconv, self.norm2)
            weights = Weights.of(self.fc1, self.dwconv, self.fc2)._replace(w1=w1.flatten(1), b1=b1, wd=wd, bd=bd)
            return evaluate_by_rows(x_BHWC, weights, relu_first=False, relu_last=True)
        x_BCHW = self.norm1(self.fc1(x_BHWC.permute(0, 3, 1, 2)))
        x_BCHW = self.fc2(F.relu(self.norm2(self.dwconv(x_BCHW))))
        return x_BCHW.permute(0, 2, 3, 1)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the norm after it."""
    if not isinstance(norm, nn.BatchNorm2d):
        return conv.weight, conv.bias
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
