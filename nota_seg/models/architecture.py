"""The architecture as data: a line a stage, and a decoder.

A stage reads like a row of the paper's table:

    dict(depth=2, dim=32, stride=4, heads=1, mlp_ratio=4, mixer={"name": "sra", "ratio": 8})

Every choice is the name of a registered component, with options where it has some.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nota_seg.models.registry import BLOCKS, DECODERS, FEEDFORWARDS, MIXERS, SKIPS, STEMS, Spec
from util.errors import InputError, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STAGE_NORMS = ("layer", "batch", "none")
Architecture = dict[str, Any]  # keyword arguments of NetworkConfig: stages, decoder, ...
PER_STAGE = {"mixer": MIXERS, "feedforward": FEEDFORWARDS, "skip": SKIPS, "stem": STEMS}


@dataclass
class StageConfig:
    """One stage of the encoder: `depth` blocks of mixer and feed-forward at one resolution, after a stem.

    Where a stage is no row of equal blocks, `blocks` names their kinds as a pattern that is repeated over the depth:
    depth 10 of `["ncb", "ncb", "ncb", "ncb", "ntb"]` is (NCB x 4, NTB) x 2. A block may have channels of its own
    (`{"name": "ncb", "dim": 384}`); the last one has the stage's. Mixer, feed-forward and skip are then unused.
    """

    depth: int  # blocks
    dim: int  # channels
    stride: int  # of the stem, relative to the stage before
    heads: int = 1  # of the mixer, where it has heads
    mlp_ratio: float = 4  # feed-forward hidden channels / dim
    stem: Spec = "overlap"
    mixer: Spec = field(default_factory=lambda: {"name": "sra", "ratio": 1})
    feedforward: Spec = "mix"
    skip: Spec = "add"
    blocks: Sequence[Spec] | None = None  # a pattern of block kinds; None: mixer and feed-forward inside the skip
    norm: str = "layer"  # of the stage's map: layer, batch or none
    norm_next: bool = True  # whether the next stage goes on from the normed map; Swin's norms are for the decoder alone

    def __post_init__(self) -> None:
        for name in ("depth", "dim", "stride", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"a stage's {name} must be a whole number of at least 1, got {value!r}")
        if not self.mlp_ratio > 0:
            raise InputError(f"a stage's mlp_ratio must be positive, got {self.mlp_ratio!r}")
        for name, registry in PER_STAGE.items():
            setattr(self, name, registry.normalise(getattr(self, name)))
        if self.norm not in STAGE_NORMS:
            raise InputError(f"a stage's norm is one of {', '.join(STAGE_NORMS)}, got {self.norm!r}")
        if self.blocks is not None:
            self.blocks = self._normalised_blocks(self.blocks)

    def _normalised_blocks(self, blocks: Sequence[Spec]) -> list[dict[str, Any]]:
        if isinstance(blocks, str | Mapping) or not blocks or self.depth % len(blocks):
            raise InputError(
                f"a stage's blocks must be a list whose length divides its depth {self.depth}, got {blocks!r}"
            )
        result: list[dict[str, Any]] = []
        for spec in blocks:
            given = {} if isinstance(spec, str) else dict(spec)
            dim = given.pop("dim", self.dim)
            result.append({**BLOCKS.normalise(spec if isinstance(spec, str) else given), "dim": dim})
        if dim != self.dim:
            raise InputError(f"a stage of {self.dim} channels must end with a block of as many, got one of {dim}")
        return result

    @property
    def block_specs(self) -> list[dict[str, Any]]:
        """The pattern of blocks repeated over the depth, each with its channels `dim`."""
        pattern = self._normalised_blocks(self.blocks) if self.blocks else []
        return [{**pattern[i % len(pattern)]} for i in range(self.depth)] if pattern else []

    @classmethod
    def of(cls, value: StageConfig | Mapping[str, Any]) -> StageConfig:
        """A stage from a mapping; an unknown key is an error that suggests the nearest one."""
        if isinstance(value, StageConfig):
            return value
        known = {f.name for f in fields(cls)}
        for key in value:
            if key not in known:
                raise InputError(f"a stage has no key {key!r}: {did_you_mean(key, known)}")
        missing = {"depth", "dim", "stride"} - set(value)
        if missing:
            raise InputError(f"a stage needs {', '.join(sorted(missing))}, got {sorted(value)}")
        return cls(**value)


class NetworkConfig:
    """What the networks are built from; `NotaSegConfig` adds transformers' reading and writing.

    Args:
        stages: One mapping a stage, see `StageConfig`.
        decoder: A registered decoder and its options; used by the segmentation model alone.
        in_channels: Channels of the input.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 over the blocks.
        layer_norm_eps: Epsilon of the LayerNorms of blocks and stages (1e-6, as the published weights were trained).
        initializer_range: Standard deviation of the truncated normal that Linear weights start from.
        semantic_loss_ignore_index: The label that has no loss.
        image_mean: Of the RGB input scaled to 0..1.
        image_std: Of the RGB input scaled to 0..1.
        image_size: (longest, shortest) side in pixels that a picture is fitted to before evaluation, or None: as it is.
        zoo_name: The model name that this configuration was made from, for people and for `finetune --pretrain`.
    """

    model_type = "nota_seg"

    def __init__(
        self,
        stages: Sequence[Mapping[str, Any] | StageConfig] | None = None,
        decoder: Spec = "mlp",
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        semantic_loss_ignore_index: int = 255,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        image_size: Sequence[int] | None = (2048, 512),
        zoo_name: str | None = None,
    ) -> None:
        # transformers builds a configuration without arguments to find what differs from the defaults.
        if stages is None:
            stages = SEGFORMER_B0
        if not stages:
            raise InputError("a model needs at least one stage")
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate must be in [0, 1), got {drop_path_rate!r}")
        self.stages = [asdict(StageConfig.of(s)) for s in stages]
        self.decoder = DECODERS.normalise(decoder)
        self.in_channels = in_channels
        self.drop_path_rate = drop_path_rate
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.image_size = None if image_size is None else list(image_size)
        self.zoo_name = zoo_name

    @property
    def stage_configs(self) -> list[StageConfig]:
        return [StageConfig.of(s) for s in self.stages]

    @property
    def channels(self) -> list[int]:
        """Channels of each stage's feature map."""
        return [s["dim"] for s in self.stages]

    @property
    def strides(self) -> list[int]:
        """Stride of each stage's feature map, relative to the input."""
        strides = [s["stride"] for s in self.stages]
        for i in range(1, len(strides)):
            strides[i] *= strides[i - 1]
        return strides

    def _component_names(self, kind: str) -> list[str]:
        return [s[kind]["name"] for s in self.stages]

    def components(self) -> dict[str, list[str]]:
        """The names of all components, by kind, one a stage; of a stage with blocks of its own kinds, those."""
        names: dict[str, list[str]] = {kind: self._component_names(kind) for kind in PER_STAGE}
        if any(s["blocks"] for s in self.stages):
            kinds = [list(dict.fromkeys(b["name"] for b in s["blocks"] or [])) for s in self.stages]
            names = {"stem": names["stem"], "block": ["+".join(k) for k in kinds]}
        return names | {"decoder": [self.decoder["name"]]}


NETWORK_KEYS = frozenset(inspect.signature(NetworkConfig).parameters)
SEGFORMER_B0 = [
    dict(depth=2, dim=32, stride=4, heads=1, mixer={"name": "sra", "ratio": 8}),
    dict(depth=2, dim=64, stride=2, heads=2, mixer={"name": "sra", "ratio": 4}),
    dict(depth=2, dim=160, stride=2, heads=5, mixer={"name": "sra", "ratio": 2}),
    dict(depth=2, dim=256, stride=2, heads=8, mixer={"name": "sra", "ratio": 1}),
]
