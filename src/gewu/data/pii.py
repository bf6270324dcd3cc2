"""Mask what tells of a person or opens a door: addresses, numbers and keys become `<EMAIL>`, `<PHONE>` and the like.

Each kind is a regular expression for its shape and, where the kind has one, a check of its digits (Luhn, mod 97, public network,
count), so that what only looks alike stays. Every repetition is bounded or possessive and every match begins at a border, so the
work is linear in the length of the text. What is caught and what is not stands in docs/data-text.md: names and postal addresses
are not, and a number without separators or prefix is not taken for a telephone.

Sources: RFC 5321 (lengths), ITU-T E.164 and E.123, ISO 13616 (IBAN), ISO/IEC 7812 (cards, Luhn), RFC 4291, RFC 7468 and RFC 7519.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gewu.core.errors import InputError
from gewu.data.fields import Schema
from gewu.data.text import Sample, text_of

_IBAN_LENGTHS: Final = (
    "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23GL18GR27GT28HR21"
    "HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MR27MT31MU30NL18NO15PK24PL28PS29PT25QA29RO24"
    "RS22SA24SC31SE24SI19SK24SM27ST25SV28TL23TN24TR26UA29VA22VG24XK20"
)
_CARD: Final = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7]|35)\d{14}|3[47]\d{13}|3[068]\d{12}|6(?:011|[25]\d\d|4[4-9]\d)\d{12,15}"
)


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_card(found: str) -> bool:
    digits = _digits(found)
    doubled = sum(int(d) if i % 2 == 0 else sum(divmod(2 * int(d), 10)) for i, d in enumerate(reversed(digits)))
    return doubled % 10 == 0 and _CARD.fullmatch(digits) is not None


def _iban(found: str) -> int:
    """Return how many characters of the match are an account number with the right length and checksum, 0 for none."""
    places = [i for i, c in enumerate(found) if c != " "]
    size = int(_IBAN_LENGTHS.partition(found[:2])[2][:2] or 0)
    if not 0 < size <= len(places) or (len(places) > size and found[places[size - 1] + 1] != " "):
        return 0
    compact = "".join(found[i] for i in places[:size])
    return places[size - 1] + 1 if int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1 else 0


def _is_public(found: str) -> bool:
    try:
        return (address := ipaddress.ip_address(found)).is_global and (address.version == 4 or int(address) >> 125 == 1)
    except ValueError:
        return False


def _is_phone(found: str) -> bool:
    return 9 <= len(_digits(found)) <= 15


_CHECKS: Final[dict[str, Callable[[str], bool | int]]] = {"IBAN": _iban, "CARD": _is_card, "IP": _is_public, "PHONE": _is_phone}
# Kind, a text without which it cannot occur, expression. It begins with few characters, which is searched fast, then looks back.
_TABLE: Final = r"""KEY    [gx](?<![\w-].)(?:h[opsru]_\w{36,251}+|ithub_pat_\w{22,251}+|ox[abeoprs]-[A-Za-z0-9-]{10,250}+)
KEY  PRIVATE KEY  -----BEGIN [A-Z ]{0,30}PRIVATE KEY[A-Z ]{0,6}-----(?:[^-]|-(?!----))*+(?:-----END [A-Z ]{0,40}-----)?
KEY  eyJ  eyJ(?<![\w-]...)[\w-]{10,4096}+\.eyJ[\w-]{5,8192}+\.[\w-]{16,2048}+
KEY  A  A(?<![\w-].)(?:(?:KIA|SIA)[A-Z2-7]{16}(?!\w)|Iza[\w-]{35}(?![\w-]))
KEY  sk  sk[-_](?<![\w-]...)(?=[A-Za-z_-]{0,200}\d)\w[\w-]{19,200}+
EMAIL  @  [\w.+%-](?<![\w.+%-].)[\w.+%-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![\w-])
IBAN    [A-Z]{2}(?<![A-Za-z0-9]..)\d{2}(?: ?[A-Z0-9]){11,34}
CARD    \d(?<![\w.+-].)(?:[ -]?\d){12,18}(?![\w-]|\.\d)
IP  .  \d(?<![\w.+-].)(?<!ersion .)(?<!elease .)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)
IP  :  [0-9A-Fa-f](?<![\w:.].)[0-9A-Fa-f]{0,3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])
PHONE  +  \+(?<![\w+].)(?:1(?:[ .()/-]{0,2}\d){10}|[2-9](?:[ .()/-]{0,2}\d){6,14})(?!\d)
PHONE    [(1-9](?<![\w.+/-].)(?:(?:(?<=1)[-. ]\(?|(?<=\())[2-9]|(?<=[2-9]))\d\d(?:\) ?|[-. ])[2-9]\d\d[-. ]\d{4}(?![\w-]|\.\d)
PHONE  0  [(0](?<![\w.,:+/-].)(?:(?<=0)|0)(?!\d[/-]\d\d[/-]\d{4})[1-9]\d{0,4}\)?(?:[ /-]{1,2}\d{2,8}){1,5}(?![\w-]|[.,:]\d)"""
_KINDS: Final = tuple(
    (kind, need, re.compile(expression), _CHECKS.get(kind, bool))
    for kind, need, expression in (line.split("  ", 2) for line in _TABLE.split("\n"))
)


@dataclass(frozen=True)
class MaskPII:
    """Replace personal data and secrets by their kind in angle brackets.

    Args:
        kinds: what is masked, of EMAIL, IP, PHONE, IBAN, CARD, KEY.
        column: receives how many were masked; empty for no column.
    """

    field: str = "text"
    kinds: tuple[str, ...] = ("EMAIL", "IP", "PHONE", "IBAN", "CARD", "KEY")
    column: str = ""
    name: str = "mask-pii"

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - {kind for kind, *_ in _KINDS}:
            raise InputError("no such kind", key="kinds", value=min(unknown), allowed="EMAIL, IP, PHONE, IBAN, CARD, KEY")

    def mask(self, text: str) -> tuple[str, dict[str, int]]:
        """Return the masked text and how many were masked by kind."""
        counts = dict.fromkeys(self.kinds, 0)
        for kind, need, pattern, check in _KINDS:
            if kind not in self.kinds or need not in text:
                continue

            def replace(found: re.Match[str], kind: str = kind, check: Callable[[str], bool | int] = check) -> str:
                end = check(found[0])
                counts[kind] += bool(end)
                return f"<{kind}>" + ("" if end is True else found[0][end:]) if end else found[0]

            text = pattern.sub(replace, text)
        return text, {kind: count for kind, count in counts.items() if count}

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with its text masked."""
        text, counts = self.mask(text_of(sample, self.field, self.name))
        return {**sample, self.field: text, **({self.column: sum(counts.values())} if self.column else {})}

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        return schema.with_fields({self.column: "uint32"}) if self.column else schema
