"""Pictures and masks from any file: RGB bytes and class ids come out, or one line that names the file and the fix."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from util.errors import InputError
from util.files import whole_file

Source = str | Path | bytes | BinaryIO

_JPEG_START = b"\xff\xd8\xff"  # up to the second marker's first byte
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive; size and channels are there
_JPEG_PLAIN = {0xC4, 0xDB, 0xDD, 0xE0, 0xFE}  # tables, restart interval, JFIF, comment; EXIF would be 0xE1, Adobe 0xEE
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on broken files, besides OSError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, TypeError, OverflowError)


def source_name(source: Source, name: str | None = None) -> str:
    """What an error message calls `source`: the given name, the path, or the kind of object it is."""
    if name is not None:
        return name
    if isinstance(source, str | Path):
        return str(source)
    return "picture in memory" if isinstance(source, bytes) else str(getattr(source, "name", "picture in a stream"))


@contextmanager
def _opened(source: Source, name: str | None) -> Iterator[tuple[Image.Image, str]]:
    """The image with its header read, and its name. Whatever goes wrong inside the block becomes an InputError."""
    called = source_name(source, name)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            # Another library may have switched this on, and half a picture would pass for a whole one.
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            yield image, called
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{called}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{called}: is a folder, not a picture") from None
    except PermissionError:
        raise InputError(f"{called}: may not be read; change its permissions") from None
    except UnidentifiedImageError:
        raise InputError(f"{called}: not a picture that can be read; replace or remove the file") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{called}: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; cut it into tiles"
        ) from None
    except _BROKEN as error:
        raise InputError(f"{called}: the picture is damaged ({error}); replace or remove the file") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, from the header alone."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF while it loads it, and reports the turned size
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the whole PNG to look behind its pixels
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1  # a damaged EXIF block leaves the pixels readable
    return value if value in range(1, 9) else 1


def _to_rgb(image: Image.Image, called: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling.
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{called}: a picture of floating-point numbers has no defined white; store it as 8 or 16 bit")
    if image.has_transparency_data:
        # Colours under transparent pixels are arbitrary; white is what a viewer shows there.
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def read_image(source: Source, *, name: str | None = None, orient: bool = True) -> np.ndarray:
    """Read a picture of any mode.

    Greyscale, palette and CMYK are converted, 16-bit greyscale is scaled to 8 bit, transparency is laid over white.

    Args:
        source: A path, the file's bytes, or an open binary file.
        name: What error messages call it; the path by default.
        orient: Turn the picture as its EXIF orientation says; False leaves it as stored.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        InputError: Missing, truncated, or not a picture.
    """
    if isinstance(source, str | Path):
        source, name = _bytes_of(source), source_name(source, name)
    if isinstance(source, bytes) and _is_plain_jpeg(source) and (pixels := _decoded(source)) is not None:
        return pixels
    with _opened(source, name) as (image, called):
        turn = _TURNS.get(_orientation(image)) if orient else None
        if (
            isinstance(source, bytes)
            and (image.format, image.mode, turn) == ("JPEG", "RGB", None)
            and (pixels := _decoded(source)) is not None
        ):
            return pixels
        image.load()
        rgb = _to_rgb(image, called)
        if turn is not None:
            rgb = rgb.transpose(turn)
        return np.array(rgb)


def _decoded(jpeg: bytes) -> np.ndarray | None:
    """(H, W, 3) RGB as stored, the values that Pillow gives, in a third of its time; None where Pillow must look."""
    try:
        return simplejpeg.decode_jpeg(jpeg, "RGB")
    except ValueError:  # damaged, or only so odd that libjpeg warns of it
        return None


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG of three channels of 8 bit that nothing in its header says more about.

    For small pictures Pillow's look at the header takes as long as the decoding. What it alone understands, or is very
    large, is left to it.
    """
    if not data.startswith(_JPEG_START):
        return False
    at = len(_JPEG_START) - 1
    while data[at : at + 1] == b"\xff" and at + 10 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_FRAMES:
            depth, height, width, channels = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return depth == 8 and channels == 3 and 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        if marker not in _JPEG_PLAIN:
            return False
        at += 2 + length
    return False


