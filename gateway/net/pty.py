"""The terminal that this program runs in: what pty-req tells of it, and its raw mode.

Modes are told as OpenSSH's ttymodes.c does, with every opcode that Linux has (RFC 4254 §8; IUTF8:
RFC 8160). In raw mode each key goes to the server as it is, Ctrl-C too, and what comes is shown
unchanged (sshtty.c).
"""

from __future__ import annotations

import fcntl
import io
import os
import struct
import sys
import termios
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.ssh import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    Attributes = list[int | list[bytes | int]]

_INPUT, _OUTPUT, _CONTROL, _LOCAL, _INPUT_SPEED, _OUTPUT_SPEED, _CHARACTERS = range(7)
_TTY_OP_END: Final = 0
_TTY_OP_ISPEED: Final = 128
_TTY_OP_OSPEED: Final = 129
_DISABLED: Final = 255  # a special character that does nothing; locally it is _POSIX_VDISABLE, 0
_SPEEDS: Final = {
    getattr(termios, name): int(name[1:])
    for name in dir(termios)
    if name[0] == "B" and name[1:].isdecimal()
}
_SPECIAL: Final = {
    1: termios.VINTR, 2: termios.VQUIT, 3: termios.VERASE, 4: termios.VKILL, 5: termios.VEOF,
    6: termios.VEOL, 7: termios.VEOL2, 8: termios.VSTART, 9: termios.VSTOP, 10: termios.VSUSP,
    12: termios.VREPRINT, 13: termios.VWERASE, 14: termios.VLNEXT, 18: termios.VDISCARD,
}  # fmt: skip
_IUTF8: Final = 0o40000  # <asm-generic/termbits.h>; Python's termios has it since 3.14
_FLAGS: Final = {
    _INPUT: {
        30: termios.IGNPAR, 31: termios.PARMRK, 32: termios.INPCK, 33: termios.ISTRIP,
        34: termios.INLCR, 35: termios.IGNCR, 36: termios.ICRNL, 37: termios.IUCLC,
        38: termios.IXON, 39: termios.IXANY, 40: termios.IXOFF, 41: termios.IMAXBEL, 42: _IUTF8,
    },
    _LOCAL: {
        50: termios.ISIG, 51: termios.ICANON, 52: termios.XCASE, 53: termios.ECHO,
        54: termios.ECHOE, 55: termios.ECHOK, 56: termios.ECHONL, 57: termios.NOFLSH,
        58: termios.TOSTOP, 59: termios.IEXTEN, 60: termios.ECHOCTL, 61: termios.ECHOKE,
        62: termios.PENDIN,
    },
    _OUTPUT: {
        70: termios.OPOST, 71: termios.OLCUC, 72: termios.ONLCR, 73: termios.OCRNL,
        74: termios.ONOCR, 75: termios.ONLRET,
    },
    _CONTROL: {90: termios.CS7, 91: termios.CS8, 92: termios.PARENB, 93: termios.PARODD},
}  # fmt: skip
_RAW_OFF: Final = {
    _INPUT: termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    | termios.IXANY | termios.IXOFF | termios.IUCLC,
    _LOCAL: termios.ISIG | termios.ICANON | termios.ECHO | termios.ECHOE | termios.ECHOK
    | termios.ECHONL | termios.IEXTEN,
    _OUTPUT: termios.OPOST,
}  # fmt: skip


class WindowSize(NamedTuple):
    """Columns and rows in characters, width and height in pixels; 0 where unknown."""

    columns: int = 0
    rows: int = 0
    width: int = 0
    height: int = 0

    def encode(self) -> bytes:
        """Return what pty-req and window-change carry (RFC 4254 §6.2, §6.7)."""
        return b"".join(map(wire.uint32, self))


def window_size(descriptor: int | None) -> WindowSize:
    """Return the size of a terminal; zeros where there is none."""
    if descriptor is None:
        return WindowSize()
    try:
        packed = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return WindowSize()
    rows, columns, width, height = struct.unpack("HHHH", packed)
    return WindowSize(columns, rows, width, height)


