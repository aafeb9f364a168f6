"""Models that other libraries build, through the same `create_model` and verbs.

`smp:<architecture>/<encoder>` is segmentation-models-pytorch's, `timm:<encoder>/<decoder>` one of our decoders on a
timm encoder. A further library is a prefix here, with a configuration and its models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nota_seg.models.external.base import SHARED_KEYS, ExternalConfig, ExternalModel
from nota_seg.models.external.smp import SmpConfig, SmpForSemanticSegmentation
from nota_seg.models.external.smp import examples as smp_examples
from nota_seg.models.external.timm_encoder import (
    TimmBackbone,
    TimmConfig,
    TimmForImageClassification,
    TimmForSemanticSegmentation,
)
from nota_seg.models.registry import DECODERS
from util.errors import InputError, did_you_mean

FORMS = {
    "smp": "smp:<architecture>/<encoder>: any architecture and encoder of segmentation-models-pytorch",
    "timm": "timm:<encoder>/<decoder>: any of the decoders above on any timm encoder that gives feature maps",
}
CONFIGS: dict[str, type[ExternalConfig]] = {"smp": SmpConfig, "timm": TimmConfig}
MODELS: dict[str, dict[str, type[ExternalModel]]] = {
    "smp": {"segmentation": SmpForSemanticSegmentation},
    "timm": {
        "segmentation": TimmForSemanticSegmentation,
        "classification": TimmForImageClassification,
        "backbone": TimmBackbone,
    },
}


def library_of(name: str) -> str | None:
    """The prefix of a model name, `smp` or `timm`; None for our own models."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in CONFIGS else None


def examples(library: str) -> list[str]:
    """Some names of a library; every other architecture, encoder and decoder of it builds too."""
    if library == "smp":
        return smp_examples()
    return [f"timm:resnet18/{decoder}" for decoder in DECODERS]


def create_config(name: str, num_labels: int, overrides: Mapping[str, Any]) -> ExternalConfig:
    """The configuration of a model name; overrides that are not shared by all are the library's own options."""
    library, _, rest = name.partition(":")
    shared = {k: v for k, v in overrides.items() if k in SHARED_KEYS}
    options = {k: v for k, v in overrides.items() if k not in SHARED_KEYS}
    return CONFIGS[library].named(rest, options, {"num_labels": num_labels, **shared})  # type: ignore[attr-defined]


def create_model(config: ExternalConfig, name: str, task: str, pretrained: bool | str) -> ExternalModel:
    """The model of a configuration, its encoder with published weights where they are asked for and can be had."""
    models = MODELS[name.partition(":")[0]]
    if task not in models:
        raise InputError(
            f"{name} is a segmentation model alone, there is no {task} of it: its encoder as timm:<encoder>/<decoder> "
            f"has one ({did_you_mean(task, models)})"
        )
    return models[task](config, pretrained=pretrained)  # type: ignore[call-arg]


def settings_of(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model name and overrides of a saved configuration; None where it is not of such a model."""
    cls = next((c for c in CONFIGS.values() if c.model_type == saved.get("model_type")), None)
    if cls is None:
        return None
    config = cls.from_dict(dict(saved))
    return {"name": config.zoo_name, **config.settings()}
