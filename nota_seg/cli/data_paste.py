"""`nota-seg data copy-paste|oversample`: new pictures from old ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nota_seg.cli.common import Form, Forms, Pictures, RandomSeed, parse_numbers

if TYPE_CHECKING:
    from util.coco import CocoFile
    from util.pasting import CopyPaste, Oversample

Json = Annotated[Path, typer.Argument(help="A COCO JSON file.")]
NewFolder = Annotated[Path, typer.Option(help="New folder: train.json, images/, manifest.jsonl, contact_sheet.png.")]
Count = Annotated[int, typer.Option(min=1, help="New pictures.")]
Start = Annotated[int, typer.Option(min=0, help="Number in the first new picture's name.")]
Add = Annotated[bool, typer.Option("--add", help="The new JSON lists the originals too, not the new pictures alone.")]


def copy_paste(
    json: Json,
    output_dir: NewFolder,
    patch: Annotated[list[str], typer.Option(help="Class that a source must show (one of them). Repeatable.")],
    remove: Annotated[list[str] | None, typer.Option(help="Class that a source must not show. Repeatable.")] = None,
    extract: Annotated[
        list[str] | None, typer.Option(help="Class that is pasted; all of the source's objects by default. Repeatable.")
    ] = None,
    jitter: Annotated[
        str | None, typer.Option(help="LOW,HIGH scales of large-scale jitter, e.g. 0.2,2, instead of rules by area.")
    ] = None,
    count: Count = 1500,
    start: Start = 0,
    add: Add = False,
    form: Forms = Form.RLE,
    images: Pictures = None,
    seed: RandomSeed = 0,
) -> None:
    """Paste the objects of pictures with chosen classes into other pictures.

    Example: `nota-seg data copy-paste train.json --patch Battery --patch Clothing --remove Paper --count 300 --output-dir pasted`
    """
    from util.coco import CocoFile
    from util.errors import InputError
    from util.pasting import CopyPaste

    scales = None
    if jitter is not None:
        numbers = parse_numbers(jitter, "--jitter")
        if len(numbers) != 2:
            raise InputError(f"--jitter {jitter!r}: give the lowest and the highest scale, as 0.2,2")
        scales = numbers[0], numbers[1]
    coco = CocoFile.read(json)
    recipe = CopyPaste(
        patch=coco.category_ids(patch), remove=coco.category_ids(remove or []),
        extract=coco.category_ids(extract or []), jitter=scales,
    )  # fmt: skip
    _write(coco, recipe, output_dir, count, start, add, form, images, seed)


def oversample(
    json: Json,
    output_dir: NewFolder,
    classes: Annotated[list[str], typer.Option("--class", help="Class of the objects to repeat. Repeatable.")],
    onto: Annotated[list[str], typer.Option(help="Targets have one annotation, of one of these. Repeatable.")],
    min_area: Annotated[int, typer.Option(min=1, help="Least area of an object, pixels.")] = 5000,
    count: Count = 500,
    start: Start = 0,
    add: Add = False,
    form: Forms = Form.RLE,
    images: Pictures = None,
    seed: RandomSeed = 0,
) -> None:
    """Paste objects of rare classes, in their place, into pictures with a single annotation.

    Example: `nota-seg data oversample train.json --class Battery --onto "Paper pack" --onto Glass --output-dir more`
    """
    from util.coco import CocoFile
    from util.pasting import Oversample

    coco = CocoFile.read(json)
    recipe = Oversample(coco.category_ids(classes), coco.category_ids(onto), min_area)
    _write(coco, recipe, output_dir, count, start, add, form, images, seed)


def _write(
    coco: CocoFile, recipe: CopyPaste | Oversample, output_dir: Path, count: int, start: int, add: bool, form: Form,
    images: Path | None, seed: int,
) -> None:  # fmt: skip
    from util.pasting import write_new
    from util.progress import Progress

    with Progress(count, "pasting") as progress:
        written = write_new(
            coco, recipe, output_dir, count=count, start=start, add=add, form=form.value, root=images, seed=seed,
            progress=progress,
        )  # fmt: skip
    print(written)
