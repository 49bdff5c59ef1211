"""Images of every kind come out as the RGB pixels that transformers' own loader gives; what can't be used says why."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers.image_utils import load_image

from finetune.data.image_decoding import BrokenImage, decode, resized

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")[100:260, 200:320])


def _saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo: Image.Image, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _saved(photo, tmp_path / "a.png", exif=exif)
    found = decode(path, 64)
    assert found.shape == ((120, 160, 3) if orientation >= 5 else (160, 120, 3))
    np.testing.assert_array_equal(found, np.asarray(load_image(str(path))))
    upright = np.asarray(photo)
    by_hand = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright, -1), 8: np.rot90(upright)}
    if orientation in by_hand:
        np.testing.assert_array_equal(found, by_hand[orientation])


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("P", "png"), ("P", "gif"), ("L", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png")],
)
def test_other_modes_are_rgb(photo: Image.Image, tmp_path: Path, mode: str, suffix: str) -> None:
    path = _saved(photo.convert(mode), tmp_path / f"a.{suffix}")
    with Image.open(path) as opened:
        assert opened.mode in (mode, "P", "L")
        theirs = np.asarray(load_image(opened))
    found = decode(path, 64)
    assert found.shape == (160, 120, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, theirs)
    near = np.asarray(photo if mode in ("P", "RGBA", "CMYK") else photo.convert("L").convert("RGB"), dtype=float)
    if mode != "1":
        assert np.abs(found - near).mean() < 25  # palettes and JPEG lose a little, a wrong channel order far more


def test_a_palette_with_transparency(photo: Image.Image, tmp_path: Path) -> None:
    path = _saved(photo.convert("P"), tmp_path / "a.png", transparency=b"\x00\x80" + b"\xff" * 254)
    assert decode(path, 64).shape == (160, 120, 3)


def test_bytes_of_a_file(photo: Image.Image) -> None:
    buffer = BytesIO()
    photo.save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), 64), np.asarray(photo))


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path: Path) -> None:
    path = _saved(Image.fromarray(np.full((8, 8), 4000, np.uint16)), tmp_path / "deep.png")
    with pytest.raises(BrokenImage, match="more than 8 bits"):
        decode(path, 64)


def test_a_cut_file_an_empty_one_and_no_image(photo: Image.Image, tmp_path: Path) -> None:
    whole = _saved(photo, tmp_path / "a.jpg").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"<html>not found</html>"}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        with pytest.raises(BrokenImage):
            decode(path, 64)


@pytest.mark.parametrize("side", [20_000, 1_000_000])
def test_a_huge_header_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)))
    with pytest.raises(BrokenImage, match="max_megapixels=64"):
        decode(path, 64)


def test_a_long_strip_is_cut_before_it_is_enlarged() -> None:
    assert resized(np.zeros((10, 10_000, 3), np.uint8), 64, 3).shape == (64, 256, 3)
    assert resized(np.zeros((100, 150, 3), np.uint8), 64, 3).shape == (64, 96, 3)
