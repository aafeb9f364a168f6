"""PVTv2 with semantic FPN (arXiv 2106.13797, table 1); `-li` is the linear variant."""

from __future__ import annotations

from collections.abc import Sequence

from nota_seg.models.architecture import Architecture


def pvtv2(
    dims: Sequence[int], depths: Sequence[int], ratios: Sequence[float] = (8, 8, 4, 4), linear: bool = False
) -> Architecture:
    stages = [
        dict(
            depth=depth,
            dim=dim,
            stride=stride,
            heads=heads,
            mlp_ratio=mlp_ratio,
            mixer="lsra" if linear else {"name": "sra", "ratio": ratio},
            feedforward="pvt" if linear else "mix",
        )
        for depth, dim, stride, heads, mlp_ratio, ratio in zip(
            depths, dims, (4, 2, 2, 2), (1, 2, 5, 8), ratios, (8, 4, 2, 1), strict=True
        )
    ]
    return dict(stages=stages, decoder={"name": "fpn"})


PVTV2 = {
    "pvtv2-b0": pvtv2((32, 64, 160, 256), (2, 2, 2, 2)),
    "pvtv2-b1": pvtv2((64, 128, 320, 512), (2, 2, 2, 2)),
    "pvtv2-b2-li": pvtv2((64, 128, 320, 512), (3, 4, 6, 3), linear=True),
    "pvtv2-b2": pvtv2((64, 128, 320, 512), (3, 4, 6, 3)),
    "pvtv2-b3": pvtv2((64, 128, 320, 512), (3, 4, 18, 3)),
    "pvtv2-b4": pvtv2((64, 128, 320, 512), (3, 8, 27, 3)),
    "pvtv2-b5": pvtv2((64, 128, 320, 512), (3, 6, 40, 3), ratios=(4, 4, 4, 4)),
}
