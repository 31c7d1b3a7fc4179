"""Escapes in what is typed: the escape character after a newline, and a key (ssh(1), ESCAPE
CHARACTERS; clientloop.c, process_escapes).

Pure: keys in, in their order what is to be sent and what is to be done.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEWLINES: Final = b"\r\n"


class Escape(enum.Enum):
    """What to do, by the key."""

    DISCONNECT = "."
    BREAK = "B"
    COMMAND_LINE = "C"
    REKEY = "R"
    LESS_VERBOSE = "V"
    MORE_VERBOSE = "v"
    SUSPEND = "\x1a"
    LIST = "#"
    BACKGROUND = "&"
    HELP = "?"


_HELP: Final = {
    Escape.DISCONNECT: ".   - terminate connection",
    Escape.BREAK: "B   - send a BREAK to the remote system",
    Escape.COMMAND_LINE: "C   - open a command line",
    Escape.REKEY: "R   - request rekey",
    Escape.LESS_VERBOSE: "V/v - decrease/increase verbosity (LogLevel)",
    Escape.SUSPEND: "^Z  - suspend gateway",
    Escape.LIST: "#   - list forwarded connections",
    Escape.BACKGROUND: "&   - go on in the background, until forwarded connections end",
    Escape.HELP: "?   - this message",
}
_KEYS: Final = {escape.value.encode(): escape for escape in Escape}


class Escapes:
    """What follows a newline, or the beginning, is looked at; ``character`` is one byte."""

    def __init__(self, character: bytes) -> None:
        self._character = character
        self._after_newline = True
        self._is_pending = False  # the character was typed, and its key comes next

    def feed(self, typed: bytes) -> Iterator[bytes | Escape]:
        """Take keys; they may be cut anywhere. What an escape does comes before what follows it."""
        if typed and not self._is_pending and self._character not in typed:
            self._after_newline = typed[-1] in _NEWLINES
            yield typed
            return
        passed = bytearray()
        for number in typed:
            key = bytes([number])
            if self._is_pending:
                self._is_pending = False
                if (escape := _KEYS.get(key)) is not None:
                    if passed:
                        yield bytes(passed)
                        passed.clear()
                    yield escape
                    continue
                if key != self._character:
                    passed += self._character
            elif self._after_newline and key == self._character:
                self._is_pending = True
                continue
            self._after_newline = key in _NEWLINES
            passed += key
        if passed:
            yield bytes(passed)

    def shown(self, escape: Escape) -> str:
        """Return how an escape looks to who types it."""
        return self._name() + caret(escape.value.encode())

    def help(self) -> list[str]:
        """Return the lines that say what there is."""
        name = self._name()
        return [
            "Supported escape sequences:",
            *(f" {name}{text}" for text in _HELP.values()),
            f" {name}{name}   - send the escape character by typing it twice",
            "(Escapes are only recognized immediately after newline.)",
        ]

    def _name(self) -> str:
        return caret(self._character)


def caret(key: bytes) -> str:
    """Return how a key is written: control characters with a caret."""
    number = key[0]
    if number < 0x20 or number == 0x7F:
        return f"^{chr(number ^ 0x40)}"
    return key.decode("latin-1")
