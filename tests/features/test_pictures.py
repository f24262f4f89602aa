"""Decoding of all supported picture formats, and of damaged files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest

from mmssl.errors import InputError
from mmssl.features.pictures import PictureError, Preprocess, find_pictures, read_picture

pillow = pytest.importorskip("PIL.Image", reason="pictures need mmssl[image]")

SMALL = Preprocess(size=8, resize=8)
RED = (200, 30, 40)


def read(path, preprocess=SMALL) -> np.ndarray:
    return read_picture(str(path), preprocess)


def close_to(pixels: np.ndarray, color, tolerance: int = 6) -> bool:
    return np.abs(pixels.astype(int) - np.array(color)[:, None, None]).max() <= tolerance


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (9, 7), (300, 200)])
def test_formats_and_sizes(tmp_path, suffix, size):
    path = tmp_path / f"x.{suffix}"
    pillow.new("RGB", size, RED).save(path)
    pixels = read(path)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert close_to(pixels, RED)
    assert close_to(read(path, Preprocess(size=6, squash=True)), RED)


def test_modes(tmp_path):
    def saved(image, name, **options):
        image.save(tmp_path / name, **options)
        return read(tmp_path / name)

    gray, white = (120,) * 3, (255,) * 3
    assert close_to(saved(pillow.new("L", (9, 9), 120), "l.png"), gray)
    assert close_to(saved(pillow.new("1", (9, 9), 1), "1.png"), white)
    assert close_to(saved(pillow.new("LA", (9, 9), (120, 0)), "la.png"), white)
    assert close_to(saved(pillow.new("RGBA", (9, 9), (*RED, 255)), "rgba.png"), RED)
    assert close_to(saved(pillow.new("RGBA", (9, 9), (*RED, 0)), "clear.png"), white)
    half = [(c + 255) // 2 for c in RED]
    assert close_to(
        saved(pillow.new("RGBA", (9, 9), (*RED, 128)), "half.webp", lossless=True), half
    )
    assert close_to(saved(pillow.new("RGB", (9, 9), RED).convert("CMYK"), "cmyk.jpg"), RED)
    assert close_to(saved(pillow.new("RGB", (9, 9), RED).convert("YCbCr"), "ycbcr.jpg"), RED)
    palette = pillow.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert close_to(saved(palette, "p.png"), RED)
    assert close_to(saved(palette, "clear.gif", transparency=1), white)
    deep = pillow.fromarray(np.full((9, 9), 120 * 257, np.uint16))
    assert close_to(saved(deep, "16.png"), gray)  # not clipped to white
    with pytest.raises(PictureError, match="floating-point"):
        saved(pillow.new("F", (9, 9), 0.5), "f.tiff")


def test_an_animation_uses_its_first_frame(tmp_path):
    frames = [pillow.new("RGB", (9, 9), color) for color in (RED, "blue", "green")]
    for name in ("m.gif", "m.webp", "m.png", "m.mpo"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert close_to(read(tmp_path / name), RED, 12), name


def test_exif_orientation(tmp_path):
    image = pillow.new("RGB", (8, 8), "white")
    image.paste(RED, (0, 0, 8, 4))  # upper half
    exif = pillow.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees: the upper half becomes the right half
    image.save(tmp_path / "x.png", exif=exif)
    pixels = read(tmp_path / "x.png")
    assert close_to(pixels[:, :, 4:], RED) and close_to(pixels[:, :, :4], (255,) * 3)


@pytest.mark.parametrize("shape", [(50, 80), (81, 50), (33, 33), (300, 17)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equals_resizing_then_cutting(tmp_path, shape, interpolation):
    rng = np.random.default_rng(0)
    # Avoid extreme values: Pillow clips between its two passes, whose order may differ.
    image = pillow.fromarray(rng.integers(60, 190, (*shape, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    pixels = read(tmp_path / "x.png", Preprocess(size=24, resize=32, interpolation=interpolation))
    width, height = image.size
    short = min(image.size)
    new = (int(32 * width / short), int(32 * height / short))
    resized = image.resize(new, pillow.Resampling[interpolation.upper()])
    left, top = round((new[0] - 24) / 2), round((new[1] - 24) / 2)
    expected = np.asarray(resized.crop((left, top, left + 24, top + 24)), dtype=int)
    assert np.abs(pixels.transpose(1, 2, 0) - expected).max() <= 1


def png(width: int, height: int) -> bytes:
    """Build a PNG whose header claims this size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def jpeg(size: int = 64) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    pillow.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a picture in a supported format"),
        (b"<html>404</html>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (jpeg()[:900], "damaged"),
        (b"\xff\xd8\xff\xe0 broken", "damaged"),
        (png(10_000, 10_000), "more than 89,478,485 pixels"),  # Pillow only warns by default
        (png(2**31 - 1, 2**31 - 1), "more than 89,478,485 pixels"),
        (png(200, 200), "damaged"),
        (png(0, 5), "picture|damaged"),
        (None, "no such file"),
    ],
    ids=["empty", "html", "eps", "cut", "start", "big", "huge", "short", "flat", "none"],
)
def test_bad_files(tmp_path, content, words):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PictureError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_damage_anywhere_is_a_picture_or_an_error(tmp_path):
    whole, path = jpeg(24), tmp_path / "x.jpg"
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            assert read(path).shape == (3, 8, 8)
        except PictureError:
            pass


def test_files_by_item_id(tmp_path):
    for name in ("b.png", "b.jpg", "a.JPG", "z.jpg", "a.txt", "a.b.png", "c"):
        (tmp_path / name).touch()
    content = find_pictures(tmp_path, ("a", "b", "c", "a.b"))
    assert [cell.rpartition("/")[2] for cell in content.cells] == ["a.JPG", "b.jpg", "", "a.b.png"]
    assert (content.unknown_rows, content.repeated_rows) == (1, 1)
    with pytest.raises(
        InputError, match="expected pictures named by item id, such as q.jpg, got 5"
    ):
        find_pictures(tmp_path, ("q",))
    with pytest.raises(InputError, match="can't be read: No such file"):
        find_pictures(tmp_path / "none", ("q",))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": 0}, "--size must be in 1"),
        ({"size": 224, "resize": 200}, r"--resize must be in 224 \.\. 8192, got 200"),
        ({"interpolation": "magic"}, "interpolation"),
        ({"std": (1.0, 0.0, 1.0)}, "mean and std"),
    ],
)
def test_bad_preprocessing(fields, words):
    with pytest.raises(InputError, match=words):
        Preprocess(**fields)
