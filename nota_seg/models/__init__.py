"""Composable segmentation models: registries of components, configurations, encoder, heads, published weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nota_seg.models import blocks, decoders, feedforwards, mixers, skips, stems  # noqa: F401  (fills the registries)
from nota_seg.models.architecture import StageConfig

if TYPE_CHECKING:
    from nota_seg.models.configuration import NotaSegConfig
    from nota_seg.models.zoo import create_config, create_model, list_models

__all__ = ["NotaSegConfig", "StageConfig", "create_config", "create_model", "list_models"]

# What stands on transformers is imported when it is asked for: inference does without it.
_LATER = {
    "NotaSegConfig": "nota_seg.models.configuration",
    "create_config": "nota_seg.models.zoo",
    "create_model": "nota_seg.models.zoo",
    "list_models": "nota_seg.models.zoo",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'nota_seg.models' has no attribute {name!r}")
