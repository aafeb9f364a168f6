"""What a composition costs, from its pieces: every component is counted once at every size it is met at, and added up.

The pieces are built and counted by `util.flops.count`, so that a new component needs no formula. What is added up is
equal to the count of the whole model as long as components do not look into one another; a test holds that for every
registered one, and `search` counts what it prints anew.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nota_seg.models.architecture import StageConfig
from nota_seg.models.configuration import NotaSegConfig
from nota_seg.models.norms import NORMS
from nota_seg.models.registry import BLOCKS, DECODERS, FEEDFORWARDS, MIXERS, SKIPS, STEMS
from util.flops import count

Size = tuple[int, int]
SMALL = (64, 64)  # pixels, of the first run of a decoder


@dataclass(frozen=True)
class Piece:
    """Parameters, multiply-accumulates for one picture, and the size of the map it gives."""

    params: int
    macs: int
    size: Size


class _OnMaps(nn.Module):
    """A decoder as a function of one tensor of (1, 1, height, width): its maps are zeros, as from a picture of that
    size."""

    def __init__(self, decoder: nn.Module, channels: list[int], sizes: dict[Size, list[Size]]) -> None:
        super().__init__()
        self.decoder = decoder
        self.channels, self.sizes = channels, sizes

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.sizes[int(x.shape[2]), int(x.shape[3])]
        return self.decoder([x.new_zeros(1, c, *size) for c, size in zip(self.channels, sizes, strict=True)])


class _Branchless(nn.Module):
    """A skip around nothing."""

    def __init__(self, skip: nn.Module) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x, nn.Identity())


class PieceCounter:
    """Counts compositions, and remembers the pieces."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Piece] = {}

    def __len__(self) -> int:
        return len(self._known)

    def cost(self, config: NotaSegConfig, size: Size = (512, 512)) -> tuple[int, int]:
        """Parameters and MACs, as executed, of a segmentation model for one picture of (height, width)."""
        params = macs = 0
        channels, at, sizes = config.in_channels, size, []

        def add(piece: Piece, times: int = 1) -> Size:
            nonlocal params, macs
            params, macs = params + times * piece.params, macs + times * piece.macs
            return piece.size

        for stage in config.stage_configs:
            own = stage.block_specs
            dim = own[0]["dim"] if own else stage.dim
            at = add(self._stem(stage, channels, dim, at))
            for block in own:
                at, dim = add(self._block(block, dim, config.layer_norm_eps, at)), block["dim"]
            if not own:
                self._metaformer(stage, config.layer_norm_eps, at, add)
            add(self._norm(stage, config.layer_norm_eps, at))
            channels = stage.dim
            sizes.append(at)
        add(self._decoder(config, size, sizes))
        return params, macs

    def _piece(self, key: tuple[Any, ...], build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Piece:
        if key not in self._known:
            module = build().eval()
            # What is kept after the first run does not depend on its size, which may be small.
            small = (1, 1, *SMALL) if key[0] == "decoder" else (1, min(16, shape[1]), min(16, shape[2]), shape[3])
            counted = count(module, shape, warm_up=small)
            size = (shape[1], shape[2])
            if key[0] in ("stem", "block"):
                with torch.no_grad():
                    out = module.to("meta")(torch.empty(shape, device="meta"))
                size = (out.shape[1], out.shape[2])
            self._known[key] = Piece(counted.params, counted.macs, size)
        return self._known[key]

    def _stem(self, stage: StageConfig, channels: int, dim: int, at: Size) -> Piece:
        return self._piece(
            ("stem", _text(stage.stem), channels, dim, stage.stride, at),
            lambda: STEMS.build(stage.stem, in_channels=channels, dim=dim, stride=stage.stride),
            (1, *at, channels),
        )

    def _block(self, spec: dict[str, Any], in_dim: int, eps: float, at: Size) -> Piece:
        options = {k: v for k, v in spec.items() if k != "dim"}
        return self._piece(
            ("block", _text(options), in_dim, spec["dim"], at),
            lambda: BLOCKS.build(options, in_dim=in_dim, dim=spec["dim"], drop_path=0.0, eps=eps),
            (1, *at, in_dim),
        )

    def _metaformer(self, stage: StageConfig, eps: float, at: Size, add: Callable[..., Size]) -> None:
        dim, shape = stage.dim, (1, *at, stage.dim)
        hidden = int(dim * stage.mlp_ratio)
        mixer, feedforward, skip = _text(stage.mixer), _text(stage.feedforward), _text(stage.skip)
        indices = range(stage.depth) if _takes_index(stage.mixer["name"]) else [0] * stage.depth  # type: ignore[index]
        for index in indices:
            add(
                self._piece(
                    ("mixer", mixer, dim, stage.heads, index, at),
                    lambda index=index: MIXERS.build(stage.mixer, dim=dim, heads=stage.heads, index=index),  # type: ignore[misc]
                    shape,
                )
            )
        key = ("feedforward", feedforward, dim, hidden, at)
        add(self._piece(key, lambda: FEEDFORWARDS.build(stage.feedforward, dim=dim, hidden=hidden), shape), stage.depth)
        add(
            self._piece(
                ("skip", skip, dim, at),
                lambda: _Branchless(SKIPS.build(stage.skip, dim=dim, drop_path=0.0, eps=eps)),
                shape,
            ),
            2 * stage.depth,
        )

    def _norm(self, stage: StageConfig, eps: float, at: Size) -> Piece:
        key = ("norm", stage.norm, stage.dim, at)
        return self._piece(key, lambda: NORMS[stage.norm](stage.dim, eps), (1, *at, stage.dim))

    def _decoder(self, config: NotaSegConfig, size: Size, sizes: list[Size]) -> Piece:
        return self._piece(
            ("decoder", _text(config.decoder), *config.channels, *config.strides, config.num_labels, *sizes),
            lambda: _OnMaps(
                DECODERS.build(
                    config.decoder, channels=config.channels, strides=config.strides, num_labels=config.num_labels
                ),
                config.channels,
                {SMALL: [(-(-SMALL[0] // s), -(-SMALL[1] // s)) for s in config.strides], size: sizes},
            ),
            (1, 1, *size),
        )


def _text(spec: Any) -> str:
    return json.dumps(spec, sort_keys=True)


@cache
def _takes_index(mixer: str) -> bool:
    return "index" in inspect.signature(MIXERS.get(mixer).__init__).parameters
