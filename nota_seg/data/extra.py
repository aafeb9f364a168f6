"""More transforms of a training crop, by name: albumentations', and those of `paste`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A

from nota_seg.data.objects import IN_BATCH, ObjectBank
from nota_seg.data.paste import PASTES, build_paste, check_arguments
from nota_seg.data.sources.base import IGNORE
from util.errors import InputError, did_you_mean

GROUPS = {"OneOf": A.OneOf, "SomeOf": A.SomeOf, "Sequential": A.Sequential, "RandomOrder": A.RandomOrder}


def compose(items: Sequence[dict[str, Any]], banks: Callable[[str | None], ObjectBank] | None = None) -> A.Compose:
    """All of them, one after the other; see `build_extra`."""
    return A.Compose([build_extra(item, banks) for item in items])


def build_extra(item: dict[str, Any], banks: Callable[[str | None], ObjectBank] | None = None) -> Any:
    """A transform from {"type": "GridDropout", "args": {"p": 0.5}}: of albumentations, or one of `paste`.

    A group of albumentations' (`OneOf`, `SomeOf`, `Sequential`, `RandomOrder`) has its members in args.transforms, each
    written in the same way.

    Borders that a geometric transform brings in are labelled 255 unless `fill_mask` says otherwise; albumentations'
    own default would make them class 0.

    Raises:
        InputError: Unknown name or argument, or a value that albumentations refuses.
    """
    if not isinstance(item, dict) or "type" not in item or set(item) - {"type", "args"}:
        raise InputError(f'an extra transform is {{"type": NAME, "args": {{...}}}}, got {item!r}')
    known = {
        name: kind
        for name, kind in vars(A).items()
        if inspect.isclass(kind) and issubclass(kind, A.BasicTransform) and not inspect.isabstract(kind)
    }
    name, arguments = str(item["type"]), item.get("args") or {}
    if not isinstance(arguments, dict):
        raise InputError(f"the args of {name} are names and values, got {arguments!r}")
    if name in PASTES:
        try:
            return build_paste(name, arguments, banks)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} refuses {arguments}: {error}") from None
    known |= GROUPS
    if name not in known:
        raise InputError(f"no albumentations transform {name!r}: {did_you_mean(name, [*known, *PASTES, IN_BATCH])}")
    check_arguments(name, known[name], arguments)
    arguments = dict(arguments)
    if name in GROUPS:
        members = arguments.get("transforms")
        if not isinstance(members, list) or not members:
            raise InputError(f"{name} is a choice: list its members in args.transforms")
        arguments["transforms"] = [build_extra(member, banks) for member in members]
    taken = inspect.signature(known[name].__init__).parameters
    if "fill_mask" in taken and taken["fill_mask"].default == 0:
        arguments.setdefault("fill_mask", IGNORE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # ShiftScaleRotate is told to be an Affine
            warnings.filterwarnings("error", "Argument", UserWarning)  # it only warns of those that it drops
            return known[name](**arguments)
    except Exception as error:
        raise InputError(f"albumentations refuses {name} with {arguments}: {error}") from None
