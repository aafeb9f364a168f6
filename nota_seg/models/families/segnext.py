"""SegNeXt: MSCAN with the light Hamburger (arXiv 2209.08575, table 2)."""

from __future__ import annotations

from collections.abc import Sequence

from nota_seg.models.architecture import Architecture


def segnext(
    dims: Sequence[int], depths: Sequence[int], ham_dim: int, rank: int, drop_path: float = 0.1
) -> Architecture:
    stages = [
        dict(
            depth=depth,
            dim=dim,
            stride=stride,
            mlp_ratio=ratio,
            stem="conv",
            mixer="msca",
            feedforward="mscan",
            skip={"name": "lscale", "norm": "batch"},
        )
        for depth, dim, stride, ratio in zip(depths, dims, (4, 2, 2, 2), (8, 8, 4, 4), strict=True)
    ]
    decoder = {"name": "hamburger", "dim": ham_dim, "rank": rank}
    return dict(stages=stages, decoder=decoder, layer_norm_eps=1e-5, drop_path_rate=drop_path)


SEGNEXT = {
    "segnext-t": segnext((32, 64, 160, 256), (3, 3, 5, 2), 256, 16),
    "segnext-s": segnext((64, 128, 320, 512), (2, 2, 4, 2), 256, 16),
    "segnext-b": segnext((64, 128, 320, 512), (3, 3, 12, 3), 512, 64),
    "segnext-l": segnext((64, 128, 320, 512), (3, 5, 27, 3), 1024, 64, drop_path=0.3),
}
