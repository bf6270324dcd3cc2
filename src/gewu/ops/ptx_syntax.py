"""The syntax of PTX: text to statements, in one pass, with line numbers; what they mean is told in `ptx`."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Final

from gewu.core.errors import InputError

MOST_TOKENS: Final = 4_000_000

_TOKEN: Final = re.compile(
    r"(?P<space>\s+|//[^\n]*|/\*[\s\S]*?\*/)"
    r'|(?P<string>"[^"\n]*")'
    r"|(?P<float>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16})"
    r"|(?P<decimal>[0-9]+\.[0-9]+)"
    r"|(?P<integer>0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|[0-9]+U?(?![\w.]))"
    r"|(?P<word>[%$A-Za-z_.](?:[\w$.%]|::)*)"
    r"|(?P<mark>[\[\](){},;:@!+|<>=-])"
)


@dataclass(frozen=True, slots=True)
class Token:
    """One word, number or mark."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Number:
    """An immediate: an integer, or the raw bits of a float of 32 or 64 bits."""

    value: int
    width: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`; `base` a register, a symbol or a number."""

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
    """A label (`label` set), a directive (word starts with a dot), an instruction, or the edge of a scope (`{` and `}`)."""

    word: str
    items: tuple[Item, ...] = ()
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


def tokens_of(text: str, file: str) -> list[Token]:
    """Split a module into tokens.

    Raises:
        InputError: a character that no token starts with, or too many tokens.
    """
    found: list[Token] = []
    place, line = 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise InputError("no PTX", file=file or None, line=line, value=text[place : place + 20])
        if match.lastgroup != "space":
            found.append(Token(match.lastgroup or "", match[0], line))
            if len(found) > MOST_TOKENS:
                raise InputError("too long", file=file or None, line=line)
        line += match[0].count("\n")
        place = match.end()
    return found


class Parser:
    """Read a module: functions with their statements, and the variables outside of them."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.tokens = tokens_of(text, file)
        self.place = 0
        self.functions: list[Function] = []
        self.variables: list[tuple[Token, ...]] = []

    def parse(self) -> None:
        """Read everything."""
        while self.place < len(self.tokens):
            start = self.place
            words = []
            while (token := self._next()).text not in (";", "(", "{", ".entry", ".func"):
                words.append(token)
                if token.text in (".version", ".target", ".address_size", ".file", ".section", ".loc", ".pragma"):
                    break
            if token.text in (".entry", ".func"):
                self._function(token)
            elif token.text in (".version", ".target", ".address_size", ".file", ".loc"):
                self._skip_line(token.line)
            elif token.text == ".pragma":
                self._until(";")
            elif token.text == ".section":
                while self._next().text != "{":
                    pass
                self._braces()
            elif token.text == ";":
                self.variables.append(tuple(words))
            elif token.text == "{" and "=" in [w.text for w in words]:
                self.place = start
                self.variables.append(tuple(self._until(";")))
            else:
                raise self.wrong("neither a function nor a variable", token)

    def wrong(self, what: str, token: Token) -> InputError:
        """Return the error for a token out of place."""
        return InputError(what, file=self.file or None, line=token.line, value=token.text)

    def _next(self) -> Token:
        if self.place >= len(self.tokens):
            raise InputError("ends in the middle", file=self.file or None)
        self.place += 1
        return self.tokens[self.place - 1]

    def _peek(self) -> str:
        return self.tokens[self.place].text if self.place < len(self.tokens) else ""

    def _until(self, mark: str) -> list[Token]:
        found = []
        while (token := self._next()).text != mark:
            found.append(token)
        return found

    def _skip_line(self, line: int) -> None:
        while self.place < len(self.tokens) and self.tokens[self.place].line == line:
            self.place += 1

    def _braces(self) -> None:
        depth = 1
        while depth:
            text = self._next().text
            depth += (text == "{") - (text == "}")

    def _list(self) -> list[tuple[Token, ...]]:
        """Read `( a, b )` after its opening mark."""
        parts: list[list[Token]] = [[]]
        while (token := self._next()).text != ")":
            if token.text == ",":
                parts.append([])
            else:
                parts[-1].append(token)
        return [tuple(part) for part in parts if part]

    def _function(self, start: Token) -> None:
        function = Function("", start.text == ".entry", line=start.line)
        if self._peek() == "(":
            self.place += 1
            function.results = self._list()
        function.name = self._next().text
        if self._peek() == "(":
            self.place += 1
            function.parameters = self._list()
        attribute: list[Token] = []
        while (token := self._next()).text not in ("{", ";"):
            if token.text.startswith(".") and attribute:
                function.attributes.append(tuple(attribute))
                attribute = []
            attribute.append(token)
        if attribute:
            function.attributes.append(tuple(attribute))
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
            elif token.text == ";":
                continue
            elif token.text == ".loc":
                self._skip_line(token.line)
            elif token.kind == "word" and self._peek() == ":":
                self.place += 1
                found.append(Statement(token.text, line=token.line, label=True))
            elif token.text.startswith("."):
                found.append(Statement(token.text, line=token.line, tokens=(token, *self._until(";"))))
            else:
                found.append(self._instruction(token))
        return found

    def _instruction(self, token: Token) -> Statement:
        guard = None
        line = token.line
        if token.text == "@":
            name = self._next()
            holds = name.text != "!"
            guard = ((name if holds else self._next()).text, holds)
            token = self._next()
        if token.kind != "word":
            raise self.wrong("no instruction", token)
        items: list[Item] = []
        while self._peek() != ";":
            items.append(self._item())
            if self._peek() == ",":
                self.place += 1
        self.place += 1
        return Statement(token.text, tuple(items), guard, line)

    def _item(self, depth: int = 0) -> Item:
        token = self._next()
        if token.text in ("{", "(") and depth < 3:
            close, parts = {"{": "}", "(": ")"}[token.text], []
            while self._peek() != close:
                parts.append(self._item(depth + 1))
                if self._peek() == ",":
                    self.place += 1
            self.place += 1
            return tuple(parts)
        if token.text == "[":
            return self._address()
        if token.text == "!":
            return Negated(self._next().text)
        if token.text == "-":
            number = self._number(self._next())
            return Number(-number.value)
        if token.kind in ("float", "integer"):
            return self._number(token)
        if token.kind != "word":
            raise self.wrong("no operand", token)
        if self._peek() == "|":
            self.place += 1
            return Pair(token.text, self._next().text)
        if self._peek() == "+":
            self.place += 1
            return Address(token.text, self._number(self._next()).value)
        return token.text

    def _address(self) -> Address:
        token = self._next()
        base: str | Number = token.text if token.kind == "word" else self._number(token)
        offset = 0
        while (token := self._next()).text != "]":
            if token.text not in ("+", "-"):
                raise self.wrong("no address", token)
            sign = 1 if token.text == "+" else -1
            token = self._next()
            if token.text == "-":
                sign, token = -sign, self._next()
            offset += sign * self._number(token).value
        return Address(base, offset)

    def _number(self, token: Token) -> Number:
        text = token.text
        if token.kind == "float":
            return Number(int(text[2:], 16), 32 if text[1] in "fF" else 64)
        if token.kind == "integer":
            return Number(int(text.rstrip("U"), 0) if not text.rstrip("U").isdecimal() else int(text.rstrip("U")))
        raise self.wrong("no number", token)


def float_bits(number: Number, type_: str) -> int:
    """Return an immediate as the raw bits of a type; an integer literal in a float's place is a bug of the source, kept as is."""
    if number.width == 32 and type_ == "f64":
        return struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", number.value))[0]))[0]
    if number.width == 64 and type_ == "f32":
        return struct.unpack("<I", struct.pack("<f", struct.unpack("<d", struct.pack("<Q", number.value))[0]))[0]
    return number.value
