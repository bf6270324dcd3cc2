"""The syntax of PTX: text to functions, statements and variables in one pass, with line numbers; `ptx` tells what they mean.

Debug sections, `.loc`, `.file` and pragmas are skipped.  A statement whose operands cannot be read keeps its name, so that only
the kernels that run it are refused.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gewu.core.errors import InputError

MOST_TEXT: Final = 32 << 20
MOST_STATEMENTS: Final = 500_000
_MOST_DIGITS: Final = 20

_TOKEN: Final = re.compile(
    r"(?P<space>\s+|//[^\n]*)"
    r"|(?P<comment>/\*)"
    r'|(?P<string>"[^"\n]*")'
    r"|(?P<float>0[fF][0-9a-fA-F]{8}(?![\w$])|0[dD][0-9a-fA-F]{16}(?![\w$]))"
    r"|(?P<decimal>[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)"
    r"|(?P<integer>(?:0[xX][0-9a-fA-F]+|0[bB][01]+|[0-9]+)U?(?![\w$]))"
    r"|(?P<word>[%$A-Za-z_.](?:[\w$.%]|::)*)"
    r"|(?P<mark>[][(){},;:@!+|<>=~&*-])",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One word, number or mark."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Number:
    """An immediate: an integer (`width` 0), or the raw bits of a float of 32 or 64 bits."""

    value: int
    width: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`, or `symbol + offset`; `base` a register, a symbol or a number."""

    base: str | Number
    offset: int


@dataclass(frozen=True, slots=True)
class Negated:
    """`!p`."""

    name: str


@dataclass(frozen=True, slots=True)
class Pair:
    """`d|p`."""

    first: str
    second: str


