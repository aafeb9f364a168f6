"""`nota-seg demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Overwrite, quiet_libraries


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("demo-output"),
    overwrite: Overwrite = False,
) -> None:
    """Draw two small data sets, then pretrain, finetune, eval, flops and predict on them: no network, no GPU.

    Example: `nota-seg demo --output-dir demo-output`
    """
    from imagenet_pretrain.pretrain import pretrain
    from nota_seg.demo import demo as run

    quiet_libraries()
    print(run(output_dir, overwrite=overwrite, pretrain=pretrain))
