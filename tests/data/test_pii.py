"""What is masked, what only looks alike and stays, and that hostile texts cost linear work."""

from __future__ import annotations

import re._parser as sre  # type: ignore[import-not-found]
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.data.fields import Schema
from gewu.data.pii import _KINDS, MaskPII, _digits, _is_card

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: A-1,0\n\nMIIEow+/=\n-----END RSA PRIVATE KEY-----"

MASKED = [
    ("write to Jane.Doe+x@mail.example.co.uk.", "write to <EMAIL>."),
    ("<a@b.org>, (c_d@e-f.io); x@y", "<<EMAIL>>, (<EMAIL>); x@y"),
    ("from 8.8.8.8:53, 203.0.114.7", "from <IP>:53, <IP>"),
    ("[2606:4700:4700::1111] and 2001:4860:0:0:0:0:0:8888", "[<IP>] and <IP>"),
    ("call +49 30 901820, now", "call <PHONE>, now"),
    ("+1 (415) 555-2671 (415) 555-2671 415-555-2671 1-800-732-0999 503.898.9229", " ".join(["<PHONE>"] * 5)),
    ("+44 (0)20 7598 1503; +33 6 12 34 56 78; +4915112345678", "<PHONE>; <PHONE>; <PHONE>"),
    ("Tel. 030 9018 2010, 0171/1234567, (040) 428 280", "Tel. <PHONE>, <PHONE>, <PHONE>"),
    ("01 23 45 67 89 / 020 7946 0958", "<PHONE> / <PHONE>"),
    ("DE89 3704 0044 0532 0130 00 USA", "<IBAN> USA"),
    ("GB82WEST12345698765432.", "<IBAN>."),
    ("4111 1111 1111 1111, 378282246310005, 5555-5555-5555-4444, 6011111111111117", "<CARD>, <CARD>, <CARD>, <CARD>"),
    ("AKIAIOSFODNN7EXAMPLE and ASIAIOSFODNN7EXAMPLE", "<KEY> and <KEY>"),
    ("ghp_" + "a1B2" * 9 + " github_pat_" + "a1" * 20 + " gho_" + "Zz9" * 12, "<KEY> <KEY> <KEY>"),
    ("xoxb-123456789012-abcdef sk-proj-" + "a1B2" * 8 + " sk_live_" + "a1B2" * 6, "<KEY> <KEY> <KEY>"),
    (f'"{JWT}"', '"<KEY>"'),
    (f"a\n{PEM}\nb\n" + PEM.split("-----END")[0], "a\n<KEY>\nb\n<KEY>"),
    ("AIza" + "Sy0-_" * 7, "<KEY>"),
]

KEPT = [
    "version 8.8.8.8, release 9.9.9.9, v1.2.3.4, 1.2.3.4.5, 1.2.3, 256.300.1.2, libc-2.31.4.1",  # bare ones are masked
    "10.0.0.1 192.168.1.1 127.0.0.1:8080 169.254.0.1 0.0.0.0 255.255.255.255 192.0.2.1 203.0.113.9",  # private, documentation
    "fe80::1 ::1 2001:db8::1 fd00::2 std::vector a::b face::b00c 12:30:45 00:1a:2b:3c:4d:5e 10:20",
    "2023-01-02 01-02-2023 12/31/2024 01/02/2023-05/06/2023 01.02.2023 10:30 2001-2003 01/02/2023 1030",
    "ISBN 978-3-16-148410-0, 0-306-40615-2, 9783161484100, ISSN 2049-3630, doi:10.1145/2063384.2063405",
    "3.14159265358979, 6.02214076e23, 1234567890, 00000000000, 1,000,000,000, 0x0123456789",
    "4111 1111 1111 1112, 1234 5678 9012 3456, 0000 0000 0000 0000, 9111111111111111",  # Luhn fails, or no issuer
    "DE89370400440532013001, XX12345678901234567, DE89, AB12 CDEF GHIJ KLMN",  # checksum fails, no country
    "a@b, @name, user@localhost, a@b.c, x @ y.org, sk-learn-is-not-a-secret-key-at-all, task-force-1234567890123456",
    "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----, eyJ.eyJ.x, AKIA, ghp_short, xoxb-1, COMMA AIzaX",
    "sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709, uuid 123e4567-e89b-12d3-a456-426614174000",
    "pages 12-34 56-78, +/- 3, C++11, 1+1=2, 2 + 2 345 678",
]


@pytest.mark.parametrize(("text", "want"), MASKED)
def test_what_is_masked(text: str, want: str) -> None:
    masked, counts = MaskPII().mask(text)
    assert masked == want
    assert sum(counts.values()) == sum(want.count(f"<{kind}>") for kind in MaskPII().kinds)
    assert MaskPII().mask(masked) == (masked, {})


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_alike(text: str) -> None:
    assert MaskPII().mask(text) == (text, {})


def test_the_stage() -> None:
    stage = MaskPII(field="body", kinds=("EMAIL", "IP"), column="masked")
    got: Any = stage({"body": "a@b.org 8.8.8.8 +49 30 901820", "n": 1})
    assert got == {"body": "<EMAIL> <IP> +49 30 901820", "n": 1, "masked": 2}
    assert str(stage.schema(Schema.of({"body": "text"}))["masked"].type) == "uint32"
    assert MaskPII().schema(Schema.of({"text": "text"})).names == ("text",)
    with pytest.raises(InputError, match="no such kind"):
        MaskPII(kinds=("NAME",))


def test_luhn_finds_every_changed_digit() -> None:
    """The check digit's purpose: no change of a single digit passes."""
    random = np.random.default_rng(2)
    for _ in range(50):
        digits = [4, *random.integers(0, 10, 14).tolist()]
        number = next(text for d in range(10) if _is_card(text := "".join(map(str, [*digits, d]))))
        at, by = int(random.integers(1, 16)), int(random.integers(1, 10))
        changed = number[:at] + str((int(number[at]) + by) % 10) + number[at + 1 :]
        assert not _is_card(changed)
        assert _digits(f"{number[:4]}-{number[4:]}") == number


def _unbounded(tree: Any) -> list[Any]:
    """Return the repetitions without a bound that may be tried again with fewer (possessive ones are not)."""
    found = []
    for operation, argument in tree:
        if str(operation) in {"MAX_REPEAT", "MIN_REPEAT"} and argument[1] == sre.MAXREPEAT:
            found.append(argument)
        for part in argument if isinstance(argument, (tuple, list)) else [argument]:
            parts = part if isinstance(part, list) else [part]
            for one in parts:
                if isinstance(one, sre.SubPattern):
                    found += _unbounded(one)
    return found


def test_no_expression_repeats_without_bound() -> None:
    assert _unbounded(sre.parse(r"(?:a|b+)c")) != []
    for kind, _, pattern, _ in _KINDS:
        assert _unbounded(sre.parse(pattern.pattern)) == [], kind


def test_hostile_texts_cost_linear_work() -> None:
    """A megabyte of each; anything quadratic would need hours. The limit is for a machine that is busy."""
    program = """
from gewu.data.pii import MaskPII
for unit in ("a", "a.", "a@", "@a.", "a@a.a", "1", "1 ", "1-", "01 23 ", "+1 ", "(", "AB12 ", "A", "a:", ":", "1.", "eyJ",
             "eyJaaaaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----a", "-", "ghp_",
             "AKIA", "xoxb-", "sk-a", "4111 ", "(0"):
    MaskPII().mask("PRIVATE KEY eyJ @ sk gh xox A + 0 . : " + unit * (1000000 // len(unit)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=180)
