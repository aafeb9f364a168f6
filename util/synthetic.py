"""Two small data sets drawn from nothing, in the real on-disk layouts: for the demo and the tests. No licence attached.

Both sets share the same families of textures in random colours: a network has to see the texture, not the colour, and
what it learns on single shapes (Tiny-ImageNet's layout) helps it on scenes of them (ADE20K's layout).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from util.files import whole_folder

Texture = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _stripes(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(u) > 0


def _checks(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (np.sin(u) > 0) ^ (np.sin(v) > 0)


def _dots(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.cos(u) + np.cos(v) > 0.8


def _rings(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(np.hypot(u - np.median(u), v - np.median(v))) > 0


def _waves(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(u + 1.6 * np.sin(0.7 * v)) > 0


def _bricks(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    row = np.floor(v / 4)
    return (np.mod(v, 4) > 0.8) & (np.mod(u + 3.5 * np.mod(row, 2), 7) > 0.8)


def _grid(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (np.mod(u, 5) < 1.1) | (np.mod(v, 5) < 1.1)


def _speckle(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.standard_normal(u.shape), (0, 0), 1.3)
    return noise > 0


TEXTURES: dict[str, Texture] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "waves": _waves,
    "bricks": _bricks,
    "grid": _grid,
    "speckle": _speckle,
}
SCENE_CLASSES = ["sky", "ground", *list(TEXTURES)[:6]]


def _colours(rng: np.random.Generator, count: int, apart: float = 90.0) -> np.ndarray:
    """Random RGB colours that differ enough from each other to be told apart."""
    colours = [rng.uniform(20, 235, 3)]
    while len(colours) < count:
        new = rng.uniform(20, 235, 3)
        if all(np.abs(new - old).sum() > apart for old in colours):
            colours.append(new)
    return np.array(colours)


def _textured(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float: a texture in two random colours, at a random angle and scale."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    angle, scale = rng.uniform(0, np.pi), rng.uniform(0.65, 1.1)
    u = scale * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6)
    v = scale * (np.cos(angle) * y - np.sin(angle) * x) + rng.uniform(0, 6)
    on = cv2.GaussianBlur(TEXTURES[kind](u, v, rng).astype(np.float64), (0, 0), 0.6)[..., None]
    dark, light = _colours(rng, 2, apart=150)
    return dark * (1 - on) + light * on


def _shape(size: tuple[int, int], centre: tuple[float, float], radius: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8 0/1: a disc, a box or a rough polygon."""
    mask = np.zeros(size, dtype=np.uint8)
    corners = int(rng.choice([4, 5, 7, 40]))
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    lengths = radius * (rng.uniform(0.8, 1.15, corners) if corners < 40 else np.ones(corners))
    points = np.stack([centre[1] + lengths * np.cos(angles), centre[0] + lengths * np.sin(angles)], axis=1)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask


def _shade(size: tuple[int, int], rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """A soft gradient around a colour."""
    ends = colour + rng.uniform(-30, 30, (2, 3))
    ramp = np.linspace(0, 1, size[0])[:, None, None]
    return np.broadcast_to(ends[0] * (1 - ramp) + ends[1] * ramp, (*size, 3)).copy()


def _write_jpeg(path: Path, image: np.ndarray, rng: np.random.Generator, *, grey: bool = False) -> None:
    noisy = np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    bgr = cv2.cvtColor(noisy, cv2.COLOR_RGB2BGR)
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY) if grey else bgr, [cv2.IMWRITE_JPEG_QUALITY, 90]
    )
    assert ok
    path.write_bytes(data.tobytes())  # raises where the disk is full; cv2.imwrite would only return False


