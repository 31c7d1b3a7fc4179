"""What -L, -R, -D and -W say, in ssh's spelling (readconf.c, parse_forward and parse_fwd_field).

Fields stand between colons; brackets keep the colons of one together, a backslash takes the meaning
of the next character, and a field with a slash is the path of a unix socket.
"""

from __future__ import annotations

import enum
import os
import re
import socket
from dataclasses import dataclass
from typing import Final

from gateway.errors import ConfigError, printable

MAXIMUM_PORT: Final = 65535
MAXIMUM_HOST: Final = 1024  # characters; <netdb.h>, NI_MAXHOST with its NUL
MAXIMUM_PATH: Final = 107  # bytes of a socket's path: sun_path of unix(7) without its NUL
ALL_INTERFACES: Final = ("", "*")
_MOST_FIELDS: Final = 4


class Kind(enum.Enum):
    """What listens where; the value is ssh's option."""

    LOCAL = "L"
    REMOTE = "R"
    DYNAMIC = "D"


@dataclass(frozen=True, slots=True)
class Tcp:
    """A host and a port. To listen, None is the default address, and "" and "*" are all."""

    host: str | None
    port: int

    def __str__(self) -> str:
        """As on ssh's command line."""
        return str(self.port) if self.host is None else f"[{self.host}]:{self.port}"

    @property
    def shown(self) -> str:
        """In words."""
        return f"port {self.port}" if self.host is None else f"{self.host or '*'} port {self.port}"


@dataclass(frozen=True, slots=True)
class Unix:
    """A unix socket."""

    path: str

    def __str__(self) -> str:
        """As on ssh's command line."""
        return f"[{self.path}]" if ":" in self.path else self.path

    @property
    def shown(self) -> str:
        """In words."""
        return self.path


End = Tcp | Unix


@dataclass(frozen=True, slots=True)
class Forward:
    """One forwarding. Without a ``target`` the clients say it, in SOCKS."""

    kind: Kind
    listen: End
    target: End | None

    def __str__(self) -> str:
        """As on ssh's command line."""
        ends = (self.listen,) if self.target is None else (self.listen, self.target)
        return f"-{self.kind.value} {':'.join(map(str, ends))}"


def parse_forward(kind: Kind, text: str, *, where: str = "") -> Forward:
    """Read the argument of an option. Raises `ConfigError`."""
    shown = _Shown(kind, text, where or f"-{kind.value}")
    match _fields(text):
        case [(listen, _) as only]:
            forward = Forward(kind, Unix(listen) if only[1] else _listen(None, listen, shown), None)
        case [(listen, True), (target, True)]:
            forward = Forward(kind, Unix(listen), Unix(target))
        case [(port, False), (target, True)]:
            forward = Forward(kind, _listen(None, port, shown), Unix(target))
        case [(host, False), (port, False)]:
            forward = Forward(kind, _listen(host, port, shown), None)
        case [(listen, True), (host, _), (port, _)]:
            forward = Forward(kind, Unix(listen), _target(host, port, shown))
        case [(host, _), (port, _), (target, True)]:
            forward = Forward(kind, _listen(host, port, shown), Unix(target))
        case [(port, _), (host, _), (target_port, _)]:
            forward = Forward(kind, _listen(None, port, shown), _target(host, target_port, shown))
        case [(host, _), (port, _), (target, _), (target_port, _)]:
            forward = Forward(kind, _listen(host, port, shown), _target(target, target_port, shown))
        case _:
            raise shown.wrong("this is no forwarding")
    _check(forward, shown)
    return forward


def parse_listen(kind: Kind, text: str) -> End:
    """Read what names a forwarding that is to be cancelled: all of it, or where it listens.

    Raises `ConfigError`.
    """
    try:
        return parse_forward(kind, text).listen
    except ConfigError:
        return parse_forward(Kind.REMOTE, text, where=f"-{kind.value}").listen


