"""The study's own models: each row of its table that is not another family's member or a list of changes of one.

What the study printed stands in `nota_seg/models/study.py`, beside what is counted here.
"""

from __future__ import annotations

from typing import Any

from nota_seg.models.architecture import Architecture
from nota_seg.models.families.segnext import segnext

DIMS = (64, 128, 256, 512)
PRUNED_HAM = {"name": "hamburger", "form": "pruned", "dim": 512, "rank": 64, "steps_eval": 6}
FULL_HAM = {"name": "hamburger", "dim": 512, "rank": 64, "steps_eval": 6}


def nota(depths: tuple[int, ...], decoder: dict[str, Any], **components: Any) -> Architecture:
    """SegFormer's stages at the study's dimensions: heads 1, 2, 4, 8, mlp ratio 4, drop path 0.1."""
    stages = [
        dict(depth=depth, dim=dim, stride=stride, heads=heads, mlp_ratio=4, **components)
        for depth, dim, stride, heads in zip(depths, DIMS, (4, 2, 2, 2), (1, 2, 4, 8), strict=True)
    ]
    return dict(stages=stages, decoder=decoder, drop_path_rate=0.1)


NOTA = {
    # The final one: pooled keys and values, DEST's feed-forward, the bare ham.
    "nota-lite": nota((1, 2, 2, 1), PRUNED_HAM, mixer={"name": "lsra", "proj": False}, feedforward="dest"),
    "nota-lsra": nota((1, 1, 2, 1), {"name": "mlp", "dim": 768}, mixer="lsra", feedforward="dest"),
    "nota-lsrea": nota((1, 1, 2, 1), FULL_HAM, mixer="lsrea", feedforward="dest", skip="rskip"),
    "nota-lsrea-pruned": nota((1, 2, 2, 1), PRUNED_HAM, mixer="lsrea", feedforward="dest", skip="rskip"),
    "nota-mscan": {
        **segnext((64, 128, 320, 512), (3, 4, 6, 3), ham_dim=512, rank=64),
        "decoder": {"name": "mlp", "dim": 768},
    },
}
