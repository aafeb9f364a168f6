"""Recursive skip with layer normalisation (Rethinking Skip Connection with Layer Normalization, arXiv 2105.07205).

The lambda = 2 form: the input is added twice, a LayerNorm after each time. It is post-norm: the branch sees the map as
it is, and nothing passes the block unnormed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nota_seg.models.common import DropPath
from nota_seg.models.registry import SKIPS


@SKIPS.register("rskip")
class RecursiveSkip(nn.Module):
    """LayerNorm(DropPath(LayerNorm(branch(x) + x)) + x).

    Args:
        dim: Channels.
        drop_path: Probability of dropping all but the outer input for a whole sample.
        eps: Of the LayerNorms.
    """

    def __init__(self, dim: int, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        inner_BHWC = self.norm1(branch(x_BHWC) + x_BHWC)
        return self.norm2(self.drop_path(inner_BHWC) + x_BHWC)
