"""Parts that several components share and that timm has too.

Importing them from timm brings torchvision and torch's compiler along: a second of every command that loads a model
(docs/performance.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training zeroes whole samples and scales the others up to the same mean.

    Args:
        drop_prob: Probability of zeroing a sample.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep if keep > 0 else mask)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class LayerScale(nn.Module):
    """A learned factor per channel, the last axis (CaiT, arXiv 2103.17239).

    Args:
        dim: Channels.
        init: What every factor starts from.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def make_divisible(channels: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, at least one, that is not over a tenth below `channels` (MobileNet's rule)."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest
