"""What a published format is to us: how to know it, what its keys are called here, which components it fills."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Format:
    """A published layout of weights.

    Attributes:
        name: For people.
        matches: Whether a state dict is of this format.
        rename: Published state to our names; keys that have no place here keep theirs.
        provides: Component names by kind that the format has weights for. Where the model has the same component, all
            its parameters must be found; where it has another, the rest is initialised afresh.
    """

    name: str
    matches: Callable[[State], bool]
    rename: Callable[[State], State]
    provides: Mapping[str, frozenset[str]] = field(default_factory=dict)


def components(*, stem: str, mixer: str = "", feedforward: str = "", skip: str = "") -> dict[str, frozenset[str]]:
    """`provides` of a format, each kind a few names with spaces between them."""
    named = dict(stem=stem, mixer=mixer, feedforward=feedforward, skip=skip)
    return {kind: frozenset(names.split()) for kind, names in named.items()}


def substitute(state: State, rules: Sequence[Rule]) -> State:
    """Rename by the first regular expression that matches a whole key; other keys stay.

    Of two keys that would get the same name (the norm of a classifier beside that of a decoder) the one of the earlier
    rule does, and the other one stays.
    """
    compiled = [(re.compile(pattern), target) for pattern, target in rules]
    names: dict[str, str] = {}
    taken: dict[str, tuple[int, str]] = {}
    for key in state:
        for rank, (pattern, target) in enumerate(compiled):
            match = pattern.fullmatch(key)
            if match:
                name = match.expand(target) if isinstance(target, str) else target(match)
                if name not in taken or rank < taken[name][0]:
                    if name in taken:
                        del names[taken[name][1]]
                    taken[name] = (rank, key)
                    names[key] = name
                break
    return {names.get(key, key): value for key, value in state.items()}


def join(state: State, parts: Sequence[str], whole: str) -> State:
    """Projections side by side as one: `...mixer.k.weight` and `...mixer.v.weight` as `...mixer.kv.weight`."""
    result = dict(state)
    for key in state:
        if f".mixer.{parts[0]}." in key:
            partners = [key.replace(f".mixer.{parts[0]}.", f".mixer.{part}.") for part in parts]
            if all(p in result for p in partners):
                joined = torch.cat([result.pop(p) for p in partners])
                result[key.replace(f".mixer.{parts[0]}.", f".mixer.{whole}.")] = joined
    return result


def shifted(target: str) -> Callable[[re.Match[str]], str]:
    """A target below the stage whose number, counted from 1, is the first group."""
    return lambda m: f"encoder.stages.{int(m[1]) - 1}." + m.expand(target)
