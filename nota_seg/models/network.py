"""The networks, without the library that reads and writes them: what looks at pictures needs no more.

Inside the encoder a feature map is (B, H, W, C) and contiguous; `permute(0, 3, 1, 2)` is then a channels-last view for
convolutions. Outside it is (B, C, H, W), as everywhere in the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nota_seg.models.architecture import NetworkConfig, StageConfig
from nota_seg.models.block import Block
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.norms import NORMS
from nota_seg.models.registry import BLOCKS, DECODERS, STEMS


class Stage(nn.Module):
    """A stem, `depth` blocks and a norm, at one resolution."""

    def __init__(self, stage: StageConfig, in_channels: int, drop_paths: list[float], eps: float) -> None:
        super().__init__()
        own = stage.block_specs
        dim = own[0]["dim"] if own else stage.dim
        self.stem = STEMS.build(stage.stem, in_channels=in_channels, dim=dim, stride=stage.stride)
        self.blocks = nn.ModuleList()
        for i, drop_path in enumerate(drop_paths):
            if own:
                before, dim = dim, own[i].pop("dim")
                block = BLOCKS.build(own[i], in_dim=before, dim=dim, drop_path=drop_path, eps=eps)
            else:
                block = Block(stage, drop_path, eps, index=i)
            self.blocks.append(block)
        self.norm = NORMS[stage.norm](stage.dim, eps)
        self.norm_next = stage.norm_next

    def forward(self, x_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's feature map, and what the next stage goes on from."""
        x_BHWC = self.stem(x_BHWC)
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        normed_BHWC = self.norm(x_BHWC)
        return normed_BHWC, normed_BHWC if self.norm_next else x_BHWC


class Encoder(nn.Module):
    """The hierarchical encoder: (B, 3, H, W) to one (B, H/stride, W/stride, C) map a stage.

    Args:
        config: Of the model.
        last_only: Only the last map is used: norms that no later stage goes on from are left out.
    """

    def __init__(self, config: NetworkConfig, last_only: bool = False) -> None:
        super().__init__()
        stages = config.stage_configs
        if last_only:
            stages = [s if s.norm_next else replace(s, norm="none") for s in stages[:-1]] + stages[-1:]
        depth = sum(s.depth for s in stages)
        # Plain arithmetic: a tensor would fail where models are built without storage.
        rates = iter(config.drop_path_rate * i / max(1, depth - 1) for i in range(depth))
        channels = [config.in_channels, *config.channels]
        self.stages = nn.ModuleList(
            Stage(stage, channels[i], [next(rates) for _ in range(stage.depth)], config.layer_norm_eps)
            for i, stage in enumerate(stages)
        )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        x_BHWC = pixel_values.permute(0, 2, 3, 1).contiguous()
        features = []
        for stage in self.stages:
            feature_BHWC, x_BHWC = stage(x_BHWC)
            features.append(feature_BHWC)
        return features


class Segmenter(nn.Module):
    """Encoder and decoder; logits (B, K, H/s, W/s) with s the decoder's stride (4 for the all-MLP head)."""

    def assemble(self, config: NetworkConfig, num_labels: int) -> None:
        """Make the parts."""
        self.encoder = Encoder(config)
        self.decoder = DECODERS.build(
            config.decoder, channels=config.channels, strides=config.strides, num_labels=num_labels
        )

    def logits_of(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W), normalised, to (B, K, H/s, W/s)."""
        features = self.encoder(pixel_values)
        return self.decoder([x.permute(0, 3, 1, 2) for x in features])

    @torch.no_grad()
    def predict_labels(self, pixel_values: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label map (B, H, W), int64, at `size` (height, width; the input's by default).

        Equal to bilinear upsampling (align_corners False) of the logits and argmax, in pieces that stay in cache.
        """
        logits = self(pixel_values).logits
        return labels_from_logits(logits, size or tuple(pixel_values.shape[2:]))


class Output(NamedTuple):
    """What transformers' models return, as far as inference reads it."""

    logits: Tensor


class InferenceConfig(NetworkConfig):
    """A configuration that knows its classes without transformers.

    Args:
        id2label: Class names by class.
        arguments: Of `NetworkConfig`.
    """

    def __init__(self, id2label: Mapping[int, str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.id2label = dict(id2label)
        self.num_labels = len(self.id2label)


class SegmentationNetwork(Segmenter):
    """The segmentation model for inference alone: the same layers, names of weights and results."""

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__()
        self.config = config
        self.assemble(config, config.num_labels)

    def forward(self, pixel_values: Tensor) -> Output:
        """(B, 3, H, W), normalised."""
        return Output(self.logits_of(pixel_values))


def has_textbook(model: nn.Module) -> bool:
    """Whether any component has a cheaper form than its paper's."""
    return any(isinstance(getattr(m, "textbook", None), bool) for m in model.modules())


@contextmanager
def textbook(model: nn.Module) -> Iterator[None]:
    """Inside the block every component that has a cheaper equal form computes in the order of its paper."""
    parts = [m for m in model.modules() if isinstance(getattr(m, "textbook", None), bool)]
    before = [m.textbook for m in parts]
    for m in parts:
        m.textbook = True
    try:
        yield
    finally:
        for m, value in zip(parts, before, strict=True):
            m.textbook = value
