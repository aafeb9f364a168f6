"""Weights into models of other libraries: by name, or by the library's own name of the same parameter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nota_seg.models.checkpoints.reading import read_state_dict
from nota_seg.models.checkpoints.report import TransferReport
from nota_seg.models.external.base import ExternalModel
from util.errors import InputError


def load_external(model: ExternalModel, path: str | Path, *, strict: bool = True) -> TransferReport:
    """Fill a model from a folder of this project, or from a state dict of the library that its network comes from.

    Args:
        model: It is changed only when all of its encoder is there (unless not `strict`); a head for other classes
            starts afresh.
        path: See `read_state_dict`.

    Raises:
        InputError: Nothing of the encoder fits, or (strict) only a part of it.
    """
    source = read_state_dict(path)
    target = dict(model.state_dict())
    places = _places(target)
    report = TransferReport(str(path), f"{model.config.zoo_name}")
    fitting: dict[str, Tensor] = {}
    for key, value in source.items():
        ours = key if key in target else next((places[c] for c in _called(key) if c in places), None)
        if ours is None or ours in fitting or target[ours].shape != value.shape:
            report.unused.append(key)
            continue
        fitting[ours] = value
        if ours == key:
            report.matched.append(ours)
        else:
            report.renamed[ours] = key
    report.reinitialised = [k for k in target if k not in fitting and not k.endswith("num_batches_tracked")]
    absent = [k for k in report.reinitialised if k.startswith("encoder.")]
    there = [k for k in fitting if k.startswith("encoder.")]
    if not there or (strict and absent):
        first = f", the first is {absent[0]}" if there else ""
        raise InputError(
            f"{path}: {len(absent)} of the {len(absent) + len(there)} encoder weights of {model.config.zoo_name} are "
            f"not in it{first}: use the model that these weights were made for"
        )
    for part in ("encoder", "decoder", "classifier"):
        sizes = {k: p.numel() for k, p in model.named_parameters() if k.startswith(f"{part}.")}
        if sizes:
            filled = sum(n for k, n in sizes.items() if k in fitting)
            report.per_stage[part] = 100 * filled / sum(sizes.values())
    with torch.no_grad():
        for key, value in fitting.items():
            target[key].copy_(value)
    return report


def _places(target: dict[str, Tensor]) -> dict[str, str]:
    """Our keys by what is left of them when dots and underscores are alike.

    timm's encoders have a part's name with an underscore (`stages_0.`) where its classifiers have a dot.
    """
    return {key.replace(".", "_"): key for key in target}


def _called(key: str) -> list[str]:
    """What a key of timm or of segmentation-models-pytorch may be called in ours, dots as underscores."""
    plain = key.replace(".", "_")
    names = [plain, f"encoder_net_{plain}", f"encoder_net_model_{plain}"]  # timm: a pyramid, a plain transformer
    if key.startswith("decoder."):
        names.insert(0, f"decoder_body_{plain.removeprefix('decoder_')}")
    if key.startswith("segmentation_head."):
        names.insert(0, f"decoder_head_{plain.removeprefix('segmentation_head_')}")
    return names