def _bytes_of(path: str | Path) -> Source:
    """The file's content, or the path itself where it cannot be read: what is wrong then is said in one place."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return path


def image_size(source: Source, *, name: str | None = None, orient: bool = True) -> tuple[int, int]:
    """(H, W) in pixels from the header alone, as `read_image` with the same `orient` would return it."""
    with _opened(source, name) as (image, _):
        width, height = image.size
        swapped = orient and _orientation(image) >= 5
        return (width, height) if swapped else (height, width)


def _packed_grey_step(image: Image.Image) -> int:
    """The factor by which Pillow spreads 2 and 4 bit greyscale PNGs over 0..255."""
    tiles = getattr(image, "tile", None)  # only files have tiles, before they are loaded
    if image.format != "PNG" or not tiles:
        return 1
    arguments = tiles[0][3]
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    return {"L;2": 85, "L;4": 17}.get(str(raw), 1)


def read_mask(source: Source, *, name: str | None = None) -> np.ndarray:
    """Read class ids, exactly as stored: no turning, no scaling, and palette indices rather than palette colours.

    1 bit, 2, 4, 8 and 16 bit greyscale, 32-bit integers, palettes, and colour files with three equal channels are
    understood. A 1-bit file holds ids 0 and 1; a 2 or 4 bit one holds its raw samples.

    Returns:
        (H, W) uint8, uint16 or int32, contiguous.

    Raises:
        InputError: Missing or damaged file, a colour mask, fractions, or a JPEG (whose ids are approximate).
    """
    with _opened(source, name) as (image, called):
        if image.format in ("JPEG", "MPO"):
            raise InputError(f"{called}: a JPEG blurs class ids; store the mask as PNG")
        step = _packed_grey_step(image)
        image.load()
        if image.mode in ("RGB", "RGBA", "RGBX"):
            return _equal_channel(np.asarray(image), called)
        if image.mode in ("LA", "PA"):
            return np.ascontiguousarray(np.asarray(image)[..., 0])
        array = np.array(image)
        if image.mode == "L":
            return array // np.uint8(step) if step > 1 else array
        if image.mode == "P":
            return array
        if image.mode == "1":
            return array.astype(np.uint8)
        if image.mode.startswith("I;16"):
            return array.astype(np.uint16)
        if image.mode == "I":
            return array.astype(np.int32)
        if image.mode == "F" and np.all(array == np.floor(array)) and np.all(np.abs(array) < 2**24):
            return array.astype(np.int32)
        raise InputError(f"{called}: a mask of mode {image.mode}; store class ids in one channel of integers")


def _equal_channel(array: np.ndarray, called: str) -> np.ndarray:
    if not (np.array_equal(array[..., 0], array[..., 1]) and np.array_equal(array[..., 0], array[..., 2])):
        raise InputError(f"{called}: colour mask; store class ids in one channel")
    return np.ascontiguousarray(array[..., 0])


def write_png(path: str | Path, array: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write a PNG whole.

    Args:
        path: File to write; its folder is made.
        array: (H, W, 3) uint8 RGB, or (H, W) of integers: 8 bit where the values fit, 16 bit otherwise.
        palette: (n, 3) uint8, n up to 256: the ids are stored as palette indices and viewers show colours. Indices
            from n on are black.

    Raises:
        InputError: Values that a PNG cannot hold.
    """
    image = Image.fromarray(_storable(array, path, 255 if palette is not None else 65535))
    if palette is not None:
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: len(palette)] = palette[:256]
        image = image.convert("L")
        image.putpalette(colours.tobytes())
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")


def _storable(array: np.ndarray, path: str | Path, highest: int) -> np.ndarray:
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        return np.ascontiguousarray(array)
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise InputError(f"{path}: a PNG holds (H, W, 3) uint8 or (H, W) integers, not {array.shape} {array.dtype}")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > highest:
        raise InputError(f"{path}: ids {low}..{high} do not fit into a PNG of 0..{highest}")
    return np.ascontiguousarray(array.astype(np.uint8 if high <= 255 else np.uint16))
