"""Two small data sets drawn from nothing, in the on-disk layouts of Tiny-ImageNet and ADE20K.

A class is a texture (stripes, checks, dots, ...): colours, angles, sizes and outlines are drawn at random, so that
they give nothing away. The scenes show the same textures as the single shapes, so pre-training on the one helps on the
other. Every picture is a function of the seed and its own place in the set, and belongs to nobody.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from util.errors import InputError
from util.files import whole_folder
from util.seed import derive

JPEG_QUALITY = 90
Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray, float], np.ndarray]
Mask = np.ndarray  # (H, W) float32 coverage in 0..1


# --- textures: coordinates u, v in periods and the pixels of a period -> (H, W) float32, 0 = first colour, 1 = second


def _soft(distance: np.ndarray, period: float) -> np.ndarray:
    """1 inside (distance < 0), 0 outside, with an edge one pixel wide."""
    return np.clip(0.5 - distance * period, 0.0, 1.0)


def _from_centre(x: np.ndarray) -> np.ndarray:
    """Distance to the middle of the cell that x is in, 0..0.5."""
    return np.abs(x - np.floor(x) - 0.5)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], pixels: float) -> np.ndarray:
    """Noise with features of about `pixels`, stretched to 0..1."""
    coarse = rng.random((max(3, round(shape[0] / pixels) + 2), max(3, round(shape[1] / pixels) + 2)), dtype=np.float32)
    fine = cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return (fine - fine.min()) / max(float(np.ptp(fine)), 1e-6)


def _stripes(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return _soft(_from_centre(u) - 0.25, period)


def _checks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return np.clip(0.5 + np.sin(np.pi * u) * np.sin(np.pi * v) * period / 3, 0.0, 1.0)


def _dots(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    shifted = u + 0.5 * (np.floor(v) % 2)
    return _soft(np.hypot(_from_centre(shifted), _from_centre(v)) - 0.32, period)


def _rings(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return _soft(_from_centre(np.hypot(u, v)) - 0.25, period)


def _bricks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    row = np.floor(v)
    along = u / 2 + 0.5 * (row % 2)
    joint = np.maximum(_soft(0.44 - _from_centre(along), 2 * period), _soft(0.4 - _from_centre(v), period))
    shade = 0.25 * np.modf(np.abs(np.sin(np.floor(along) * 12.99 + row * 78.23)) * 43.7)[0]  # no brick like the next
    return np.maximum(joint, shade)


def _waves(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return _soft(_from_centre(v + 0.35 * np.sin(np.pi * u)) - 0.22, period)


def _speckle(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return (_smooth_noise(rng, u.shape, 1.7) + _smooth_noise(rng, u.shape, 3.0)) / 2


def _clouds(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    soft = 0.65 * _smooth_noise(rng, u.shape, 2.5 * period) + 0.35 * _smooth_noise(rng, u.shape, period)
    return np.clip(1.8 * soft - 0.5, 0.0, 1.0)


def _zigzag(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return _soft(_from_centre(v + 1.5 * _from_centre(u / 1.5)) - 0.25, period)


def _mesh(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return np.maximum(_soft(_from_centre(u) - 0.13, period), _soft(_from_centre(v) - 0.13, period))


TEXTURES: dict[str, Texture] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "bricks": _bricks,
    "waves": _waves,
    "speckle": _speckle,
    "clouds": _clouds,
    "zigzag": _zigzag,
    "mesh": _mesh,
}


def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, each (H, W) float32."""
    x, y = np.meshgrid(np.arange(size[1], dtype=np.float32), np.arange(size[0], dtype=np.float32))
    return x, y


