"""From logits to label maps at full size without ever holding the full-size logits."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nota_seg.models.resize import taps

PIECE = 1 << 22  # bytes of upsampled logits at a time; measured: fits the cache
MANY = 64  # classes from which on NumPy is faster than torch


@torch.no_grad()
def labels_from_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax over classes of the bilinearly upsampled logits, some columns at a time.

    Args:
        logits: (B, K, h, w).
        size: (H, W) of the result.

    Returns:
        (B, H, W) int64. Ties, and values that differ by less than float32 rounding, may fall to either class.
    """
    B, K, h, w = logits.shape
    H, W = size
    if logits.device.type != "cpu":  # a GPU hides the extra traffic and would wait for the launches of many pieces
        full = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        return full.argmax(dim=1)
    # Columns first and classes last: both resizings then copy and mix long contiguous runs, and the argmax reads one.
    logits_BwhK = logits.float().permute(0, 3, 2, 1).contiguous()
    left, right, weight_W = taps(w, W, logits.device)
    top, bottom, weight_H = taps(h, H, logits.device)
    columns = max(1, PIECE // (4 * K * H))
    out_BWH = torch.empty(B, W, H, dtype=torch.int64)

    for b, start in itertools.product(range(B), range(0, W, columns)):
        part = slice(start, start + columns)
        narrow_chK = torch.lerp(
            logits_BwhK[b].index_select(0, left[part]),
            logits_BwhK[b].index_select(0, right[part]),
            weight_W[part, None, None],
        )
        narrow_hcK = narrow_chK.transpose(0, 1).contiguous()
        full_HcK = narrow_hcK.index_select(0, top)
        full_HcK.lerp_(narrow_hcK.index_select(0, bottom), weight_H[:, None, None])
        out_BWH[b, part] = _argmax(full_HcK).t()
    return out_BWH.transpose(1, 2).contiguous()


def _argmax(x: Tensor) -> Tensor:
    """Along the last axis, the first of equals; of many values in a row NumPy compares several at a time."""
    if x.shape[-1] >= MANY:
        return torch.from_numpy(np.argmax(x.numpy(), axis=-1))
    return x.max(dim=-1).indices  # faster than its argmax
