"""`nota-seg data kfold|stats|merge|subset|to-coco|from-coco`: COCO files as a whole."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Form, Forms, Pictures, RandomSeed, print_json

Json = Annotated[Path, typer.Argument(help="A COCO JSON file.")]
NewFile = Annotated[Path, typer.Option("--output", help="The new COCO file; never written over another.")]
Parts = Annotated[bool, typer.Option("--parts", help="An annotation for each connected part, not for each class.")]


class Scheme(StrEnum):
    CLASS_COUNTS = "class-counts"
    RAREST_CLASS = "rarest-class"


def kfold(
    json: Json,
    output_dir: Annotated[Path, typer.Option(help="New folder for kfold_{i}_train.json and kfold_{i}_val.json.")],
    folds: Annotated[int, typer.Option(min=2, help="How many.")] = 5,
    scheme: Annotated[
        Scheme, typer.Option(help="Annotations of each class; or rarest class, class count and annotation count.")
    ] = Scheme.CLASS_COUNTS,
    images: Pictures = None,
    seed: RandomSeed = 0,
) -> None:
    """Multilabel stratified folds.

    Example: `nota-seg data kfold train_all.json --output-dir folds`, then `--data-dir folds/kfold_0_train.json`
    """
    from util.coco import CocoFile
    from util.folds import fold_report, format_report, write_folds
    from util.folds import kfold as run

    coco = CocoFile.read(json)
    fold_of = run(coco, folds, scheme=scheme.value, seed=seed)
    write_folds(coco, fold_of, output_dir, images)
    print(format_report(fold_report(coco, fold_of)))


def stats(json: Json, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Class frequencies, areas, co-occurrence, sizes of pictures.

    Example: `nota-seg data stats train.json --json`
    """
    from util.coco import CocoFile
    from util.coco_sets import format_stats
    from util.coco_sets import stats as run

    result = run(CocoFile.read(json))
    if as_json:
        print_json(result)
    else:
        print(format_stats(result))


def merge(
    json: Annotated[list[Path], typer.Argument(help="COCO files of equal categories.")],
    output: NewFile,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Picture folder of each file, in their order. Repeatable.")
    ] = None,
) -> None:
    """One COCO file of several; ids that collide are given anew.

    Example: `nota-seg data merge train.json pseudo/pseudo.json --output all.json`
    """
    from util.coco import CocoFile
    from util.coco_sets import merge as run
    from util.errors import InputError

    if images and len(images) != len(json):
        raise InputError(f"{len(images)} --images for {len(json)} files: give one for each, or none")
    merged, root = run([CocoFile.read(file) for file in json], list(images) if images else None)
    merged.write(output, root)
    print(f"{output}: {len(merged.images)} images, {len(merged.annotations)} annotations")


def subset(
    json: Json,
    output: NewFile,
    fraction: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Share of the images.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="So many images instead.")] = None,
    with_class: Annotated[list[str] | None, typer.Option(help="Images that show one of these. Repeatable.")] = None,
    without_class: Annotated[list[str] | None, typer.Option(help="Images that show none of these. Repeatable.")] = None,
    existing: Annotated[
        bool,
        typer.Option(
            "--existing",
            help="Images whose picture is there; annotations of no image or class, or without a shape, left out.",
        ),
    ] = False,
    images: Pictures = None,
    seed: RandomSeed = 0,
) -> None:
    """Some of the images, drawn without replacement.

    Example: `nota-seg data subset train.json --fraction 0.1 --output debug.json`
    """
    from util.coco import CocoFile, must_be_new
    from util.coco_sets import subset as run

    must_be_new(output)
    coco = CocoFile.read(json, strict=not existing)
    part = run(
        coco, fraction=fraction, count=count, with_classes=coco.category_ids(with_class or []),
        without_classes=coco.category_ids(without_class or []), existing=existing, root=images, seed=seed,
    )  # fmt: skip
    part.write(output, images)
    dropped = f"; {coco.dropped} of no image, class or shape left out" if coco.dropped else ""
    print(f"{output}: {len(part.images)} of {len(coco.images)} images, {len(part.annotations)} annotations{dropped}")


def to_coco(
    data_dir: Annotated[str, typer.Argument(help="A segmentation data set in any layout.")],
    output: NewFile,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    background: Annotated[
        str, typer.Option(help="The class that is not annotated; `none`: every one is.")
    ] = "background",
    form: Forms = Form.RLE,
    parts: Parts = False,
) -> None:
    """Masks to COCO annotations, exact in the mask.

    Example: `nota-seg data to-coco dataset --split val --form polygon --output val.json`
    """
    from nota_seg.data.exchange import to_coco as run
    from nota_seg.data.sources import open_source
    from util.coco import must_be_new
    from util.progress import Progress

    must_be_new(output)
    source = open_source(data_dir)
    with Progress(source.splits.get(split, 0), "annotating") as progress:
        file, root = run(
            source, split, background=None if background == "none" else background, form=form.value, parts=parts,
            progress=progress,
        )  # fmt: skip
    file.write(output, root)
    print(f"{output}: {len(file.images)} images, {len(file.annotations)} annotations")


def from_coco(
    json: Json,
    output_dir: Annotated[Path, typer.Option(help="New folder for images/, masks/ and id2label.json.")],
    split: Annotated[str, typer.Option(help="Name of the split's folders.")] = "train",
    images: Pictures = None,
) -> None:
    """COCO annotations to label PNGs (0 = background), with the pictures: a data set of its own.

    Example: `nota-seg data from-coco train.json --output-dir dataset`
    """
    from nota_seg.data.exchange import from_coco as run
    from util.coco import CocoFile
    from util.progress import Progress

    coco = CocoFile.read(json)
    with Progress(len(coco.images), "painting") as progress:
        run(coco, output_dir, split=split, root=images, progress=progress)
    print(output_dir)
