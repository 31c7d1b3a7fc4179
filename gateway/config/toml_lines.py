"""On which line each key of a TOML document stands, which tomllib does not tell.

Only for a document that tomllib has read: nothing is checked here, and a text that is no TOML gives
some lines or other.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from typing import TYPE_CHECKING, Final

from gateway.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    Location = tuple[str | int, ...]

_TOKEN: Final = re.compile(
    r'''
    """ (?: \\. | [^\\] )*? """ "{0,2}
    | \'\'\' .*? \'\'\' '{0,2}
    | " (?: \\. | [^"\\] )* "
    | ' [^']* '
    | \# [^\n]*
    | [][{}=,.\n]
    | [^][{}=,.\s"'#]+
    ''',
    re.DOTALL | re.VERBOSE,
)
_END: Final = ""  # the token after the last


def key_lines(text: str) -> dict[Location, int]:
    """Return the line, from 1, of every table, key and array element, by its path.

    The path of ``keys[0]`` in ``[users.alice]`` is ("users", "alice", "keys", 0).
    """
    lines = _Lines(text)
    # tomllib may need fewer calls for a bracket, and decodes no key of what is no TOML.
    with contextlib.suppress(RecursionError, tomllib.TOMLDecodeError):
        lines.read_document()
    return lines.found


class _Lines:
    def __init__(self, text: str) -> None:
        self.found: dict[Location, int] = {}
        self._last_index: dict[Location, int] = {}  # of arrays of tables
        self._tokens = _tokens(text)
        self._word, self._line = next(self._tokens)

    def _next(self) -> None:
        self._word, self._line = next(self._tokens, (_END, self._line))

    def _skip(self, tokens: str) -> None:
        while self._word and self._word in tokens:
            self._next()

    def read_document(self) -> None:
        table: Location = ()
        while self._word:
            self._skip("\n")
            if self._word == "[":
                table = self._header()
            elif self._word:
                self._pair(table)

    def _header(self) -> Location:
        line = self._line
        self._next()
        is_element = self._word == "["
        self._skip("[")
        names = self._names()
        self._skip("]")
        path: Location = ()
        for number, name in enumerate(names, start=1):
            path += (name,)
            if path in self._last_index and (number < len(names) or not is_element):
                path += (self._last_index[path],)
        if is_element:
            index = self._last_index[path] = self._last_index.get(path, -1) + 1
            path += (index,)
        self.found.setdefault(path, line)
        return path

    def _names(self) -> tuple[str, ...]:
        names: list[str] = []
        while self._word and self._word not in "=]":
            if self._word != ".":
                names.append(_unquoted(self._word))
            self._next()
        return tuple(names)

    def _pair(self, table: Location) -> None:
        line = self._line
        path = (*table, *self._names())
        self.found.setdefault(path, line)
        self._skip("=")
        self._value(path)

    def _value(self, path: Location) -> None:
        self.found.setdefault(path, self._line)
        if self._word == "[":
            self._next()
            index = 0
            self._skip("\n,")
            while self._word and self._word != "]":
                self._value((*path, index))
                index += 1
                self._skip("\n,")
            self._next()
        elif self._word == "{":
            self._next()
            self._skip("\n,")
            while self._word and self._word != "}":
                self._pair(path)
                self._skip("\n,")
            self._next()
        else:
            self._next()
            while self._word and self._word not in ",]}\n":
                self._next()


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for found in _TOKEN.finditer(text):
        token = found[0]
        if not token.startswith("#"):
            yield token, line
        line += token.count("\n")
    yield _END, line


def _unquoted(token: str) -> str:
    if token[0] not in "\"'":
        return token
    return str(tomllib.loads(f"key = {token}")["key"])


def show_key(location: Location) -> str:
    """Return a location as a person writes it: ``users.alice.keys[0]``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch("[A-Za-z0-9_-]+", part)
            shown = part if bare else f'"{printable(part, 80)}"'
            text += f".{shown}" if text else shown
    return text
