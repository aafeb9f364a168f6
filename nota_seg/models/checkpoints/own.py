"""This project's own names: a `save_pretrained` folder, the older {"model": state_dict} file, or an encoder alone."""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Format, State

FIRST = "stages.0.stem."


def matches(state: State) -> bool:
    return any(k.startswith((f"encoder.{FIRST}", FIRST)) for k in state)


def rename(state: State) -> State:
    return {f"encoder.{k}" if k.startswith("stages.") else k: v for k, v in state.items()}


# Which components the weights belong to is read from the folder's config.json, see `transfer._provided`.
OWN = Format("nota-seg", matches, rename)
