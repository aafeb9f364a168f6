"""`nota-seg submit` and `nota-seg ensemble`: submission files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nota_seg.cli.common import (
    Clean,
    Cleaning,
    Crf,
    Crop,
    Device,
    Mode,
    Pictures,
    Side,
    Stride,
    Tta,
    looks,
    quiet_libraries,
    torch_device,
)  # fmt: skip
from util.errors import InputError

if TYPE_CHECKING:
    import torch

    from nota_seg import ensemble as voting

NewFile = Annotated[Path, typer.Option("--output", help="The new CSV; never written over another.")]
Scales = Annotated[str, typer.Option(help="As in eval.")]
_LOOKS = "--scales, --tta, --mode, --crop-size and --stride"


def submit(
    test_json: Annotated[Path, typer.Option(help="COCO JSON of the test pictures: their order and ids.")],
    output: NewFile,
    pretrain: Annotated[str | None, typer.Option(help="A run's folder, or its best/ or last/.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label PNGs (`nota-seg predict`), instead.")] = None,
    size: Side = 256,
    scales: Scales = "1",
    tta: Tta = None,
    mode: Mode = None,
    crop_size: Crop = None,
    stride: Stride = None,
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
    asked = bool(tta or mode or crop_size or stride) or scales != "1"
    if labels is not None and asked:
        raise InputError(f"{_LOOKS} are for --pretrain; labels from --labels are as they are")
    chosen = looks(scales, tta, mode, crop_size, stride)
    if labels is None:
        assert pretrain is not None  # one of the two is given
        _soft(test_json, [pretrain], [], output, size, chosen, crf, clean, images, device)
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
    mode: Mode = None,
    crop_size: Crop = None,
    stride: Stride = None,
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
        chosen = looks(scales, tta, mode, crop_size, stride)
        _soft(test_json, pretrain, weight or [], output, size or 256, chosen, crf, clean, images, device)
        return
    if weight or tta or mode or crop_size or stride or scales != "1":
        raise InputError(f"--weight, {_LOOKS} are for --pretrain; submissions vote one pixel, one vote")
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
    test_json: Path, pretrain: list[str], weight: list[float], output: Path, size: int, chosen: dict[str, Any],
    crf: bool, clean: Clean, images: Path | None, device: str | None,
) -> None:  # fmt: skip
    torch_dev: torch.device = torch_device(device)
    from nota_seg.ensemble import load_members, predicted
    from util.coco import CocoFile, must_be_new
    from util.progress import Progress
    from util.submissions import write_submission

    quiet_libraries()
    must_be_new(output)
    coco = CocoFile.read(test_json, annotated=False)
    members = load_members(pretrain, weight, chosen, torch_dev)
    with Progress(len(coco.images), "predicting") as progress:
        rows = predicted(members, coco, torch_dev, _cleaning(crf, clean), images)
        write_submission(output, rows, side=size, progress=progress)
    print(output)
