"""Published weights into our models. A new format is a file here and a line in `FORMATS`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from nota_seg.models.checkpoints import beit, pvtv2, transfer
from nota_seg.models.checkpoints.format import Format
from nota_seg.models.checkpoints.mmseg_mit import MMSEG_MIT
from nota_seg.models.checkpoints.mscan import MSCAN
from nota_seg.models.checkpoints.nextvit import NEXTVIT
from nota_seg.models.checkpoints.nvlabs import NVLABS, PVTV2_LINEAR
from nota_seg.models.checkpoints.own import OWN
from nota_seg.models.checkpoints.reading import read_state_dict
from nota_seg.models.checkpoints.report import TransferReport
from nota_seg.models.checkpoints.swin import SWIN_MMSEG, SWIN_PLAIN, SWIN_TRANSFORMERS
from nota_seg.models.checkpoints.transformers_segformer import TRANSFORMERS_4, TRANSFORMERS_5

__all__ = ["FORMATS", "Format", "TransferReport", "class_names", "format_name", "load_checkpoint", "read_state_dict"]

# The first that matches is taken: a linear variant stands before the one that it shares its names with.
FORMATS: list[Format] = [
    OWN,
    TRANSFORMERS_5,
    TRANSFORMERS_4,
    PVTV2_LINEAR,
    NVLABS,
    MMSEG_MIT,
    pvtv2.TIMM_LINEAR,
    pvtv2.TIMM,
    pvtv2.TRANSFORMERS_LINEAR,
    pvtv2.TRANSFORMERS,
    MSCAN,
    NEXTVIT,
    SWIN_PLAIN,
    SWIN_MMSEG,
    SWIN_TRANSFORMERS,
    *beit.FORMATS,
]


def load_checkpoint(model: nn.Module, path: str | Path, *, strict: bool = True) -> TransferReport:
    """Fill a model from any published format, matched by structure; see `transfer.load_checkpoint`."""
    from nota_seg.models.external.base import ExternalModel
    from nota_seg.models.external.beit_config import BeitUperNetConfig
    from nota_seg.models.external.weights import load_external

    if isinstance(getattr(model, "config", None), BeitUperNetConfig):  # its model would import transformers' Beit
        return beit.load_beit(model, path, strict=strict)
    if isinstance(model, ExternalModel):
        return load_external(model, path, strict=strict)
    return transfer.load_checkpoint(model, path, formats=FORMATS, strict=strict)


def class_names(path: str | Path, task: str) -> list[str] | None:
    """Classes of a file's classifier, where it has one for the task; see `transfer.class_names`."""
    return transfer.class_names(path, task, formats=FORMATS)


def format_name(path: str | Path) -> str | None:
    """Which published format a file is in; see `transfer.format_name`."""
    return transfer.format_name(path, formats=FORMATS)
