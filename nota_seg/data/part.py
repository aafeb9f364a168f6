"""A share of a data set, for a first look at a long run."""

from __future__ import annotations

import numpy as np

from nota_seg.data.sources.base import SegmentationSource, Split
from util.seed import derive


class Part(SegmentationSource):
    """Pictures of every split of another source, drawn without replacement; at least one of each.

    Args:
        whole: The other source.
        fraction: Of its pictures, above 0 and up to 1.
        seed: Of the draw, which is one for each split.
    """

    key, wants = "part", ""

    def __init__(self, whole: SegmentationSource, fraction: float, seed: int = 0) -> None:
        super().__init__(whole.root, f"{fraction:.3g} of {whole.layout}", whole.class_names)
        self.whole = whole
        self._chosen: dict[str, list[int]] = {}
        for split, count in whole.splits.items():
            rng = np.random.default_rng(derive("part", seed, split))
            chosen = rng.choice(count, max(1, round(fraction * count)), replace=False)
            self._chosen[split] = sorted(chosen.tolist())
            names = whole.names(split)
            self._add_split(split, Split([names[i] for i in self._chosen[split]]))

    @classmethod
    def detect(cls, path: object) -> bool:
        return False

    def places(self, split: str, index: int) -> tuple[str, str]:
        return self.whole.places(split, self._chosen[split][index])

    def _read_image(self, split: str, index: int, orient: bool) -> np.ndarray:
        return self.whole._read_image(split, self._chosen[split][index], orient)

    def _read_label(self, split: str, index: int) -> np.ndarray:
        return self.whole._read_label(split, self._chosen[split][index])
