"""`nota-seg flops`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from nota_seg.cli.common import Set, parse_size, print_json, quiet_libraries
from util.errors import InputError


def flops(
    model: Annotated[str | None, typer.Option(help="Model name, e.g. segformer-b0.")] = None,
    pretrain: Annotated[str | None, typer.Option(help="Or a run's folder, or its best/ or last/.")] = None,
    size: Annotated[str, typer.Option(help="Input in pixels: 512 or HxW.")] = "512",
    num_classes: Annotated[int, typer.Option(min=1, help="Of a model given by name.")] = 150,
    set_: Set = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Count parameters and multiply-accumulates (MACs; a FLOP count is twice that), as executed and as in the paper.

    Example: `nota-seg flops --model segformer-b2-pool --size 512x1024`
    """
    from nota_seg.flops import cost, format_cost
    from nota_seg.models.loading import load_for_inference
    from util.flops import outlined

    quiet_libraries()
    if (model is None) == (pretrain is None):
        raise InputError("give --model NAME or --pretrain FOLDER, one of them")
    pixels = parse_size(size, "--size")
    assert pixels is not None
    if model is not None:
        from nota_seg.models.zoo import create_from_settings  # brings transformers, which a run's folder does without

        create = partial(create_from_settings, model, num_labels=num_classes, sets=set_ or [])
        result = outlined(lambda net: cost(net, pixels), create)
    else:
        result = cost(load_for_inference(str(pretrain))[0], pixels)
    print_json(result) if json else print(format_cost(result))
