"""The pre-norm residual with a learned scale per channel (CaiT's LayerScale, arXiv 2103.17239).

With `norm="batch"` it is the skip of SegNeXt's MSCAN (arXiv 2209.08575).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nota_seg.models.common import DropPath, LayerScale
from nota_seg.models.norms import build_norm
from nota_seg.models.registry import SKIPS


@SKIPS.register("lscale")
class LayerScaleSkip(nn.Module):
    """x + DropPath(scale * branch(norm(x))).

    Args:
        dim: Channels.
        drop_path: Probability of dropping the branch for a whole sample.
        eps: Of the norm.
        init: What every scale starts from.
        norm: "layer" or "batch"; "none" leaves the map as it is.
    """

    def __init__(self, dim: int, drop_path: float, eps: float, init: float = 1e-2, norm: str = "layer") -> None:
        super().__init__()
        self.norm = build_norm("skip 'lscale'", norm, dim, eps)
        self.scale = LayerScale(dim, init)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BHWC + self.drop_path(self.scale(branch(self.norm(x_BHWC))))
