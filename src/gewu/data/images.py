"""Encoded images to pixels, with nothing believed that the file says of itself.

Only JPEG and PNG are taken, told apart by their first bytes. The decoder (Pillow, which comes with matplotlib) is given a copy
that holds pixel data alone: EXIF, colour profiles, texts and comments, where most faults of decoders live, never reach it. The
size in the header is compared with the limit before memory is taken, so a file of 100 bytes that claims 60000 × 60000 costs
nothing. A file that ends early is refused. What is not done: EXIF orientation, colour profiles and alpha are ignored, 16-bit
samples keep their high byte, and a JPEG that is damaged inside yet complete shows wrong pixels (the sample's CRC finds it).

Formats: ITU-T T.81 (JPEG), annex B; W3C Portable Network Graphics, third edition, chapters 5 and 11.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.data.piece import Reject

MAX_PIXELS: Final = 64 << 20
"""Default limit: 192 MiB as RGB."""
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


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

    if not data.startswith((b"\xff\xd8\xff", _PNG)):
        raise InputError("is not a JPEG or PNG image", key=where, value=data[:8], allowed="JPEG, PNG")
    is_png = data.startswith(_PNG)
    try:
        pixels = io.BytesIO(b"".join(_png_pixels(data) if is_png else _jpeg_pixels(data)))
        # the class itself, not Image.open, whose warning about size cannot be silenced for one thread alone
        image = PngImagePlugin.PngImageFile(pixels) if is_png else JpegImagePlugin.JpegImageFile(pixels)
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height}"
            raise InputError("has too many pixels", key=where, value=size, allowed=f"at most {max_pixels} pixels")
        with image:
            if image.mode in _MODES:
                return np.array(image if image.mode == "RGB" else image.convert("RGB"))
            wide = np.asarray(image)  # 16-bit grey
        return np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    except InputError as error:
        error.key = where
        raise
    except Exception as error:  # a decoder refuses hostile bytes with whatever its parser met
        raise InputError(f"cannot be decoded: {error}", key=where, allowed="a complete JPEG or PNG") from error


def _png_pixels(data: bytes) -> Iterator[bytes]:
    """Yield the signature and the chunks that hold pixels."""
    yield _PNG
    at = len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"acTL":
            raise InputError("is animated", allowed="still images")
        if data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            yield data[at:end]
        at = end


def _jpeg_pixels(data: bytes) -> Iterator[bytes]:
    """Yield the file without comments and application data other than JFIF (APP0) and Adobe's colour transform (APP14)."""
    yield data[:2]
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:  # up to the first scan; 0xFF may be repeated as filling
        end = at + (1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
        if data[at + 1] not in (0xFF, 0xFE, *range(0xE1, 0xEE), 0xEF):
            yield data[at:end]
        at = end
    yield data[at:]


@dataclass(frozen=True)
class ToArray:
    """Replace an encoded image by its pixels, uint8[height, width, 3]: a transform of `Loader`, a stage of a pipeline."""

    field: str = "image"
    max_pixels: int = MAX_PIXELS
    name = "to-array"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.field} of sample {sample['_index']}" if "_index" in sample else self.field
        return sample | {self.field: decode_image(sample[self.field], max_pixels=self.max_pixels, where=where)}


@dataclass(frozen=True)
class Resize:
    """Decode where needed and resize to one size (bilinear with antialiasing), so that images stack into one array."""

    height: int
    width: int
    field: str = "image"
    max_pixels: int = MAX_PIXELS
    name = "resize"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        if isinstance(sample[self.field], bytes):
            sample = ToArray(self.field, self.max_pixels)(sample)
        image = Image.fromarray(sample[self.field]).resize((self.width, self.height), Image.Resampling.BILINEAR)
        return sample | {self.field: np.array(image)}


@dataclass(frozen=True)
class CheckImage:
    """Reject samples whose image cannot be decoded in full: a stage of a pipeline."""

    field: str = "image"
    max_pixels: int = MAX_PIXELS
    name = "check-image"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | Reject:
        try:
            decode_image(sample[self.field], max_pixels=self.max_pixels, where=self.field)
        except InputError as error:
            return Reject(f"image {error.message.partition(':')[0]}", str(error))
        return sample
