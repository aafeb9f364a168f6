"""Training pictures as a torch data set, keyed by picture and seed."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from nota_seg.data.sources.base import SegmentationSource
from nota_seg.data.transforms import TrainTransform


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
        """`pixels` (h, w, 3) uint8 and `labels` (h, w) uint8, 255 = ignore.

        Bytes in the order of the decoder: what turns them into the model's input runs on the device.
        """
        index, seed = key
        image, label = self.transform(*self.source.read(self.split, index), seed)
        pixels, labels = np.ascontiguousarray(image), np.ascontiguousarray(label)
        return {"pixels": torch.from_numpy(pixels), "labels": torch.from_numpy(labels)}
