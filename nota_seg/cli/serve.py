"""`nota-seg serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from nota_seg.cli.common import Device, quiet_libraries, torch_device
from util.errors import InputError


def serve(
    runs: Annotated[list[str], typer.Argument(metavar="RUN [RUN2]", help="Run folders, or their best/ or last/.")],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="[default: the first free one from 7860]")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 for other machines, e.g. out of a container.")] = "127.0.0.1",
    device: Device = None,
) -> None:
    """Open a local page: drop a picture, see two models side by side, where they disagree and what they cost.

    Example: `nota-seg serve result/b0-ade result/b2-ade`
    """
    if len(runs) > 2:
        raise InputError(f"serve shows one or two models, got {len(runs)}")
    torch_dev = torch_device(device)
    from nota_seg.serve import Candidate, build, launch, require_gradio

    quiet_libraries()
    require_gradio()
    launch(build([Candidate.load(run, torch_dev) for run in runs]), port=port, host=host)
