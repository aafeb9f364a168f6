"""Sources as torch data sets: keyed by picture and seed for training, in order and with whole labels for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nota_seg.data.sources.base import SegmentationSource
from nota_seg.data.transforms import TrainTransform, resize_for_eval


def image_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 to a contiguous (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class TrainDataset(Dataset[dict[str, torch.Tensor]]):
    """Augmented crops; a key is (picture, seed of its augmentation), as `StepSampler` yields them.

    Args:
        source: Data.
        transform: Augmentation.
        split: Of the source.
        limit: The first so many pictures only.
    """

    def __init__(
        self, source: SegmentationSource, transform: TrainTransform, split: str = "train", *, limit: int | None = None
    ) -> None:
        self.source, self.transform, self.split, self.limit = source, transform, source.split(split), limit

    def __len__(self) -> int:
        count = self.source.splits[self.split]
        return count if self.limit is None else min(count, self.limit)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """`pixel_values` (3, h, w) uint8 and `labels` (h, w) uint8, 255 = ignore."""
        index, seed = key
        image, label = self.transform(*self.source.read(self.split, index), seed)
        return {"pixel_values": image_tensor(image), "labels": torch.from_numpy(np.ascontiguousarray(label))}


class EvalDataset(Dataset[dict[str, Any]]):
    """Whole pictures in order, resized; their labels are never resized, because results count at the original size.

    Args:
        source: Data.
        split: Of the source.
        base_size: (long side, short side) that pictures are fitted into; None leaves them.
        keep_image: Add the original picture.
    """

    def __init__(
        self,
        source: SegmentationSource,
        split: str = "val",
        *,
        base_size: tuple[int, int] | None = None,
        keep_image: bool = False,
    ) -> None:
        self.source, self.split = source, source.split(split)
        self.base_size, self.keep_image = base_size, keep_image
        self.names = source.names(self.split)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`name`, `pixel_values` (3, h, w) uint8, `labels` (H, W) uint8, and with `keep_image` `image` (H, W, 3)."""
        if not 0 <= index < len(self.names):
            raise IndexError(index)  # ends a plain `for` over the data set
        image, label = self.source.read(self.split, index)
        item: dict[str, Any] = {
            "name": self.names[index],
            "pixel_values": image_tensor(resize_for_eval(image, self.base_size)),
            "labels": torch.from_numpy(label),
        }
        if self.keep_image:
            item["image"] = torch.from_numpy(image)
        return item
