"""Logits of a 512x512 picture against transformers' SegFormer with the same weights, eager, float32."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import Result, paired
from benchmarks.pairs import difference, pair, pictures

TARGETS = {"b0": (2.5, 3.5), "b2": (3.2, 4.5)}
TOLERANCE = 1e-5


@torch.inference_mode()
def run(quick: bool) -> list[Result]:
    results = []
    for size, (at_least, aim) in TARGETS.items():
        ours, theirs = pair(size)
        x = pictures(1, 512, 512)
        error = difference(ours(x).logits, theirs(x).logits)
        timing = paired(partial(ours, x), partial(theirs, x), 3 if quick else 15)
        results.append(
            Result(
                f"logits 512x512 {size.upper()}", timing.ours, timing.theirs, timing.ratio, at_least, aim,
                error <= TOLERANCE,
                f"transformers, eager; largest relative difference {error:.1e} (at most {TOLERANCE:g}); "
                f"quartiles {timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f}",
            )
        )  # fmt: skip
    return results