def _colour(rng: np.random.Generator, lightness: tuple[float, float]) -> np.ndarray:
    """(3,) float32 RGB 0..255 of any hue."""
    rgb = colorsys.hls_to_rgb(rng.random(), rng.uniform(*lightness), rng.uniform(0.25, 0.8))
    return np.array(rgb, dtype=np.float32) * 255


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark one and a light one in either order: the texture shows, and which part is light says nothing."""
    dark, light = _colour(rng, (0.2, 0.42)), _colour(rng, (0.62, 0.88))
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def _paint(
    rng: np.random.Generator,
    name: str,
    size: tuple[int, int],
    *,
    centre: tuple[float, float],
    period: float,
    angle: float,
    colours: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """A whole picture full of one texture, (H, W, 3) float32; `centre` is (x, y), `period` in pixels."""
    x, y = _grid(size)
    x, y = (x - centre[0]) / period, (y - centre[1]) / period
    cos, sin = np.cos(angle), np.sin(angle)
    share = TEXTURES[name](rng, x * cos + y * sin, y * cos - x * sin, period)[..., None].astype(np.float32)
    return colours[0] * (1 - share) + colours[1] * share


# --- outlines


def _polygon(size: tuple[int, int], points: np.ndarray) -> Mask:
    """Coverage of a polygon; `points` is (n, 2) of x, y in pixels."""
    mask = np.zeros(size, dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _around(centre: tuple[float, float], radii: np.ndarray, angles: np.ndarray, squeeze: float = 1.0) -> np.ndarray:
    """Points (n, 2) at `radii` and `angles` around a centre (x, y), flattened by `squeeze` in y."""
    steps = np.stack([np.cos(angles) * radii, np.sin(angles) * radii * squeeze], axis=1)
    return np.array(centre) + steps


def _blob(rng: np.random.Generator, centre: tuple[float, float], radius: float, bumps: float = 0.15) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radii = np.full(48, radius)
    for wave in (2, 3, 5):
        radii = radii + radius * bumps * rng.uniform(0.2, 1) * np.sin(wave * angles + rng.uniform(0, 6.28))
    return _around(centre, radii, angles)


def _outline(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Any of several outlines, turned at random."""
    kind, turn = rng.integers(4), rng.uniform(0, 2 * np.pi)
    if kind == 0:
        return _blob(rng, centre, radius)
    if kind == 1:  # ellipse
        return _around(centre, np.full(48, radius), np.linspace(0, 2 * np.pi, 48, endpoint=False), rng.uniform(0.75, 1))
    corners = int(rng.integers(3, 7))
    angles = turn + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    if kind == 2 or corners == 3:
        return _around(centre, np.full(corners, radius * (1.25 if corners < 5 else 1.1)), angles)
    star = np.stack([angles, angles + np.pi / corners], axis=1).ravel()
    return _around(centre, np.tile([radius * 1.25, radius * 0.75], corners), star)


def _lay_over(picture: np.ndarray, layer: np.ndarray, mask: Mask, shadow: float = 0.0) -> np.ndarray:
    """`layer` where the mask is, with a soft shadow around it."""
    if shadow:
        soft = cv2.GaussianBlur(mask, (0, 0), 2.0)
        picture = picture * (1 - shadow * soft[..., None])
    return picture * (1 - mask[..., None]) + layer * mask[..., None]


def _finish(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Uneven light and sensor noise; (H, W, 3) uint8."""
    x, y = _grid(picture.shape[:2])
    angle = rng.uniform(0, 2 * np.pi)
    slope = (x / x.shape[1] - 0.5) * np.cos(angle) + (y / x.shape[0] - 0.5) * np.sin(angle)
    light = 1 + rng.uniform(0, 0.3) * slope
    noise = rng.normal(0, 4, picture.shape[:2]).astype(np.float32)
    return np.clip(picture * light[..., None] + noise[..., None], 0, 255).astype(np.uint8)


def _write(path: Path, image: np.ndarray) -> None:
    """(H, W, 3) RGB or (H, W); JPEG or PNG by suffix. The folder must exist."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    ok, data = cv2.imencode(
        ".jpg" if jpeg else ".png", stored, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if jpeg else []
    )
    if not ok:
        raise OSError(f"{path}: the picture could not be encoded")
    path.write_bytes(data.tobytes())


