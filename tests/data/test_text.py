"""Text stages: decoding, markup, normal form, languages and quality, against texts and references written here."""

from __future__ import annotations

import json
import lzma
import pickle
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.data.fields import Schema
from gewu.data.language import identify, stop_words
from gewu.data.minhash import Dedup
from gewu.data.piece import Reject
from gewu.data.pii import MaskPII
from gewu.data.text import Decode, Language, Normalise, Plain, Quality, _ngrams
from gewu.data.tokens import BEGIN, END, PAD, Tokenise
from gewu.formats.markup import strip_html, strip_troff
from gewu.formats.tokenizer import Tokenizer

C4 = Path(__file__).resolve().parents[3] / "shared/data/learn/c4_validation_sample.jsonl.xz"

SENTENCES = {
    "en": ("My neighbour keeps bees behind the old barn.", "Nobody expected the bridge to open before winter."),
    "de": ("Der Zug nach Hamburg hatte gestern wieder Verspätung.", "Wir haben das Brot noch warm aus dem Ofen gegessen."),
    "fr": ("Elle a oublié son parapluie dans le train ce matin.", "Les enfants jouent au ballon derrière l'école."),
    "es": ("Mi abuela siempre cocinaba con mucho ajo y aceite.", "Mañana iremos a la playa si no llueve demasiado."),
    "it": ("Il gatto dorme tutto il giorno sulla sedia vicino alla finestra.", "Domani andiamo a trovare gli zii in campagna."),
    "pt": ("O meu irmão comprou uma casa perto do rio.", "Ela não gosta de café, mas bebe muito chá."),
    "nl": ("De kinderen fietsen elke ochtend samen naar school.", "Ik heb gisteren een mooi boek over de zee gelezen."),
    "pl": ("Wczoraj padał deszcz i nie poszliśmy na spacer.", "Moja siostra uczy się grać na skrzypcach."),
    "cs": ("Včera jsme jeli vlakem k babičce na venkov.", "Ten pes celou noc štěkal a nemohli jsme spát."),
    "sv": ("Vi satt på bryggan och tittade på båtarna hela kvällen.", "Hon köpte färskt bröd och smör på torget."),
    "da": ("Vi cyklede hjem langs vandet, da solen gik ned.", "Hun vil gerne have en kop kaffe uden mælk."),
    "fi": ("Eilen illalla satoi lunta ja pihalla oli hiljaista.", "Menemme huomenna mökille saunomaan ystävien kanssa."),
    "tr": ("Dün akşam arkadaşlarımla birlikte balık ve ekmek yedik.", "Kardeşim üniversitede tarih okumak istiyor."),
    "hu": ("Tegnap este sokáig olvastam egy érdekes könyvet.", "A gyerekek a kertben játszanak a kutyával."),
    "ru": ("Вчера мы долго гуляли по старому городу.", "Моя бабушка печёт самые вкусные пироги."),
    "uk": ("Учора ми довго гуляли старим містом і їли морозиво.", "Моя бабуся живе в селі біля річки."),
    "zh": ("昨天下午我和朋友一起去公园散步。", "这本书的作者住在一个很小的村子里。"),
    "ja": ("昨日は友達と一緒に公園を散歩しました。", "この本はとても面白いので、もう一度読みたいです。"),
    "ko": ("어제 친구와 함께 공원에서 산책을 했습니다.", "이 책은 정말 재미있어요."),
    "el": ("Χθες το βράδυ φάγαμε ψάρι δίπλα στη θάλασσα.", "Η γιαγιά μου μένει σε ένα μικρό χωριό."),
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_tells_its_language(language: str) -> None:
    for sentence in SENTENCES[language]:
        found, confidence = identify(sentence)
        assert (found, confidence > 0.5) == (language, True), (sentence, found, confidence)
        assert identify(sentence.upper())[0] == language


def test_what_has_no_known_language() -> None:
    for text in ("", "123 456 — !!", "שלום עולם", "สวัสดีชาวโลก", "🙂🙂🙂", "\ud800"):
        assert identify(text)[0] == "und"
    half = identify(" ".join(SENTENCES["en"] + SENTENCES["ru"]))[1]
    assert half < 0.7  # the other script's letters count against it
    assert 0 <= identify("xqzt wvkk jjqx zzrt " * 20)[1] <= 1


def test_confidence_does_not_grow_with_length() -> None:
    mixed = " ".join(SENTENCES["en"] + SENTENCES["de"])
    assert identify(mixed * 2)[1] == pytest.approx(identify(mixed * 20)[1], abs=0.05)


@pytest.mark.skipif(not C4.exists(), reason="the sample of C4 is not here")
def test_web_pages_in_english_are_told_so() -> None:
    texts = [json.loads(line)["text"] for line in lzma.decompress(C4.read_bytes()).splitlines()]
    right = sum(identify(text)[0] == "en" for text in texts)
    assert right >= 0.98 * len(texts), f"{right} of {len(texts)}"  # the table was counted in another part of C4


def test_language_stage() -> None:
    stage = Language(keep=("de",))
    assert stage({"text": SENTENCES["de"][0], "id": 1}) == {"text": SENTENCES["de"][0], "id": 1, "language": "de"}
    assert stage({"text": SENTENCES["fr"][0]}) == Reject("language:fr")
    unsure: Any = replace(stage, keep=(), minimum=0.9)({"text": "Hello. Привет. 你好."})
    assert unsure["language"] == "und"
    assert str(stage.schema(Schema.of({"text": "text"}))["language"].type) == "text"
    with pytest.raises(InputError, match="language: text"):
        stage({"body": "x"})


def test_decoding() -> None:
    stage = Decode(field="raw")
    assert stage({"raw": "näh".encode(), "n": 3}) == {"text": "näh", "n": 3}
    assert stage({"raw": b"\xef\xbb\xbfa"}) == {"text": "a"}
    assert stage({"raw": "a☃".encode("utf-16")}) == {"text": "a☃"}
    assert stage({"raw": b"ab\xff\xfec"}) == Reject("invalid-utf8", "byte 2")
    assert stage({"raw": "\ud800".encode("utf-8", "surrogatepass")}) == Reject("invalid-utf8", "byte 0")
    assert replace(stage, errors="replace")({"raw": b"ab\xffc"}) == {"text": "ab\ufffdc"}
    assert replace(stage, fallback="cp1252")({"raw": b"caf\xe9 \x81"}) == {"text": "café \ufffd"}
    assert stage({"raw": b"\xff\xfea"}) == Reject("invalid-utf8", "byte 2")  # half a UTF-16 character
    assert stage.schema(Schema.of({"raw": "bytes", "n": "int64"})).names == ("n", "text")
    with pytest.raises(InputError, match="decode: raw: is no bytes"):
        stage({"raw": "text"})


def test_normal_form() -> None:
    stage = Normalise(blanks=2, newlines=2)
    text = "\ufeffe\u0301tude\r\nb\rc\u2028d\x00\x1b[1m  e \t f\u00a0\u00a0\u00a0g   \n\n\n\n\nh\ufffd\n\n"
    assert stage({"text": text})["text"] == "étude\nb\nc\nd[1m  e \t\u200bf\u00a0\u00a0g\n\nh".replace("\u200b", "")
    assert stage({"text": " \n\x00 "}) == Reject("empty")
    random = np.random.default_rng(3)
    alphabet = np.array(list("ab \t\n\r\x0b\x00\x85é\u0301\ufffd\u2029한"))
    for _ in range(200):
        once = stage({"text": "".join(random.choice(alphabet, 30))})
        if isinstance(once, dict):
            assert stage(once) == once
            assert unicodedata.is_normalized("NFC", once["text"])


def test_html() -> None:
    page = """<!DOCTYPE html><html><head><title>no</title><style>p{}</style></head><body><!-- no > --><nav>no</nav>
    <h1>Title &amp; more</h1><p class="a>b">One\n   two <b>three</b>, x &lt;i&gt; y<br>four</p><script>if (a<b) no()</script>
    <ul><li>first</li><li>second</ul><pre>  code\n    more</pre><table><tr><td>1</td><td>2</td></tr></table></body>"""
    want = "Title & more\n\nOne two three, x <i> y\nfour\n\n- first\n- second\n\n  code\n    more\n\n 1 2".replace("\n 1", "\n1")
    assert strip_html(page) == want
    assert strip_html("a < b and c > d, 3<4") == "a < b and c > d, 3<4"
    assert strip_html("<p>unclosed <b>tags <i>everywhere") == "unclosed tags everywhere"
    assert strip_html("x<script>never closed") == "x"


def test_troff() -> None:
    page = r""".\" comment
.TH LS 1 "May 2024"
.SH NAME
ls \- list
.B directory
.BR contents ,
really
.PP
A \fBbold\fP word\(em\(aqquoted\(aq, \[u00E9]t\['e], 50% \(co \s-1SMALL\s0 \\n \e
.TP
.B \-a
all "files"
.nf
  int  main;
.fi
.de XX
hidden
..
.TS
tab(:) allbox;
l l.
cell
.TE
.UNKNOWN dropped
'so other.1
"""
    assert strip_troff(page).split("\n") == [
        "NAME",
        "ls - list directory contents, really",
        "",
        "A bold word—'quoted', été, 50% © SMALL \\n \\",
        "",
        '-a all "files"',
        "  int  main;",
        "",
        "cell",
    ]
    mdoc = '.Dd today\n.Dt X 1\n.Sh NAME\n.Nm cat\n.Nd concatenate\n.Op Fl n Ar "a file"'
    assert strip_troff(mdoc) == "NAME\ncat concatenate n a file"


def test_plain_chooses_by_the_beginning() -> None:
    stage = Plain()
    assert stage({"text": "\n<html><p>a</p>"}) == {"text": "a"}
    assert stage({"text": '.\\" x\n.SH A\nb'}) == {"text": "A\nb"}
    for same in ("plain <b>text</b>", "...", "a\n.hidden file", ""):
        assert stage({"text": same}) == {"text": same}
    assert replace(stage, kind="html")({"text": "plain <b>text</b>"}) == {"text": "plain text"}


GOOD = " ".join(
    f"The {noun} of the {place} was never seen with {thing} again, and that is what the people said."
    for noun, place, thing in zip(
        ["king", "girl", "horse", "baker", "doctor"],
        ["town", "valley", "river", "coast", "mill"],
        ["gold", "bread", "water", "salt", "light"],
        strict=True,
    )
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("too short to be of use", "quality:words"),
        (GOOD.replace("the", "t h e").replace("people", "p e o p l e") + " a b c" * 90, "quality:word_length"),
        (GOOD.replace("people", "p" * 900), "quality:word_length"),
        (" ".join(f"Wort{chr(97 + i % 26)}{i} anders" for i in range(60)), "quality:stop_words"),
        (GOOD + " Lorem Ipsum dolor", "quality:banned"),
        (GOOD + " #" * 12, "quality:symbols"),
        ("\n".join(f"- {word} number{i} everywhere" for i, word in enumerate(GOOD.split())), "quality:bullets"),
        ("\n".join(sentence + "..." for sentence in GOOD.split(".")), "quality:ellipses"),
        (GOOD + " " + " ".join(map(str, range(100, 130))), "quality:wordless"),
        (GOOD + "\nsame line" * 9, "quality:lines"),
        (GOOD + "\n" + GOOD + "\nx\ny\nz", "quality:line_characters"),
    ],
)
def test_every_rule_refuses(text: str, reason: str) -> None:
    got = Quality(ngrams=())({"text": text})
    assert isinstance(got, Reject), got
    assert got.reason == reason


