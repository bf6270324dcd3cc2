"""Text to token numbers: UTF-8 bytes, or a trained byte-level BPE in the `tokenizer.json` of Hugging Face.

    bytes            token = byte, 0 ... 255;  BEGIN = 256, END = 257 (end of a document), PAD = 258;  259 numbers, uint16
    tokenizer.json   what the file says; uint16 up to 65,536 tokens, else uint32; special tokens are those of the file's own
                     post-processor, `end` names one to append (see `gewu.formats.tokenizer`)

Decoding bytes is `bytes(tokens[tokens < 256]).decode()`. Samples are not packed here: `gewu.data.loader` packs documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.data.fields import Schema
from gewu.data.text import Sample, text_of
from gewu.formats.tokenizer import Tokenizer

BEGIN: Final = 256
END: Final = 257
PAD: Final = 258


@lru_cache(8)
def _load(path: str, end: str) -> tuple[Tokenizer, list[int], str]:
    """Return a tokenizer, the tokens to append and the NumPy type that holds all its tokens."""
    if not Path(path).is_file():
        raise InputError("there is no such tokenizer", file=path, allowed="bytes, or the path of a tokenizer.json")
    tokenizer = Tokenizer.read(path)
    last = tokenizer.token(end) if end else None
    if end and last is None:
        raise InputError("the tokenizer has no such token", file=path, key="end", value=end)
    return tokenizer, [last] if last is not None else [], "uint16" if tokenizer.vocab_size <= 65536 else "uint32"


@dataclass(frozen=True)
class Tokenise:
    """Add the tokens of a text as an array.

    Args:
        field: the text.
        out: receives the tokens, uint16 or uint32 (n).
        tokenizer: "bytes" or the path of a tokenizer.json.
        end: token appended to each text: "" for none; with "bytes" any other value appends END.
        keep: whether the text stays in the sample.
    """

    field: str = "text"
    out: str = "tokens"
    tokenizer: str = "bytes"
    end: str = ""
    keep: bool = False
    name: str = "tokenise"

    def encode(self, text: str) -> NDArray[Any]:
        """Return the tokens of a text.

        Raises:
            InputError: the tokenizer's file is absent, damaged or of another kind, or lacks the token `end`.
        """
        if self.tokenizer == "bytes":
            tokens = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint16)
            return np.append(tokens, np.uint16(END)) if self.end else tokens
        tokenizer, last, dtype = _load(self.tokenizer, self.end)
        return np.append(tokenizer.encode(text), np.array(last, np.uint32)).astype(dtype)

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with its tokens."""
        tokens = self.encode(text_of(sample, self.field, self.name))
        return {key: value for key, value in sample.items() if self.keep or key != self.field} | {self.out: tokens}

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        dtype = "uint16" if self.tokenizer == "bytes" else _load(self.tokenizer, self.end)[2]
        return schema.with_fields({self.out: f"{dtype}[*]"}, without=() if self.keep else (self.field,))