def parse_stdio(text: str) -> End:
    """Read the argument of -W, a host and a port or a path. Raises `ConfigError`."""
    shown = _Shown(None, text, "-W")
    match _fields(text):
        case [(path, True)]:
            return _checked(Unix(path), shown)
        case [(host, False), (port, False)]:
            return _checked(_target(host, port, shown), shown)
    raise shown.wrong("this is neither HOST:PORT nor a path")


_FORMS: Final = {
    Kind.LOCAL: "write [address:]port:host:port, or a path for either end",
    Kind.REMOTE: "write [address:]port:host:port, a path for either end, or [address:]port alone "
    "for a SOCKS proxy",
    Kind.DYNAMIC: "write [address:]port or a path",
    None: "write host:port or a path",
}


class _Shown:
    """A text, as a complaint about it names it."""

    def __init__(self, kind: Kind | None, text: str, where: str) -> None:
        self.kind = kind
        self._text = text
        self._where = where

    def wrong(self, problem: str) -> ConfigError:
        shown = printable(self._text, 120) or "an empty text"
        remedy = f"{_FORMS[self.kind]}, and IPv6 addresses in brackets"
        return ConfigError(f"{shown}: {problem}", where=self._where, remedy=remedy)


_BRACKETED: Final = re.compile(r"\[([^\]]*)\](?::|$)", re.DOTALL)
_PLAIN: Final = re.compile(r"((?:\\.|[^\\:])*)(?::|$)", re.DOTALL)


def _fields(text: str) -> list[tuple[str, bool]] | None:
    """Split into fields, each with whether it is a path; None if that cannot be done."""
    text = text.lstrip()
    fields: list[tuple[str, bool]] = []
    at = 0
    while at < len(text):
        pattern = _BRACKETED if text[at] == "[" else _PLAIN
        found = pattern.match(text, at)
        if found is None or len(fields) == _MOST_FIELDS:
            return None
        field = found[1] if pattern is _BRACKETED else re.sub(r"\\(.)", r"\1", found[1])
        fields.append((field, "/" in field))
        at = found.end()
    return fields


def _port(text: str, lowest: int, shown: _Shown) -> int:
    """Read a number, or the name of a service (misc.c, a2port)."""
    if re.fullmatch("[0-9]{1,5}", text):
        port = int(text)
    else:
        try:
            port = socket.getservbyname(text, "tcp")
        except (OSError, UnicodeError, ValueError):
            port = -1
    if not lowest <= port <= MAXIMUM_PORT:
        what = printable(text, 40) or "an empty text"
        raise shown.wrong(f"{what} is not a port from {lowest} to {MAXIMUM_PORT}")
    return port


def _listen(host: str | None, port: str, shown: _Shown) -> Tcp:
    lowest = 0 if shown.kind is Kind.REMOTE else 1
    return Tcp(host, _port(port, lowest, shown))


def _target(host: str, port: str, shown: _Shown) -> Tcp:
    if not host:
        raise shown.wrong("the target has no host")
    return Tcp(host, _port(port, 1, shown))


def _check(forward: Forward, shown: _Shown) -> None:
    if forward.target is None and forward.kind is Kind.LOCAL:
        raise shown.wrong("the target is missing")
    if forward.target is not None and forward.kind is Kind.DYNAMIC:
        raise shown.wrong("there is a target, which SOCKS clients name themselves")
    _checked(forward.listen, shown)
    if forward.target is not None:
        _checked(forward.target, shown)


def _checked(end: End, shown: _Shown) -> End:
    """Refuse what no resolver and no socket would take."""
    text = end.host if isinstance(end, Tcp) else end.path
    if text and (not text.isprintable() or (isinstance(end, Tcp) and " " in text)):
        raise shown.wrong(f"{printable(text, 80)} has a blank or a control character")
    if isinstance(end, Unix) and len(os.fsencode(end.path)) > MAXIMUM_PATH:
        raise shown.wrong(f"the path is longer than {MAXIMUM_PATH} bytes")
    if isinstance(end, Tcp) and text and len(text) > MAXIMUM_HOST:
        raise shown.wrong(f"the host is longer than {MAXIMUM_HOST} characters")
    return end
