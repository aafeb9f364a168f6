"""Our decoders on any timm encoder that gives feature maps, as `timm:<encoder>/<decoder>`.

Encoders that round the sides of their maps up, as ours do, take any size as it is. Those that round down would not see
the last rows and columns, and some take multiples alone: they get the picture padded at the right and the bottom; the
logits are upsampled to the padded size and cut back. Transformers that take one size alone get the picture resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput

from nota_seg.models.decoders.parts import resize
from nota_seg.models.external import timm_names
from nota_seg.models.external.base import ExternalConfig, ExternalModel, padded, refused, unpadded, with_hub
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.losses import upsampled_cross_entropy
from nota_seg.models.registry import DECODERS, Spec
from util.errors import InputError

ALIASES = {"all_mlp": "mlp"}  # decoders by the name of their file
LEVELS = 4  # feature maps for the decoder


class TimmConfig(ExternalConfig):
    """A timm encoder and one of our decoders.

    Args:
        encoder: A timm model, with the tag of its weights where one is meant: `convnext_atto.d2_in1k`.
        decoder: A registered decoder and its options.
        out_indices: Feature maps that the decoder gets, by timm's index, finest first.
        multiple: Pictures are padded to sides that it divides; 1 for encoders that round up by themselves.
        input_size: (height, width) in pixels that pictures are resized to, where the encoder takes no other.
        kwargs: As in `ExternalConfig`; `options` are arguments of `timm.create_model`.
    """

    model_type = "nota_seg_timm"

    def __init__(
        self,
        encoder: str = "resnet18",
        decoder: Spec = "mlp",
        out_indices: list[int] | None = None,
        multiple: int = 1,
        input_size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder, self.multiple = encoder, multiple
        self.input_size = None if input_size is None else list(input_size)
        self.decoder = DECODERS.normalise(decoder)
        self.out_indices = [1, 2, 3, 4] if out_indices is None else [int(i) for i in out_indices]
        super().__init__(**kwargs)

    @classmethod
    def named(cls, name: str, options: dict[str, Any], shared: dict[str, Any]) -> TimmConfig:
        """From `<encoder>/<decoder>`, checked; pictures are normalised as the encoder's published weights are."""
        encoder, slash, decoder = name.partition("/")
        timm_names.check(encoder)
        decoder = ALIASES.get(decoder, decoder)
        if not slash or not decoder:
            raise InputError(f"timm:{name}: name a decoder too, for instance timm:{encoder}/fpn")
        options = dict(options)
        override = options.pop("decoder", None)
        own = DECODERS.normalise(decoder)
        spec: Spec = own
        if isinstance(override, str):
            spec = ALIASES.get(override, override)
        elif override is not None:
            spec = {**(own if override.get("name", decoder) == decoder else {}), **override}
        chosen = options.pop("out_indices", None)
        options = {**timm_names.size_options(encoder), **options}
        input_size = timm_names.only_size(encoder, options)
        indices, multiple = look(encoder, options, chosen, int(shared.get("in_channels", 3)))
        zoo_name = f"timm:{encoder}/{decoder}"
        shared = {**timm_names.statistics(encoder), **shared}
        return cls(encoder, spec, indices, multiple, input_size, options=options, zoo_name=zoo_name, **shared)

    @classmethod
    def models(cls) -> dict[str, type[ExternalModel]]:
        return {
            "segmentation": TimmForSemanticSegmentation,
            "classification": TimmForImageClassification,
            "backbone": TimmBackbone,
        }

    def components(self) -> dict[str, list[str]]:
        return {"encoder": [self.encoder], "decoder": [self.decoder["name"]]}

    def settings(self) -> dict[str, Any]:
        return {"decoder": self.decoder, "out_indices": self.out_indices, **self.options}