Item = str | Number | Address | Negated | Pair | tuple["Item", ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """A label (`label` set), a declaration (`tokens`), an instruction, or the edge of a scope (`{` and `}`).

    `items` is None when the operands could not be read.
    """

    word: str
    items: tuple[Item, ...] | None = ()
    guard: tuple[str, bool] | None = None
    line: int = 0
    label: bool = False
    tokens: tuple[Token, ...] = ()


@dataclass(slots=True)
class Function:
    """An entry or a device function: its parameters, its attributes and its statements."""

    name: str
    entry: bool
    parameters: list[tuple[Token, ...]] = field(default_factory=list)
    results: list[tuple[Token, ...]] = field(default_factory=list)
    attributes: list[tuple[Token, ...]] = field(default_factory=list)
    body: list[Statement] | None = None
    line: int = 0


class _Odd(Exception):
    """Operands that cannot be read."""


def tokens_of(text: str, file: str) -> Iterator[Token]:
    """Split a module into tokens.

    Raises:
        InputError: a character that no token starts with, a comment without an end.
    """
    place, line = 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise InputError("not PTX", file=file or None, line=line, value=text[place : place + 20])
        kind = match.lastgroup or ""
        end = match.end()
        if kind == "comment":
            end = text.find("*/", end) + 2
            if end < 2:
                raise InputError("a comment without an end", file=file or None, line=line)
            line += text.count("\n", place, end)
        elif kind == "space":
            line += text.count("\n", place, end)
        else:
            yield Token(kind, sys.intern(match[0]), line)
        place = end


class Parser:
    """Read a module: functions with their statements, and the variables outside of them.

    Args:
        text: the module.
        file: its name, for messages.
    """

    def __init__(self, text: str, file: str) -> None:
        if len(text) > MOST_TEXT:
            raise InputError("is too large", file=file or None, allowed=f"at most {MOST_TEXT} characters")
        self.file, self.line, self.target = file, 1, ""
        self.functions: list[Function] = []
        self.variables: list[tuple[Token, ...]] = []
        self._tokens = tokens_of(text, file)
        self._ahead: Token | None = next(self._tokens, None)
        self._count = 0

    def parse(self) -> None:
        """Read everything.

        Raises:
            InputError: the text is not PTX.
        """
        if self._peek() != ".version":
            raise self.wrong("does not begin with .version", self._ahead)
        while self._ahead is not None:
            token = self._next()
            if token.text in (".version", ".target", ".address_size", ".file", ".loc"):
                rest = self._rest_of_line(token.line)
                if token.text == ".target" and rest:
                    self.target = rest[0].text
                if token.text == ".address_size" and rest and rest[0].text != "64":
                    raise self.wrong("addresses that are not of 64 bits", rest[0])
            elif token.text == ".section":
                self._section()
            elif token.text.startswith("."):
                self._declaration(token)
            elif token.kind == "word" and self._peek() == ":":
                self._next()
            elif token.text != ";":
                raise self.wrong("neither a function nor a variable", token)

    def wrong(self, what: str, token: Token | None) -> InputError:
        """Return the error for a token out of place."""
        line = token.line if token else self.line
        return InputError(what, file=self.file or None, line=line, value=token.text if token else None)

    def _next(self) -> Token:
        token = self._ahead
        if token is None:
            raise InputError("ends in the middle", file=self.file or None, line=self.line)
        self._ahead = next(self._tokens, None)
        self.line = token.line
        return token

    def _peek(self) -> str:
        return self._ahead.text if self._ahead is not None else ""

    def _skip(self, mark: str) -> bool:
        if self._peek() != mark:
            return False
        self._next()
        return True

    def _until(self, mark: str) -> list[Token]:
        found = []
        while (token := self._next()).text != mark:
            found.append(token)
        return found

    def _rest_of_line(self, line: int) -> list[Token]:
        found = []
        while self._ahead is not None and self._ahead.line == line:
            found.append(self._next())
        return found

    def _section(self) -> None:
        self._until("{")
        depth = 1
        while depth:
            text = self._next().text
            depth += (text == "{") - (text == "}")

    def _declaration(self, token: Token) -> None:
        """Read a variable, a function or a pragma after its linkage."""
        words = [token]
        while (token := words[-1]).text not in (".entry", ".func", ";"):
            words.append(self._next())
        if token.text != ";":
            self._function(token)
        elif words[0].text not in (".pragma", ".alias"):
            self.variables.append(tuple(words[:-1]))

    def _list(self) -> list[tuple[Token, ...]]:
        """Read `( a, b )` if it stands here."""
        if not self._skip("("):
            return []
        parts: list[list[Token]] = [[]]
        while (token := self._next()).text != ")":
            if token.text == ",":
                parts.append([])
            else:
                parts[-1].append(token)
        return [tuple(part) for part in parts if part]

    def _function(self, start: Token) -> None:
        function = Function("", start.text == ".entry", line=start.line)
        function.results = self._list()
        function.name = self._next().text
        function.parameters = self._list()
        while (token := self._next()).text not in ("{", ";"):
            if token.text.startswith(".") or not function.attributes:
                function.attributes.append(())
            function.attributes[-1] += (token,)
            if len(function.attributes[-1]) > 64:
                raise self.wrong("neither an attribute nor a body", token)
        if token.text == "{":
            function.body = self._body()
        self.functions.append(function)

    def _body(self) -> list[Statement]:
        found: list[Statement] = []
        depth = 1
        while depth:
            token = self._next()
            if token.text in ("{", "}"):
                depth += 1 if token.text == "{" else -1
                if depth:
                    found.append(Statement(token.text, line=token.line))
            elif token.text in (".loc", ".file"):
                self._rest_of_line(token.line)
            elif token.text.startswith("."):
                tokens = (token, *self._until(";"))
                if token.text != ".pragma":
                    found.append(Statement(token.text, line=token.line, tokens=tokens))
            elif token.kind == "word" and self._peek() == ":":
                self._next()
                found.append(Statement(token.text, line=token.line, label=True))
            elif token.text != ";":
                found.append(self._instruction(token))
            self._count += 1
            if self._count > MOST_STATEMENTS:
                raise self.wrong("has more statements than gewu reads", token)
        return found

    def _instruction(self, token: Token) -> Statement:
        guard, line = None, token.line
        if token.text == "@":
            holds = not self._skip("!")
            guard = self._next().text, holds
            token = self._next()
        if token.kind != "word":
            raise self.wrong("no instruction", token)
        items: list[Item] = []
        try:
            while not self._skip(";"):
                items.append(self._item())
                if not self._skip(",") and self._peek() != ";":
                    raise _Odd
        except _Odd:
            while self._next().text != ";":
                pass
            return Statement(token.text, None, guard, line)
        return Statement(token.text, tuple(items), guard, line)

    def _item(self, depth: int = 0) -> Item:
        if self._peek() in (";", "}"):
            raise _Odd
        token = self._next()
        if token.text in ("{", "(") and depth < 3:
            close, parts = {"{": "}", "(": ")"}[token.text], []
            while not self._skip(close):
                parts.append(self._item(depth + 1))
                self._skip(",")
            return tuple(parts)
        if token.text == "[":
            return self._address()
        if token.text == "!" and self._ahead is not None and self._ahead.kind == "word":
            return Negated(self._next().text)
        if token.text == "-" or token.kind in ("float", "integer", "decimal"):
            return self._number(token)
        if token.kind != "word":
            raise _Odd
        if self._skip("|"):
            return Pair(token.text, self._word())
        if self._peek() in ("+", "-"):
            return Address(token.text, self._offset())
        return token.text

    def _word(self) -> str:
        if self._ahead is None or self._ahead.kind != "word":
            raise _Odd
        return self._next().text

    def _address(self) -> Address:
        if self._peek() in (";", "}"):
            raise _Odd
        token = self._next()
        base: str | Number = token.text if token.kind == "word" else self._number(token)
        offset = self._offset()
        if not self._skip("]"):
            raise _Odd
        return Address(base, offset)

    def _offset(self) -> int:
        offset = 0
        while self._peek() in ("+", "-"):
            sign = 1 if self._next().text == "+" else -1
            if self._peek() in (";", "}"):
                raise _Odd
            number = self._number(self._next())
            if number.width:
                raise _Odd
            offset += sign * number.value
        return offset

    def _number(self, token: Token) -> Number:
        if token.text == "-":
            if self._ahead is None or self._ahead.kind not in ("float", "integer", "decimal"):
                raise _Odd
            number = self._number(self._next())
            return Number(number.value ^ 1 << number.width - 1 if number.width else -number.value, number.width)
        number_ = number_of(token)
        if number_ is None:
            raise _Odd
        return number_


def number_of(token: Token) -> Number | None:
    """Return the number that a token spells, or None."""
    text = token.text
    if token.kind == "float":
        return Number(int(text[2:], 16), 32 if text[1] in "fF" else 64)
    if token.kind == "decimal" and len(text) < 2 * _MOST_DIGITS:
        return Number(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 64)
    if token.kind != "integer":
        return None
    text = text.rstrip("U")
    base = {"x": 16, "b": 2}.get(text[1:2].lower(), 8 if len(text) > 1 and text[0] == "0" else 10)
    if len(text) > (66 if base == 2 else _MOST_DIGITS + 4) or (base == 8 and set(text) & {"8", "9"}):
        return None
    value = int(text[2:] if base in (2, 16) else text, base)
    return Number(value) if value < 1 << 64 else None


def bits_of(number: Number, type_: str) -> int:
    """Return an immediate as raw bits of 64 at most: a float is rounded to a type of another width, an integer taken as it is."""
    if number.width == 32 and type_ == "f64":
        return int(struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", number.value))[0]))[0])
    if number.width == 64 and type_ in ("f32", "f16"):
        code, whole, infinity, sign = ("<f", "<I", 0x7F800000, 1 << 31) if type_ == "f32" else ("<e", "<H", 0x7C00, 1 << 15)
        value = struct.unpack("<d", struct.pack("<Q", number.value))[0]
        try:
            return int(struct.unpack(whole, struct.pack(code, value))[0])
        except OverflowError:
            return infinity | (sign if value < 0 else 0)
    return number.value
