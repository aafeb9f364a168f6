"""Models whose encoder another library builds, through the same `create_model` and verbs.

`smp:<architecture>/<encoder>` is segmentation-models-pytorch's, `timm:<encoder>/<decoder>` one of our decoders on a
timm encoder, `beit-...` transformers' BEiT under ours. A further library is a prefix here, with a configuration and its
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nota_seg.models.external.base import SHARED_KEYS, ExternalConfig
from nota_seg.models.external.beit_config import BEIT, BeitUperNetConfig
from nota_seg.models.external.smp import SmpConfig
from nota_seg.models.external.smp import examples as smp_examples
from nota_seg.models.external.timm_encoder import TimmConfig
from nota_seg.models.modeling import NotaSegPreTrainedModel
from nota_seg.models.registry import DECODERS
from util.errors import InputError, did_you_mean

FORMS = {
    "smp": "smp:<architecture>/<encoder>: any architecture and encoder of segmentation-models-pytorch",
    "timm": "timm:<encoder>/<decoder>: any of the decoders above on any timm encoder that gives feature maps",
}
CONFIGS: dict[str, type[ExternalConfig]] = {"beit": BeitUperNetConfig, "smp": SmpConfig, "timm": TimmConfig}


def _split(name: str) -> tuple[str | None, str]:
    """A model name as its library, None for our own models, and what that library calls it."""
    if name.startswith("beit-"):
        return "beit", name
    prefix, colon, rest = name.partition(":")
    return (prefix, rest) if colon and prefix in FORMS else (None, name)


def library_of(name: str) -> str | None:
    """`beit`, `smp` or `timm`, as a model name begins; None for our own models."""
    return _split(name)[0]


def examples(library: str) -> list[str]:
    """The names of BEiT's models; some of the others' names: every architecture, encoder and decoder of them builds."""
    if library == "beit":
        return list(BEIT)
    if library == "smp":
        return smp_examples()
    return [f"timm:resnet18/{decoder}" for decoder in DECODERS]


def create_config(name: str, num_labels: int, overrides: Mapping[str, Any]) -> ExternalConfig:
    """The configuration of a model name of a library; overrides that are not shared by all are its own options."""
    library, rest = _split(name)
    shared = {k: v for k, v in overrides.items() if k in SHARED_KEYS}
    options = {k: v for k, v in overrides.items() if k not in SHARED_KEYS}
    return CONFIGS[library or ""].named(rest, options, {"num_labels": num_labels, **shared})


def create_model(config: ExternalConfig, name: str, task: str, pretrained: bool | str) -> NotaSegPreTrainedModel:
    """The model of a configuration, its encoder with published weights where they are asked for and can be had."""
    models = config.models()
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
    library = library_of(name)
    return overrides if library is None else CONFIGS[library].for_crops(crop, overrides)


def settings_of(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model name and overrides of a saved configuration; None where it is not of such a model."""
    cls = next((c for c in CONFIGS.values() if c.model_type == saved.get("model_type")), None)
    if cls is None:
        return None
    config = cls.from_dict(dict(saved))
    return {"name": config.zoo_name, **config.settings()}
