"""From logits to label maps at full size without ever holding the full-size logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nota_seg.models.resize import taps

PIECE = 1 << 21  # bytes of upsampled logits at a time; measured: fits the cache, and fills more than one core


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
    for b in range(B):
        for start in range(0, W, columns):
            part = slice(start, start + columns)
            narrow_chK = torch.lerp(
                logits_BwhK[b].index_select(0, left[part]),
                logits_BwhK[b].index_select(0, right[part]),
                weight_W[part, None, None],
            )
            narrow_hcK = narrow_chK.transpose(0, 1).contiguous()
            full_HcK = narrow_hcK.index_select(0, top)
            full_HcK.lerp_(narrow_hcK.index_select(0, bottom), weight_H[:, None, None])
            # max is faster than argmax here, and also takes the first of equals.
            out_BWH[b, part] = full_HcK.max(dim=2).indices.t()
    return out_BWH.transpose(1, 2).contiguous()
