"""From logits to label maps at full size without ever holding the full-size logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 1 << 20  # bytes of upsampled logits at a time: stays in a core's cache


def _taps(size: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two neighbours and the weight of the second, for bilinear resizing with align_corners False."""
    position = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (size / target) - 0.5
    position = position.clamp(min=0)
    low = position.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), position - low


def labels_from_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax over classes of the bilinearly upsampled logits, row block by row block.

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
    logits_BhwK = logits.float().permute(0, 2, 3, 1).contiguous()
    top, bottom, weight = _taps(h, H, logits.device)
    rows = max(1, PIECE // (4 * K * W))
    out = torch.empty(B, H, W, dtype=torch.int64, device=logits.device)
    for b in range(B):
        for r in range(0, H, rows):
            part = slice(r, min(r + rows, H))
            # Vertically on the narrow map first, then the library's own kernel along the rows.
            piece_rwK = torch.lerp(logits_BhwK[b, top[part]], logits_BhwK[b, bottom[part]], weight[part, None, None])
            piece_1KrW = F.interpolate(
                piece_rwK.permute(2, 0, 1)[None], size=(piece_rwK.shape[0], W), mode="bilinear", align_corners=False
            )
            out[b, part] = piece_1KrW[0].argmax(dim=0)
    return out
