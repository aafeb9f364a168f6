"""Every architecture and encoder of segmentation-models-pytorch, as `smp:<architecture>/<encoder>`.

The network is the library's own, its head's upsampling included, so that logits are at the picture's size. Networks
that need sides of a multiple (32 for most) get the picture padded at the right and the bottom; the logits are cut back.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from nota_seg.models.external.base import LEAST, ExternalConfig, ExternalModel, padded, refused, unpadded, with_hub
from nota_seg.models.external.timm_names import fixed_size, size_options
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.losses import upsampled_cross_entropy
from util.errors import InputError, did_you_mean

OURS = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")
PAN_LEAST = 128  # pixels; PAN pools the 1/16 map three times
FIRST_DPT = "tu-vit_tiny_patch16_224"  # DPT takes vision transformers alone


def library() -> ModuleType:
    """The library, or an error that says how to have it."""
    try:
        import segmentation_models_pytorch
    except ImportError:
        raise InputError(
            "smp: models and losses need segmentation-models-pytorch: pip install 'nota-seg[smp]'"
        ) from None
    return segmentation_models_pytorch


def architectures() -> dict[str, type[nn.Module]]:
    """Name to class."""
    return dict(library().MODEL_ARCHITECTURES_MAPPING)


def encoders() -> list[str]:
    """The library's own encoders; any timm model is one too, as `tu-<name>`."""
    return list(library().encoders.get_encoder_names())


def option_names(architecture: str) -> dict[str, Any]:
    """Arguments of an architecture that are not set by the name, and their defaults."""
    parameters = inspect.signature(architectures()[architecture].__init__).parameters
    return {k: p.default for k, p in parameters.items() if k not in ("self", "kwargs", *OURS)}


def examples() -> list[str]:
    """Every architecture with an encoder that it takes."""
    return [f"smp:{a}/{FIRST_DPT if a == 'dpt' else 'resnet18'}" for a in architectures()]


class SmpConfig(ExternalConfig):
    """An architecture and an encoder of segmentation-models-pytorch.

    Args:
        architecture: `unet`, `fpn`, ...
        encoder: `resnet34`, `mit_b0`, `tu-convnext_tiny`, ...
        kwargs: As in `ExternalConfig`; `options` are arguments of the architecture (`decoder_channels`, ...).
    """

    model_type = "nota_seg_smp"

    def __init__(self, architecture: str = "unet", encoder: str = "resnet18", **kwargs: Any) -> None:
        self.architecture, self.encoder = architecture, encoder
        super().__init__(**kwargs)

    @classmethod
    def named(cls, name: str, options: dict[str, Any], shared: dict[str, Any]) -> SmpConfig:
        """From `<architecture>/<encoder>`, checked; pictures are normalised as the encoder's published weights are."""
        architecture, slash, encoder = name.partition("/")
        known = architectures()
        if architecture not in known:
            raise InputError(f"unknown smp architecture {architecture!r}: {did_you_mean(architecture, known)}")
        if not slash or not encoder:
            raise InputError(f"smp:{name}: name an encoder too, for instance smp:{architecture}/resnet34")
        for key in options:
            if key not in option_names(architecture):
                raise InputError(
                    f"smp:{architecture} has no option {key!r}: {did_you_mean(key, option_names(architecture))}"
                )
        if encoder.startswith("tu-"):
            from nota_seg.models.external.timm_names import check, statistics

            check(encoder.removeprefix("tu-"))
            mean_std = statistics(encoder.removeprefix("tu-"))
        elif encoder in encoders():
            mean_std = _statistics(encoder)
        else:
            from nota_seg.models.external.timm_names import names

            known_encoders = [*encoders(), *(f"tu-{n}" for n in names())]
            raise InputError(f"unknown smp encoder {encoder!r}: {did_you_mean(encoder, known_encoders)}")
        return cls(architecture, encoder, options=options, zoo_name=f"smp:{name}", **{**mean_std, **shared})

    @classmethod
    def models(cls) -> dict[str, type[ExternalModel]]:
        return {"segmentation": SmpForSemanticSegmentation}

    def components(self) -> dict[str, list[str]]:
        return {"encoder": [self.encoder], "decoder": [self.architecture]}


def _statistics(encoder: str) -> dict[str, Any]:
    """Of the encoder's published weights, where it has any."""
    published = library().encoders.encoders[encoder]["pretrained_settings"]
    settings: dict[str, Any] = published.get("imagenet") or next(iter(published.values()), {})
    return {f"image_{k}": list(settings[k]) for k in ("mean", "std") if settings.get(k)}


