"""Bilinear resizing (align_corners False) one tile of the result at a time, and the transpose that gradients need.

A full-size map of all classes or of all decoder channels is the largest tensor of a segmentation model, and most of
its cost is memory. A tile is made in the cache, used and forgotten. Resizing is linear in either direction, so that a
tile is two products of small matrices: (rows, source rows) and (columns, source columns). Where several maps are
resized to one size and added up, the second product sums them too.

Shapes: h w of the source, H W of the result, r c of the part of the source that a tile of R x Q positions needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nota_seg.models.layers import product

Rows = tuple[slice, ...]


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


@lru_cache(maxsize=64)
def _rows(sizes: tuple[int, ...], target: int, step: int, dtype: torch.dtype) -> tuple[tuple[slice, Rows, Tensor], ...]:
    """Along the first axis, of several maps at once: target, sources, and the matrices of all side by side."""
    strips = zip(*(_strips(size, target, step, dtype) for size in sizes), strict=True)
    with torch.inference_mode(False):
        return tuple(
            (parts[0].target, tuple(p.source for p in parts), torch.cat([p.matrix for p in parts], dim=1))
            for parts in strips
        )


@dataclass(frozen=True)
class Tile:
    """One tile of the sum of resized (h, w, C) maps, one map or more."""

    target: tuple[slice, slice]  # where it lies in the result
    rows: Rows  # of each map that it needs
    vertical: Tensor  # (R, all of these rows)
    horizontal: tuple[_Strip, ...]

    def take(self, *maps_hwC: Tensor) -> Tensor:
        """The tile (R, Q, C) of the maps, resized and summed."""
        parts = zip(self.rows, self.horizontal, maps_hwC, strict=True)
        narrow_rQC = [torch.matmul(strip.matrix, x[rows, strip.source]) for rows, strip, x in parts]
        joined_rQC = narrow_rQC[0] if len(narrow_rQC) == 1 else torch.cat(narrow_rQC)
        return product(self.vertical, joined_rQC.flatten(1).t()).view(-1, *joined_rQC.shape[1:])

    def put_back(self, grad_RQC: Tensor, *grads_hwC: Tensor) -> None:
        """The transpose of `take`: add the tile's gradient to those of the maps in place."""
        joined_rQC = product(self.vertical.t(), grad_RQC.flatten(1).t()).view(-1, *grad_RQC.shape[1:])
        narrow_rQC = joined_rQC.split([rows.stop - rows.start for rows in self.rows])
        for rows, strip, part, grad in zip(self.rows, self.horizontal, narrow_rQC, grads_hwC, strict=True):
            grad[rows, strip.source] += torch.matmul(strip.matrix.t(), part)


def tiles(
    sizes: Sequence[tuple[int, int]], target: tuple[int, int], step: tuple[int, int], dtype: torch.dtype = torch.float32
) -> list[Tile]:
    """All tiles of the resizing of (h, w) maps to (H, W), row by row.

    Args:
        sizes: (h, w) of each map.
        target: (H, W).
        step: (rows, columns) of a tile; the last ones are smaller.
        dtype: Of the maps.
    """
    columns = list(zip(*(_strips(w, target[1], step[1], dtype) for _, w in sizes), strict=True))
    return [
        Tile((where, strips[0].target), rows, matrix, strips)
        for where, rows, matrix in _rows(tuple(h for h, _ in sizes), target[0], step[0], dtype)
        for strips in columns
    ]
