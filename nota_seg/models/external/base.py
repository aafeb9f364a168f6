"""What models built by other libraries share: the configuration beside the architecture, loading, any input size."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from nota_seg.models.architecture import IMAGENET_MEAN, IMAGENET_STD
from nota_seg.models.modeling import NotaSegPreTrainedModel
from util.errors import InputError
from util.progress import Progress

LEAST = 64  # pixels; smaller maps vanish in the pooling of some networks
Built = TypeVar("Built")

# Overrides that every one of these models takes; the others are options of the library that builds it.
SHARED_KEYS = (
    "in_channels", "initializer_range", "semantic_loss_ignore_index", "image_mean", "image_std", "image_size",
    "id2label", "label2id",
)  # fmt: skip


class ExternalConfig(PretrainedConfig):
    """Beside the architecture; see `NotaSegConfig` for the meaning of each.

    Args:
        options: Further arguments of the library's own constructor.
    """

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        in_channels: int = 3,
        initializer_range: float = 0.02,
        semantic_loss_ignore_index: int = 255,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        image_size: Sequence[int] | None = (2048, 512),
        zoo_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.options = dict(options or {})
        self.in_channels = in_channels
        self.initializer_range = initializer_range
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.image_size = None if image_size is None else list(image_size)
        self.zoo_name = zoo_name
        super().__init__(**kwargs)

    @classmethod
    def named(cls, name: str, options: dict[str, Any], shared: dict[str, Any]) -> ExternalConfig:
        """The configuration of a model name behind the library's prefix; what the library does not know is refused."""
        raise NotImplementedError

    @classmethod
    def for_crops(cls, crop: tuple[int, int], overrides: dict[str, Any]) -> dict[str, Any]:
        """Overrides with the crop of a training, where an architecture depends on it, unless they name another."""
        return overrides

    @classmethod
    def models(cls) -> dict[str, type[NotaSegPreTrainedModel]]:
        """The model of each task."""
        raise NotImplementedError

    def components(self) -> dict[str, list[str]]:
        """The names of encoder and decoder."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The overrides that make the same architecture again from `zoo_name`."""
        return dict(self.options)


class ExternalModel(NotaSegPreTrainedModel):
    """Loading and initialisation: what another library built keeps the weights that it gave itself."""

    supports_gradient_checkpointing = False

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """Built with storage: buffers that no file holds (index tables) would come back empty from the meta device."""
        contexts = super().get_init_context(*args, **kwargs)
        return [c for c in contexts if not (isinstance(c, torch.device) and c.type == "meta")]

    def _move_missing_keys_from_meta_to_device(self, *args: Any, **kwargs: Any) -> None:
        kept = dict(self.named_non_persistent_buffers())
        super()._move_missing_keys_from_meta_to_device(*args, **kwargs)  # empties those buffers
        for name, buffer in kept.items():
            path, _, last = name.rpartition(".")
            self.get_submodule(path)._buffers[last] = buffer

    def keep(self, module: nn.Module) -> nn.Module:
        """Leave a module's weights as they are when the rest of the model is initialised.

        Raises:
            InputError: Two of its layers are one: safetensors would not save it.
        """
        if len(list(module.parameters())) != len(list(module.named_parameters(remove_duplicate=False))):
            raise InputError(
                f"{self.config.zoo_name} shares weights between layers and cannot be saved: choose another"
            )
        for part in module.modules():
            part._is_hf_initialized = True
        return module

    def freeze_unused(self) -> None:
        """What no logit depends on (a classifier's last norm) does not train: several processes wait for every gradient
        that may come."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if torch.is_inference_mode_enabled() or any(p.is_meta for p in parameters):
            return
        self.eval()
        with torch.enable_grad():
            x = torch.zeros(1, self.config.in_channels, LEAST, LEAST, dtype=parameters[0].dtype)
            total = self(x.to(parameters[0].device)).logits.sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train()


def with_hub(build: Callable[[bool], Built], pretrained: bool, name: str) -> Built:
    """`build(pretrained)`, or with random weights where the published ones cannot be had, and a line that says so."""
    if pretrained:
        try:
            with _offline_if_unreachable():
                return build(True)
        except Exception as error:  # whatever the hub client, the cache or the library's own look-up raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            say = Progress(0, "", enabled=os.environ.get("RANK", "0") == "0").say
            say(f"no published weights for {name} ({reason}): its encoder starts from random weights")
    return build(False)


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Inside the block the hub's client looks into its cache alone where the hub cannot be reached.

    It would ask five times with growing pauses, for every file: a minute for each model.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    hub = urlsplit(constants.ENDPOINT)
    if not before and not getproxies():
        try:
            socket.create_connection(
                (hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)), timeout=5
            ).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def refused(library: str, name: str, error: Exception) -> InputError:
    """What a library says of arguments that it does not take, in one line."""
    return InputError(f"{library} cannot build {name}: {' '.join(str(error).split())[:300]}")


def padded(x_BCHW: Tensor, multiple: int, least: int = LEAST) -> Tensor:
    """Zeros (the mean colour) at the right and the bottom, up to sides that are multiples and not below `least`."""
    height, width = (-(-max(side, least) // multiple) * multiple for side in x_BCHW.shape[2:])
    if (height, width) == tuple(x_BCHW.shape[2:]):
        return x_BCHW
    return F.pad(x_BCHW, (0, width - x_BCHW.shape[3], 0, height - x_BCHW.shape[2]))


def unpadded(logits: Tensor, size_padded: Sequence[int], size: Sequence[int]) -> Tensor:
    """Logits of a padded picture cut to the picture, at its full size; untouched where nothing was padded.

    The border of the picture lies between two positions of coarser logits: they are upsampled first.
    """
    if tuple(size_padded) == tuple(size):
        return logits
    if tuple(logits.shape[2:]) != tuple(size_padded):
        logits = F.interpolate(logits, size=tuple(size_padded), mode="bilinear", align_corners=False)
    return logits[..., : size[0], : size[1]]
