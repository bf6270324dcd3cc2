"""tokenizer.json: round trips, the tokens of the program that made a file, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.formats.tokenizer import Tokenizer

# made by tokenizers 0.23.3 with Qwen2's words: trained on `corpus`, with the tokens that it gives to `texts`
GOLDEN = json.loads((Path(__file__).parents[1] / "data/golden/tokenizer/qwen2-small.json").read_text())
CORPUS = ["low lower lowest, newer 123 times!\n\n", "漢字と漢字 🙂🙂 café"] * 4


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return Tokenizer.train(CORPUS, 300, ["<|endoftext|>", "<|pad|>"], "llama3")


def test_tokens_and_texts_of_the_program_that_made_a_file() -> None:
    got = Tokenizer(GOLDEN["tokenizer"])
    assert [got.encode(text).tolist() for text in GOLDEN["texts"]] == GOLDEN["tokens"]
    assert [got.decode(tokens) for tokens in GOLDEN["tokens"]] == GOLDEN["decoded"]
    assert (got.pattern, got.vocab_size, got.end, got.token("<tool>")) == ("qwen2", 390, 0, 389)
    assert (got.before, got.after, got.special) == ([1], [0], {"<|endoftext|>": 0, "<|im_start|>": 1})


def test_merges_of_the_program_that_trained_on_the_same_texts() -> None:
    got = Tokenizer.train(GOLDEN["corpus"] * 3, 420, ["<|endoftext|>", "<|im_start|>"], "qwen2")
    assert got.document["model"]["merges"] == GOLDEN["tokenizer"]["model"]["merges"]
    assert got.document["model"]["vocab"] == GOLDEN["tokenizer"]["model"]["vocab"]


def test_every_byte_and_text_comes_back(own: Tokenizer) -> None:
    random = np.random.default_rng(1)
    codes = [*range(0xD800), *range(0xE000, 0x110000)]
    for text in ["", *("".join(map(chr, random.choice(codes, 200))) for _ in range(200)), *CORPUS]:
        assert own.decode(own.encode(text)) == text
    assert sorted(own._pieces[2:258]) == [bytes([byte]) for byte in range(256)]
    assert own.encode("\ud800").tolist() == own.encode("?").tolist()
    assert own.decode([own._pieces.index(b"\xc3")]) == "\ufffd"


def test_a_file_comes_back(own: Tokenizer, tmp_path: Path) -> None:
    own.write(tmp_path / "tokenizer.json")
    again = Tokenizer.read(tmp_path / "tokenizer.json")
    assert again.document == own.document and again.special == own.special and again.vocab_size == own.vocab_size <= 300
    assert again.encode(CORPUS[0]).tolist() == own.encode(CORPUS[0]).tolist()


def test_special_tokens_stand_for_themselves_on_request(own: Tokenizer) -> None:
    text = "low<|pad|><|endoftext|>lower"
    tokens = own.encode(text)
    assert tokens.dtype == np.uint32 and {0, 1} < set(tokens.tolist()) and own.end == 0
    assert own.decode(tokens) == "lowlower" and own.decode(tokens, special=True) == text
    plain = own.encode(text, special=False)
    assert not {0, 1} & set(plain.tolist()) and own.decode(plain) == text


def test_threads_give_the_same(own: Tokenizer) -> None:
    texts = [f"lowest {n} {CORPUS[n % 8]}" for n in range(500)]
    before = threading.active_count()
    got = own.encode_many(texts, 3)
    assert [t.tolist() for t in got] == [own.encode(text).tolist() for text in texts] and threading.active_count() == before


def test_whole_words_without_merging() -> None:
    document = copy.deepcopy(GOLDEN["tokenizer"]) | {"post_processor": None}
    document["model"]["vocab"] |= {"Ġzz": 390}
    assert len(Tokenizer(document).encode(" zz")) > 1
    document["model"]["ignore_merges"] = True
    assert Tokenizer(document).encode(" zz zzz")[0] == 390 and len(Tokenizer(document).encode(" zz zzz")) > 2


def test_a_blank_in_front() -> None:
    document = Tokenizer.train(["a b"], 256).document
    document["pre_tokenizer"]["add_prefix_space"] = True
    assert Tokenizer(document).decode(Tokenizer(document).encode("x")) == " x"


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOLDEN["tokenizer"])
    *keys, last = (int(key) if key.isdecimal() else key for key in path.split("/"))
    node: Any = document
    for key in keys:
        node = node[key]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return document


REFUSED = [
    ("normalizer", {"type": "Lowercase"}, "normalizer.*allowed: null, NFC"),
    ("model/type", "Unigram", "Unigram.*allowed: BPE"),
    ("model/byte_fallback", True, "byte_fallback"),
    ("model/dropout", 0.1, "dropout"),
    ("model/end_of_word_suffix", "</w>", "end_of_word_suffix"),
    ("decoder", {"type": "WordPiece"}, "decoder"),
    ("truncation", {"max_length": 5}, "truncation"),
    ("pre_tokenizer", None, "pre_tokenizer"),
    ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
    ("pre_tokenizer/pretokenizers/0/pattern/Regex", r"\w+|[^\w\s]+", r"\\\\w\+.*GPT-2, Llama-3"),
    ("pre_tokenizer/pretokenizers/0/pattern", {"String": " "}, "String"),
    ("pre_tokenizer/pretokenizers/0/behavior", "MergedWithNext", "MergedWithNext"),
    ("pre_tokenizer/pretokenizers/1/use_regex", True, "use_regex"),
    ("pre_tokenizer/pretokenizers/1/add_prefix_space", True, "add_prefix_space"),
    ("post_processor", {"type": "BertProcessing"}, "BertProcessing"),
    ("post_processor/single/0/SpecialToken/id", "[CLS]", "CLS.*|post_processor: names a token"),
    ("added_tokens/0/lstrip", True, "lstrip"),
    ("added_tokens/0/id", 5, "has two numbers"),
    ("added_tokens/2/id", 7, "is there twice"),
    ("added_tokens/2/id", -1, "is no token"),
    ("added_tokens/2/content", "<|im_start|>", "two numbers|twice"),
    ("model/merges/3", ["zz", "a"], r"merges\[3\]: names a token that is not there.*zz"),
    ("model/merges/3", ["Q", "Z"], r"merges\[3\]: names a token that is not there.*QZ"),
    ("model/merges/3", GOLDEN["tokenizer"]["model"]["merges"][0], r"merges\[3\].*twice"),
    ("model/merges/3", ["a"], "is no tokenizer"),
    ("model/merges/3", 5, "is no tokenizer"),
    ("model/vocab/a", 70, "twice"),
    ("model/vocab/a", 1 << 40, "whole numbers below"),
    ("model/vocab/a", "70", "whole numbers below"),
    ("model/vocab/a", True, "whole numbers below"),
    ("model/vocab/a", KeyError, "lacks bytes"),
    ("model/vocab/a b", 400, "letters of bytes"),
    ("model/vocab/漢", 400, "letters of bytes"),
    ("model/vocab", KeyError, "is no tokenizer"),
    ("model/vocab", [1], "is no tokenizer"),
    ("model", KeyError, "is no tokenizer"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED, ids=[f"{path}={value}"[:60] for path, value, _ in REFUSED])
def test_what_would_give_other_tokens_is_refused(path: str, value: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.read(file)
    assert error.value.file == file


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no tokenizer"),
        (b"[]", "is no tokenizer"),
        (b"\xff\xfe", "is no tokenizer"),
        (b'{"model": {"vocab": {"a": 1, "a": 2}}}', "a key is there twice"),
        (b"[" * 100_000, "is no tokenizer"),
        (pickle.dumps({"a": 1}), "is a pickle or of SentencePiece"),
        (b"\n\x0e\n\x05<unk>\x15\0\0\0\0", "is a pickle or of SentencePiece"),
        (json.dumps(GOLDEN["tokenizer"]).encode()[:5000], "is no tokenizer"),
    ],
)
def test_damaged_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        Tokenizer.read(tmp_path / "t.json")


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    random, data = np.random.default_rng(4), json.dumps(GOLDEN["tokenizer"]).encode()
    for _ in range(60):
        bad = bytearray(data)
        for place in random.integers(0, len(bad), 3):
            bad[place] = random.integers(0, 256)
        (tmp_path / "t.json").write_bytes(bad)
        try:
            Tokenizer.read(tmp_path / "t.json").encode(CORPUS[0])
        except InputError:
            continue


def test_what_cannot_be_trained_or_decoded_is_refused(own: Tokenizer) -> None:
    with pytest.raises(InputError, match="gpt2, llama3, qwen2"):
        Tokenizer.train(CORPUS, 300, pattern="gpt5")
    with pytest.raises(InputError, match="257 or more"):
        Tokenizer.train(CORPUS, 256, ["<s>"])
    with pytest.raises(InputError, match="names differ"):
        Tokenizer.train(CORPUS, 300, ["<s>", "<s>"])
    for bad in ([own.vocab_size], [-1], [0.5]):
        with pytest.raises(InputError, match="is no token"):
            own.decode(bad)
    assert own.decode([]) == ""
