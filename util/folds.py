"""Stratified folds of COCO files: the classes are spread evenly, whatever else an image shows.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas, 2011) knows only whether a label is there, not how often.
Numbers therefore become labels "at least 1", "at least 2", "at least 4", ..., and its result is improved by exchanging
pairs of images between folds for as long as that brings the folds' counts closer to the whole's.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from util.coco import CocoFile, must_be_new
from util.errors import InputError, did_you_mean
from util.files import whole_folder, write_json
from util.seed import derive

SCHEMES = ("class-counts", "rarest-class")
_CANDIDATES = 2000  # exchange partners looked at for an image; all of them in sets up to this size
_ROUNDS = 20  # of exchanges, at most
_ATTEMPTS = 50  # from different starts, in small sets
_TOLERANCE = 0.1  # of a class's share in a fold, relative to its share in the whole
_ROOM, _PENALTY = 0.07, 10.0  # exchanges press counts that are further off than this, by so many times their excess
_ENOUGH = 5  # annotations a fold: with fewer, one more or less is over the tolerance


def class_counts(coco: CocoFile) -> np.ndarray:
    """(images, classes) int64: annotations of each class in each image."""
    counts = np.zeros((len(coco.images), len(coco.classes)), dtype=np.int64)
    for row, image in enumerate(coco.images):
        for annotation in coco.annotations_by_image[image["id"]]:
            if annotation["category_id"] in coco.label_of:  # not the background
                counts[row, coco.label_of[annotation["category_id"]]] += 1
    return counts


def kfold(coco: CocoFile, folds: int = 5, *, scheme: str = "class-counts", seed: int = 0) -> np.ndarray:
    """The fold in which each image is held out.

    Args:
        coco: Images with annotations; images without any are spread evenly too.
        folds: 2 or more, and no more than there are images.
        scheme: "class-counts": annotations of each class. "rarest-class": the rarest class in the image, how many
            classes it shows, and how many annotations it has.
        seed: Of the ties and of the order of exchanges.

    Returns:
        (images,) int64 of 0 .. folds - 1. Sizes are those of the stratification: they differ by a few images.
    """
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}: {did_you_mean(scheme, SCHEMES)}")
    if not 2 <= folds <= len(coco.images):
        raise InputError(f"{folds} folds of {len(coco.images)} images: give 2 to as many as there are images")
    again = next((name for name, n in Counter(str(i["file_name"]) for i in coco.images).items() if n > 1), None)
    if again is not None:
        raise InputError(f"{coco.path}: two images are the picture {again}, which could be in two folds; keep one")
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    counts = class_counts(coco)
    if scheme == "class-counts":
        wanted = np.concatenate([counts, counts > 0, counts.sum(axis=1, keepdims=True)], axis=1)
    else:
        frequency = np.where(counts.sum(axis=0) > 0, counts.sum(axis=0), np.iinfo(np.int64).max)
        rarest = np.where(counts > 0, frequency, np.iinfo(np.int64).max).argmin(axis=1)
        rarest[counts.sum(axis=1) == 0] = -1
        one_hot = rarest[:, None] == np.arange(counts.shape[1])
        several = [_one_hot((counts > 0).sum(axis=1)), _one_hot(np.ceil(np.log2(1 + counts.sum(axis=1))))]
        wanted = np.concatenate([one_hot, *several, counts.sum(axis=1, keepdims=True)], axis=1)
    labels = np.concatenate([wanted >= 2**power for power in range(int(max(1, wanted.max())).bit_length())], axis=1)
    labels = np.concatenate([labels[:, labels.any(axis=0)], np.zeros((len(labels), 1), dtype=bool)], axis=1)
    values = wanted[:, wanted.any(axis=0)].astype(np.float64)
    values *= np.sqrt(folds / np.maximum(values.sum(axis=0), 1))  # squared distances become those of chi-square
    best, least = np.zeros(len(labels), dtype=np.int64), (np.inf, np.inf, np.inf)
    for attempt in range(min(_ATTEMPTS, max(1, 4000 // len(labels)))):
        fold_of = np.zeros(len(labels), dtype=np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            random_state = derive("folds", seed, attempt)
            stratifier = MultilabelStratifiedKFold(n_splits=folds, shuffle=True, random_state=random_state)
            for fold, (_, held_out) in enumerate(stratifier.split(labels, labels.astype(int))):
                fold_of[held_out] = fold
        _even_sizes(fold_of, folds)
        remaining = _exchange(fold_of, values, counts, folds, random_state)
        distance = _absent(counts, fold_of, folds), _missed(counts, fold_of, folds), remaining
        if distance < least:
            best, least = fold_of, distance
    return best


def _absent(counts: np.ndarray, fold_of: np.ndarray, folds: int) -> int:
    """Folds without a class, of the classes that enough images show for every fold to have one."""
    shown = np.stack([(counts[fold_of == f] > 0).sum(axis=0) for f in range(folds)])
    return int((shown[:, shown.sum(axis=0) >= folds] == 0).sum())


def _missed(counts: np.ndarray, fold_of: np.ndarray, folds: int) -> float:
    """Annotations of the classes whose share in a fold is over a tenth off, added up over folds.

    It decides between attempts: the sum of squares alone trades a frequent class for a rare one that cannot be even.
    """
    in_fold = np.stack([counts[fold_of == f].sum(axis=0) for f in range(folds)])
    whole = counts.sum(axis=0) / max(1, counts.sum())
    shares = in_fold / np.maximum(1, in_fold.sum(axis=1, keepdims=True))
    return float((counts.sum(axis=0) * (np.abs(shares - whole) > _TOLERANCE * whole)).sum())


def _one_hot(values: np.ndarray) -> np.ndarray:
    return values[:, None] == np.unique(values)


def _even_sizes(fold_of: np.ndarray, folds: int) -> None:
    """Move images from folds that are too large to those too small, in place; sizes then differ by one at most."""
    while True:
        sizes = np.bincount(fold_of, minlength=folds)
        if sizes.max() - sizes.min() <= 1:
            return
        fold_of[np.flatnonzero(fold_of == sizes.argmax())[-1]] = sizes.argmin()


def _exchange(fold_of: np.ndarray, values: np.ndarray, counts: np.ndarray, folds: int, seed: int) -> float:
    """Exchange images pairwise, in place, while the squared distance of the folds' sums from their mean shrinks.

    Classes that can be even, and all annotations together, count once more by what they are off beyond the tolerance:
    a sum of squares alone lets one class be far off so that many are exact.

    Returns:
        What the distance is in the end.
    """
    rng = np.random.default_rng(seed)
    counts = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
    share = counts.sum(axis=0) / folds
    frequent = counts[:, (share >= _ENOUGH) & (counts.max(axis=0) <= share)].astype(np.float64)
    frequent *= np.sqrt(folds / np.maximum(frequent.sum(axis=0), 1))
    first = values.shape[1]
    values = np.concatenate([values, frequent], axis=1)
    sums = np.stack([values[fold_of == f].sum(axis=0) for f in range(folds)])
    mean = sums[:, first:].mean(axis=0)

    def excess(sums: np.ndarray) -> np.ndarray:
        over = np.maximum(0, np.abs(sums[..., first:] - mean) - _ROOM * mean)
        return _PENALTY * (over**2).sum(axis=-1)

    for _ in range(_ROUNDS):
        moved = False
        for i in rng.permutation(len(values)):
            others = np.flatnonzero(fold_of != fold_of[i])
            if len(others) > _CANDIDATES:
                others = rng.choice(others, _CANDIDATES, replace=False)
            gain = values[others] - values[i]
            here, there = sums[fold_of[i]], sums[fold_of[others]]
            change = 2 * ((here - there) * gain + gain**2)[:, :first].sum(axis=1)
            change += excess(here + gain) - excess(here) + excess(there - gain) - excess(there)
            best = int(change.argmin())
            if change[best] < -1e-9:
                j = int(others[best])
                sums[fold_of[i]] += gain[best]
                sums[fold_of[j]] -= gain[best]
                fold_of[i], fold_of[j] = fold_of[j], fold_of[i]
                moved = True
        if not moved:
            break
    return float(((sums - sums.mean(axis=0))[:, :first] ** 2).sum() + excess(sums).sum())


def fold_report(coco: CocoFile, fold_of: np.ndarray) -> dict[str, Any]:
    """Images, annotations of each class and their shares by fold; JSON-ready.

    A share is the class's part of the fold's annotations, `share_of_whole` the same of the file.
    """
    counts = class_counts(coco)
    folds: Iterable[int] = range(int(fold_of.max()) + 1)
    per_class = {}
    for label, name in enumerate(coco.class_names):
        in_fold = [int(counts[fold_of == f, label].sum()) for f in folds]
        per_class[name] = {
            "annotations": in_fold,
            "shares": [n / max(1, int(counts[fold_of == f].sum())) for f, n in zip(folds, in_fold, strict=True)],
            "share_of_whole": int(counts[:, label].sum()) / max(1, int(counts.sum())),
        }
    return {"images": np.bincount(fold_of).tolist(), "classes": per_class}


def write_folds(coco: CocoFile, fold_of: np.ndarray, output_dir: str | Path, root: str | Path | None = None) -> None:
    """Write `kfold_{i}_train.json`, `kfold_{i}_val.json` and `folds.json` (the report, and every image's fold)."""
    output_dir = Path(output_dir)
    must_be_new(output_dir)
    base = Path(root) if root is not None else coco.find_root()
    with whole_folder(output_dir) as folder:
        for fold in range(int(fold_of.max()) + 1):
            for name, chosen in (("train", fold_of != fold), ("val", fold_of == fold)):
                part = coco.with_images(image for image, c in zip(coco.images, chosen, strict=True) if c)
                part.write(folder / f"kfold_{fold}_{name}.json", base)
        placed = {str(i["file_name"]): int(f) for i, f in zip(coco.images, fold_of, strict=True)}
        write_json(folder / "folds.json", {**fold_report(coco, fold_of), "held_out_in": placed})


def format_report(report: dict[str, Any]) -> str:
    """Plain text for people: images of each fold, and the classes' annotations in each."""
    wide = max([6, *(len(name) for name in report["classes"])])
    rows = [("images", report["images"])] + [(n, one["annotations"]) for n, one in report["classes"].items()]
    return "\n".join(f"{name:<{wide}}" + "".join(f"  {value:>6}" for value in values) for name, values in rows)
