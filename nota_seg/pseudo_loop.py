"""Self-training in rounds: train, label pictures without labels, train again with them, judge on the held-out fold.

A round starts from the weights that the first one started from, with the labelled pictures and with the pseudo-labels
of the round before's best model; every round labels anew. What is held out is never trained on: pictures without
labels that are the same, byte for byte, as labelled ones of either split are left out before anything begins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nota_seg.config import FREE_ON_RESUME, FinetuneConfig, differences, dump
from nota_seg.data.sources import open_source
from nota_seg.data.sources.base import IMAGE_SUFFIXES, files_by_stem
from nota_seg.data.sources.coco import Coco
from nota_seg.ensemble import load_members
from nota_seg.evaluate import evaluate
from nota_seg.finetune import finetune, protocol_of
from nota_seg.models.loading import load_model
from nota_seg.pseudo_label import Thresholds, pseudo_label
from util.coco import CocoFile, must_be_new
from util.coco_sets import merge
from util.errors import InputError
from util.files import sweep_partial, whole_folder, write_json
from util.images import image_size
from util.progress import Progress
from util.run_folder import RunFolder

STATE = "loop.json"
_NAMES = ("train", "val", "unlabelled")


@dataclass
class Labelling:
    """How pictures are labelled: what is kept, and the views beside the picture as it is (fields of `Protocol`)."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    views: dict[str, Any] = field(default_factory=dict)


def pseudo_loop(
    config: FinetuneConfig,
    output_dir: str | Path,
    unlabelled: str | Path,
    labelling: Labelling | None = None,
    *,
    rounds: int = 3,
    root: Path | None = None,
    resume: bool = False,
    cpu: bool = False,
) -> dict[str, Any]:
    """Train once without pseudo-labels and `rounds` times with them.

    Args:
        config: Of every training; `data.path` is a COCO data set with `train` and `val`, the held-out fold.
        output_dir: New, or a loop to continue. It gets `loop.json` (after every round), `data/` (the three lists) and,
            for every round, `round-I/run`, `round-I/pseudo` and `round-I/data`.
        unlabelled: COCO file of the pictures to label, or a folder of pictures.
        labelling: Thresholds and views; they may change between sessions and are noted for every round.
        rounds: Of labelling and training again; a continued loop may ask for more.
        root: Folder of the unlabelled pictures; found by looking by default.
        resume: Continue where the last session stopped, inside a training too.
        cpu: Stay on it.

    Returns:
        What `loop.json` holds: `settings`, `left_out` (unlabelled pictures that have labels), and `rounds`, for each
        `train_pictures`, `pseudo` (`kept`, `left_out`, `annotations`, `confidence`, `thresholds`, `views`; None in
        round 0), `model`, and the scores of its best weights on the held-out fold as `evaluate` gives them.
    """
    output, labelling = Path(output_dir), labelling or Labelling()
    if resume:
        state = _state(output, config)
    else:
        must_be_new(output)
        state = _prepare(config, output, Path(unlabelled), root)
    sweep_partial(output)
    for number in range(len(state["rounds"]), rounds + 1):
        state["rounds"].append(_round(config, output, number, labelling, cpu))
        write_json(output / STATE, state)
    return state


def _state(output: Path, config: FinetuneConfig) -> dict[str, Any]:
    """What an earlier session left, checked against what is asked for now."""
    if not (output / STATE).is_file():
        raise InputError(f"--resume: there is no loop in {output} (no {STATE}); start it without --resume")
    state = json.loads((output / STATE).read_text(encoding="utf-8"))
    for key, (before, after) in differences(state["settings"], dump(config)).items():
        if key not in FREE_ON_RESUME:
            raise InputError(f"--resume: {key} was {before!r} in {output} and is now {after!r}; leave it out")
    return state


def _prepare(config: FinetuneConfig, output: Path, unlabelled: Path, root: Path | None) -> dict[str, Any]:
    """Check the data and write the loop's folder: three lists that know of each other, and no round yet."""
    source = open_source(config.data.path, config.data.layout)
    if not isinstance(source, Coco):
        raise InputError(
            f"{config.data.path} is {source.layout}: the loop merges COCO files; `nota-seg data to-coco` makes them"
        )
    train, val = source.as_file("train"), source.as_file("val")
    new, new_root = _list_unlabelled(unlabelled, root, train[0])
    known: dict[Path, str] = {}
    for split, (file, folder) in (("train", train), ("val", val)):
        for image in file.images:
            known[folder / str(image["file_name"])] = split
    paths = {image["id"]: new.picture(image, new_root) for image in new.images}
    twins = _same_content([*known, *paths.values()])
    held_out = {twins[path] for path, split in known.items() if split == "val"}
    leaked = next((path for path, split in known.items() if split == "train" and twins[path] in held_out), None)
    if leaked is not None:
        raise InputError(f"{leaked} is in the training split and, under some name, in the held-out one; remove it")
    labelled = {twins[path] for path in known}
    images = [image for image in new.images if twins[paths[image["id"]]] not in labelled]
    left_out = len(new.images) - len(images)
    if not images:
        raise InputError(f"{unlabelled}: all of its {left_out} pictures have labels in {config.data.path}")
    if left_out:
        Progress(0, "").say(f"{left_out} of {len(new.images)} unlabelled pictures have labels and are left out")
    state = {"settings": dump(config), "left_out": left_out, "rounds": []}
    with whole_folder(output) as folder:
        files = (train, val, (new.with_images(images), new_root))
        for name, (file, place) in zip(_NAMES, files, strict=True):
            file.write(folder / "data" / f"{name}.json", place)
        write_json(folder / STATE, state)
    return state


