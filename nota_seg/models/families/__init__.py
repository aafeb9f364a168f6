"""Named architectures. A new family is a file here and a line in `FAMILIES`."""

from __future__ import annotations

from nota_seg.models.architecture import Architecture
from nota_seg.models.families.nextvit import NEXTVIT
from nota_seg.models.families.nota import NOTA
from nota_seg.models.families.pvtv2 import PVTV2
from nota_seg.models.families.segformer import SEGFORMER
from nota_seg.models.families.segnext import SEGNEXT
from nota_seg.models.families.swin import SWIN

FAMILIES: dict[str, dict[str, Architecture]] = {
    "segformer": SEGFORMER,
    "segnext": SEGNEXT,
    "nextvit": NEXTVIT,
    "pvtv2": PVTV2,
    "swin": SWIN,
    "nota": NOTA,
}
