"""Bilinear resizing (align_corners False) one tile of the result at a time, and the transpose that gradients need.

A full-size map of all classes or of all decoder channels is the largest tensor of a segmentation model, and most of
its cost is memory. A tile is made in the cache, used and forgotten. Resizing is linear in either direction, so that a
tile is two products of small matrices: (rows, source rows) and (columns, source columns).

Shapes: h w of the source, H W of the result, r c of the part of the source that a tile of R x Q positions needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


def taps(
    size: int, target: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each position of the result: both neighbours in the source, and the weight of the second."""
    position = (torch.arange(target, device=device, dtype=dtype) + 0.5) * (size / target) - 0.5
    position = position.clamp(min=0)
    low = position.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), position - low


@dataclass(frozen=True)
class _Strip:
    """A tile along one axis: `target` is `matrix` (target, source) times `source`."""

    target: slice
    source: slice
    matrix: Tensor


@lru_cache(maxsize=256)
def _strips(size: int, target: int, step: int, dtype: torch.dtype) -> tuple[_Strip, ...]:
    with torch.inference_mode(False):  # what is kept may be used anywhere later
        low, high, weight = taps(size, target, dtype=dtype)
        strips = []
        for start in range(0, target, step):
            part = slice(start, min(start + step, target))
            first, last = int(low[part][0]), int(high[part][-1]) + 1
            matrix = torch.zeros(part.stop - part.start, last - first, dtype=dtype)
            row = torch.arange(matrix.shape[0])
            matrix[row, low[part] - first] = 1 - weight[part]
            matrix[row, high[part] - first] += weight[part]  # both neighbours are one at the border
            strips.append(_Strip(part, slice(first, last), matrix))
    return tuple(strips)


@dataclass(frozen=True)
class Tile:
    """One tile of a resized (H, W, C) map."""

    vertical: _Strip
    horizontal: _Strip

    @property
    def target(self) -> tuple[slice, slice]:
        """Where it lies in the result."""
        return self.vertical.target, self.horizontal.target

    def take(self, x_hwC: Tensor) -> Tensor:
        """The tile (R, Q, C) of the resized `x_hwC`."""
        narrow_rQC = torch.matmul(self.horizontal.matrix, x_hwC[self.vertical.source, self.horizontal.source])
        return torch.mm(self.vertical.matrix, narrow_rQC.flatten(1)).view(-1, *narrow_rQC.shape[1:])

    def add_to(self, tile_RQC: Tensor, x_hwC: Tensor) -> None:
        """Add the same tile of the resized `x_hwC` to a contiguous tensor in place."""
        narrow_rQC = torch.matmul(self.horizontal.matrix, x_hwC[self.vertical.source, self.horizontal.source])
        tile_RQC.view(len(tile_RQC), -1).addmm_(self.vertical.matrix, narrow_rQC.flatten(1))

    def put_back(self, grad_RQC: Tensor, grad_hwC: Tensor) -> None:
        """The transpose of `take`: add the tile's gradient to that of the source in place."""
        narrow_rQC = torch.mm(self.vertical.matrix.t(), grad_RQC.flatten(1)).view(-1, *grad_RQC.shape[1:])
        grad_hwC[self.vertical.source, self.horizontal.source] += torch.matmul(self.horizontal.matrix.t(), narrow_rQC)


def tiles(
    size: tuple[int, int], target: tuple[int, int], step: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Iterator[Tile]:
    """All tiles of the resizing of an (h, w) map to (H, W), row by row.

    Args:
        size: (h, w).
        target: (H, W).
        step: (rows, columns) of a tile; the last ones are smaller.
        dtype: Of the map.
    """
    horizontal = _strips(size[1], target[1], step[1], dtype)
    for vertical in _strips(size[0], target[0], step[0], dtype):
        for strip in horizontal:
            yield Tile(vertical, strip)