def draw_tiny_imagenet(
    root: str | Path,
    *,
    classes: int = 8,
    train_per_class: int = 64,
    val_per_class: int = 8,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """One textured shape a picture, in the publisher's Tiny-ImageNet layout, a few files grey as there.

    Args:
        root: Folder that gets `tiny-imagenet-200/`.
        classes: At most the number of textures, 8.
        train_per_class: Pictures.
        val_per_class: Pictures.
        size: Side in pixels.
        seed: Decides every pixel.

    Returns:
        The set's folder.
    """
    names = list(TEXTURES)[:classes]
    wnids = [f"n{90000000 + i:08d}" for i in range(len(names))]
    folder = Path(root) / "tiny-imagenet-200"

    def picture(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        image = _shade((size, size), rng, _colours(rng, 1)[0])
        centre = rng.uniform(0.35, 0.65, 2) * size
        mask = _shape((size, size), (centre[0], centre[1]), rng.uniform(0.3, 0.48) * size, rng)
        image = np.where(mask[..., None] > 0, _textured(kind, (size, size), rng), image)
        ys, xs = np.nonzero(mask)
        return image, (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max()))

    with whole_folder(folder) as out:
        (out / "wnids.txt").write_text("".join(f"{w}\n" for w in wnids))
        (out / "words.txt").write_text("".join(f"{w}\t{n}\n" for w, n in zip(wnids, names, strict=True)))
        for c, (wnid, kind) in enumerate(zip(wnids, names, strict=True)):
            boxes = []
            for i in range(train_per_class):
                rng = np.random.default_rng([seed, 0, c, i])
                image, box = picture(kind, rng)
                name = f"{wnid}_{i}.JPEG"
                _write_jpeg(out / "train" / wnid / "images" / name, image, rng, grey=i % 16 == 7)
                boxes.append("\t".join([name, *map(str, box)]))
            (out / "train" / wnid / f"{wnid}_boxes.txt").write_text("\n".join(boxes) + "\n")
        lines = []
        for i in range(classes * val_per_class):
            rng = np.random.default_rng([seed, 1, i])
            image, box = picture(names[i % classes], rng)
            _write_jpeg(out / "val" / "images" / f"val_{i}.JPEG", image, rng)
            lines.append("\t".join([f"val_{i}.JPEG", wnids[i % classes], *map(str, box)]))
        (out / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder


def draw_ade20k(
    root: str | Path, *, train: int = 48, val: int = 16, size: tuple[int, int] = (96, 128), seed: int = 0
) -> Path:
    """Scenes of sky, ground and textured objects in ADE20K's layout (0 = other, here a few plain discs).

    Args:
        root: Folder that gets `ADEChallengeData2016/`.
        train: Pictures.
        val: Pictures.
        size: (height, width) in pixels, give or take a tenth.
        seed: Decides every pixel.

    Returns:
        The set's folder.
    """
    folder = Path(root) / "ADEChallengeData2016"

    def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        H, W = (int(s * rng.uniform(0.9, 1.1)) for s in size)
        horizon = int(H * rng.uniform(0.3, 0.5))
        sky, ground = _colours(rng, 2)
        image, label = _shade((H, W), rng, sky), np.ones((H, W), dtype=np.uint8)
        image[horizon:] = _shade((H - horizon, W), rng, ground)
        label[horizon:] = 2
        for _ in range(int(rng.integers(3, 6))):
            kind = int(rng.integers(len(SCENE_CLASSES) - 2))
            centre = (rng.uniform(0.3, 0.85) * H, rng.uniform(0.1, 0.9) * W)
            mask = _shape((H, W), centre, rng.uniform(0.16, 0.3) * H, rng)
            image = np.where(mask[..., None] > 0, _textured(SCENE_CLASSES[kind + 2], (H, W), rng), image)
            label[mask > 0] = kind + 3
        if rng.uniform() < 0.5:
            mask = _shape((H, W), (rng.uniform(0.6, 0.9) * H, rng.uniform(0.1, 0.9) * W), 0.06 * H, rng)
            image[mask > 0] = _colours(rng, 1)[0]
            label[mask > 0] = 0
        return image, label

    with whole_folder(folder) as out:
        rows = ["Idx\tRatio\tTrain\tVal\tName"]
        pixels = np.zeros(len(SCENE_CLASSES) + 1)
        for k, (split, count) in enumerate((("training", train), ("validation", val))):
            for i in range(count):
                rng = np.random.default_rng([seed, 2 + k, i])
                image, label = scene(rng)
                name = f"ADE_{'train' if k == 0 else 'val'}_{i + 1:08d}"
                _write_jpeg(out / "images" / split / f"{name}.jpg", image, rng)
                target = out / "annotations" / split / f"{name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(cv2.imencode(".png", label)[1].tobytes())
                pixels += np.bincount(label.ravel(), minlength=len(pixels))
        for i, name in enumerate(SCENE_CLASSES):
            rows.append(f"{i + 1}\t{pixels[i + 1] / pixels.sum():.4f}\t{train}\t{val}\t{name}")
        (out / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    return folder