def test_quality_passes_prose_with_a_score() -> None:
    off = Quality(ngrams=())
    got: Any = off({"text": GOOD, "language": "en"})
    assert got["text"] == GOOD and 0.9 < got["quality"] <= 1
    worse: Any = off({"text": GOOD + " # 1 # 2 # 3", "language": "en"})
    assert worse["quality"] < got["quality"]
    assert isinstance(Quality()({"text": GOOD}), Reject)  # five sentences of one pattern
    assert isinstance(replace(off, unpunctuated=0.5)({"text": GOOD.replace(".", "\n")}), Reject)
    chinese: Any = off({"text": "这是一个关于春天的故事，在那个时候我们都不知道会有什么事。" * 3, "language": "zh"})
    assert "quality" in chinese  # 87 characters, not 3 words
    assert off({"text": GOOD, "language": "xx"}) == {"text": GOOD, "language": "xx", "quality": got["quality"]}
    assert str(off.schema(Schema.of({"text": "text"}))["quality"].type) == "float64"


def test_repeated_ngrams_against_the_definition() -> None:
    random = np.random.default_rng(5)
    for trial in range(40):
        words = [str(w) * (1 + w % 3) for w in random.integers(0, 2 + trial, random.integers(1, 80))]
        total, found = sum(map(len, words)), _ngrams(words)
        for n in range(2, 11):
            grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            counts, want = Counter(grams), 0.0
            most = max(counts.values(), default=0)
            if n < 5 and most > 1:
                want = most * max(len("".join(g)) for g, c in counts.items() if c == most) / total
            elif n >= 5:
                again = {i + k for i, g in enumerate(grams) if g in grams[:i] for k in range(n)}
                want = sum(len(words[i]) for i in again) / total
            assert found[n] == pytest.approx(want), (words, n)


