"""`nota-seg data from-submission|to-submission|pseudo-label`: between predictions and data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import (
    Crop,
    Device,
    Form,
    Forms,
    Mode,
    Pictures,
    Side,
    Stride,
    Tta,
    looks,
    parse_numbers,
    print_json,
    quiet_libraries,
    torch_device,
)  # fmt: skip
from util.errors import InputError, did_you_mean

NewFile = Annotated[Path, typer.Option("--output", help="The new file; never written over another.")]
PixelThreshold = Annotated[float, typer.Option("--pixel", min=0.0, max=1.0, help="Least probability of a pixel.")]
ClassThresholds = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="NAME=P", help="Least mean probability of a class in a picture. Repeatable."),
]
ImageThreshold = Annotated[
    float, typer.Option("--image", min=0.0, max=1.0, help="Least mean probability of a picture.")
]
TestJson = Annotated[Path, typer.Option(help="COCO JSON that lists the pictures and the categories.")]


def from_submission(
    csv: Annotated[Path, typer.Argument(help="image_id,PredictionString.")],
    test_json: TestJson,
    output: NewFile,
    form: Forms = Form.RLE,
    parts: Annotated[bool, typer.Option("--parts", help="An annotation for each connected part.")] = False,
    images: Pictures = None,
) -> None:
    """A submission as a COCO file, to train on or to look at.

    Example: `nota-seg data from-submission best.csv --test-json test.json --output best.json`
    """
    from nota_seg.data.exchange import from_submission as run
    from util.coco import CocoFile, must_be_new
    from util.progress import Progress
    from util.submissions import Submission

    must_be_new(output)
    coco = CocoFile.read(test_json, annotated=False)
    with Progress(len(coco.images), "annotating") as progress:
        file = run(Submission(csv), coco, form=form.value, parts=parts, progress=progress)
    file.write(output, images)
    print(f"{output}: {len(file.images)} images, {len(file.annotations)} annotations")


def to_submission(
    json: Annotated[Path, typer.Argument(help="A COCO JSON file with annotations.")],
    output: NewFile,
    size: Side = 256,
) -> None:
    """A COCO file's annotations as a submission.

    Example: `nota-seg data to-submission best.json --output best.csv`
    """
    from nota_seg.data.exchange import submission_rows
    from util.coco import CocoFile
    from util.progress import Progress
    from util.submissions import write_submission

    coco = CocoFile.read(json)
    with Progress(len(coco.images), "writing") as progress:
        write_submission(output, submission_rows(coco), side=size, progress=progress)
    print(output)


def pseudo_label(
    test_json: TestJson,
    pretrain: Annotated[list[str], typer.Option(help="A run's folder. Repeatable: they vote.")],
    output_dir: Annotated[Path, typer.Option(help="New folder: pseudo.json, manifest.jsonl, contact_sheet.png.")],
    weight: Annotated[list[float] | None, typer.Option(help="Of each --pretrain. Repeatable.")] = None,
    pixel: PixelThreshold = 0.0,
    class_: ClassThresholds = None,
    image: ImageThreshold = 0.0,
    masks: Annotated[bool, typer.Option("--masks", help="Also label PNGs, 255 where nothing is sure.")] = False,
    form: Forms = Form.RLE,
    scales: Annotated[str, typer.Option(help="As in eval.")] = "1",
    tta: Tta = None,
    mode: Mode = None,
    crop_size: Crop = None,
    stride: Stride = None,
    images: Pictures = None,
    device: Device = None,
) -> None:
    """Label pictures with what models are sure of.

    Example: `nota-seg data pseudo-label --test-json test.json --pretrain result/fold0 --image 0.8 --output-dir pseudo`
    """
    torch_dev = torch_device(device)
    from nota_seg.ensemble import load_members
    from nota_seg.pseudo_label import Thresholds
    from nota_seg.pseudo_label import pseudo_label as run
    from util.coco import CocoFile, must_be_new
    from util.progress import Progress

    quiet_libraries()
    must_be_new(output_dir)
    chosen = looks(scales, tta, mode, crop_size, stride)
    coco = CocoFile.read(test_json, annotated=False)
    thresholds = Thresholds(pixel, class_thresholds(class_, ["background", *coco.class_names]), image)
    members = load_members(pretrain, weight or [], chosen, torch_dev)
    with Progress(len(coco.images), "labelling") as progress:
        result = run(
            members, coco, output_dir, thresholds, device=torch_dev, form=form.value, masks=masks, root=images,
            progress=progress,
        )  # fmt: skip
    print_json(result)


def class_thresholds(given: list[str] | None, class_names: list[str]) -> dict[int, float]:
    """`NAME=P` words as least mean probabilities by label; names in any case."""
    label_of = {name.lower(): label for label, name in enumerate(class_names)}
    found = {}
    for text in given or []:
        name, equals, number = text.rpartition("=")
        if not equals:
            raise InputError(f"--class {text!r}: give a class and its least probability, as Battery=0.9")
        if name.lower() not in label_of:
            raise InputError(f"--class {text!r}: no such class: {did_you_mean(name, class_names)}")
        found[label_of[name.lower()]] = parse_numbers(number, "--class")[0]
    return found
