"""Encoded images in samples: turned into pixels, by a loader or a pipeline, or only checked (`gewu.formats.pictures` decodes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.data.piece import Reject
from gewu.formats.pictures import MAX_PIXELS, decode_image


@dataclass(frozen=True)
class ToArray:
    """Replace an encoded image by its pixels, uint8[height, width, 3]: a transform of `Loader`, a stage of a pipeline.

    Args:
        field: that holds the image.
        size: (height, width) to resize to, bilinear with antialiasing, so that images stack into one array.
        max_pixels: as of `decode_image`.
    """

    field: str = "image"
    size: tuple[int, int] | None = None
    max_pixels: int = MAX_PIXELS
    name = "to-array"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with pixels."""
        where = f"{self.field} of sample {sample.get('_index', '')}"
        pixels = decode_image(sample[self.field], max_pixels=self.max_pixels, where=where)
        if self.size is not None:
            from PIL import Image

            pixels = np.array(Image.fromarray(pixels).resize(self.size[::-1], Image.Resampling.BILINEAR))
        return sample | {self.field: pixels}


@dataclass(frozen=True)
class CheckImage:
    """Reject samples whose image cannot be decoded in full: a stage of a pipeline."""

    field: str = "image"
    max_pixels: int = MAX_PIXELS
    name = "check-image"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | Reject:
        """Return the sample, or why not."""
        try:
            decode_image(sample[self.field], max_pixels=self.max_pixels, where=self.field)
        except InputError as error:
            return Reject(f"image {error.message.partition(':')[0]}", str(error))
        return sample
