"""Swin with UPerNet (arXiv 2103.14030, table 7), windows of 7."""

from __future__ import annotations

from collections.abc import Sequence

from nota_seg.models.architecture import Architecture


def swin(dim: int, depths: Sequence[int], heads: int) -> Architecture:
    """Each stage twice the channels and heads of the one before; norms for the decoder alone, as in segmentation."""
    stages = [
        dict(
            depth=depth,
            dim=dim << i,
            stride=2 if i else 4,
            heads=heads << i,
            mlp_ratio=4,
            stem="merge" if i else "patch",
            mixer={"name": "window", "shift_single": False},
            feedforward="mlp",
            norm_next=False,
        )
        for i, depth in enumerate(depths)
    ]
    return dict(stages=stages, decoder={"name": "uper"}, layer_norm_eps=1e-5, drop_path_rate=0.2)


SWIN = {
    "swin-t": swin(96, (2, 2, 6, 2), heads=3),
    "swin-s": swin(96, (2, 2, 18, 2), heads=3),
    "swin-b": swin(128, (2, 2, 18, 2), heads=4),
    "swin-l": swin(192, (2, 2, 18, 2), heads=6),
}
