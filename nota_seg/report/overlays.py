"""Two models on the same pictures: where they disagree, and which of them is right there."""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from nota_seg.data.sources import SegmentationSource
from nota_seg.inference import Protocol, evaluating, predict_labels, to_pixels
from nota_seg.metrics import IGNORE
from util.errors import InputError
from util.palettes import overlay, palette

WIDTH = 360  # pixels of a panel on the page
ALPHA = 0.55
# A alone right, B alone right, both wrong and different: told apart by lightness as well as by hue.
SIDES = np.array([[213, 94, 0], [86, 180, 233], [128, 128, 128]], dtype=np.uint8)


@dataclass(frozen=True)
class Disagreement:
    """One picture; `a_right` and `b_right` are shares of its pixels with truth, 0..1."""

    name: str
    share: float  # of the pixels with truth that get different labels
    a_right: float
    b_right: float
    panels: dict[str, str]  # picture, truth, a, b, where: data URIs


def disagreements(
    models: tuple[nn.Module, nn.Module],
    source: SegmentationSource,
    split: str,
    protocols: tuple[Protocol, Protocol],
    *,
    device: torch.device | str,
    count: int = 12,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Disagreement]:
    """The pictures on which two models disagree most, the most disputed one first.

    Args:
        models: A and B, on `device`.
        source: The data, of the classes of both.
        split: One of its splits.
        protocols: Of A and of B.
        device: Where to compute.
        count: Pictures to return.
        limit: Look at the first so many only.
        progress: Called with 1 after every picture.
    """
    for model in models:
        if int(model.config.num_labels) != source.num_labels:  # type: ignore[union-attr, arg-type]
            raise InputError(
                f"the data have {source.num_labels} classes and a model {model.config.num_labels}: "  # type: ignore[union-attr]
                "give the data that the runs were fine-tuned on"
            )
    pictures = min(limit or source.splits[split], source.splits[split])
    best: list[tuple[float, int, list[np.ndarray]]] = []
    with evaluating(models[0]), evaluating(models[1]):
        for index in range(pictures):
            image, truth = source.read(split, index)
            labels = []
            for model, protocol in zip(models, protocols, strict=True):
                pixels = to_pixels(image, protocol.base_size)[None].to(device)
                found = predict_labels(model, pixels, (truth.shape[0], truth.shape[1]), protocol)
                labels.append(found[0].cpu().numpy().astype(np.uint8))
            valid = truth != IGNORE
            share = float((valid & (labels[0] != labels[1])).sum() / max(1, valid.sum()))
            heapq.heappush(best, (share, -index, labels))
            if len(best) > count:
                heapq.heappop(best)
            if progress is not None:
                progress(1)
    names, colours = source.names(split), palette(source.num_labels)
    result = []
    for share, negative, (a, b) in sorted(best, key=lambda entry: (-entry[0], -entry[1])):
        image, truth = source.read(split, -negative)
        result.append(_describe(names[-negative], share, image, truth, a, b, colours))
    return result


def _describe(
    name: str, share: float, image: np.ndarray, truth: np.ndarray, a: np.ndarray, b: np.ndarray, colours: np.ndarray
) -> Disagreement:
    valid = truth != IGNORE
    differ = valid & (a != b)
    a_alone, b_alone = differ & (a == truth), differ & (b == truth)
    side = np.full(truth.shape, 255, dtype=np.uint8)
    side[differ], side[a_alone], side[b_alone] = 2, 0, 1
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    faded = np.rint(0.5 * grey + 0.5 * 255).astype(np.uint8)
    total = max(1, int(valid.sum()))
    panels = {
        "picture": image,
        "truth": overlay(image, truth, colours, ALPHA),
        "a": overlay(image, a, colours, ALPHA),
        "b": overlay(image, b, colours, ALPHA),
        "where": overlay(faded, side, SIDES, 0.9),
    }
    return Disagreement(
        name=name,
        share=share,
        a_right=float(a_alone.sum() / total),
        b_right=float(b_alone.sum() / total),
        panels={key: data_uri(picture) for key, picture in panels.items()},
    )


def data_uri(picture: np.ndarray, width: int = WIDTH) -> str:
    """(H, W, 3) uint8 as a JPEG that a page carries in itself, at most `width` wide."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def protocol_from(value: dict[str, Any] | None) -> Protocol:
    """The protocol that an evaluation was done with, from its JSON."""
    known = set(Protocol.__dataclass_fields__)
    chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (value or {}).items() if k in known}
    return Protocol(**chosen)
