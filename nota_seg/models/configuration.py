"""The architecture as transformers reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from nota_seg.models.architecture import NETWORK_KEYS, NetworkConfig, StageConfig


class NotaSegConfig(NetworkConfig, PretrainedConfig):
    """Configuration of every nota-seg model: the arguments of `NetworkConfig`, and transformers' own."""

    def __init__(self, stages: Sequence[Mapping[str, Any] | StageConfig] | None = None, **kwargs: Any) -> None:
        NetworkConfig.__init__(self, stages, **{k: kwargs.pop(k) for k in NETWORK_KEYS & kwargs.keys()})
        PretrainedConfig.__init__(self, **kwargs)
