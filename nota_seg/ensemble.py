"""Label maps of one or several models together: soft voting, then cleaning; one picture in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from nota_seg.inference import Protocol, evaluating, predict_probabilities, protocol_for, to_pixels
from nota_seg.models.loading import load_for_inference
from util.cleanup import crf_labels, dense_crf, mode_filter
from util.coco import CocoFile
from util.errors import InputError
from util.images import read_mask

Named = Iterator[tuple[str, np.ndarray]]  # file name of a picture, (H, W) uint8 label map


@dataclass
class Member:
    """A model of an ensemble, in evaluation mode, with how it looks at pictures and what its vote weighs."""

    model: nn.Module
    class_names: list[str]
    protocol: Protocol
    weight: float = 1.0


@dataclass
class Cleaning:
    """What happens to label maps afterwards: the conditional random field first, then the 3x3 mode filter."""

    crf: bool = False
    mode3: bool = False

    def of_probabilities(self, p_KHW: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(H, W) uint8 from probabilities and the picture of their size."""
        return self._finish((dense_crf(p_KHW, image) if self.crf else p_KHW).argmax(axis=0).astype(np.uint8))

    def of_labels(self, label: np.ndarray, image: np.ndarray | None, num_labels: int | None) -> np.ndarray:
        """(H, W) uint8 from labels; the picture, of any size, only for the conditional random field."""
        if self.crf:
            assert image is not None  # the caller reads it
            fitted = cv2.resize(image, (label.shape[1], label.shape[0]), interpolation=cv2.INTER_AREA)
            label = crf_labels(label, fitted, num_labels or int(label.max()) + 1)
        return self._finish(label)

    def _finish(self, label: np.ndarray) -> np.ndarray:
        return mode_filter(label) if self.mode3 else label


def load_members(
    paths: Sequence[str | Path], weights: Sequence[float], looks: Mapping[str, Any], device: torch.device | str
) -> list[Member]:
    """Load models that vote together; all of them stay in memory.

    Args:
        paths: Run folders or `save_pretrained` folders.
        weights: One for each, positive; empty: all equal.
        looks: What is chosen of every model's protocol; the picture size, and windows where nothing is said of them,
            are each model's own (`protocol_for`).
        device: Where to compute.

    Raises:
        InputError: Other numbers of weights and models, or models of different classes.
    """
    if weights and len(weights) != len(paths):
        raise InputError(f"{len(weights)} weights for {len(paths)} models: give one for each, or none")
    if any(not 0 < w < float("inf") for w in weights):
        raise InputError(f"weights {list(weights)}: give positive numbers")
    members = []
    for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True):
        model, names = load_for_inference(path, device)
        members.append(Member(model, names, protocol_for(model, **looks), weight))
        if names != members[0].class_names:
            raise InputError(f"{path} knows other classes than {paths[0]}: only models of the same classes can vote")
    return members


def soft_vote(members: Sequence[Member], image: np.ndarray, device: torch.device | str) -> np.ndarray:
    """Weighted mean of the members' probabilities.

    Args:
        members: Of the same classes.
        image: (H, W, 3) uint8 RGB.
        device: Where the models are.

    Returns:
        (K, H, W) float32. At most this and one member's probabilities are held at a time.
    """
    height, width = image.shape[:2]
    total: torch.Tensor | None = None
    for member in members:
        pixels = to_pixels(image, member.protocol.base_size)[None].to(device)
        p = predict_probabilities(member.model, pixels, (height, width), member.protocol)[0]
        p = p * (member.weight / sum(m.weight for m in members))
        total = p if total is None else total.add_(p)
    assert total is not None  # an ensemble has a member
    return total.cpu().numpy()


def probabilities(
    members: Sequence[Member], coco: CocoFile, device: torch.device | str, root: Path | None = None
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Image entry, picture and (K, H, W) probabilities of every image of a COCO file, in its order."""
    if coco.categories and len(coco.classes) + 1 != len(members[0].class_names):
        raise InputError(
            f"{coco.path} has {len(coco.classes)} categories and a background, the model has "
            f"{len(members[0].class_names)} classes: take a model that was trained on these"
        )
    with ExitStack() as stack:
        for member in members:
            stack.enter_context(evaluating(member.model))
        for image in coco.images:
            picture = coco.read_picture(image, root)
            yield image, picture, soft_vote(members, picture, device)


def predicted(
    members: Sequence[Member],
    coco: CocoFile,
    device: torch.device | str,
    cleaning: Cleaning | None = None,
    root: Path | None = None,
) -> Named:
    """File name and label map of every image of a COCO file, in its order."""
    cleaning = cleaning or Cleaning()
    for image, picture, p_KHW in probabilities(members, coco, device, root):
        yield str(image["file_name"]), cleaning.of_probabilities(p_KHW, picture)


def from_masks(coco: CocoFile, folder: Path) -> Named:
    """File name and label map of every image, from PNGs of class ids in a folder.

    A picture `batch/0001.jpg` has the mask `batch/0001.png`, `batch_0001.png` or, where no other picture has that
    name, `0001.png`.
    """
    stems = [PurePosixPath(str(image["file_name"])).with_suffix("") for image in coco.images]
    names = [stem.name for stem in stems]
    paths = []
    for stem in stems:
        candidates = [f"{stem}.png", f"{stem.as_posix().replace('/', '_')}.png"]
        candidates += [f"{stem.name}.png"] if names.count(stem.name) == 1 else []
        path = next((folder / c for c in candidates if (folder / c).is_file()), None)
        if path is None:
            raise InputError(f"{folder}: no mask of {stem}; looked for {', '.join(dict.fromkeys(candidates))}")
        paths.append(path)
    return ((str(i["file_name"]), _bytes(path)) for i, path in zip(coco.images, paths, strict=True))


def _bytes(path: Path) -> np.ndarray:
    mask = read_mask(path)
    if mask.min() < 0 or mask.max() > 255:
        raise InputError(f"{path}: ids {mask.min()}..{mask.max()}; ids of classes are 0..255")
    return mask.astype(np.uint8)


def cleaned(
    rows: Iterable[tuple[str, np.ndarray]],
    cleaning: Cleaning,
    read: Callable[[str], np.ndarray] | None = None,
    num_labels: int | None = None,
) -> Named:
    """Rows of labels after cleaning; `read` gives the picture of a file name, for the conditional random field."""
    for name, label in rows:
        image = read(name) if cleaning.crf and read is not None else None
        yield name, cleaning.of_labels(label, image, num_labels)
