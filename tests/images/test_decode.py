"""The decoder: every kind of file becomes upright 8-bit grey or RGB; what cannot is one line that names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import picture

from vitprune.core.errors import UserError
from vitprune.images.decode import MAX_PIXELS, as_mode, read

# Where the eight EXIF orientations put the stored pixels, from the standard's own table of row 0 and column 0.
UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1],
}  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(UserError, match="not a readable image") as caught:
        read(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and path.name in text
    return text


def pixels(mode: str = "RGB", size: tuple[int, int] = (7, 12)) -> np.ndarray:
    shape = size if mode == "L" else (*size, len(mode))
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_a_grey_image_for_a_grey_model_keeps_its_pixels() -> None:
    image = picture(1, 1, "L")
    assert np.array_equal(np.asarray(as_mode(image, "L")), np.asarray(image))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16"]
)
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_every_mode_becomes_the_models(mode: str, wanted: str) -> None:
    image = picture(1, 1, "RGB").convert("RGBA" if mode == "PA" else "RGB")
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    made = as_mode(image, wanted)  # type: ignore[arg-type]
    assert made.mode == wanted and np.asarray(made).shape == ((28, 28) if wanted == "L" else (28, 28, 3))


def test_rgb_becomes_luma_and_grey_becomes_three_equal_channels() -> None:
    red = Image.new("RGB", (4, 4), (200, 0, 0))
    assert np.asarray(as_mode(red, "L")).max() == round(200 * 0.299)
    grey = np.asarray(as_mode(picture(0, 3, "L"), "RGB"))
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 0], grey[..., 2])


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    colours = picture(1, 4, "RGB").quantize(16)
    colours.save(tmp_path / "a.png")
    expected = np.array(colours.getpalette()).reshape(-1, 3)[np.asarray(colours)]
    assert np.array_equal(np.asarray(read(tmp_path / "a.png")), expected)


def test_alpha_is_dropped_and_the_colours_under_it_stay(tmp_path: Path) -> None:
    colours = pixels("RGBA")
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read(tmp_path / "a.png")), colours[..., :3])
    greys = pixels("LA")
    Image.fromarray(greys, "LA").save(tmp_path / "b.png")
    made = read(tmp_path / "b.png")
    assert made.mode == "L" and np.array_equal(np.asarray(made), greys[..., 0])


def test_cmyk_is_ink(tmp_path: Path) -> None:
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:4, :, 0] = 255  # cyan above, a half black below
    inks[4:, :, 3] = 128
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    made = np.asarray(read(tmp_path / "a.tif")).astype(int)
    assert np.abs(made[0, 0] - [0, 255, 255]).max() <= 1 and np.abs(made[-1, 0] - 127).max() <= 1
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(np.asarray(read(tmp_path / "a.jpg")).astype(int) - made).max() <= 6


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_is_set_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pixels()
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    made = read(tmp_path / "a.png")
    assert np.array_equal(np.asarray(made), UPRIGHT[orientation](stored))
    assert np.array_equal(np.asarray(as_mode(made, "RGB")), np.asarray(made))  # not turned twice


def png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> None:
    """A PNG by hand, of a depth that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("colour", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)], ids=["grey", "grey+a", "rgb", "rgb+a"]
)
def test_sixteen_bits_keep_their_high_byte(tmp_path: Path, colour: int, channels: int) -> None:
    values = np.random.default_rng(1).integers(0, 1 << 16, (5, 9, channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    png(tmp_path / "a.png", 9, 5, 16, colour, rows)
    shown = (values >> 8).astype(np.uint8)
    expected = shown[..., 0] if channels < 3 else shown[..., :3]
    made = as_mode(read(tmp_path / "a.png"), "L" if channels < 3 else "RGB")
    assert np.array_equal(np.asarray(made), expected)


def test_sixteen_bits_of_other_formats(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 1 << 16, (5, 9)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 9 5 65535\n" + values.astype(">u2").tobytes())
    for name in ("a.tif", "a.pgm"):
        assert np.array_equal(np.asarray(read(tmp_path / name)), values >> 8)


def test_pixels_without_an_agreed_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in refusal(tmp_path / "a.tif")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "b.tif")
    assert "beyond 16 bits" in refusal(tmp_path / "b.tif")


def test_the_first_frame_counts(tmp_path: Path) -> None:
    first, second = Image.new("L", (6, 6), 10), Image.new("L", (6, 6), 200)
    for name in ("a.gif", "a.tif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert np.asarray(read(tmp_path / name).convert("L")).max() == 10


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    side = 1 << 20
    png(tmp_path / "a.png", side, side, 8, 0, b"")
    refusal(tmp_path / "a.png")
    png(tmp_path / "b.png", 13_400, MAX_PIXELS // 13_400 + 1, 8, 0, b"")
    refusal(tmp_path / "b.png")


def test_a_strip_is_refused(tmp_path: Path) -> None:
    """Its shorter side resized to the model's, the longer one would be millions of pixels."""
    Image.new("L", (20_000, 1)).save(tmp_path / "a.png")
    assert "200 times" in refusal(tmp_path / "a.png")
    Image.new("L", (200, 1)).save(tmp_path / "b.png")
    assert read(tmp_path / "b.png").size == (200, 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif", ".ppm"])
def test_a_file_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    picture(1, 1, "RGB", 64).save(path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2):
        path.write_bytes(whole[:length])
        refusal(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    assert "no format" in refusal(tmp_path / "a.png")
    assert "no such file" in refusal(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    refusal(tmp_path / "folder.png")


def test_advice_ends_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"; try another$"):
        read(tmp_path / "none.png", "try another")