def look(encoder: str, options: dict[str, Any], indices: list[int] | None, in_channels: int) -> tuple[list[int], int]:
    """Which feature maps the decoder gets, and the multiple that pictures are padded to; nothing is computed.

    By default the four coarsest of a pyramid's maps; of a plain transformer, whose maps are all alike, four spread
    evenly.
    """
    with torch.device("meta"):
        net = _create(encoder, options, in_chans=in_channels)
        strides = net.feature_info.reduction()
        inner = getattr(getattr(net, "model", None), "feature_info", None)
        blocks = len(inner) if isinstance(inner, list) else 0
        if indices is None:
            indices = list(range(len(strides)))[-LEVELS:]
            if len(set(strides)) == 1 and blocks >= LEVELS:
                indices = [(i + 1) * blocks // LEVELS - 1 for i in range(LEVELS)]
        net = _create(encoder, options, in_chans=in_channels, out_indices=tuple(indices)).eval()
        side = 4 * max(strides) + 1
        rounded_up = [-(-side // s) for s in net.feature_info.reduction()]
        try:
            maps = net(torch.empty(1, in_channels, side, side))
        except Exception:  # each model has its own words for a size that it does not take
            return list(indices), max(strides)
    sides = [list(m.shape[1:3] if _channels_last(net) else m.shape[2:]) for m in maps]
    return list(indices), 1 if sides == [[n, n] for n in rounded_up] else max(strides)


def _channels_last(net: Any) -> bool:
    return str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")


def _create(encoder: str, options: dict[str, Any], **more: Any) -> Any:
    """A timm encoder, or an error that says what timm does not like."""
    given = {"pretrained": False, **more}
    try:
        return timm_names.library().create_model(encoder, features_only=True, **given, **options)
    except (TypeError, ValueError, KeyError, AssertionError, AttributeError, RuntimeError, NotImplementedError) as e:
        if given["pretrained"]:
            raise
        raise refused("timm", f"{encoder} as an encoder", e) from e


class TimmEncoder(nn.Module):
    """Feature maps (B, C, H/s, W/s), finest first."""

    def __init__(self, config: TimmConfig, pretrained: bool) -> None:
        super().__init__()

        def build(published: bool) -> Any:
            return _create(
                config.encoder,
                config.options,
                in_chans=config.in_channels,
                out_indices=tuple(config.out_indices),
                pretrained=published,
            )

        self.net = with_hub(build, pretrained, config.encoder)
        self.channels = list(self.net.feature_info.channels())
        self.strides = list(self.net.feature_info.reduction())
        self.channels_last = _channels_last(self.net)
        self.multiple, self.input_size = config.multiple, config.input_size

    def fitted(self, x_BCHW: Tensor) -> Tensor:
        """The picture at a size that the encoder takes."""
        if self.input_size is not None:
            return resize(x_BCHW, self.input_size)
        return padded(x_BCHW, self.multiple)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        features = self.net(x_BCHW)
        return [f.permute(0, 3, 1, 2) for f in features] if self.channels_last else list(features)


class TimmForSemanticSegmentation(ExternalModel):
    """Logits at the decoder's stride, or at the picture's size where it had to be padded.

    Args:
        config: What to build.
        pretrained: Ask the hub for the encoder's published weights.
    """

    config_class = TimmConfig
    config: TimmConfig

    def __init__(self, config: TimmConfig, pretrained: bool = False) -> None:
        super().__init__(config)
        encoder = TimmEncoder(config, pretrained)
        self.encoder = self.keep(encoder)
        self.decoder = DECODERS.build(
            config.decoder, channels=encoder.channels, strides=encoder.strides, num_labels=config.num_labels
        )
        self.post_init()
        self.freeze_unused()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B, H', W') class indices; the loss is taken at their size, where they are not the ignored label.
        """
        x = self.encoder.fitted(pixel_values)
        logits = self.decoder(self.encoder(x))
        if self.encoder.input_size is None:
            logits = unpadded(logits, x.shape[2:], pixel_values.shape[2:])
        loss = None
        if labels is not None:
            loss = upsampled_cross_entropy(logits, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def predict_labels(self, pixel_values: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label map (B, H, W), int64, at `size` (height, width; the input's by default)."""
        return labels_from_logits(self(pixel_values).logits, size or tuple(pixel_values.shape[2:]))


class TimmForImageClassification(ExternalModel):
    """Mean over the last map, then a Linear: pre-trains the encoder of the segmentation model."""

    config_class = TimmConfig
    config: TimmConfig

    def __init__(self, config: TimmConfig, pretrained: bool = False) -> None:
        super().__init__(config)
        encoder = TimmEncoder(config, pretrained)
        self.encoder = self.keep(encoder)
        self.classifier = nn.Linear(encoder.channels[-1], config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B) class indices, or (B, K) probabilities.
        """
        features = self.encoder(self.encoder.fitted(pixel_values))
        logits = self.classifier(features[-1].mean(dim=(2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class TimmBackbone(ExternalModel):
    """The encoder alone."""

    config_class = TimmConfig
    config: TimmConfig

    def __init__(self, config: TimmConfig, pretrained: bool = False) -> None:
        super().__init__(config)
        self.encoder = self.keep(TimmEncoder(config, pretrained))
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        return BackboneOutput(feature_maps=tuple(self.encoder(self.encoder.fitted(pixel_values))))