def test_every_language_has_stop_words_that_its_sentences_use() -> None:
    for language, sentences in SENTENCES.items():
        words = sentences[0] + sentences[1] if language in {"zh", "ja"} else " ".join(sentences).lower().split()
        if language != "ko":
            assert stop_words(language) & set(words), language


def test_hostile_markup_costs_one_pass() -> None:
    """200 kB of each; anything quadratic would need minutes each. The limit is for a machine that is busy."""
    program = """
from gewu.formats.markup import strip_html, strip_troff
from gewu.formats.tokenizer import Tokenizer
for unit in ("<div>", "<a", "<!--", "<script>", "<a x=\\"", "<![CDATA[", "&lt", "</script  ", "<",
             "<p><b>", "<a 'b=", "&#x", "<pre> "):
    strip_html(unit * (200000 // len(unit)))
for unit in ("\\\\f[", ".B \\"", "\\\\[", ".de\\n", "\\\\n", "\\\\", ".B a\\n", ".TS\\n", "\\\\*[", "\\\\h'", '"', ". "):
    strip_troff(unit * (200000 // len(unit)))
    strip_troff(".B " + unit * (200000 // len(unit)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_tokens_are_bytes() -> None:
    stage = Tokenise(end="end")
    got: Any = stage({"text": "né\n", "n": 1})
    assert got["tokens"].tolist() == [0x6E, 0xC3, 0xA9, 0x0A, END] and got["tokens"].dtype == np.uint16 and got["n"] == 1
    assert "text" not in got and "text" in replace(stage, keep=True)({"text": "a"})
    schema = stage.schema(Schema.of({"text": "text", "n": "int64"}))
    assert (schema.names, str(schema["tokens"].type)) == (("n", "tokens"), "uint16[*]")
    random = np.random.default_rng(1)
    for _ in range(50):
        text = "".join(map(chr, random.choice([9, 65, 233, 0x6F22, 0x1F642], 20)))
        tokens = Tokenise().encode(text)
        assert bytes(tokens.astype(np.uint8)).decode() == text and (tokens < BEGIN).all() and PAD > END


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_a_trained_tokenizer(size: int, dtype: str, tmp_path: Path) -> None:
    own = Tokenizer.train(["ab ab"], 258, special=["</s>"], pattern="gpt2")
    own.document["model"]["vocab"] |= {f"x{n}": n for n in range(258, size)}
    path = tmp_path / "tokenizer.json"
    own.write(path)
    stage = Tokenise(tokenizer=str(path), end="</s>")
    tokens = stage.encode("abb")
    assert tokens.tolist() == [257, own.token("b"), 0] and tokens.dtype == dtype
    assert str(stage.schema(Schema.of({"text": "text"}))["tokens"].type) == f"{dtype}[*]"
    with pytest.raises(InputError, match="no such token"):
        replace(stage, end="<eos>").encode("a")
    with pytest.raises(InputError, match="no such tokenizer"):
        Tokenise(tokenizer=str(tmp_path / "none.json")).encode("a")
    (tmp_path / "bad.json").write_text("")
    with pytest.raises(InputError, match="is no tokenizer: JSONDecodeError: Expecting"):
        Tokenise(tokenizer=str(tmp_path / "bad.json")).encode("a")


def test_stages_go_to_other_processes() -> None:
    for stage in (Decode(), Plain(), Normalise(), Language(keep=("en",)), Quality(), MaskPII(), Tokenise(), Dedup()):
        assert pickle.loads(pickle.dumps(stage)) == stage
