"""Models whose encoder another library builds, through the same `create_model` and verbs.

`smp:<architecture>/<encoder>` is segmentation-models-pytorch's, `timm:<encoder>/<decoder>` one of our decoders on a
timm encoder, `beit-...` transformers' BEiT under ours. A further library is a prefix here, with a configuration and its
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from nota_seg.models.external import beit_names
from nota_seg.models.external.base import SHARED_KEYS
from nota_seg.models.external.beit_config import BeitUperNetConfig
from nota_seg.models.external.smp import SmpConfig, SmpForSemanticSegmentation
from nota_seg.models.external.smp import examples as smp_examples
from nota_seg.models.external.timm_encoder import (
    TimmBackbone,
    TimmConfig,
    TimmForImageClassification,
    TimmForSemanticSegmentation,
)
from nota_seg.models.modeling import NotaSegPreTrainedModel
from nota_seg.models.registry import DECODERS
from util.errors import InputError, did_you_mean

FORMS = {
    "smp": "smp:<architecture>/<encoder>: any architecture and encoder of segmentation-models-pytorch",
    "timm": "timm:<encoder>/<decoder>: any of the decoders above on any timm encoder that gives feature maps",
}
CONFIGS: dict[str, type[PretrainedConfig]] = {"beit": BeitUperNetConfig, "smp": SmpConfig, "timm": TimmConfig}
MODELS: dict[str, dict[str, type[NotaSegPreTrainedModel]]] = {
    "smp": {"segmentation": SmpForSemanticSegmentation},
    "timm": {
        "segmentation": TimmForSemanticSegmentation,
        "classification": TimmForImageClassification,
        "backbone": TimmBackbone,
    },
}


def library_of(name: str) -> str | None:
    """`beit`, `smp` or `timm`, as a model name begins; None for our own models."""
    if beit_names.is_beit(name):
        return "beit"
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in FORMS else None


def examples(library: str) -> list[str]:
    """The names of BEiT's models; some of the others' names: every architecture, encoder and decoder of them builds."""
    if library == "beit":
        return list(beit_names.BEIT)
    if library == "smp":
        return smp_examples()
    return [f"timm:resnet18/{decoder}" for decoder in DECODERS]


def create_config(name: str, num_labels: int, overrides: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a model name; overrides that are not shared by all are the library's own options."""
    library, _, rest = name.partition(":")
    if library not in FORMS:
        return beit_names.create_config(name, num_labels, overrides)
    shared = {k: v for k, v in overrides.items() if k in SHARED_KEYS}
    options = {k: v for k, v in overrides.items() if k not in SHARED_KEYS}
    return CONFIGS[library].named(rest, options, {"num_labels": num_labels, **shared})  # type: ignore[attr-defined]


def create_model(config: PretrainedConfig, name: str, task: str, pretrained: bool | str) -> NotaSegPreTrainedModel:
    """The model of a configuration, its encoder with published weights where they are asked for and can be had."""
    models = beit_names.models() if isinstance(config, BeitUperNetConfig) else MODELS[name.partition(":")[0]]
    if task not in models:
        raise InputError(
            f"{name} is a segmentation model alone, there is no {task} of it: its encoder as timm:<encoder>/<decoder> "
            f"has one ({did_you_mean(task, models)})"
        )
    if isinstance(config, BeitUperNetConfig):
        if pretrained:
            raise InputError(f"{name} takes no `pretrained`: its published weights are files, give one as --pretrain")
        return models[task](config)
    return models[task](config, pretrained=pretrained)  # type: ignore[call-arg]


def for_crops(name: str, crop: tuple[int, int], overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides with the crop that a run trains on, where an architecture depends on it, unless they name another."""
    return beit_names.crop_overrides(name, crop, overrides)


def settings_of(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model name and overrides of a saved configuration; None where it is not of such a model."""
    if saved.get("model_type") == BeitUperNetConfig.model_type:
        return beit_names.settings_of(saved)
    cls = next((c for c in CONFIGS.values() if c.model_type == saved.get("model_type")), None)
    if cls is None:
        return None
    config = cls.from_dict(dict(saved))
    return {"name": config.zoo_name, **config.settings()}
