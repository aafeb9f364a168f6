"""The evaluation loop that `benchmarks/validation.py` compares with.

`python -m benchmarks.validation_peer DATA MODEL OUT`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor


class Pictures(Dataset):
    """`images|masks/val`, or `images|annotations/validation` with 0 = other."""

    def __init__(self, root: Path) -> None:
        camvid = (root / "masks").is_dir()
        split, labels = ("val", "masks") if camvid else ("validation", "annotations")
        self.shift = 0 if camvid else 1
        self.pictures = sorted((root / "images" / split).iterdir())
        self.labels = [root / labels / split / f"{p.stem}.png" for p in self.pictures]
        self.processor = SegformerImageProcessor(do_resize=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.pictures[i]).convert("RGB")
        label = torch.from_numpy(np.array(Image.open(self.labels[i]))).long()
        if self.shift:
            label = torch.where(label == 0, 255, label - 1)
        return self.processor(image, return_tensors="pt").pixel_values[0], label


def main() -> None:
    root, folder, out = map(Path, sys.argv[1:])
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    K = model.config.num_labels
    # Over the whole split: neither an average of averages, nor classes that appear nowhere.
    iou = MulticlassJaccardIndex(K, average="macro", ignore_index=255)
    acc = MulticlassAccuracy(K, average="macro", ignore_index=255)
    with torch.inference_mode():
        for pixels, labels in DataLoader(Pictures(root), batch_size=1):
            logits = model(pixel_values=pixels).logits
            logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
            predicted = logits.argmax(dim=1)
            iou.update(predicted, labels)
            acc.update(predicted, labels)
    out.write_text(json.dumps({"miou": float(iou.compute()), "macc": float(acc.compute())}), encoding="utf-8")


if __name__ == "__main__":
    main()
