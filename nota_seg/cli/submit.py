"""`nota-seg submit` and `nota-seg ensemble`: submission files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nota_seg.cli.common import (
    Clean,
    Cleaning,
    Crf,
    Device,
    Pictures,
    Side,
    Tta,
    parse_numbers,
    quiet_libraries,
    torch_device,
    views,
)  # fmt: skip
from util.errors import InputError

if TYPE_CHECKING:
    import torch

    from nota_seg import ensemble as voting

NewFile = Annotated[Path, typer.Option("--output", help="The new CSV; never written over another.")]
Scales = Annotated[str, typer.Option(help="As in eval.")]


def submit(
    test_json: Annotated[Path, typer.Option(help="COCO JSON of the test pictures: their order and ids.")],
    output: NewFile,
    pretrain: Annotated[str | None, typer.Option(help="A run's folder, or its best/ or last/.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label PNGs (`nota-seg predict`), instead.")] = None,
    size: Side = 256,
    scales: Scales = "1",
    tta: Tta = None,
    crf: Crf = False,
    clean: Cleaning = Clean.NONE,
    images: Pictures = None,
    device: Device = None,
) -> None:
    """Write a submission: image_id (file_name), PredictionString (ids row by row).

    Example: `nota-seg submit --test-json test.json --pretrain result/fold0 --tta hflip --output fold0.csv`
    """
    if (pretrain is None) == (labels is None):
        raise InputError("give --pretrain (a model) or --labels (a folder of label PNGs), one of them")
    if labels is not None and (tta or scales != "1"):
        raise InputError("--tta and --scales are for --pretrain; labels from --labels are as they are")
    if labels is None:
        assert pretrain is not None  # one of the two is given
        _soft(test_json, [pretrain], [], output, size, scales, tta, crf, clean, images, device)
        return
    from nota_seg.ensemble import cleaned, from_masks
    from util.coco import CocoFile, must_be_new
    from util.progress import Progress
    from util.submissions import write_submission

    must_be_new(output)
    coco = CocoFile.read(test_json, annotated=False)
    entries = {str(image["file_name"]): image for image in coco.images}
    rows = cleaned(
        from_masks(coco, labels), _cleaning(crf, clean), lambda name: coco.read_picture(entries[name], images),
        len(coco.classes) + 1 if coco.categories else None,
    )  # fmt: skip
    with Progress(len(coco.images), "writing") as progress:
        write_submission(output, rows, side=size, progress=progress)
    print(output)


def ensemble(
    output: NewFile,
    csvs: Annotated[list[Path] | None, typer.Argument(help="More submissions, after those of --csv.")] = None,
    csv: Annotated[
        list[Path] | None, typer.Option("--csv", help="Hard voting: a submission; ties go to the first. Repeatable.")
    ] = None,
    pretrain: Annotated[
        list[str] | None, typer.Option(help="Soft voting: a run's folder, a fold's, say. Repeatable.")
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="Of each --pretrain. Repeatable.")] = None,
    test_json: Annotated[
        Path | None, typer.Option(help="COCO JSON of the test pictures; needed for --pretrain and --crf.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of a label map.  [default: 256; with --csv that of the files]")
    ] = None,
    scales: Scales = "1",
    tta: Tta = None,
    crf: Crf = False,
    clean: Cleaning = Clean.NONE,
    images: Pictures = None,
    device: Device = None,
) -> None:
    """Vote: softly over the probabilities of models, or pixel by pixel over submissions.

    Example: `nota-seg ensemble --csv a.csv b.csv c.csv --output voted.csv`, or
    `nota-seg ensemble --pretrain f0 --pretrain f1 --weight 2 --weight 1 --test-json test.json --output soft.csv`
    """
    files = [*(csv or []), *(csvs or [])]
    if bool(files) == bool(pretrain):
        raise InputError("give --csv (submissions, hard voting) or --pretrain (models, soft voting), one of them")
    if pretrain:
        if test_json is None:
            raise InputError("soft voting needs --test-json: the list of the test pictures")
        _soft(test_json, pretrain, weight or [], output, size or 256, scales, tta, crf, clean, images, device)
        return
    if weight or tta or scales != "1":
        raise InputError("--weight, --tta and --scales are for --pretrain; submissions vote one pixel, one vote")
    if crf and test_json is None:
        raise InputError("--crf needs the pictures: give --test-json")
    from nota_seg.ensemble import cleaned
    from util.coco import CocoFile, must_be_new
    from util.progress import Progress
    from util.submissions import Submission, hard_vote, write_submission

    must_be_new(output)
    coco = CocoFile.read(test_json, annotated=False) if test_json is not None else None
    entries = {str(image["file_name"]): image for image in coco.images} if coco is not None else {}
    order = list(entries) or Submission(files[0]).image_ids
    rows = cleaned(
        hard_vote(files, list(entries) or None), _cleaning(crf, clean),
        (lambda name: coco.read_picture(entries[name], images)) if coco is not None else None,
        len(coco.classes) + 1 if coco is not None and coco.categories else None,
    )  # fmt: skip
    with Progress(len(order), "voting") as progress:
        write_submission(output, rows, side=size, progress=progress)
    print(output)


def _cleaning(crf: bool, clean: Clean) -> voting.Cleaning:
    from nota_seg.ensemble import Cleaning as Chosen

    return Chosen(crf=crf, mode3=clean is Clean.MODE3)


def _soft(
    test_json: Path, pretrain: list[str], weight: list[float], output: Path, size: int, scales: str, tta: Tta,
    crf: bool, clean: Clean, images: Path | None, device: str | None,
) -> None:  # fmt: skip
    torch_dev: torch.device = torch_device(device)
    from nota_seg.ensemble import load_members, predicted
    from nota_seg.inference import Protocol
    from util.coco import CocoFile, must_be_new
    from util.progress import Progress
    from util.submissions import write_submission

    quiet_libraries()
    must_be_new(output)
    coco = CocoFile.read(test_json, annotated=False)
    protocol = Protocol(scales=parse_numbers(scales, "--scales"), **views(tta))
    members = load_members(pretrain, weight, protocol, torch_dev)
    with Progress(len(coco.images), "predicting") as progress:
        rows = predicted(members, coco, torch_dev, _cleaning(crf, clean), images)
        write_submission(output, rows, side=size, progress=progress)
    print(output)
