"""One block: a mixer and a feed-forward, each inside a skip that owns the norm and the residual."""

from __future__ import annotations

from torch import Tensor, nn

from nota_seg.models.architecture import StageConfig
from nota_seg.models.registry import FEEDFORWARDS, MIXERS, SKIPS


class Block(nn.Module):
    """The MetaFormer block (arXiv 2111.11418) with its three choices taken from the stage.

    Args:
        stage: Dimensions and component names.
        drop_path: Stochastic depth of this block.
        eps: Epsilon of the norms that the skips own.
        index: Number of the block in its stage, from 0, for mixers that alternate (shifted windows).
    """

    def __init__(self, stage: StageConfig, drop_path: float, eps: float, index: int = 0) -> None:
        super().__init__()
        self.mixer = MIXERS.build(stage.mixer, dim=stage.dim, heads=stage.heads, index=index)
        self.feedforward = FEEDFORWARDS.build(stage.feedforward, dim=stage.dim, hidden=int(stage.dim * stage.mlp_ratio))
        self.skip1 = SKIPS.build(stage.skip, dim=stage.dim, drop_path=drop_path, eps=eps)
        self.skip2 = SKIPS.build(stage.skip, dim=stage.dim, drop_path=drop_path, eps=eps)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = self.skip1(x_BHWC, self.mixer)
        return self.skip2(x_BHWC, self.feedforward)
