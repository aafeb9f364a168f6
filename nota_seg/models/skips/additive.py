"""The pre-norm residual of SegFormer and of most transformers (arXiv 2002.04745)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nota_seg.models.common import DropPath
from nota_seg.models.norms import build_norm
from nota_seg.models.registry import SKIPS


@SKIPS.register("add")
class AdditiveSkip(nn.Module):
    """x + DropPath(branch(norm(x))).

    Args:
        dim: Channels.
        drop_path: Probability of dropping the branch for a whole sample (stochastic depth, arXiv 1603.09382).
        eps: Of the norm.
        norm: "layer", or "batch" as in convolutional blocks and DEST; "none" leaves the map as it is.
    """

    def __init__(self, dim: int, drop_path: float, eps: float, norm: str = "layer") -> None:
        super().__init__()
        self.norm = build_norm("skip 'add'", norm, dim, eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BHWC + self.drop_path(branch(self.norm(x_BHWC)))
