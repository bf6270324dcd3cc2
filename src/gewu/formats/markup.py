"""Plain text out of HTML and troff (man pages), in time linear in the length whatever the input.

These are readers for training text, not renderers: words and their order are kept, layout is reduced to line breaks. Tags are
found by one regular expression whose parts all stop at the next "<" or run to the end of the text, without backtracking, so a
million nested, unclosed or broken tags cost one pass; entities are resolved afterwards by `html.unescape`, so an escaped tag
stays text. troff: man(7) and mdoc(7) requests, font and character escapes of groff_char(7); definitions, conditions and table
formats are dropped, registers and macros are not executed.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_IN_TAG: Final = r"""(?:[^<>"']|"[^"<]*"|'[^'<]*')*+>"""
_UNSEEN: Final = "head|script|style|template|noscript|svg|math|nav|footer|iframe|textarea|select"
_TAG: Final = re.compile(
    rf"<!--.*?(?:-->|\Z)|<({_UNSEEN})\b{_IN_TAG}.*?(?:</\1\s*>|\Z)|<(/?)([a-z][a-z0-9]*){_IN_TAG}|<[!?][^<>]*>", re.S | re.I
)
_BREAKS: Final = {name: "\n" for name in _names("br div tr dt dd hr title caption figcaption option address")} | {
    name: "\n\n" for name in _names("p h1 h2 h3 h4 h5 h6 table ul ol dl pre blockquote section article figure")
}
_OPENS: Final = {"li": "\n- ", "td": " ", "th": " "}


def strip_html(text: str) -> str:
    """Return the visible text of an HTML page: one line a block, blanks as they are only inside `pre`."""
    out: list[str] = []
    at, verbatim = 0, False
    for tag in _TAG.finditer(text):
        out.append(text[at : tag.start()] if verbatim else re.sub(r"\s+", " ", text[at : tag.start()]))
        at, name = tag.end(), (tag[3] or "").lower()
        verbatim = not tag[2] if name == "pre" else verbatim
        out.append((None if tag[2] else _OPENS.get(name)) or _BREAKS.get(name, ""))
    out.append(text[at:])
    return _tidy(html.unescape("".join(out)))


_ESCAPE: Final = re.compile(
    r"""\\(?:f(?:\(..|\[[^\]]{0,64}\]|.)|s[+-]?\d{1,2}|\*(?:\(..|\[[^\]]{0,64}\]|.)"""
    r"""|[hvwlLDoXZ]'[^']{0,64}'|n(?:\(..|\[[^\]]{0,64}\]|[+-]?.)|[(](?P<two>..)|\[(?P<name>[^\]]{0,64})\]|(?P<comment>["#].*)|(?P<one>.)|\Z)"""
)
_ACCENTS: Final = {"'": "\u0301", "`": "\u0300", ":": "\u0308", "^": "\u0302", "~": "\u0303", ",": "\u0327"}
_NAMED: Final = dict(
    pair.split("=", 1)
    for pair in _names(
        "em=— en=– hy=- aq=' dq=\" lq=“ rq=” oq=‘ cq=’ bu=• co=© rg=® tm=™ mu=× ss=ß oa=å /o=ø ae=æ oe=œ Fo=« Fc=» Bq=„ bq=‚ "
        "<-=← ->=→ ti=~ ha=^ rs=\\ at=@ sh=# lB=[ rB=] Do=$ sc=§ de=° +-=±"
    )
)
_ONE: Final = {"e": "\\", "t": "\t", "~": " ", "0": " "} | {same: same for same in "\\ -.'`"}
_ARGUMENT: Final = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_FONTS: Final = _names("B I R SM SB UR URL MT UE ME")
_ALTERNATING: Final = _names("BI BR IB IR RB RI")
_BREAKING: Final = _names("PP P LP TP TQ IP HP sp br Pp RS RE nf fi EX EE Bl El Bd Ed It SH SS Sh Ss SY YS TE")
_MDOC: Final = _names(
    "Nm Nd Fl Ar Op Oo Oc Cm Xr Pa Li Em Sy It Dl D1 Ic Ev Va Vt Dv Er Ql Dq Sq Aq Qq Pq Bq Ns No Fn Ft Fa Sh Ss Tn St Ux"
)


def _character(found: re.Match[str]) -> str:
    name = found["two"] or found["name"] or ""
    if found["one"]:
        return _ONE.get(found["one"], "")
    if len(name) == 2 and name[0] in _ACCENTS and name[1].isalpha():
        return unicodedata.normalize("NFC", name[1] + _ACCENTS[name[0]])
    if re.fullmatch(r"u[0-9A-Fa-f]{4,5}", name):
        return chr(int(name[1:], 16))
    return _NAMED.get(name, "")


def strip_troff(text: str) -> str:
    """Return the text of a man page: one paragraph a line, headings on lines of their own, examples line by line."""
    out: list[str] = []
    fill, until = True, ""
    for line in text.splitlines():
        if until:
            until = "" if line.startswith(until) or (until == "." and line.rstrip().endswith(".")) else until
            continue
        words, name = line, ""
        if line[:1] in {".", "'"}:
            name, _, rest = line[1:].lstrip().partition(" ")
            arguments = [quoted.replace('""', '"') or bare for quoted, bare in _ARGUMENT.findall(re.sub(r'\\".*', "", rest))]
            until = {"de": "..", "ig": "..", "am": "..", "TS": "."}.get(name, "")
            fill = {"nf": False, "EX": False, "Bd": False, "fi": True, "EE": True, "Ed": True}.get(name, fill)
            kept = name in _FONTS or name in _MDOC or name in _ALTERNATING or name in _BREAKING - {"sp", "HP", "RS", "Bl", "Bd"}
            words = ("" if name in _ALTERNATING else " ").join(a for a in arguments if a not in _MDOC) if kept else ""
        if name in _BREAKING or not line.strip():
            out.append("\n" if name in {"br", "nf", "EX"} else "\n\n")
        out.append(_ESCAPE.sub(_character, words) + (" " if fill else "\n") if words or not name else "")
        if name in {"SH", "SS", "Sh", "Ss"}:
            out.append("\n")
    return _tidy("".join(out).replace("\t", " "))


def _tidy(text: str) -> str:
    lines = (line.rstrip(" ") for line in text.split("\n"))
    kept = "\n".join(line[1:] if line[:1] == " " != line[1:2] else line for line in lines)  # a lone blank is a trace of a tag
    return re.sub(r"\n{3,}", "\n\n", kept).strip("\n")
