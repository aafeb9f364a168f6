"""`nota-seg eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import (
    Crop,
    Deterministic,
    Device,
    Mode,
    Stride,
    Tta,
    looks,
    parse_size,
    print_json,
    quiet_libraries,
    torch_device,
)


def evaluate(
    data_dir: Annotated[str, typer.Option(help="As in finetune.")],
    pretrain: Annotated[str, typer.Option(help="A run's folder, or its best/ or last/.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    mode: Mode = None,
    crop_size: Crop = None,
    stride: Stride = None,
    scales: Annotated[str, typer.Option(help="Comma-separated, e.g. 0.5,1,1.5; probabilities are averaged.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Also the mirrored picture.")] = False,
    tta: Tta = None,
    base_size: Annotated[
        str | None, typer.Option(help="LONGxSHORT side to fit pictures to, or `none`.  [default: the model's]")
    ] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures of equal size at a time.  [default: half a megapixel of them]")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N pictures only.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the result here, what each picture adds to it beside it (.npz); `-`: to stdout instead of the table.",
        ),
    ] = None,
    deterministic: Deterministic = False,
    device: Device = None,
) -> None:
    """Evaluate against labels at their original size: mIoU, mAcc, aAcc, boundary IoU, per class.

    Example: `nota-seg eval --data-dir ADEChallengeData2016 --pretrain result/b0-ade --json b0.json`
    """
    torch_dev = torch_device(device)
    from nota_seg.data.sources import open_source
    from nota_seg.evaluate import evaluate as run
    from nota_seg.evaluate import format_table
    from nota_seg.inference import protocol_for
    from nota_seg.models.loading import load_for_inference
    from nota_seg.picture_counts import PictureCounts, Row, count_picture
    from util.files import write_json
    from util.progress import Progress
    from util.seed import deterministic as make_deterministic

    quiet_libraries()
    if deterministic:
        make_deterministic()
    chosen = {**looks(scales, tta, mode, crop_size, stride), "precision": precision}
    chosen["flip"] |= flip
    if base_size is not None:
        chosen["base_size"] = None if base_size.lower() == "none" else parse_size(base_size, "--base-size")
    model, _ = load_for_inference(pretrain, torch_dev)
    protocol = protocol_for(model, **chosen)
    source = open_source(data_dir)
    total = source.splits.get(split, 0)
    counts: list[Row] = []
    with Progress(total if limit is None else min(limit, total), "evaluating") as progress:
        progress.say(source.describe())
        progress.say(f"protocol: {protocol.as_dict()}")
        result = run(
            model, source, split, protocol, device=torch_dev, batch_size=batch_size, workers=workers, limit=limit,
            progress=progress, on_picture=lambda name, found, truth: counts.append(count_picture(name, found, truth, source.num_labels)),
        )  # fmt: skip
    if json is not None and str(json) != "-":
        write_json(json, result)
        PictureCounts.collect(counts, source.class_names, result["protocol"]).save(json.with_suffix(".npz"))
    if json is not None and str(json) == "-":
        print_json(result)
    else:
        print(format_table(result))
