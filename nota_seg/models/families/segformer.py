"""SegFormer (arXiv 2105.15203, table 6)."""

from __future__ import annotations

from collections.abc import Sequence

from nota_seg.models.architecture import Architecture


def segformer(dims: Sequence[int], depths: Sequence[int], decoder_dim: int) -> Architecture:
    stages = [
        dict(depth=depth, dim=dim, stride=stride, heads=heads, mlp_ratio=4, mixer={"name": "sra", "ratio": ratio})
        for depth, dim, stride, heads, ratio in zip(depths, dims, (4, 2, 2, 2), (1, 2, 5, 8), (8, 4, 2, 1), strict=True)
    ]
    return dict(stages=stages, decoder={"name": "mlp", "dim": decoder_dim})


SEGFORMER = {
    "segformer-b0": segformer((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "segformer-b1": segformer((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "segformer-b2": segformer((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "segformer-b3": segformer((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "segformer-b4": segformer((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "segformer-b5": segformer((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
