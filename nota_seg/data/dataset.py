"""Training pictures as a torch data set, keyed by picture and seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from nota_seg.data.sources.base import SegmentationSource
from nota_seg.data.transforms import TrainTransform

if TYPE_CHECKING:
    from nota_seg.data.paste import BatchCopyPaste


class TrainDataset(Dataset[dict[str, torch.Tensor]]):
    """Augmented crops; a key is (picture, seed of its augmentation), as `StepSampler` yields them.

    Args:
        source: Data.
        transform: Augmentation.
        split: Of the source.
        limit: The first so many pictures only.
        cache_bytes: Decoded pictures are kept while they fit into so many bytes, in each loader process for itself.
            What a process has decoded before costs it no decoding again; what is drawn does not change.
        batch: What is done to the crops of a batch together, last.
    """

    def __init__(
        self,
        source: SegmentationSource,
        transform: TrainTransform,
        split: str = "train",
        *,
        limit: int | None = None,
        cache_bytes: float = 0,
        batch: BatchCopyPaste | None = None,
    ) -> None:
        self.source, self.transform, self.split, self.limit = source, transform, source.split(split), limit
        self.batch = batch
        self._free = cache_bytes
        self._decoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        count = self.source.splits[self.split]
        return count if self.limit is None else min(count, self.limit)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """`pixels` (h, w, 3) uint8 and `labels` (h, w) uint8, 255 = ignore.

        Bytes in the order of the decoder: what turns them into the model's input runs on the device.
        """
        return self._tensors(*self._crop(key))

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
        """A batch, which torch's loader asks for in one call."""
        if self.batch is None:
            return [self[key] for key in keys]
        crops = self.batch([self._crop(key) for key in keys], [seed for _, seed in keys])
        return [self._tensors(*crop) for crop in crops]

    def _crop(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        index, seed = key
        return self.transform(*self.read(index), seed)

    @staticmethod
    def _tensors(image: np.ndarray, label: np.ndarray) -> dict[str, torch.Tensor]:
        pixels, labels = np.ascontiguousarray(image), np.ascontiguousarray(label)
        return {"pixels": torch.from_numpy(pixels), "labels": torch.from_numpy(labels)}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A picture and its label map, decoded; from memory where it was kept."""
        if index in self._decoded:
            return self._decoded[index]
        pair = self.source.read(self.split, index)
        size = sum(array.nbytes for array in pair)
        if size <= self._free:
            for array in pair:
                array.flags.writeable = False  # a transform that worked in place would spoil every later draw
            self._decoded[index] = pair
            self._free -= size
        return pair
