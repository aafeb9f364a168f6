"""Which model weights were made for: what an error should name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from util.errors import InputError


def same_numbers(ours: torch.Size, theirs: torch.Size) -> bool:
    """Equal shapes, but for a 1x1 convolution (O, I, 1, 1) and a Linear (O, I), which hold the same."""
    strip = [tuple(s[:2]) if len(s) == 4 and tuple(s[2:]) == (1, 1) else tuple(s) for s in (ours, theirs)]
    return strip[0] == strip[1]


def blocks_of(keys: Mapping[str, Any]) -> list[int]:
    """Blocks of each stage, from encoder keys."""
    depths: dict[int, int] = {}
    for key in keys:
        words = key.split(".")
        if key.startswith("encoder.stages.") and len(words) > 4:
            block = int(words[4]) + 1 if words[3] == "blocks" else 0
            depths[int(words[2])] = max(depths.get(int(words[2]), 0), block)
    return [depths[stage] for stage in sorted(depths)]


def fitting_names(renamed: Mapping[str, Tensor], zoo_name: str | None) -> list[str]:
    """Model names whose encoder the weights fill, with the changes of `zoo_name` where it is a model of that family."""
    from nota_seg.models.zoo import bases, family_of, parse_name

    family = _family(zoo_name)
    changes = parse_name(zoo_name)[1] if zoo_name and family else []
    wanted = {k: v.shape for k, v in renamed.items() if _is_weight(k)}
    depths = blocks_of(renamed)
    names = []
    for base, architecture in bases().items():
        if [stage["depth"] for stage in architecture["stages"]] != depths:
            continue
        changed = "-".join([base, *changes]) if family_of(base) == family else base
        if _fits(base, wanted) or (changed != base and _fits(changed, wanted)):
            names.append(changed)
    return [name for name in names if family_of(name) == family] or names


def same_family(name: str, zoo_name: str | None) -> bool:
    return _family(name) is not None and _family(name) == _family(zoo_name)


def _family(zoo_name: str | None) -> str | None:
    from nota_seg.models.zoo import family_of

    try:
        return family_of(zoo_name) if zoo_name else None
    except InputError:  # of a later version, or somebody's own
        return None


def _is_weight(key: str) -> bool:
    """Of the encoder's stems and blocks: norms of stages and counters may be left out."""
    words = key.split(".")
    return key.startswith("encoder.stages.") and words[3] != "norm" and words[-1] != "num_batches_tracked"


def _fits(name: str, wanted: Mapping[str, torch.Size]) -> bool:
    from nota_seg.models.zoo import create_model

    with torch.device("meta"):
        own = {k: v.shape for k, v in create_model(name, "backbone").state_dict().items() if _is_weight(k)}
    return own.keys() == wanted.keys() and all(same_numbers(own[k], wanted[k]) for k in own)
