"""This project's own names, from a `save_pretrained` folder or the older {"model": state_dict} file."""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Format


def matches(keys: set[str]) -> bool:
    return any(k.startswith("encoder.stages.0.stem.") for k in keys)


# Which components the weights belong to is read from the folder's config.json, see `transfer._provided`.
OWN = Format("nota-seg", matches, lambda state: state)
