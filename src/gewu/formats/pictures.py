"""Encoded images to pixels, with nothing believed that the file says of itself.

Only JPEG and PNG are taken, told apart by their first bytes. The decoder (Pillow, which comes with matplotlib) is given a copy
that holds pixel data alone: EXIF, colour profiles, texts and comments, where most faults of decoders live, never reach it. The
size in the header is compared with the limit, and with what so many bytes can hold at most, before memory is taken: a file of
100 bytes that claims 60000 × 60000 costs nothing. A file that ends early is refused.

What is not done: EXIF orientation, colour profiles and alpha are ignored, 16-bit samples keep their high byte, and a file that
is whole but whose picture is damaged inside, or has fewer lines than it claims, shows wrong pixels (a sample's CRC tells whether
it is as it was stored).

Formats: ITU-T T.81 (JPEG), annex B; W3C Portable Network Graphics, third edition, chapters 5 and 11.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError

MAX_PIXELS: Final = 64 << 20
"""Default limit: 192 MiB as RGB."""
_MOST_PER_BYTE: Final = 8 * 1032  # pixels of one bit, times the largest ratio of deflate; JPEG has at most 512
_PNG: Final = b"\x89PNG\r\n\x1a\n"


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, where: str = "image") -> NDArray[np.uint8]:
    """Decode a JPEG or PNG file.

    Args:
        data: the bytes of the file.
        max_pixels: largest width × height accepted; memory stays below about 8 bytes a pixel of it.
        where: name of the sample, for messages.

    Returns:
        uint8 array [height, width, 3], RGB.

    Raises:
        InputError: not a JPEG or PNG, too large, animated, cut short or damaged.

    Example:
        >>> decode_image(b"GIF89a")
        Traceback (most recent call last):
        gewu.core.errors.InputError: image: is not a JPEG or PNG image (got b'GIF89a'); allowed: JPEG, PNG
    """
    from PIL import JpegImagePlugin, PngImagePlugin

    # the classes themselves, not Image.open, whose warning about size cannot be silenced for one thread alone
    png, jpeg = data.startswith(_PNG), data.startswith(b"\xff\xd8\xff")
    if not png and not jpeg:
        raise InputError("is not a JPEG or PNG image", key=where, value=data[:8], allowed="JPEG, PNG")
    try:
        pixels = io.BytesIO(b"".join((_png_pixels if png else _jpeg_pixels)(memoryview(data))))
        image = PngImagePlugin.PngImageFile(pixels) if png else JpegImagePlugin.JpegImageFile(pixels)
        if image.width * image.height > (limit := min(max_pixels, _MOST_PER_BYTE * len(data))):
            size = f"{image.width} x {image.height}"
            raise InputError("has too many pixels", value=size, allowed=f"at most {limit}, for a file of its length")
        if not image.mode.startswith("I"):
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)  # 16-bit grey
    except InputError as error:
        error.key = where
        raise
    except Exception as error:  # a decoder refuses hostile bytes with whatever its parser met
        raise InputError(f"cannot be decoded: {error}", key=where, allowed="a complete JPEG or PNG") from error


def thumbnail(data: bytes, most: int) -> bytes:
    """Return a JPEG or PNG file made small, at most `most` pixels wide and high, as PNG.

    Raises:
        InputError: as `decode_image`.
    """
    from PIL import Image

    small = Image.fromarray(decode_image(data))
    small.thumbnail((most, most))
    small.save(sink := io.BytesIO(), "PNG")
    return sink.getvalue()


def _png_pixels(data: memoryview) -> Iterator[memoryview]:
    """Yield the signature and the chunks that hold pixels."""
    yield data[: len(_PNG)]
    at = len(_PNG)
    while at < len(data):
        kind, end = bytes(data[at + 4 : at + 8]), at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"acTL":
            raise InputError("is animated", allowed="still images")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            yield data[at:end]
        at = end


def _jpeg_pixels(data: memoryview) -> Iterator[memoryview]:
    """Yield the file without comments and application data other than JFIF (APP0) and Adobe's colour transform (APP14)."""
    at, end = 0, 2
    while at < end and data[at + 1] != 0xDA:  # up to the first scan
        if data[at + 1] not in (0xFF, 0xFE, *range(0xE1, 0xEE), 0xEF):  # 0xFF may be repeated as filling
            yield data[at:end]
        at = end
        if data[at] != 0xFF:
            break
        end = at + (1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
    yield data[at:]
