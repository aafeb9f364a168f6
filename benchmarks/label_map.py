"""From a picture to its label map at full size, against transformers with interpolation and argmax."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Result, paired
from benchmarks.pairs import pair, pictures

TARGETS = {"b0": (3.0, 4.5), "b2": (3.4, 5.0)}
AGREEMENT = 0.9999  # of pixels; the rest are ties up to rounding


def usual(model: nn.Module, x: Tensor) -> Tensor:
    """As transformers' documentation and its `post_process_semantic_segmentation` do."""
    logits = F.interpolate(model(x).logits, size=x.shape[2:], mode="bilinear", align_corners=False)
    return logits.argmax(dim=1)


@torch.inference_mode()
def run(quick: bool) -> list[Result]:
    results = []
    for size, (at_least, aim) in TARGETS.items():
        ours, theirs = pair(size)
        x = pictures(1, 512, 512)
        same = (ours.predict_labels(x) == usual(theirs, x)).float().mean().item()
        timing = paired(partial(ours.predict_labels, x), partial(usual, theirs, x), 3 if quick else 11)
        results.append(
            Result(
                f"picture to label map 512x512 {size.upper()}", timing.ours, timing.theirs, timing.ratio, at_least, aim,
                same >= AGREEMENT,
                f"transformers, interpolate, argmax; {100 * same:.4f}% of the pixels agree; "
                f"quartiles {timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f}",
            )
        )  # fmt: skip
    return results
