"""Masks to polygons that are exact: they run along the borders of the pixels, not through their centres."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

Corner = tuple[int, int]  # x, y of a corner of pixels


def exact_polygons(mask: np.ndarray) -> list[list[int]]:
    """Polygons that pycocotools rasterises to exactly this mask.

    One polygon for each part (pixels connected by their sides). COCO has no notion of a hole, so a hole is joined to
    its part's outline by a seam that is walked to and fro: filling by parity or by winding, the seam encloses nothing.

    Args:
        mask: (H, W) bool.

    Returns:
        Lists x1, y1, x2, y2, ... of pixels; empty for an empty mask.
    """
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    outlines: dict[int, list[Corner]] = {}
    holes: dict[int, list[list[Corner]]] = {}
    for loop, pixel in _loops(mask):
        part = int(parts[pixel])
        if _signed_area(loop) > 0:
            outlines[part] = loop
        else:
            holes.setdefault(part, []).append(loop)
    polygons = []
    for part, outline in sorted(outlines.items()):
        points = list(outline)
        for hole in holes.get(part, []):
            points += [outline[0], *hole, hole[0]]
        if part in holes:
            points.append(outline[0])
        polygons.append([value for point in points for value in point])
    return polygons


def _loops(mask: np.ndarray) -> list[tuple[list[Corner], tuple[int, int]]]:
    """Closed walks along the borders with the mask at the right hand, corners only, and a pixel (y, x) beside each."""
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    steps: dict[Corner, list[tuple[int, int]]] = {}  # a corner's one or two ways out
    beside: dict[tuple[Corner, tuple[int, int]], tuple[int, int]] = {}
    sides = (  # outer neighbour, where the step starts in the pixel, its direction
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for neighbour, (dx, dy), step in sides:
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            corner = (x + dx, y + dy)
            steps.setdefault(corner, []).append(step)
            beside[corner, step] = (y, x)
    loops = []
    for start in sorted(steps):
        while steps[start]:
            step = steps[start][0]
            pixel, corner, walk = beside[start, step], start, list[Corner]()
            while True:
                ways = steps[corner]
                # Where two pixels touch at a corner the walk turns right, and so stays with its own part.
                right = (-step[1], step[0])
                way = step if not walk else right if right in ways else ways[0]
                ways.remove(way)
                if not walk or way != step:
                    walk.append(corner)
                step, corner = way, (corner[0] + way[0], corner[1] + way[1])
                if corner == start and (not steps[start] or (-step[1], step[0]) not in steps[start]):
                    break
            loops.append((walk, pixel))
    return loops


def _signed_area(loop: list[Corner]) -> int:
    """Twice the area; positive for outlines, negative for holes."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*loop, loop[0]]))
