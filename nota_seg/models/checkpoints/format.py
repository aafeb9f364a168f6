"""What a published format is to us: how to know it, what its keys are called here, which components it fills."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """A published layout of weights.

    Attributes:
        name: For people.
        matches: Whether a set of keys is of this format.
        rename: Published state to our names; keys that have no place here keep theirs.
        provides: Component names by kind that the format has weights for. Where the model has the same component, all
            its parameters must be found; where it has another, the rest is initialised afresh.
    """

    name: str
    matches: Callable[[set[str]], bool]
    rename: Callable[[State], State]
    provides: Mapping[str, frozenset[str]] = field(default_factory=dict)


SEGFORMER_COMPONENTS = {
    "stem": frozenset({"overlap"}),
    "mixer": frozenset({"sra"}),
    "feedforward": frozenset({"mix"}),
    "skip": frozenset({"add"}),
}


def substitute(state: State, rules: list[tuple[str, str | Callable[[re.Match[str]], str]]]) -> State:
    """Rename by the first regular expression that matches a whole key; other keys stay."""
    compiled = [(re.compile(pattern), target) for pattern, target in rules]
    result: State = {}
    for key, value in state.items():
        for pattern, target in compiled:
            match = pattern.fullmatch(key)
            if match:
                key = match.expand(target) if isinstance(target, str) else target(match)
                break
        result[key] = value
    return result


def join_key_value(state: State) -> State:
    """`...mixer.k.weight` and `...mixer.v.weight` as the one projection `...mixer.kv.weight`."""
    result = dict(state)
    for key in state:
        if ".mixer.k." in key:
            partner = key.replace(".mixer.k.", ".mixer.v.")
            if partner in state:
                result[key.replace(".mixer.k.", ".mixer.kv.")] = torch.cat([result.pop(key), result.pop(partner)])
    return result


def unwrap(value: Any) -> Any:
    """The state dict inside the usual wrappers, without the prefix of DataParallel."""
    while isinstance(value, dict):
        inner = next((value[k] for k in ("state_dict", "model", "module") if isinstance(value.get(k), dict)), None)
        if inner is None:
            break
        value = inner
    if isinstance(value, dict) and value and all(str(k).startswith("module.") for k in value):
        value = {k.removeprefix("module."): v for k, v in value.items()}
    return value
