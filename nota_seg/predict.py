"""Label maps and overlays of pictures in files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nota_seg.inference import Protocol, evaluating, predict_labels, to_pixels
from util.errors import InputError
from util.images import image_size, read_image, write_png
from util.palettes import legend, overlay, palette

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
OVERLAY = "_overlay"
ALPHA = 0.5  # opacity of the classes' colours over the picture


def find_pictures(paths: Iterable[str | Path], output_dir: Path) -> list[Path]:
    """Files as they are given, folders with everything below them in the order of their names; each file once.

    What lies in `output_dir` is left out when that is inside a folder being searched: it is an earlier result.
    """
    found: dict[Path, Path] = {}
    output = output_dir.resolve()
    for path in map(Path, paths):
        if path.is_dir():
            folder = path.resolve()
            skip = output if output != folder and output.is_relative_to(folder) else None
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in PICTURES and f.is_file())
            files = [f for f in files if skip is None or not f.resolve().is_relative_to(skip)]
        elif path.exists():
            files = [path]
        else:
            raise InputError(f"no picture or folder {path}")
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError(f"no pictures ({', '.join(sorted(PICTURES))}) in {', '.join(map(str, paths)) or 'nothing'}")
    return list(found.values())


def output_names(pictures: Sequence[Path]) -> list[str]:
    """A name for each picture's results: its own without the extension, where no other picture has that.

    Otherwise its folder's name goes before it (for all that share a name: `submit --labels` finds them by it), then a
    number after it.
    """
    taken: set[str] = set()
    stems = Counter(picture.stem.lower() for picture in pictures)
    names = []
    for picture in pictures:
        own, full = picture.stem, f"{picture.resolve().parent.name}_{picture.stem}"
        candidates = [own] if stems[own.lower()] == 1 else []
        candidates += [full, *(f"{full}_{i}" for i in range(2, len(pictures) + 3))]
        # Lower case: on some file systems A.png and a.png are one file.
        free = (c for c in candidates if not taken & {c.lower(), (c + OVERLAY).lower()})
        name = next(free)
        taken |= {name.lower(), (name + OVERLAY).lower()}
        names.append(name)
    return names


def predict(
    model: nn.Module,
    paths: Sequence[str | Path],
    output_dir: str | Path,
    protocol: Protocol,
    class_names: Sequence[str],
    device: torch.device | str,
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[Path]:
    """Write `NAME.png`, class indices at the picture's size, and `NAME_overlay.png`, for people, for every picture.

    Args:
        model: On `device`; it is put into evaluation mode and back into the mode it had.
        paths: Pictures, and folders that are searched for pictures.
        output_dir: Made if needed.
        protocol: How a picture becomes a label map.
        class_names: In the order of the classes; up to 256 classes the PNG is 8-bit with a palette, else 16-bit grey.
        device: Where to compute.
        overwrite: Replace results that exist.
        progress: Called with 1 after every picture; `util.progress.Progress(len(find_pictures(...)), ...)` fits.

    Returns:
        The files written, label map and overlay of each picture in turn.

    Raises:
        InputError: Before any work: nothing found, an unreadable picture, a result that exists or would replace a
            picture. Later: a picture whose pixels are damaged.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"the output folder {output_dir} is a file: choose another")
    pictures = find_pictures(paths, output_dir)
    for picture in pictures:
        image_size(picture)  # an unreadable header is an error now, not after hours of work
    names = output_names(pictures)
    written = [output_dir / f"{name}{end}.png" for name in names for end in ("", OVERLAY)]
    inputs = {p.resolve() for p in pictures}
    for file in written:
        if file.resolve() in inputs:
            raise InputError(f"the result {file} would replace a picture: choose another output folder")
        if file.exists() and not overwrite:
            raise InputError(f"{file} exists: choose another output folder, or allow overwriting")
    output_dir.mkdir(parents=True, exist_ok=True)

    K = len(class_names)
    colours = palette(K)
    with evaluating(model):
        for i, picture in enumerate(pictures):
            image = read_image(picture)
            pixels = to_pixels(image, protocol.base_size)[None].to(device)
            height, width = image.shape[:2]
            label = predict_labels(model, pixels, (height, width), protocol)[0].cpu().numpy()
            label = label.astype(np.uint8 if K <= 256 else np.uint16)
            write_png(written[2 * i], label, palette=colours if K <= 256 else None)
            drawn = legend(overlay(image, label, colours, ALPHA), np.unique(label), class_names, colours)
            write_png(written[2 * i + 1], drawn)
            if progress is not None:
                progress(1)
    return written
