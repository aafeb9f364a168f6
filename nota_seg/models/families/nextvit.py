"""Next-ViT (arXiv 2207.05501, table 3)."""

from __future__ import annotations

from typing import Any

from nota_seg.models.architecture import Architecture


def nextvit(repeats: int) -> Architecture:
    """Every stage ends with one transformer block after its convolution blocks; the third repeats that `repeats` times.

    Norms as in the published classification network, one after the last stage, so that its weights fit. Published
    segmentation has one after every stage: `norms=batch`.
    """

    def stage(convolutions: int, dim: int, transformer_dim: int | None, ratio: int, stride: int) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = [{"name": "ncb", "dim": dim}] * convolutions
        if transformer_dim is not None:
            blocks = [*blocks, {"name": "ntb", "dim": transformer_dim, "ratio": ratio}]
        return dict(
            depth=len(blocks), dim=transformer_dim or dim, stride=stride, stem="next", blocks=blocks, norm="none"
        )

    stages = [
        stage(3, 96, None, 8, stride=4),
        stage(3, 192, 256, 4, stride=2),
        stage(4, 384, 512, 2, stride=2),
        stage(2, 768, 1024, 1, stride=2),
    ]
    stages[2]["depth"] *= repeats
    stages[3]["norm"] = "batch"
    return dict(stages=stages, decoder={"name": "fpn"}, layer_norm_eps=1e-5, drop_path_rate=0.2)


# arXiv 2207.05501, table 3: depths 3, 4, 10 | 20 | 30, 3.
NEXTVIT = {"nextvit-s": nextvit(2), "nextvit-b": nextvit(4), "nextvit-l": nextvit(6)}