def _list_unlabelled(path: Path, root: Path | None, like: CocoFile) -> tuple[CocoFile, Path]:
    """Pictures without annotations, with the categories of `like`, and the folder that their names are relative to."""
    if path.is_dir():
        found, _ = files_by_stem(path, IMAGE_SUFFIXES)
        images: list[dict[str, Any]] = []
        for number, file in enumerate(found.values(), start=1):
            height, width = image_size(file)
            name = file.relative_to(path).as_posix()
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        place = path.resolve()
    else:
        listed = CocoFile.read(path, annotated=False)
        names = [(c["id"], c["name"]) for c in listed.categories]
        if names and names != [(c["id"], c["name"]) for c in like.categories]:
            raise InputError(f"{path}: its categories differ from those of {like.path}; make them equal")
        images, place = listed.images, (root or listed.find_root()).resolve()
    if not images:
        raise InputError(f"{path}: no pictures to label")
    return CocoFile(path, images, {image["id"]: [] for image in images}, like.categories), place


def _same_content(paths: Iterable[Path]) -> dict[Path, str]:
    """A name of the content of each file; only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in set(paths):
        by_size[path.stat().st_size].append(path)
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if len(group) > 1 else str(path)
        for group in by_size.values()
        for path in group
    }


def _round(config: FinetuneConfig, output: Path, number: int, labelling: Labelling, cpu: bool) -> dict[str, Any]:
    """One round, from wherever an earlier session left it; what it did is in its folder, whole or not at all."""
    folder = output / f"round-{number}"
    folder.mkdir(exist_ok=True)
    sweep_partial(folder)
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    say = Progress(0, "").say
    say(f"== round {number}: " + ("labelled pictures" if number == 0 else "with pseudo-labels"))
    if number > 0 and not (folder / "data").is_dir():
        _label(config, output, number, labelling, device)
    data = folder / "data" if number > 0 else output / "data"
    run = RunFolder(folder / "run")
    going = (run.path / "run.json").is_file()
    if not going and run.path.is_dir():
        shutil.rmtree(run.path)  # killed before there was anything to continue
    here = config.model_copy(update={"data": config.data.model_copy(update={"path": str(data)})})
    finetune(here, run, resume=going, cpu=cpu)

    source = open_source(data)
    model, _ = load_model(run.path, device)
    protocol = protocol_of(config.eval, config.data.crop_size, config.data.base_size)
    with Progress(source.splits["val"], "evaluating") as progress:
        scores = evaluate(model, source, "val", protocol, device=device, progress=progress)
    pseudo = json.loads((folder / "pseudo.json").read_text(encoding="utf-8")) if number > 0 else None
    say(f"round {number}: mIoU {100 * scores['miou']:.2f} on the held-out pictures")
    return {
        "round": number, "train_pictures": source.splits["train"], "pseudo": pseudo,
        "model": (run.path / "best").relative_to(output).as_posix(), **scores,
    }  # fmt: skip


def _label(config: FinetuneConfig, output: Path, number: int, labelling: Labelling, device: torch.device) -> None:
    """Pseudo-labels of the round before's model, merged with the labelled pictures to this round's data."""
    folder = output / f"round-{number}"
    train, val, new = (CocoFile.read(output / "data" / f"{name}.json") for name in _NAMES)
    judged = asdict(protocol_of(config.eval, config.data.crop_size, config.data.base_size))
    members = load_members([output / f"round-{number - 1}" / "run"], [], {**judged, **labelling.views}, device)
    if (folder / "pseudo").is_dir():  # labelled, and stopped before the data were written: the facts may be missing
        shutil.rmtree(folder / "pseudo")
    with Progress(len(new.images), "labelling") as progress:
        result = pseudo_label(members, new, folder / "pseudo", labelling.thresholds, device=device, progress=progress)
    write_json(folder / "pseudo.json", {**result, "thresholds": asdict(labelling.thresholds), "views": labelling.views})
    both, place = merge([train, CocoFile.read(folder / "pseudo" / "pseudo.json")])
    with whole_folder(folder / "data") as data:
        both.write(data / "train.json", place)
        val.write(data / "val.json")


def format_table(state: dict[str, Any]) -> str:
    """Plain text for people: a line a round."""
    lines = ["round  pictures  pseudo-labelled  confidence    mIoU  change    mAcc    aAcc"]
    first = state["rounds"][0]["miou"]
    for one in state["rounds"]:
        pseudo = one["pseudo"] or {"kept": 0, "confidence": None}
        sure = "-" if pseudo["confidence"] is None else f"{pseudo['confidence']:.3f}"
        change = "-" if one["round"] == 0 else f"{100 * (one['miou'] - first):+.2f}"
        scores = f"{100 * one['miou']:>6.2f}  {change:>6}  {100 * one['macc']:>6.2f}  {100 * one['aacc']:>6.2f}"
        lines.append(f"{one['round']:>5}  {one['train_pictures']:>8}  {pseudo['kept']:>15}  {sure:>10}  {scores}")
    best = max(state["rounds"], key=lambda one: one["miou"])
    lines.append(f"best: round {best['round']}, {best['model']}; scores of the held-out pictures, in per cent")
    return "\n".join(lines)
