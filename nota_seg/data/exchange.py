"""Data sets of any layout to COCO files, COCO files to masks, and both to and from submissions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nota_seg.data.sources import IGNORE, SegmentationSource
from util.coco import IGNORED, CocoFile, annotations_of, inner_name, must_be_new, with_ignored
from util.errors import InputError, did_you_mean
from util.files import whole_folder, write_json
from util.images import write_png
from util.palettes import palette
from util.submissions import Submission, resized

BACKGROUND = "background"
Report = Callable[[int], Any] | None  # called with 1 after every picture


def to_coco(
    source: SegmentationSource,
    split: str,
    *,
    background: str | None = BACKGROUND,
    form: str = "rle",
    parts: bool = False,
    progress: Report = None,
) -> tuple[CocoFile, Path]:
    """Label maps of a split as a COCO file, and the folder that its file names are relative to.

    Args:
        source: In any layout whose pictures are files.
        split: Of it.
        background: The class that is not annotated; by default the one of that name if there is one. Categories are
            the other classes with ids 1, 2, ... in their order. Ignored pixels (255) stay ignored.
        form: Of the annotations, "rle" or "polygon".
        parts: One annotation for each connected part rather than for each class.
        progress: Called with 1 after every picture.
    """
    names = source.class_names
    if background is not None and background not in names and background != BACKGROUND:
        raise InputError(f"no class {background!r}: {did_you_mean(background, names)}")
    kept = [label for label, name in enumerate(names) if name != background]
    category_of = {label: i for i, label in enumerate(kept, start=1)}
    files = [Path(source.places(source.split(split), i)[0]) for i in range(source.splits[source.split(split)])]
    missing = next((f for f in files if not f.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: not a file; a COCO file lists pictures in files")
    root = Path(os.path.commonpath([f.resolve().parent for f in files]))
    images, by_image, next_id = [], {}, 1
    for index, file in enumerate(files):
        label = source.read(split, index)[1]
        height, width = label.shape
        name = file.resolve().relative_to(root).as_posix()
        entry = {"id": index + 1, "file_name": name, "height": height, "width": width}
        images.append(with_ignored(entry, label == IGNORE))
        by_image[index + 1] = annotations_of(
            label, category_of, first_id=next_id, image_id=index + 1, form=form, parts=parts
        )
        next_id += len(by_image[index + 1])
        if progress is not None:
            progress(1)
    categories = [{"id": category, "name": names[label]} for label, category in category_of.items()]
    return CocoFile(root / "coco.json", images, by_image, categories), root


def from_coco(
    coco: CocoFile, output_dir: Path, *, split: str = "train", root: Path | None = None, progress: Report = None
) -> None:
    """Write `masks/SPLIT/*.png` (0 = background), `images/SPLIT/*` and `id2label.json`: a data set of its own."""
    must_be_new(output_dir)
    colours = palette(len(coco.classes) + 1)
    with whole_folder(output_dir) as folder:
        for image in coco.images:
            mask = inner_name(image, ".png")
            picture, _ = coco.orientation(image, root)
            target = folder / "images" / split / inner_name(image, picture.suffix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, target)
            label = coco.paint(image, background=0, first_label=1)
            write_png(folder / "masks" / split / mask, label, colours)
            if progress is not None:
                progress(1)
        write_json(folder / "id2label.json", dict(enumerate([BACKGROUND, *coco.class_names])))


def submission_rows(coco: CocoFile) -> Iterator[tuple[str, Any]]:
    """File name and label map of every image: a COCO file's annotations as rows of a submission.

    A submission has no word for "unknown": ignored pixels are background.
    """
    for image in coco.images:
        yield str(image["file_name"]), coco.paint(image, background=0, first_label=1, ignored=0)


def from_submission(
    submission: Submission, coco: CocoFile, *, form: str = "rle", parts: bool = False, progress: Report = None
) -> CocoFile:
    """A submission's label maps as annotations, brought to the pictures' sizes by nearest neighbour.

    Args:
        submission: With a row for each image of `coco`.
        coco: Images and categories; its annotations are replaced.
        form: Of the annotations.
        parts: One annotation for each connected part rather than for each class.
        progress: Called with 1 after every picture.
    """
    category_of = {label + 1: category_id for category_id, label in coco.label_of.items()}
    if not category_of:
        raise InputError(f"{coco.path} lists no categories: annotations need their ids")
    by_image: dict[int, list[dict[str, Any]]] = {}
    next_id = 1
    for image in coco.images:
        label = submission.label(str(image["file_name"]))
        if label.max() > len(category_of):
            raise InputError(
                f"{submission.path}: id {label.max()} in the row of {image['file_name']!r}, "
                f"{coco.path} has {len(category_of)} categories"
            )
        full = resized(label, image["height"], image["width"])
        by_image[image["id"]] = annotations_of(
            full, category_of, first_id=next_id, image_id=image["id"], form=form, parts=parts
        )
        next_id += len(by_image[image["id"]])
        if progress is not None:
            progress(1)
    images = [{key: value for key, value in image.items() if key != IGNORED} for image in coco.images]
    return CocoFile(coco.path, images, by_image, coco.categories, coco.info)
