"""Pictures: right pixels, and a plain refusal of files that lie, are cut short, or are something else; no warning escapes."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gewu.core.errors import InputError
from gewu.data.images import CheckImage, ToArray
from gewu.data.piece import Reject
from gewu.formats.pictures import decode_image

PIXELS = np.add.outer(np.arange(40) * 3, np.arange(60) * 2).astype(np.uint8)[:, :, None] * np.ones(3, np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PNG, JPEG = encoded(Image.fromarray(PIXELS), "PNG"), encoded(Image.fromarray(PIXELS), "JPEG", quality=95)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, lines: int = 1) -> bytes:
    """Return a grey PNG with a header of any size and a few lines of pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(width + 1) * lines))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + data + chunk(b"IEND", b"")


def lying_jpeg(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def test_png_is_exact_and_jpeg_is_what_pillow_gives() -> None:
    assert np.array_equal(decode_image(PNG), PIXELS)
    assert np.array_equal(decode_image(JPEG), np.asarray(Image.open(io.BytesIO(JPEG))))
    assert np.abs(decode_image(JPEG).astype(int) - PIXELS).max() < 8  # of 256, at quality 95
    assert decode_image(JPEG).flags.writeable and decode_image(JPEG).dtype == np.uint8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS)
    if mode == "I;16":
        image = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 256 + 77)
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    found = decode_image(encoded(image, "PNG"))
    assert np.array_equal(found, PIXELS if mode == "I;16" else expected)


def test_metadata_never_reach_the_decoder() -> None:
    """EXIF that Pillow warns of, comments, a palette with transparency, a compressed text that would fill the memory."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x1a\0\x05\0\0\0\x01\xff\xff\xff\xf0\x01\x28\0\x03\0\0\0\x01\0\x02\0\0\0\0\0\0"
    marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    comment = b"\xff\xff\xfe" + struct.pack(">H", 12) + b"0123456789"
    plain = JPEG[:2] + marker + comment + JPEG[2:].replace(JPEG[2:20], b"", 1)  # without JFIF, whose density would be taken first
    with pytest.warns(UserWarning, match="Truncated File Read"):  # what is kept out
        Image.open(io.BytesIO(plain))
    assert np.array_equal(decode_image(plain), decode_image(JPEG))
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20)))
    tracemalloc.start()
    assert decode_image(png(4, 1, bomb)).shape == (1, 4, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    clear = Image.fromarray(PIXELS).convert("P")
    assert np.array_equal(decode_image(encoded(clear, "PNG", transparency=bytes(range(256)))), np.asarray(clear.convert("RGB")))


@pytest.mark.parametrize("large", [png(60000, 60000), lying_jpeg(60000, 60000)], ids=["png", "jpeg"])
def test_a_size_that_is_claimed_costs_nothing(large: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(InputError, match=r"sample 7: has too many pixels \(got '60000 x 60000'\)"):
        decode_image(large, where="sample 7")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a JPEG or PNG"),
        (encoded(Image.fromarray(PIXELS), "GIF"), "is not a JPEG or PNG"),
        (encoded(Image.fromarray(PIXELS), "TIFF"), "is not a JPEG or PNG"),
        (encoded(Image.fromarray(PIXELS), "PNG", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]), "is animated"),
        (png(1000, 1000), "has too many pixels"),  # more than its bytes can hold
        (lying_jpeg(6000, 6000), "has too many pixels"),
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (JPEG[:3], "cannot be decoded"),
        (PNG[:8], "cannot be decoded"),
        (PNG.replace(b"IHDR", b"IHDX"), "cannot be decoded"),
        (JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:], "cannot be decoded"),
    ],
)
def test_what_cannot_be_decoded_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"picture: {message}"):
        decode_image(data, where="picture")


def test_mutated_files_are_decoded_or_refused_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        data = bytearray([PNG, JPEG][rng.integers(2)])
        for _ in range(int(rng.integers(1, 4))):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        try:
            assert decode_image(bytes(data), max_pixels=1 << 20).dtype == np.uint8
        except InputError:
            refused += 1
    assert 500 < refused < 1500


def test_as_transform_and_as_stage() -> None:
    sample = {"image": PNG, "label": 3, "_index": 12}
    assert np.array_equal(ToArray()(sample)["image"], PIXELS) and ToArray()(sample)["label"] == 3
    small = ToArray(size=(20, 30))(sample)["image"]
    # in the middle, where the picture is a plane (its values wrap at 256 in a corner), each pixel is the mean of four
    mean = PIXELS[:, :, 0].reshape(20, 2, 30, 2).mean(axis=(1, 3))
    assert small.shape == (20, 30, 3) and np.abs(small[2:-2, 2:-2, 0] - mean[2:-2, 2:-2]).max() <= 2
    with pytest.raises(InputError, match="image of sample 12: is not"):
        ToArray()(sample | {"image": b"x"})
    assert CheckImage()(sample) is sample
    for data, reason in ((PNG[:99], "image cannot be decoded"), (b"x", "image is not a JPEG or PNG image")):
        found = CheckImage()(sample | {"image": data})
        assert isinstance(found, Reject) and found.reason == reason and found.where