def encoded_modes(attributes: Attributes | None) -> bytes:
    """Encode what tcgetattr(3) says; without a terminal there is nothing to say."""
    if attributes is None:
        return bytes([_TTY_OP_END])
    fields, characters = _split(attributes)
    speeds = [_SPEEDS.get(fields[index], 0) for index in (_OUTPUT_SPEED, _INPUT_SPEED)]
    modes = list(zip((_TTY_OP_OSPEED, _TTY_OP_ISPEED), speeds, strict=True))
    modes += [(opcode, characters[at] or _DISABLED) for opcode, at in _SPECIAL.items()]
    for index, flags in _FLAGS.items():
        modes += [(opcode, int(bool(fields[index] & flag))) for opcode, flag in flags.items()]
    packed = b"".join(bytes([opcode]) + wire.uint32(value) for opcode, value in modes)
    return packed + bytes([_TTY_OP_END])


def _split(attributes: Attributes) -> tuple[list[int], list[int]]:
    """Return the numbers, and the special characters as numbers."""
    fields = [field for field in attributes if isinstance(field, int)]
    special = attributes[_CHARACTERS]
    assert isinstance(special, list)  # noqa: S101 - termios.tcgetattr
    return fields, [char if isinstance(char, int) else char[0] for char in special]


class LocalTerminal:
    """The terminal behind a descriptor, or none; ``attributes`` are those it had at first."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.attributes: Attributes | None = None
        self.is_raw = False
        self._size = WindowSize()
        if descriptor is not None:
            with suppress(termios.error, OSError):
                self.attributes = termios.tcgetattr(descriptor)

    def request(self, term: str) -> bytes:
        """Return what pty-req says of it (RFC 4254 §6.2)."""
        self._size = window_size(self._descriptor)
        modes = encoded_modes(self.attributes)
        return wire.text(term) + self._size.encode() + wire.string(modes)

    def new_size(self) -> WindowSize | None:
        """Return its size if the server was not told of it yet."""
        size = window_size(self._descriptor)
        if self.attributes is None or size == self._size:
            return None
        self._size = size
        return size

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Have it raw within a with block, and as it was after that, however that ends."""
        self.make_raw()
        try:
            yield
        finally:
            self.restore()

    def make_raw(self) -> None:
        """Let every key through as it is."""
        if self.attributes is None:
            return
        changed = self.attributes.copy()
        for index, flags in _RAW_OFF.items():
            changed[index] = self._field(index) & ~flags
        changed[_INPUT] = self._field(_INPUT) & ~_RAW_OFF[_INPUT] | termios.IGNPAR
        changed[_CHARACTERS] = self._characters({termios.VMIN: 1, termios.VTIME: 0})
        self._set(changed)
        self.is_raw = True
        _say_with("\r\n")

    def make_line(self) -> None:
        """Let a line be typed and edited; Ctrl-C ends it and signals nobody."""
        if self.attributes is None:
            return
        changed = self.attributes.copy()
        editing = termios.ICANON | termios.ECHO | termios.ECHOE | termios.ECHOK
        changed[_LOCAL] = self._field(_LOCAL) & ~termios.ISIG | editing
        changed[_INPUT] = self._field(_INPUT) | termios.ICRNL
        changed[_CHARACTERS] = self._characters({termios.VEOL2: b"\x03"})
        self._set(changed)

    def restore(self) -> None:
        """Make it what it was; harmless if it is."""
        if self.is_raw and self.attributes is not None:
            self.is_raw = False
            self._set(self.attributes)
            _say_with("\n")

    def _field(self, index: int) -> int:
        field = (self.attributes or [])[index]
        assert isinstance(field, int)  # noqa: S101 - termios.tcgetattr
        return field

    def _characters(self, changes: dict[int, bytes | int]) -> list[bytes | int]:
        special = (self.attributes or [])[_CHARACTERS]
        assert isinstance(special, list)  # noqa: S101 - termios.tcgetattr
        return [changes.get(at, character) for at, character in enumerate(special)]

    def _set(self, attributes: Attributes) -> None:
        """Change it at once: to wait for output (TCSADRAIN) could last as long as it is stopped.

        A terminal that is gone needs nothing.
        """
        with suppress(termios.error, OSError):
            termios.tcsetattr(self._descriptor or 0, termios.TCSANOW, attributes)


def _say_with(newline: str) -> None:
    """End our own messages so that the next begins at the left, where that is the terminal."""
    if isinstance(sys.stderr, io.TextIOWrapper) and os.isatty(sys.stderr.fileno()):
        sys.stderr.reconfigure(newline=newline)
