"""`nota-seg eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import (
    Deterministic,
    Device,
    Tta,
    parse_numbers,
    parse_size,
    print_json,
    quiet_libraries,
    torch_device,
    views,
)


def evaluate(
    data_dir: Annotated[str, typer.Option(help="As in finetune.")],
    pretrain: Annotated[str, typer.Option(help="A run's folder, or its best/ or last/.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    mode: Annotated[str | None, typer.Option(help="whole or slide.  [default: whole; of BEiT slide]")] = None,
    crop_size: Annotated[
        str | None, typer.Option(help="Window of slide: 512 or HxW.  [default: 512; of BEiT its own]")
    ] = None,
    stride: Annotated[str | None, typer.Option(help="Of the window.  [default: two thirds of it]")] = None,
    scales: Annotated[str, typer.Option(help="Comma-separated, e.g. 0.5,1,1.5; probabilities are averaged.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Also the mirrored picture.")] = False,
    tta: Tta = None,
    base_size: Annotated[
        str | None, typer.Option(help="LONGxSHORT side to fit pictures to, or `none`.  [default: the model's]")
    ] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of equal size at a time.")] = 1,
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
    from nota_seg.inference import Protocol, trained_window
    from nota_seg.models.loading import load_model
    from nota_seg.picture_counts import PictureCounts, Row, count_picture
    from util.files import write_json
    from util.progress import Progress
    from util.seed import deterministic as make_deterministic

    quiet_libraries()
    if deterministic:
        make_deterministic()
    window, step = parse_size(crop_size, "--crop-size"), parse_size(stride, "--stride")
    model, _ = load_model(pretrain, torch_dev)
    trained = trained_window(model)
    mode = mode or ("whole" if trained is None else "slide")
    if mode == "slide":
        window = window or trained or (512, 512)
    fitted = getattr(model.config, "image_size", None)
    if base_size is not None:
        fitted = None if base_size.lower() == "none" else parse_size(base_size, "--base-size")
    seen = views(tta)
    seen["flip"] |= flip
    protocol = Protocol(
        mode=mode, crop_size=window, stride=step, scales=parse_numbers(scales, "--scales"),
        base_size=tuple(fitted) if fitted else None, precision=precision, **seen,
    )  # fmt: skip
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
