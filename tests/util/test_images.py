"""Pictures and masks of every kind that people have, and the broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from util.errors import InputError
from util.images import image_size, read_image, read_mask, write_png

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
IDS = RNG.integers(0, 12, (6, 9), dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def grey_png(samples: np.ndarray, bits: int) -> bytes:
    """A greyscale PNG of 1, 2, 4 or 16 bits, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape
    rows = b""
    for row in samples:
        binary = "".join(format(int(v), f"0{bits}b") for v in row)
        binary += "0" * (-len(binary) % 8)
        rows += b"\0" + int(binary, 2).to_bytes(len(binary) // 8, "big")
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_read_image_from_path_bytes_and_stream(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert np.array_equal(read_image(source), RGB)
    assert image_size(path) == (6, 9)


@pytest.mark.parametrize(
    "options", [{"quality": 60}, {"quality": 95, "subsampling": 0}, {"progressive": True}], ids=str
)
def test_a_jpeg_is_decoded_as_pillow_does_and_never_in_part(options: dict[str, object]) -> None:
    smooth = Image.fromarray(RGB).resize((61, 47), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smooth.save(file, "JPEG", **options)
    data = file.getvalue()
    assert np.abs(read_image(data).astype(int) - np.asarray(Image.open(file).convert("RGB"))).max() <= 1
    assert np.array_equal(read_image(data + b"behind its end"), read_image(data))
    for share in (0.4, 0.7, 0.99):
        with pytest.raises(InputError, match="damaged"):
            read_image(data[: int(share * len(data))])


@pytest.mark.parametrize(
    ("mode", "options", "plain"),
    [
        ("RGB", {}, True),
        ("RGB", {"progressive": True, "comment": b"by hand", "restart_marker_rows": 1}, True),
        ("RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}, False),
        ("RGB", {"icc_profile": b"colours"}, False),
        ("L", {}, False),
        ("CMYK", {}, False),
    ],
)
def test_a_header_that_says_more_is_pillows(
    mode: str, options: dict[str, object], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).resize((61, 47), Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG", **options)
    expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or real(*a, **k))
    assert np.abs(read_image(file.getvalue()) - expected).max() <= 1
    assert bool(opened) != plain
    opened.clear()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 47 / 2.5)  # more than twice as many are an attack
    with pytest.raises(InputError, match="more than"):
        read_image(file.getvalue())
    for end in range(30):  # cut within the header
        with pytest.raises(InputError):
            read_image(file.getvalue()[:end] + b"\xff\xd9")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "PA"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("L").convert(mode) if mode == "PA" else Image.fromarray(RGB).convert(mode)
    result = read_image(saved(image, tmp_path / "a.tif") if mode in ("CMYK", "PA", "LA") else _png(image))
    assert result.shape == (6, 9, 3) and result.dtype == np.uint8
    if mode == "RGBA":
        assert np.array_equal(result, RGB)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK")
    result = read_image(saved(red, tmp_path / "a.jpg", quality=95))
    assert np.abs(result.astype(int) - (200, 30, 40)).max() < 12


def test_sixteen_bit_greyscale_is_scaled_not_clipped(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    result = read_image(saved(Image.fromarray(wide), tmp_path / "a.png"))
    assert result[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_shows_white(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 4), dtype=np.uint8)
    array[0, 0] = (10, 20, 30, 255)
    result = read_image(_png(Image.fromarray(array)))
    assert result[0, 0].tolist() == [10, 20, 30] and result[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(RGB), tmp_path / f"a{suffix}", exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]
    assert image_size(path, orient=False) == read_image(path, orient=False).shape[:2]
    if suffix != ".tif":  # Pillow turns a TIFF by itself
        assert read_image(path, orient=False).shape == RGB.shape


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_truncated(read: object, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another library might
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"broken{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"broken\."):
        read(path)  # type: ignore[operator]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"\xff\xd8\xff\xe0"])
def test_not_a_picture(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fake.png"
    path.write_bytes(content)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"fake\.png"):
            read(path)
    with pytest.raises(InputError, match="row 3"):
        read_image(content, name="row 3")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)


def test_masks_that_hold_ids() -> None:
    palette = Image.fromarray(IDS)
    palette.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert palette.mode == "P"
    equal = Image.fromarray(np.repeat(IDS[..., None], 3, axis=2))
    for image in (Image.fromarray(IDS), palette, equal, equal.convert("RGBA"), Image.fromarray(IDS).convert("LA")):
        assert np.array_equal(read_mask(_png(image)), IDS), image.mode


def test_masks_of_other_depths(tmp_path: Path) -> None:
    wide = IDS.astype(np.uint16) * 300
    assert np.array_equal(read_mask(_png(Image.fromarray(wide))), wide)
    assert np.array_equal(read_mask(saved(Image.fromarray(wide.astype(np.int32)), tmp_path / "a.tif")), wide)
    assert np.array_equal(read_mask(grey_png(wide, 16)), wide)
    for bits in (1, 2, 4):
        ids = IDS % 2**bits
        assert np.array_equal(read_mask(grey_png(ids, bits)), ids), bits


def test_masks_that_are_refused() -> None:
    with pytest.raises(InputError, match="colour mask; store class ids in one channel"):
        read_mask(_png(Image.fromarray(RGB)), name="m.png")
    buffer = io.BytesIO()
    Image.fromarray(IDS).save(buffer, format="JPEG")
    with pytest.raises(InputError, match=r"m\.jpg: a JPEG blurs class ids"):
        read_mask(buffer.getvalue(), name="m.jpg")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, bool])
def test_write_png_and_read_back(kind: type, tmp_path: Path) -> None:
    ids = (IDS % 2).astype(bool) if kind is bool else IDS.astype(kind) * (1 if kind is np.uint8 else 100)
    write_png(tmp_path / "new" / "a.png", ids)
    assert np.array_equal(read_mask(tmp_path / "new" / "a.png"), ids)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_write_png_with_palette_and_refusals(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (12, 3), dtype=np.uint8)
    ids = IDS.copy()
    ids[0, 0] = 255
    write_png(tmp_path / "p.png", ids.astype(np.int64), colours)
    assert np.array_equal(read_mask(tmp_path / "p.png"), ids)
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image.convert("RGB"))[1:], colours[ids[1:]])
    for bad in (ids.astype(np.int64) - 300, np.full((2, 2), 70000), np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(InputError, match=r"bad\.png"):
            write_png(tmp_path / "bad.png", bad)
    with pytest.raises(InputError):
        write_png(tmp_path / "bad.png", IDS.astype(np.uint16) + 300, colours)