def _new_folder(root: str | Path, name: str) -> Path:
    """Nothing is ever drawn over an existing set: what is left of the old one would mix with the new."""
    folder = Path(root) / name
    if folder.exists():
        raise InputError(f"{folder} exists: name another folder, or remove it first")
    return folder


def _check_count(name: str, value: int, lowest: int, highest: int | None = None) -> None:
    if value < lowest or (highest is not None and value > highest):
        allowed = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
        raise InputError(f"{name}={value}: must be {allowed}")


# --- Tiny-ImageNet


def draw_shape(rng: np.random.Generator, name: str, size: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """One textured shape before a plain background.

    Returns:
        (size, size, 3) uint8 RGB, and the box of the shape as x0, y0, x1, y1 in pixels, inclusive.
    """
    full = (size, size)
    x, y = _grid(full)
    first, second = _colour(rng, (0.25, 0.8)), _colour(rng, (0.25, 0.8))
    ramp = np.clip((x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) / size + 0.5, 0, 1)[..., None]
    background = first * (1 - ramp) + second * ramp

    radius = size * rng.uniform(0.3, 0.42)
    spare = size / 2 - radius
    centre = (size / 2 + rng.uniform(-spare, spare), size / 2 + rng.uniform(-spare, spare))
    layer = _paint(
        rng,
        name,
        full,
        centre=centre,
        period=rng.uniform(6, 13),
        angle=rng.uniform(0, np.pi),
        colours=_two_colours(rng),
    )
    mask = _polygon(full, _outline(rng, centre, radius))
    picture = _finish(rng, _lay_over(background, layer, mask, shadow=0.35))
    rows, columns = np.flatnonzero((mask > 0.5).any(axis=1)), np.flatnonzero((mask > 0.5).any(axis=0))
    return picture, (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))


