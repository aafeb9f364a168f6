"""One look at a picture: at a scale, mirrored or turned, whole or through windows. Its logits come by bands of rows.

Logits of all classes at the size of a large picture, and even more of its enlarged views, would fill the memory. A view
keeps the model's own coarse logits of the windows that the band at hand lies in, each computed once, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nota_seg.models.resize import taps

Size = tuple[int, int]
PIECE = 8  # rows of coarse logits that are given up together


def starts(length: int, crop: int, stride: int) -> Iterator[int]:
    """Where windows begin along one side; the last one is moved back to end at the border."""
    for i in range(-(-max(0, length - crop) // stride) + 1):
        yield max(0, min(i * stride, length - crop))


def resized_rows(
    x_BChw: Tensor, size: Size, first: int, last: int, offset: int = 0, height: int | None = None
) -> Tensor:
    """Rows `first` to `last` of a map resized to `size`, bilinear with align_corners False; (B, C, last - first, W).

    Args:
        x_BChw: The map, or from its row `offset` on.
        size: (H, W) of the whole result.
        first: First row of the result.
        last: Behind its last row.
        offset: Rows of the map that were cut off above.
        height: Rows of the whole map, where some were.
    """
    low, high, weight = taps(height or x_BChw.shape[2], size[0], x_BChw.device)
    part = slice(first, last)
    above = x_BChw.index_select(2, low[part] - offset)
    if bool(weight[part].any()):
        above = torch.lerp(above, x_BChw.index_select(2, high[part] - offset), weight[part, None])
    if above.shape[3] == size[1]:
        return above
    return F.interpolate(above, size=(last - first, size[1]), mode="bilinear", align_corners=False)


@dataclass
class Change:
    """What is done to a picture before the model sees it: mirrored, upside down, then turned by 90 degrees."""

    mirrored: bool = False
    upside_down: bool = False
    turned: bool = False

    @property
    def _axes(self) -> list[int]:
        return [3] * self.mirrored + [2] * self.upside_down

    def do(self, x: Tensor) -> Tensor:
        """(B, C, h, w) as the model sees it."""
        x = x.flip(self._axes) if self._axes else x
        return x.rot90(1, (2, 3)) if self.turned else x

    def undo(self, x: Tensor) -> Tensor:
        """Back."""
        x = x.rot90(-1, (2, 3)) if self.turned else x
        return x.flip(self._axes) if self._axes else x

    def place(self, top: int, left: int, crop: Size, size: Size) -> tuple[int, int, Size]:
        """Top, left and size, in the picture of `size` as it is, of a window in the picture as the model sees it."""
        if self.turned:
            top, left, crop = left, size[1] - top - crop[0], (crop[1], crop[0])
        left = size[1] - left - crop[1] if self.mirrored else left
        return size[0] - top - crop[0] if self.upside_down else top, left, crop


@dataclass
class Window:
    """A window in the picture as it is; it may lie partly outside, where a picture smaller than it was padded."""

    top: int
    left: int
    size: Size
    height: int = 0  # of its logits; 0: not computed yet
    pieces: list[Tensor | None] = field(default_factory=list, repr=False)  # `PIECE` rows of them each

    @property
    def bottom(self) -> int:
        return self.top + self.size[0]

    def keep(self, logits_BKhw: Tensor) -> None:
        """Pieces of equal size, each with memory of its own: what one gives up the next can have."""
        self.height = logits_BKhw.shape[2]
        self.pieces = [piece.clone() for piece in logits_BKhw.split(PIECE, dim=2)]

    def give_up(self, row: int) -> None:
        """Forget the logits that only rows above `row` of the view need."""
        if self.height and row > self.top:
            low = int(max(0.0, (row - self.top + 0.5) * self.height / self.size[0] - 0.5))
            for i in range(low // PIECE):
                self.pieces[i] = None

    def rows(self, size: Size, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of its logits resized to `size`."""
        low, high, _ = taps(self.height, size[0])
        start = int(low[first]) // PIECE
        parts = [p for p in self.pieces[start : int(high[last - 1]) // PIECE + 1] if p is not None]
        part = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return resized_rows(part, size, first, last, offset=start * PIECE, height=self.height)


class View:
    """Logits of a picture at a size, row by row from the top.

    Args:
        forward: (B, 3, h, w) to logits (B, K, h', w').
        pictures: (B, 3, H, W), normalised.
        scale: Of the view; its sides are rounded as mmseg does. Bilinear without antialiasing, as OpenCV's linear.
        size: (H, W) of the logits wanted.
        change: What the model sees.
        crop_size: (height, width) of windows, as the model sees them; None for the whole picture at once. A side
            shorter than the window is padded with zeros (the mean colour) at its end, because some models take one
            size only; the padding's logits are cut off.
        stride: (vertical, horizontal) step of the windows.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        pictures: Tensor,
        scale: float,
        size: Size,
        change: Change,
        crop_size: Size | None = None,
        stride: Size | None = None,
    ) -> None:
        H, W = pictures.shape[2:]
        self.forward, self.pictures, self.change = forward, pictures, change
        self.size: Size = (size[0], size[1])
        self.own_size: Size = (max(1, int(H * scale + 0.5)), max(1, int(W * scale + 0.5)))
        self.crop_size = crop_size
        seen = self.own_size[::-1] if change.turned else self.own_size
        if crop_size is None or stride is None:
            self.windows = [Window(0, 0, self.own_size)]
        else:
            places = (
                change.place(y, x, crop_size, self.own_size)
                for y in starts(seen[0], crop_size[0], stride[0])
                for x in starts(seen[1], crop_size[1], stride[1])
            )
            self.windows = sorted((Window(*place) for place in places), key=lambda w: (w.top, w.left))

    def rows(self, first: int, last: int) -> Tensor:
        """(B, K, last - first, W); a later call must not ask for rows above those of an earlier one."""
        if self.crop_size is None:
            # In one step to the size wanted, and not through the view's, so that one view is `model.predict_labels`.
            return self._seen(self.windows[0]).rows(self.size, first, last)
        if self.size == self.own_size:
            return self._own_rows(first, last)
        low, high, _ = taps(self.own_size[0], self.size[0])
        top = int(low[first])
        own = self._own_rows(top, int(high[last - 1]) + 1)
        return resized_rows(own, self.size, first, last, offset=top, height=self.own_size[0])

    def _own_rows(self, top: int, bottom: int) -> Tensor:
        """Rows of the logits at the view's own size, averaged where windows overlap."""
        self.windows = [w for w in self.windows if w.bottom > top]
        needed = [w for w in self.windows if w.top < bottom]
        for window in needed:
            window.give_up(top)
        total: Tensor | None = None
        width = self.own_size[1]
        count = torch.zeros(bottom - top, width, device=self.pictures.device)
        for window in needed:
            first, last = max(top, window.top), min(bottom, window.bottom)
            left, right = max(0, window.left), min(width, window.left + window.size[1])
            rows = self._seen(window).rows(window.size, first - window.top, last - window.top)
            rows = rows[..., left - window.left : right - window.left]
            if total is None:
                total = rows.new_zeros(*rows.shape[:2], bottom - top, width)
            total[:, :, first - top : last - top, left:right] += rows
            count[first - top : last - top, left:right] += 1
        assert total is not None  # windows cover the view
        return total.div_(count)

    def _seen(self, window: Window) -> Window:
        if not window.height:
            crop = self.change.do(self._pixels(window))
            if self.crop_size is not None:
                short = [side - have for side, have in zip(self.crop_size, crop.shape[2:], strict=True)]
                crop = F.pad(crop, (0, short[1], 0, short[0]))
            window.keep(self.change.undo(self.forward(crop).float()))
        return window

    def _pixels(self, window: Window) -> Tensor:
        """What of the scaled picture lies in a window."""
        height, width = self.own_size
        top, bottom = max(0, window.top), min(height, window.bottom)
        left, right = max(0, window.left), min(width, window.left + window.size[1])
        if self.own_size == tuple(self.pictures.shape[2:]):
            return self.pictures[:, :, top:bottom, left:right]
        return resized_rows(self.pictures, self.own_size, top, bottom)[..., left:right]


def band_height(views: Sequence[View], values: int) -> int:
    """Rows at a time, so that a band of the widest view has about `BAND` numbers; `values`: of one position."""
    widest = max((v.own_size[1] * max(1.0, v.own_size[0] / v.size[0]) for v in views), default=1)
    return max(1, int(BAND / (values * max(widest, views[0].size[1]))))


BAND = 1 << 22  # 16 MB of float32
