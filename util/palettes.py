"""Colours for label maps, overlays, legends, and grids of pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GOLDEN = 0.6180339887498949  # successive multiples modulo 1 stay far apart on the circle of hues
# Lightness and saturation change with every step. Six of them, because hues that come close again are a Fibonacci
# number of steps apart, and none below 144 is a multiple of six.
_TONES = ((0.45, 0.90), (0.72, 0.60), (0.28, 0.70), (0.60, 0.95), (0.82, 0.75), (0.38, 0.45))
_CANDIDATES = 24
_TEXT_SIZE, _SWATCH, _GAP = 14, 14, 6  # pixels


def _candidate(step: int) -> tuple[int, int, int]:
    lightness, saturation = _TONES[step % len(_TONES)]
    # A slow drift of the lightness, or colours would repeat with the hues.
    lightness += 0.1 * ((step * _GOLDEN * _GOLDEN) % 1.0 - 0.5)
    red, green, blue = colorsys.hls_to_rgb((step * _GOLDEN) % 1.0, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


@lru_cache(maxsize=32)
def _colours(num_classes: int) -> bytes:
    """Each colour is the one, among the next few of the sequence, that lies farthest from all before it."""
    chosen = np.zeros((num_classes + 1, 3), dtype=np.int64)  # row 0 is black, which means "ignored"
    count = step = 0
    while count < num_classes:
        candidates = np.array([_candidate(s) for s in range(step, step + _CANDIDATES)])
        distances = np.abs(candidates[:, None] - chosen[None, : count + 1]).sum(axis=2).min(axis=1)
        step += _CANDIDATES
        if distances.max() > 0:  # with thousands of colours all candidates may be taken
            count += 1
            chosen[count] = candidates[distances.argmax()]
    return chosen[1:].astype(np.uint8).tobytes()


def palette(num_classes: int) -> np.ndarray:
    """Distinct colours, never black, always the same: a larger palette begins with the smaller one.

    Returns:
        (num_classes, 3) uint8 RGB.
    """
    return np.frombuffer(_colours(num_classes), dtype=np.uint8).reshape(-1, 3).copy()


def colourise(label: np.ndarray, palette: np.ndarray, ignore_colour: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """(H, W) ids to (H, W, 3) uint8 colours; ids outside the palette (255 = ignore among them) get `ignore_colour`."""
    table = np.concatenate([palette.astype(np.uint8), np.array([ignore_colour], dtype=np.uint8)])
    inside = (label >= 0) & (label < len(palette))
    return table[np.where(inside, label, len(palette)).astype(np.intp)]


def overlay(image: np.ndarray, label: np.ndarray, palette: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """The picture with its classes laid over it; ignored pixels keep the picture.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) ids.
        palette: (n, 3) uint8.
        alpha: Share of the class colour, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    mixed = image * (1.0 - alpha) + colourise(label, palette) * alpha
    inside = (label >= 0) & (label < len(palette))
    return np.where(inside[..., None], np.rint(mixed), image).astype(np.uint8)


def legend(
    picture: np.ndarray, labels: np.ndarray | Iterable[int], class_names: Sequence[str], palette: np.ndarray
) -> np.ndarray:
    """The picture with a strip below it: a swatch and the name of every class that is present.

    Args:
        picture: (H, W, 3) uint8.
        labels: A label map, or the ids present; ids without a name are left out.
        class_names: Name of each id.
        palette: (n, 3) uint8.

    Returns:
        (H + strip, W, 3) uint8; the picture itself when no class is present.
    """
    present = np.unique(labels) if isinstance(labels, np.ndarray) else sorted(set(labels))
    ids = [int(i) for i in present if 0 <= int(i) < min(len(class_names), len(palette))]
    if not ids:
        return picture
    width = picture.shape[1]
    font = ImageFont.load_default(size=_TEXT_SIZE)
    widths = [_SWATCH + 2 * _GAP + int(font.getlength(class_names[i])) + 1 for i in ids]
    cell = min(width, max(widths) + _GAP)
    columns = max(1, width // cell)
    line = _SWATCH + _GAP
    strip = Image.new("RGB", (width, -(-len(ids) // columns) * line + _GAP), "white")
    draw = ImageDraw.Draw(strip)
    for place, label in enumerate(ids):
        x, y = _GAP + (place % columns) * cell, _GAP + (place // columns) * line
        red, green, blue = (int(v) for v in palette[label])
        draw.rectangle((x, y, x + _SWATCH - 1, y + _SWATCH - 1), fill=(red, green, blue))
        draw.text((x + _SWATCH + _GAP, y - 2), class_names[label], fill="black", font=font)
    return np.concatenate([picture, np.asarray(strip)])


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] | None = None) -> np.ndarray:
    """Join pictures into rows and columns on white; a column is as wide as its widest picture.

    Args:
        rows: Rows of (H, W, 3) uint8 pictures of any sizes; rows may be shorter than others.
        titles: One for each column.

    Returns:
        (H, W, 3) uint8.
    """
    columns = max(len(row) for row in rows)
    widths = [max((row[c].shape[1] for row in rows if c < len(row)), default=0) for c in range(columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    head = _TEXT_SIZE + 2 * _GAP if titles else 0
    size = head + sum(heights) + _GAP * (len(rows) - 1), sum(widths) + _GAP * (columns - 1)
    canvas = np.full((*size, 3), 255, dtype=np.uint8)
    lefts = [sum(widths[:c]) + _GAP * c for c in range(columns)]
    top = head
    for row, height in zip(rows, heights, strict=True):
        for picture, left in zip(row, lefts, strict=False):
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height + _GAP
    if titles:
        image = Image.fromarray(canvas)
        draw = ImageDraw.Draw(image)
        for title, left in zip(titles, lefts, strict=False):
            draw.text((left + _GAP, _GAP - 2), title, fill="black", font=ImageFont.load_default(size=_TEXT_SIZE))
        canvas = np.array(image)
    return canvas