def draw_tiny_imagenet(
    root: str | Path,
    *,
    classes: int = 8,
    train_per_class: int = 64,
    val_per_class: int = 8,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Draw textured shapes as `root/tiny-imagenet-200`, in the publisher's layout.

    Some pictures are greyscale files, as in the original.

    Args:
        root: Folder to put the set into.
        classes: One texture each.
        train_per_class: Training pictures of each class.
        val_per_class: Validation pictures of each class.
        size: Pixels, square.
        seed: Of everything drawn.

    Returns:
        The folder of the set.

    Raises:
        InputError: The folder exists, or a number is out of range.
    """
    _check_count("classes", classes, 1, len(TEXTURES))
    _check_count("train_per_class", train_per_class, 1)
    _check_count("val_per_class", val_per_class, 1)
    _check_count("size", size, 16)
    folder = _new_folder(root, "tiny-imagenet-200")
    names = list(TEXTURES)[:classes]
    wnids = {name: f"n9{i + 1:07d}" for i, name in enumerate(names)}

    with whole_folder(folder) as part:
        for name, wnid in wnids.items():
            images = part / "train" / wnid / "images"
            images.mkdir(parents=True)
            boxes = []
            for i in range(train_per_class):
                picture, box = draw_shape(np.random.default_rng(derive(seed, "train", name, i)), name, size)
                _write(images / f"{wnid}_{i}.JPEG", _maybe_grey(picture, i))
                boxes.append("\t".join(map(str, (f"{wnid}_{i}.JPEG", *box))))
            _write_lines(images.parent / f"{wnid}_boxes.txt", boxes)

        images = part / "val" / "images"
        images.mkdir(parents=True)
        order = np.random.default_rng(derive(seed, "val", "order")).permutation(classes * val_per_class)
        annotations = []
        for i, place in enumerate(order):
            name = names[place % classes]
            picture, box = draw_shape(np.random.default_rng(derive(seed, "val", name, i)), name, size)
            _write(images / f"val_{i}.JPEG", _maybe_grey(picture, i))
            annotations.append("\t".join(map(str, (f"val_{i}.JPEG", wnids[name], *box))))
        _write_lines(part / "val" / "val_annotations.txt", annotations)
        _write_lines(part / "wnids.txt", list(wnids.values()))
        _write_lines(part / "words.txt", [f"{wnid}\t{name}, textured shape" for name, wnid in wnids.items()])
    return folder


def _maybe_grey(picture: np.ndarray, index: int) -> np.ndarray:
    """The fourth picture of every sixteen in one channel."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if index % 16 == 3 else picture


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- ADE20K

# Class names by mask value (0 is "other"), with the texture that each is known by.
SCENE_CLASSES = {
    "sky": "clouds",
    "ground": "speckle",
    "wall": "bricks",
    "water": "waves",
    "fence": "stripes",
    "flag": "checks",
    "tree": "dots",
    "ball": "rings",
}


class _Scene:
    """A picture and its mask, painted from back to front."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, self.size = rng, size
        self.unit = size[0] / 96  # all measures below are for a picture 96 pixels high
        self.picture = np.zeros((*size, 3), dtype=np.float32)
        self.mask = np.zeros(size, dtype=np.uint8)

    def textured(
        self, name: str, points: np.ndarray, *, angle: float | None = None, colours: tuple | None = None
    ) -> None:
        """Fill a polygon (n, 2) with the texture of class `name`."""
        centre = tuple(points.mean(axis=0))
        layer = _paint(
            self.rng,
            SCENE_CLASSES[name],
            self.size,
            centre=(float(centre[0]), float(centre[1])),
            # Not scaled with the picture: the textures keep the measures they have in the single shapes.
            period=self.rng.uniform(6, 11),
            angle=self.rng.uniform(-0.25, 0.25) if angle is None else angle,
            colours=colours or _two_colours(self.rng),
        )
        cover = _polygon(self.size, points)
        self.picture = _lay_over(self.picture, layer, cover, shadow=0.0 if name in ("sky", "ground") else 0.3)
        self.mask[cover > 0.5] = list(SCENE_CLASSES).index(name) + 1

    def plain(self, points: np.ndarray) -> None:
        """Fill a polygon with one colour; its mask is 0, other."""
        cover = _polygon(self.size, points)
        colour = np.broadcast_to(_colour(self.rng, (0.2, 0.5)), self.picture.shape)
        self.picture = _lay_over(self.picture, colour, cover)
        self.mask[cover > 0.5] = 0


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sky and ground, perhaps a wall, a fence or water at the horizon, and a few things in front.

    Args:
        rng: Where the randomness comes from.
        size: (H, W) in pixels.

    Returns:
        (H, W, 3) uint8 RGB and (H, W) uint8: 0 = other, i = the i-th of `SCENE_CLASSES`.
    """
    scene, (height, width), unit = _Scene(rng, size), size, size[0] / 96
    horizon = height * rng.uniform(0.4, 0.6)
    pale = (_colour(rng, (0.6, 0.75)), _colour(rng, (0.82, 0.95)))
    scene.textured("sky", _box(-2, -2, width + 2, height + 2), colours=pale)
    tilt = height * rng.uniform(-0.04, 0.04)
    ground = np.array([[-2, horizon - tilt], [width + 2, horizon + tilt], [width + 2, height + 2], [-2, height + 2]])
    scene.textured("ground", ground)

    behind = rng.choice(["wall", "fence", "water", ""], p=[0.34, 0.28, 0.28, 0.1])
    left = width * rng.uniform(-0.1, 0.35)
    right = left + width * rng.uniform(0.5, 0.8)
    if behind == "wall":
        scene.textured("wall", _box(left, horizon - unit * rng.uniform(18, 32), right, horizon + 3 * unit), angle=0)
    elif behind == "fence":
        scene.textured("fence", _box(left, horizon - unit * rng.uniform(12, 22), right, horizon + 5 * unit))
    elif behind == "water":
        pond = _blob(rng, ((left + right) / 2, 0.0), (right - left) / 2)
        pond[:, 1] = pond[:, 1] * rng.uniform(0.3, 0.45) + horizon + 0.28 * height
        scene.textured("water", pond)

    places = rng.permutation(4)[: rng.integers(2, 5)]  # columns of the picture, so that things seldom hide each other
    for place in sorted(places, key=lambda _: rng.random()):
        x = width * (place + rng.uniform(0.3, 0.7)) / 4
        foot = horizon + (height - horizon) * rng.uniform(0.15, 0.7)
        thing = rng.choice(["tree", "flag", "ball"])
        if thing == "tree":
            crown, trunk = unit * rng.uniform(11, 17), unit * rng.uniform(10, 18)
            scene.plain(_box(x - 2 * unit, foot - trunk, x + 2 * unit, foot))
            scene.textured("tree", _blob(rng, (x, foot - trunk - 0.7 * crown), crown), angle=rng.uniform(0, np.pi))
        elif thing == "flag":
            tall, deep, long = unit * rng.uniform(34, 48), unit * rng.uniform(18, 24), unit * rng.uniform(24, 34)
            sway = unit * rng.uniform(-4, 4)
            scene.plain(_box(x - 1.2 * unit, foot - tall, x + 1.2 * unit, foot))
            top = foot - tall
            cloth = [[x, top], [x + long, top + sway], [x + long, top + deep + sway], [x, top + deep]]
            scene.textured("flag", np.array(cloth))
        else:
            radius = unit * rng.uniform(10, 16)
            circle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
            scene.textured("ball", _around((x, foot - radius), np.full(48, radius), circle))
    return _finish(rng, scene.picture), scene.mask


def draw_ade20k(
    root: str | Path, *, train: int = 48, val: int = 16, size: tuple[int, int] = (96, 128), seed: int = 0
) -> Path:
    """Draw scenes with masks as `root/ADEChallengeData2016`, in the publisher's layout.

    Args:
        root: Folder to put the set into.
        train: Training pictures.
        val: Validation pictures.
        size: (H, W) in pixels; every picture differs from it by up to an eighth.
        seed: Of everything drawn.

    Returns:
        The folder of the set.

    Raises:
        InputError: The folder exists, or a number is out of range.
    """
    _check_count("train", train, 1)
    _check_count("val", val, 1)
    _check_count("size", min(size), 32)
    folder = _new_folder(root, "ADEChallengeData2016")
    classes = len(SCENE_CLASSES)
    pixels = np.zeros(classes + 1, dtype=np.int64)  # of the training pictures, by mask value
    pictures = {"training": np.zeros(classes + 1, dtype=np.int64), "validation": np.zeros(classes + 1, dtype=np.int64)}

    with whole_folder(folder) as part:
        for split, count, prefix in (("training", train, "ADE_train"), ("validation", val, "ADE_val")):
            for kind in ("images", "annotations"):
                (part / kind / split).mkdir(parents=True)
            for i in range(1, count + 1):
                rng = np.random.default_rng(derive(seed, "scene", split, i))
                height, width = (int(side * rng.uniform(0.875, 1.125)) for side in size)
                picture, mask = draw_scene(rng, (height, width))
                _write(part / "images" / split / f"{prefix}_{i:08d}.jpg", picture)
                _write(part / "annotations" / split / f"{prefix}_{i:08d}.png", mask)
                counts = np.bincount(mask.ravel(), minlength=classes + 1)
                pictures[split] += counts > 0
                if split == "training":
                    pixels += counts
        lines = ["Idx\tRatio\tTrain\tVal\tName"]
        for i, name in enumerate(SCENE_CLASSES, start=1):
            seen = f"{pictures['training'][i]}\t{pictures['validation'][i]}"
            lines.append(f"{i}\t{pixels[i] / pixels.sum():.4f}\t{seen}\t{name}")
        _write_lines(part / "objectInfo150.txt", lines)
    return folder
