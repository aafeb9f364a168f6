"""Names to components. A registry is one dictionary with good error messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from util.errors import InputError, did_you_mean

Spec = str | Mapping[str, Any]  # "pool", or {"name": "pool", "size": 3}


class Registry:
    """One kind of component (mixers, decoders, ...), by name.

    Args:
        kind: What the entries are, in the singular: it opens every error message.
        given: Arguments that the model passes to every component of the kind; all others are the component's own
            options and may be set in a specification.
        offered: Arguments that the model passes to those components alone that take them.
    """

    def __init__(self, kind: str, given: tuple[str, ...], offered: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.given = given
        self.offered = offered
        self._classes: dict[str, type[nn.Module]] = {}

    def register(self, name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
        """Class decorator. A name taken twice raises: the second file would silently replace the first."""

        def add(cls: type[nn.Module]) -> type[nn.Module]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._classes[name]} and {cls}")
            if "-" in name:
                raise ValueError(f"{self.kind} {name!r}: a dash separates the changes in a model name, use '_'")
            self._classes[name] = cls
            return cls

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        return list(self._classes)

    def get(self, name: str) -> type[nn.Module]:
        """The class behind a name; an unknown name suggests the nearest ones."""
        if name not in self._classes:
            raise InputError(f"unknown {self.kind} {name!r}: {did_you_mean(name, self._classes)}")
        return self._classes[name]

    def options(self, name: str) -> dict[str, Any]:
        """The component's own options and their defaults."""
        parameters = inspect.signature(self.get(name).__init__).parameters
        return {k: p.default for k, p in parameters.items() if k not in ("self", *self.given, *self.offered)}

    def normalise(self, spec: Spec) -> dict[str, Any]:
        """A specification as a dictionary with a known `name` and known options."""
        spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        if not isinstance(spec.get("name"), str):
            raise InputError(f"a {self.kind} needs a name, got {spec!r}: {did_you_mean('', self._classes)}")
        own = self.options(spec["name"])
        for key in spec:
            if key != "name" and key not in own:
                raise InputError(f"{self.kind} {spec['name']!r} has no option {key!r}: {did_you_mean(key, own)}")
        return spec

    def build(self, spec: Spec, **given: Any) -> nn.Module:
        """The component of a specification, constructed."""
        options = self.normalise(spec)
        cls = self.get(options.pop("name"))
        taken = inspect.signature(cls.__init__).parameters
        given = {k: v for k, v in given.items() if k not in self.offered or k in taken}
        return cls(**given, **options)


MIXERS = Registry("mixer", ("dim", "heads"), offered=("index",))  # index: of the block in its stage
FEEDFORWARDS = Registry("feed-forward", ("dim", "hidden"))
SKIPS = Registry("skip", ("dim", "drop_path", "eps"))
BLOCKS = Registry("block", ("in_dim", "dim", "drop_path", "eps"))
STEMS = Registry("stem", ("in_channels", "dim", "stride"))
DECODERS = Registry("decoder", ("channels", "strides", "num_labels"))
