"""Published weights into our models. A new format is a file here and a line in `FORMATS`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from nota_seg.models.checkpoints import transfer
from nota_seg.models.checkpoints.format import Format
from nota_seg.models.checkpoints.nvlabs import NVLABS
from nota_seg.models.checkpoints.own import OWN
from nota_seg.models.checkpoints.report import TransferReport
from nota_seg.models.checkpoints.transfer import read_state_dict
from nota_seg.models.checkpoints.transformers_segformer import TRANSFORMERS_4, TRANSFORMERS_5

__all__ = ["FORMATS", "Format", "TransferReport", "load_checkpoint", "read_state_dict"]

FORMATS: list[Format] = [
    OWN,
    TRANSFORMERS_5,
    TRANSFORMERS_4,
    NVLABS,
]


def load_checkpoint(model: nn.Module, path: str | Path, *, strict: bool = True) -> TransferReport:
    """Fill a model from any published format, matched by structure; see `transfer.load_checkpoint`."""
    return transfer.load_checkpoint(model, path, formats=FORMATS, strict=strict)
