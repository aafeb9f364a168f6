"""BEiT's positions: a learned bias for every offset between two patches (arXiv 2106.08254, section 2.3), and resizing.

A table for a window of (Wh, Ww) patches has (2Wh - 1)(2Ww - 1) rows, one an offset, row by row from the most negative
one, and three more: class token to patch, patch to class token, class token to itself. A column is a head.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Window = tuple[int, int]  # (rows, columns) of patches
EXTRA = 3  # rows of the class token


def table_rows(window: Window) -> int:
    """Rows of the table of a window."""
    return (2 * window[0] - 1) * (2 * window[1] - 1) + EXTRA


def relative_position_index(window: Window) -> Tensor:
    """The row of the table for each pair of tokens, query by key, (N + 1, N + 1) int64; token 0 is the class token."""
    rows, columns = window
    y, x = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    offsets = (y[:, None] - y + rows - 1) * (2 * columns - 1) + x[:, None] - x + columns - 1
    index = F.pad(offsets, (1, 0, 1, 0))
    count = table_rows(window)
    index[0, :] = count - 3
    index[:, 0] = count - 2
    index[0, 0] = count - 1
    return index


@lru_cache(maxsize=8)
def _kept_index(window: Window, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return relative_position_index(window).flatten().to(device)


class RelativePositionBias(nn.Module):
    """The bias of one layer's attention, for windows of any size and shape.

    On another window than the table's own the table is resized bilinearly, as transformers' Beit does (after MiDaS
    3.1, arXiv 2307.14460). Fine-tuning there starts better from `resize_table`.

    Args:
        window: Of the table.
        heads: Columns of the table.
    """

    def __init__(self, window: Window, heads: int) -> None:
        super().__init__()
        self.window = (int(window[0]), int(window[1]))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(self.window), heads))

    @torch.no_grad()
    def init_own_weights(self) -> None:
        if not getattr(self.relative_position_bias_table, "_is_hf_initialized", False):
            nn.init.zeros_(self.relative_position_bias_table)

    def forward(self, window: Window, interpolate_pos_encoding: bool = False, dim_size: int | None = None) -> Tensor:
        """(1, heads, N + 1, N + 1), to add to the attention scores; the other arguments are transformers', unused."""
        table = self.relative_position_bias_table
        window = (int(window[0]), int(window[1]))
        if window != self.window:
            offsets = table[:-EXTRA].t().unflatten(1, _sides(self.window))[None]
            resized = F.interpolate(offsets, size=_sides(window), mode="bilinear", align_corners=False)
            table = torch.cat([resized[0].flatten(1).t(), table[-EXTRA:]])
        if torch.compiler.is_compiling():
            index = relative_position_index(window).flatten().to(table.device)
        else:
            index = _kept_index(window, table.device)
        tokens = window[0] * window[1] + 1
        return table.t().index_select(1, index).view(1, -1, tokens, tokens)


def _sides(window: Window) -> tuple[int, int]:
    return 2 * window[0] - 1, 2 * window[1] - 1


def _growth(terms: int, length: int) -> float:
    """q of the geometric sequence 1, q, q^2, ... whose first `terms` add up to `length`: by bisection, 1.01 to 1.5."""
    left, right = 1.01, 1.5
    q = left
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q**terms) / (1 - q) > length:
            right = q
        else:
            left = q
    return q


def _axes(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the offsets of a table lie on the axis of a larger one, and the offsets wanted there."""
    wanted = np.arange(target) - target // 2
    if source == target:
        return wanted.astype(float), wanted.astype(float)
    away = np.cumsum(_growth(source // 2, target // 2) ** np.arange(source // 2))
    return np.concatenate([-away[::-1], [0.0], away]), wanted.astype(float)


def resize_table(table: Tensor, source: Window, target: Window) -> Tensor:
    """A relative position table for another window, to fine-tune from.

    Small offsets matter more than large ones: the source's offsets are laid out on the target's axis at distances that
    grow geometrically from 1, and a bicubic spline through them gives the target's. The rows of the class token are
    kept. This is the resizing of the published BEiT code, each axis for itself, so that windows need not be square.

    Args:
        table: (rows of `source`, heads).
        source: The table's window.
        target: The window wanted.

    Returns:
        (rows of `target`, heads), of the table's type.
    """
    if source == target:
        return table
    from scipy.interpolate import RectBivariateSpline

    sides, wanted = _sides(source), _sides(target)
    (y, new_y), (x, new_x) = (_axes(s, t) for s, t in zip(sides, wanted, strict=True))
    heads = table[:-EXTRA].detach().cpu().double().t().reshape(-1, *sides).numpy()
    degrees = [min(3, side - 1) for side in sides]  # a window of 2 has too few offsets for a cubic
    resized = np.stack([RectBivariateSpline(y, x, head, kx=degrees[0], ky=degrees[1])(new_y, new_x) for head in heads])
    rows = torch.from_numpy(resized).flatten(1).t().to(table)
    return torch.cat([rows, table[-EXTRA:]])


def resize_positions(positions: Tensor, source: Window, target: Window) -> Tensor:
    """Absolute position embeddings (1, N + 1, C) for another window: bicubic; the class token's stays."""
    if source == target:
        return positions
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, source)
    resized = F.interpolate(grid, size=target, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
