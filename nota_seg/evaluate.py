"""Scores of a model on a split: against labels at their original size, never at the size the network saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nota_seg.inference import Protocol, Size, evaluating, predict_labels, to_pixels
from nota_seg.metrics import BoundaryIoU, ConfusionMatrix, scores
from util.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from nota_seg.data.sources import SegmentationSource

TOGETHER = 1 << 19  # pixels of the pictures that are taken at once: small ones, a tenth to a sixth faster than alone
Item = tuple[int, Tensor, Tensor]  # index in the split; picture (3, h, w) uint8, resized; label (H, W) uint8, original


class _Pictures(Dataset):
    """Pictures of a split, read and resized; in loader workers if there are any."""

    def __init__(self, source: SegmentationSource, split: str, indices: list[int], base_size: Size | None) -> None:
        self.source = source
        self.split = split
        self.indices = indices
        self.base_size = base_size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Item:
        index = self.indices[position]
        image, label = self.source.read(self.split, index)
        pixels = to_pixels(image, self.base_size)
        return index, pixels, torch.from_numpy(np.ascontiguousarray(label))


def _batches(items: Iterable[Item], most: int | None) -> Iterator[list[Item]]:
    """Neighbours of equal size together: the order stays, and nothing is padded."""
    batch: list[Item] = []
    for item in items:
        full = len(batch) >= (most or TOGETHER // item[1][0].numel())
        if batch and (full or any(a.shape != b.shape for a, b in zip(batch[0][1:], item[1:], strict=True))):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def evaluate(
    model: nn.Module,
    source: SegmentationSource,
    split: str,
    protocol: Protocol,
    *,
    device: torch.device | str,
    batch_size: int | None = None,
    workers: int = 0,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
    boundary: bool = True,
    rank: int = 0,
    world: int = 1,
    reduce: Callable[[Tensor], Tensor] | None = None,
    on_picture: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
) -> dict[str, Any]:
    """Mean IoU and its relatives.

    Args:
        model: On `device`; it is put into evaluation mode and back into the mode it had.
        source: Pictures and labels.
        split: One of the source's splits.
        protocol: How a picture becomes a label map.
        device: Where to compute.
        batch_size: Most pictures at once; only neighbours of equal size are batched. None: as many as have `TOGETHER`
            pixels.
        workers: Loader processes; 0 reads in this one.
        limit: Only the first so many pictures of the split.
        progress: Called with the number of pictures just done in this process; `util.progress.Progress` fits.
        boundary: Also Boundary IoU; otherwise it is None.
        rank: This process takes pictures rank, rank + world, ...
        world: Processes that share the split.
        reduce: Sums an int64 vector over the processes and returns it; needed when `world` is more than 1, so that
            every process returns the scores of all pictures.
        on_picture: Called with (name, prediction (H, W) int64, truth (H, W) uint8) for every picture.

    Returns:
        `miou`, `macc`, `aacc`, `boundary_iou` (0..1, or None), `per_class` (name to `iou`, `acc`), `images`,
        `protocol`; JSON-ready.

    Raises:
        InputError: No such split, nothing in it, or the model has other classes than the data.
    """
    if split not in source.splits:
        raise InputError(f"the data have no split {split!r}: {did_you_mean(split, source.splits)}")
    if (batch_size is not None and batch_size < 1) or workers < 0 or (limit is not None and limit < 1):
        raise InputError(f"batch_size {batch_size} and limit {limit} must be at least 1, workers {workers} at least 0")
    if world > 1 and reduce is None:
        raise InputError(f"evaluating in {world} processes needs `reduce` to add their counts up")
    K = int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    if source.num_labels != K:
        raise InputError(
            f"the model has {K} classes and the data have {source.num_labels}: "
            "evaluate on the data it was fine-tuned for, or fine-tune it on these"
        )
    count = source.splits[split] if limit is None else min(limit, source.splits[split])
    if not count:
        raise InputError(f"split {split!r} has no pictures")

    indices = list(range(rank, count, world))
    pictures = _Pictures(source, split, indices, protocol.base_size)
    loader = DataLoader(pictures, batch_size=None, shuffle=False, num_workers=workers)
    names = source.names(split) if on_picture is not None else []
    confusion = ConfusionMatrix(K, device)
    bands = BoundaryIoU(K, device=device)
    done = 0
    with evaluating(model):
        for batch in _batches(loader, batch_size):
            pixels = torch.stack([item[1] for item in batch]).to(device, non_blocking=True)
            labels = torch.stack([item[2] for item in batch]).to(device, non_blocking=True)
            height, width = labels.shape[1:]
            predicted = predict_labels(model, pixels, (height, width), protocol)
            confusion.update(predicted, labels)
            if boundary:
                bands.update(predicted, labels)
            if on_picture is not None:
                for (index, _, truth), one in zip(batch, predicted.cpu(), strict=True):
                    on_picture(names[index], one.numpy(), truth.numpy())
            done += len(batch)
            if progress is not None:
                progress(len(batch))

    if reduce is not None:
        # One vector, one message; whole numbers, so the sum is exact.
        parts = [confusion.matrix.flatten(), bands.intersection, bands.union, confusion.matrix.new_tensor([done])]
        matrix, bands.intersection, bands.union, images = reduce(torch.cat(parts)).split([len(p) for p in parts])
        confusion.matrix, done = matrix.view(K, K), int(images)
    result = scores(confusion.matrix)
    per_class = zip(source.class_names, result["iou"], result["acc"], strict=True)
    return {
        "miou": result["miou"],
        "macc": result["macc"],
        "aacc": result["aacc"],
        "boundary_iou": bands.score() if boundary else None,
        "per_class": {name: {"iou": iou, "acc": acc} for name, iou, acc in per_class},
        "images": done,
        "protocol": {"split": split, **protocol.as_dict()},
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def format_table(result: dict[str, Any]) -> str:
    """Plain text for people: a line a class, in the classes' order, then the means; per cent."""
    rows = [("class", "IoU", "acc")]
    rows += [(name, _percent(v["iou"]), _percent(v["acc"])) for name, v in result["per_class"].items()]
    rows.append(("mean", _percent(result["miou"]), _percent(result["macc"])))
    wide = max(len(row[0]) for row in rows)
    lines = [f"{name:<{wide}}  {iou:>6}  {acc:>6}" for name, iou, acc in rows]
    rule = "-" * (wide + 16)
    summary = f"pixel accuracy {_percent(result['aacc'])}, boundary IoU {_percent(result['boundary_iou'])}"
    summary += f", {result['images']} pictures"
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], summary])
