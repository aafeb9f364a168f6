"""`nota-seg data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli import data_coco, data_paste, data_submission
from util.errors import InputError

app = typer.Typer(help="Look at, check, fetch, divide and extend data sets.", no_args_is_help=True)
for run in (
    data_coco.kfold, data_coco.stats, data_coco.merge, data_coco.subset, data_coco.to_coco, data_coco.from_coco,
    data_paste.copy_paste, data_paste.oversample,
    data_submission.from_submission, data_submission.to_submission, data_submission.pseudo_label,
):  # fmt: skip
    app.command(run.__name__.replace("_", "-"))(run)


@app.command()
def verify(
    path: Annotated[str | None, typer.Argument(help="A segmentation data set, or Tiny-ImageNet.")] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", "--data-path", help="The same, as the other verbs name it.")
    ] = None,
) -> None:
    """Read every picture and mask; list every bad file at once. Exit code 2 if there are any.

    Example: `nota-seg data verify ADEChallengeData2016`
    """
    from imagenet_pretrain.data import open_images, verify_images
    from nota_seg.data.verify import verify as verify_segmentation
    from util.progress import Progress

    if (path is None) == (data_dir is None):
        raise InputError("name one data set: nota-seg data verify PATH")
    path = path or data_dir or ""
    with Progress(0, "verifying") as progress:
        report = verify_segmentation(path, progress=progress)
        problems, summary = report.problems, report.summary()
        if not report.layout:  # not pictures with masks: pictures with classes?
            if path.lower().endswith(".json"):
                raise InputError(problems[0])
            try:
                images = open_images(path)
            except InputError as error:
                raise InputError(f"{problems[0]}; as a classification set: {error}") from None
            problems = verify_images(images, progress=progress)
            summary = "\n".join([images.describe(), *(f"problem: {p}" for p in problems)])
    print(summary)
    if problems:
        raise InputError(f"{len(problems)} problems in {path}, listed above: mend or remove these files")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="tiny-imagenet or ade20k.")],
    output_dir: Annotated[Path, typer.Option(help="Where the set goes.")] = Path(),
    url: Annotated[str | None, typer.Option(help="A mirror, instead of the publisher.")] = None,
    md5: Annotated[str | None, typer.Option(help="Checksum of the mirror's file, if it is another.")] = None,
) -> None:
    """Fetch a set from its publisher, checked and resumable.

    Example: `nota-seg data download tiny-imagenet --output-dir datasets`
    """
    from nota_seg.data.download import download as run
    from util.progress import Progress

    with Progress(0, "downloading (bytes)") as progress:
        print(run(name, output_dir, url=url, md5=md5, progress=progress.reached).message)
