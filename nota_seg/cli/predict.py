"""`nota-seg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Device, Overwrite, quiet_libraries, torch_device


def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    pretrain: Annotated[str, typer.Option(help="A run's folder, or its best/ or last/.")],
    output_dir: Annotated[Path, typer.Option(help="Where label maps and overlays go.")],
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Label pictures: for each a PNG of class ids (with palette) and an overlay with a legend.

    Example: `nota-seg predict street.jpg photos/ --pretrain result/b0-ade --output-dir labels`
    """
    torch_dev = torch_device(device)
    from nota_seg.inference import protocol_for
    from nota_seg.models.loading import load_for_inference
    from nota_seg.predict import find_pictures
    from nota_seg.predict import predict as run
    from util.progress import Progress

    quiet_libraries()
    model, class_names = load_for_inference(pretrain, torch_dev)
    with Progress(len(find_pictures(images, output_dir)), "predicting") as progress:
        written = run(
            model, images, output_dir, protocol_for(model), class_names=class_names, device=torch_dev, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    for path in written:
        print(path)
