"""The samples that every engine stores: deterministic in their number, made anew by each process, kept nowhere.

`small`: about 1.6 kB: bytes that do not compress (log-normal, 1.3 kB), a text (200 B, one in eight not ASCII), 16 float32,
a label.
`large`: about 100 kB: a real JPEG of smooth noise, its size log-normal, with the sample's number as a comment in it, so that no
two are equal; a text, 16 float32, a label. The 64 pictures are made once, in `folder`, by the process that measures.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = {"small": 200_000, "large": 8_000}
FEATURES, LABELS = 16, 1000
_PICTURES, _SIDES = 64, (340, 576)
_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "near",
    "some",
    "river",
    "and",
    "counts",
    "samples",
]
_FOREIGN = ["où", "l'été", "格物致知", "и", "слово", "über", "straße"]

Sample = dict[str, Any]


class Samples:
    """A sequence of samples: `samples[i]` has `image` (bytes), `text` (str), `features` (float32, 16) and `label` (int).

    Args:
        kind: "small" or "large".
        count: how many; the first ones are the same whatever the count.
        pictures: folder made by `make_pictures` ("large" only).
    """

    def __init__(self, kind: str, count: int, pictures: Path | None = None) -> None:
        self.kind, self.count = kind, count
        rng = np.random.default_rng(20)
        self._features = rng.standard_normal((4096, FEATURES)).astype(np.float32)
        self._text = tuple(_prose(rng, words, 1 << 16) for words in (_WORDS, _WORDS + _FOREIGN))
        self._draws = np.random.default_rng(21).random((count, 3))
        self._bytes = hashlib.shake_256(b"gewu").digest(1 << 23) if kind == "small" else b""
        self._sizes = np.clip(np.exp(7.0 + 0.6 * _normal(self._draws[:, 0])), 200, 8000).astype(np.int64)
        self._pictures = [path.read_bytes() for path in sorted(pictures.glob("*.jpg"))] if pictures and kind == "large" else []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.count:
            raise IndexError(i)
        where, length = self._draws[i, 1], 80 + int(self._draws[i, 2] * 240)
        prose = self._text[i % 8 == 7]
        start = int(where * (len(prose) - 400))
        features = self._features[i % len(self._features)]
        return {"image": self._image(i, where), "text": prose[start : start + length], "features": features, "label": i % LABELS}

    def _image(self, i: int, where: float) -> bytes:
        if self.kind == "small":
            start = int(where * (len(self._bytes) - 8000))
            return self._bytes[start : start + int(self._sizes[i])]
        picture, comment = self._pictures[int(where * len(self._pictures))], b"%012d" % i
        return picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(self.count))


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Return normal deviates: the logistic curve's quantile is near enough, and needs no special function."""
    return np.log(np.clip(uniform, 1e-6, 1 - 1e-6) / (1 - np.clip(uniform, 1e-6, 1 - 1e-6))) / 1.702


def _prose(rng: np.random.Generator, words: list[str], length: int) -> str:
    return " ".join(words[i] for i in rng.integers(0, len(words), length // 4))[:length]


def make_pictures(folder: Path) -> None:
    """Write the pictures of the large samples to `folder`, unless they are there: JPEG of quality 90, about 100 kB each."""
    from PIL import Image  # every environment has it

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(22)
    for k in range(_PICTURES):
        side = int(np.exp(rng.uniform(*np.log(_SIDES))))
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"{k:02d}.jpg"
        if not path.exists():
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "JPEG", quality=90)
            path.write_bytes(encoded.getvalue())


def decode(image: bytes | memoryview) -> int:
    """Decode a JPEG to pixels and return how many there are."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        opened.load()
        return opened.width * opened.height


def digest(sample: Sample) -> bytes:
    """Return a digest of all values of a sample, as they are in memory, whatever read them.

    Raises:
        TypeError: a value is not what was stored: bytes, str, float32 array of 16, int.
    """
    image, text, features, label = (sample[name] for name in ("image", "text", "features", "label"))
    if not (isinstance(image, bytes | memoryview) and isinstance(text, str) and isinstance(label, int | np.integer)):
        raise TypeError(f"{type(image)}, {type(text)}, {type(label)}")
    if not (isinstance(features, np.ndarray) and features.dtype == np.float32 and features.shape == (FEATURES,)):
        raise TypeError(f"features are {features!r}")
    parts = (bytes(image), text.encode(), features.tobytes(), str(int(label)).encode())
    return hashlib.blake2b(b"".join(hashlib.blake2b(part, digest_size=16).digest() for part in parts), digest_size=16).digest()
