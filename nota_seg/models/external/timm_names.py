"""What timm knows of its models by name, and the options under which a transformer of it takes pictures of any size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

from util.errors import InputError, did_you_mean


def library() -> ModuleType:
    """timm, imported with the first of its models: it takes a second, which no other model should cost."""
    import timm

    return timm


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """All models."""
    return tuple(library().list_models())


def check(name: str) -> None:
    """InputError, with the nearest names, unless timm has the model and the tag behind its dot."""
    base, _, tag = name.partition(".")
    if base not in names():
        raise InputError(f"unknown timm model {base!r}: {did_you_mean(base, names())}")
    tags = [n.partition(".")[2] for n in library().list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise InputError(f"timm's {base} has no weights {tag!r}: {did_you_mean(tag, tags)}")


def statistics(name: str) -> dict[str, Any]:
    """Mean and standard deviation that the published weights were trained with."""
    published = library().get_pretrained_cfg(name)
    return {} if published is None else {"image_mean": list(published.mean), "image_std": list(published.std)}


def fixed_size(name: str) -> bool:
    """Whether the model takes pictures of one size unless told otherwise."""
    published = library().get_pretrained_cfg(name)
    return published is not None and bool(published.fixed_input_size)


@lru_cache(maxsize=64)
def _size_options(name: str) -> tuple[tuple[str, Any], ...]:
    if not fixed_size(name):
        return ()
    choices: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
    for options in choices:
        try:
            with torch.device("meta"):
                library().create_model(name, pretrained=False, **options)
        except TypeError:
            continue
        return tuple(options.items())
    return ()


def size_options(name: str) -> dict[str, Any]:
    """Constructor arguments with which a transformer takes other sizes than the one it is published at."""
    return dict(_size_options(name))


def only_size(name: str, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of the only pictures that a model takes with these options; None where others do."""
    if not fixed_size(name) or any(key in options for key in ("dynamic_img_size", "strict_img_size")):
        return None
    if "img_size" in options:
        side = options["img_size"]
        return (side, side) if isinstance(side, int) else (side[0], side[1])
    return tuple(library().get_pretrained_cfg(name).input_size[1:])