def build(config: SmpConfig, pretrained: bool | str) -> nn.Module:
    """The library's model.

    Raises:
        InputError: It does not take these options, or this encoder.
    """
    smp = library()
    options = dict(config.options)
    weights: Any = None
    if config.encoder.startswith("tu-"):
        timm_name = config.encoder.removeprefix("tu-")
        if fixed_size(timm_name):
            parameters = inspect.signature(architectures()[config.architecture].__init__).parameters
            if "kwargs" not in parameters or not size_options(timm_name):
                raise InputError(
                    f"smp:{config.architecture} takes pictures of one size alone with {config.encoder}: "
                    f"use timm:{timm_name}/fpn, or another decoder of ours on it"
                )
            options = {**size_options(timm_name), **options}
        weights = True if pretrained else None
    elif pretrained:
        published = smp.encoders.encoders[config.encoder]["pretrained_settings"]
        weights = pretrained if isinstance(pretrained, str) else next(iter(published), "imagenet")
        if published and weights not in published:
            raise InputError(f"{config.encoder} has no weights {weights!r}: {did_you_mean(str(weights), published)}")

    def make(published: bool) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated encoder names
            return architectures()[config.architecture](
                encoder_name=config.encoder,
                encoder_weights=weights if published else None,
                in_channels=config.in_channels,
                classes=config.num_labels,
                **options,
            )

    try:
        return with_hub(make, bool(pretrained), str(config.encoder))
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, AttributeError, NotImplementedError) as e:
        raise refused("segmentation-models-pytorch", f"{config.architecture}/{config.encoder}", e) from e


class SmpDecoder(nn.Module):
    """The library's decoder and segmentation head, one part of the model as ours are."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, features: Any) -> Tensor:
        # DPT's encoder gives (maps, prefix tokens), all others a list of maps.
        return self.head(self.body(*features) if isinstance(features, tuple) else self.body(features))


class SmpForSemanticSegmentation(ExternalModel):
    """Logits (B, K, H, W) at the picture's size.

    Args:
        config: What to build.
        pretrained: Ask the hub for the encoder's published weights; a name chooses among several.
    """

    config_class = SmpConfig
    config: SmpConfig

    def __init__(self, config: SmpConfig, pretrained: bool | str = False) -> None:
        super().__init__(config)
        net: Any = build(config, pretrained)
        # U-Net takes any size with convolutions, but some of timm's encoders take multiples alone.
        any_size = not (net.requires_divisible_input_shape or config.encoder.startswith("tu-"))
        self.multiple = 1 if any_size else int(net.encoder.output_stride)
        if config.architecture == "dpt":  # it halves the grid of patches once more
            self.multiple *= 2
        self.least = PAN_LEAST if config.architecture == "pan" else LEAST
        self.encoder = self.keep(net.encoder)
        self.decoder = self.keep(SmpDecoder(net.decoder, net.segmentation_head))
        self.post_init()
        self.freeze_unused()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B, H', W') class indices; the loss is taken at their size, where they are not the ignored label.
        """
        x = padded(pixel_values, self.multiple, self.least)
        try:
            logits = self.decoder(self.encoder(x))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                "batch normalisation of a single value a channel: train with a batch size of at least 2 or larger crops"
            ) from error
        logits = unpadded(logits, x.shape[2:], pixel_values.shape[2:])
        loss = None
        if labels is not None:
            loss = upsampled_cross_entropy(logits, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def predict_labels(self, pixel_values: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label map (B, H, W), int64, at `size` (height, width; the input's by default)."""
        return labels_from_logits(self(pixel_values).logits, size or tuple(pixel_values.shape[2:]))


def load_saved(folder: Path, settings: dict[str, Any]) -> SmpForSemanticSegmentation:
    """What the library's own `save_pretrained` left in a folder, whose config.json holds `settings`.

    Raises:
        InputError: No architecture of this library, or weights that do not fit it.
    """
    kinds = {kind.__name__: name for name, kind in architectures().items()}
    name = str(settings["_model_class"])
    if name not in kinds:
        raise InputError(f"{folder}: unknown smp architecture {name!r}: {did_you_mean(name, kinds)}")
    if settings.get("activation") or settings.get("aux_params"):
        raise InputError(f"{folder}: with activation or aux_params it gives no plain logits: save it without")
    options = {k: v for k, v in settings.items() if k in option_names(kinds[name])}
    shared = {"num_labels": settings["classes"], "in_channels": settings["in_channels"]}
    model = SmpForSemanticSegmentation(SmpConfig.named(f"{kinds[name]}/{settings['encoder_name']}", options, shared))
    ours = {"decoder.": "decoder.body.", "segmentation_head.": "decoder.head."}
    try:
        found = load_file(folder / "model.safetensors")
        renamed = {}
        for key, value in found.items():
            prefix = next((p for p in ours if key.startswith(p)), "")
            renamed[ours.get(prefix, "") + key.removeprefix(prefix)] = value
        model.load_state_dict(renamed)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the model in {folder}: {' '.join(str(error).split())[:300]}") from error
    return model
