"""Names and addresses that a person or a program writes: destinations, HOST:PORT, where to listen.

Everything from outside is checked here, before any token is expanded or any shell or path could see
it (OpenSSH's valid_hostname and valid_ruser, ssh.c; CVE-2023-51385 and its successors).
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from dataclasses import dataclass
from typing import Final

from gateway.errors import ConfigError, printable

NAME_LIMIT: Final = 255  # a DNS name has at most 253 characters (RFC 1035 §2.3.4)
_IN_NO_HOST: Final = frozenset("'`\"$\\;&<>|(){},")  # ssh.c, valid_hostname
# What would be a pattern, a mark or a separator in known_hosts, in a URI or in a path.
_IN_NO_REAL_HOST: Final = frozenset("*?![]@/#=")
# ssh.c, valid_ruser; our own additions: $ and % (no expansion, ever) and the comma of known_hosts.
_IN_NO_USER: Final = frozenset("'`\";&<>|(){}$%,")
_PERCENT: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_JUMP: Final = re.compile(r"(?:\[([^\[\]]*)\]|([^:/\[\]]*))(?:[:/](.*))?", re.DOTALL)
ALL_INTERFACES: Final = "*"


def _check_characters(what: str, name: str, forbidden: frozenset[str], where: str) -> None:
    problem = ""
    if not name:
        problem = f"the {what} is empty"
    elif len(name) > NAME_LIMIT:
        problem = f"the {what} {printable(name, 40)} is longer than {NAME_LIMIT} characters"
    elif name.startswith("-"):
        problem = (
            f"the {what} {printable(name)} begins with a dash and could be taken for an option"
        )
    else:
        for character in name:
            if character == " " or not character.isprintable():
                problem = f"the {what} {printable(name)} contains a blank or control character"
            elif character in forbidden:
                problem = f"the {what} {printable(name)} contains the character {character}"
            if problem:
                break
    if problem:
        raise ConfigError(problem, where=where, remedy=f"write the {what} without it")


def check_host_name(name: str, *, where: str = "") -> str:
    """Return a name as it may be typed (an alias of ssh_config(5) included), or raise.

    A percent sign only introduces the zone of an IPv6 address, as in ``fe80::1%eth0``.
    """
    _check_characters("host name", name, _IN_NO_HOST, where)
    if "%" in name and ":" not in name:
        raise ConfigError(
            f"the host name {printable(name)} contains the character %",
            where=where,
            remedy="only the zone of an IPv6 address is written with it",
        )
    return name


def check_real_host(name: str, *, where: str = "") -> str:
    """Return what can be connected to, an address or a name in lower case, or raise."""
    check_host_name(name, where=where)
    _check_characters("host name", name, _IN_NO_REAL_HOST, where)
    if is_address(name):
        return name
    if ":" in name:
        raise ConfigError(
            f"{printable(name)} is neither a host name nor an IPv6 address",
            where=where,
            remedy="give the port with -p PORT, or write ssh://HOST:PORT",
        )
    return name.lower()


def check_user_name(name: str, *, where: str = "") -> str:
    r"""Return a remote user name, or raise; a backslash inside is fine (``DOMAIN\user``)."""
    _check_characters("user name", name, _IN_NO_USER, where)
    if name.endswith("\\"):
        raise ConfigError(
            f"the user name {printable(name)} ends with a backslash",
            where=where,
            remedy="write the user name without it",
        )
    return name


def is_address(name: str) -> bool:
    """Say whether this is an IPv4 or IPv6 address; the latter may have a zone."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def parse_port(text: str, *, where: str = "", lowest: int = 1) -> int:
    """Read a TCP port, ``lowest`` to 65535; 0 asks for a free one where that makes sense."""
    if re.fullmatch("[0-9]{1,5}", text) is None or not lowest <= int(text) <= 65535:
        raise ConfigError(
            f"{printable(text, 40) or 'an empty text'} is not a port",
            where=where,
            remedy=f"write a number from {lowest} to 65535",
        )
    return int(text)


def _split_port(text: str) -> tuple[str | None, str]:
    """Split ``[host]:port``, ``host:port``, ``host/port`` or ``port``; None: no host."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\][:/](.*)", text, re.DOTALL)
    if bracketed:
        return bracketed[1], bracketed[2]
    for separator in ("/", ":"):
        host, found, port = text.rpartition(separator)
        if found:
            return host, port
    return None, text


def parse_listen_address(text: str, *, where: str = "") -> tuple[str, int]:
    """Read where a server listens, ``[address:]port``; without one it is `ALL_INTERFACES`.

    Port 0 is any free one.
    """
    host, port_text = _split_port(text)
    port = parse_port(port_text, where=where, lowest=0)
    if host in (None, "", ALL_INTERFACES):
        return ALL_INTERFACES, port
    if ":" in host and not is_address(host):
        raise ConfigError(
            f"{printable(text)} has too many colons",
            where=where,
            remedy="write [bind_address:]port, and an IPv6 address in brackets",
        )
    if ":" in host and not text.startswith("[") and "/" not in text:
        raise ConfigError(
            f"in {printable(text)} address and port cannot be told apart",
            where=where,
            remedy="write the IPv6 address in brackets, as in [::1]:6000",
        )
    return check_real_host(host, where=where), port


@dataclass(frozen=True, slots=True)
class Destination:
    """What the command line names: the host may be an alias of ssh_config(5)."""

    user: str | None
    host: str
    port: int | None


def parse_destination(text: str, *, where: str = "destination") -> Destination:
    """Read ``[user@]host`` or ``ssh://[user@]host[:port][/]`` (ssh(1))."""
    if text[:6].lower() == "ssh://":
        return _parse_uri(text, where)
    user, at, host = text.rpartition("@")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    check_host_name(host, where=where)
    if ":" in host and not is_address(host):
        raise ConfigError(
            f"{printable(host)} is neither a host name nor an IPv6 address",
            where=where,
            remedy="give the port with -p PORT, or write ssh://HOST:PORT",
        )
    return Destination(check_user_name(user, where=where) if at else None, host, None)


def parse_jumps(text: str, *, where: str = "ProxyJump") -> tuple[Destination, ...]:
    """Read ``[user@]host[:port]`` or ``ssh://[user@]host[:port]``, with commas between the hops.

    They are in the order of connecting; none of them stands for ``none`` (readconf.c, parse_jump).
    """
    if text.lower() == "none":
        return ()
    return tuple(_parse_jump(hop, where) for hop in text.split(","))


def _parse_jump(text: str, where: str) -> Destination:
    if text[:6].lower() == "ssh://":
        return _parse_uri(text, where)
    user, at, rest = text.rpartition("@")
    found = _JUMP.fullmatch(rest)
    if found is None:
        raise ConfigError(
            f"{printable(text, 60) or 'an empty text'} is no jump host",
            where=where,
            remedy="write [user@]host[:port] with commas between them, IPv6 addresses in brackets",
        )
    bracketed, plain, port = found.groups()
    host = check_host_name(bracketed or plain or "", where=where)
    if ":" in host and not is_address(host):
        raise ConfigError(
            f"{printable(host)} is no IPv6 address", where=where, remedy="check what is in brackets"
        )
    return Destination(
        check_user_name(user, where=where) if at else None,
        host,
        None if port is None else parse_port(port, where=where),
    )


def _parse_uri(text: str, where: str) -> Destination:
    rest, _, path = text[6:].partition("/")
    if path:
        raise ConfigError(
            f"the URI {printable(text)} has a path",
            where=where,
            remedy="write ssh://[user@]host[:port]",
        )
    user, at, host_and_port = rest.rpartition("@")
    if ";" in user or ":" in user:
        # A password would be seen in the process list, and a fingerprint must not go unchecked.
        raise ConfigError(
            f"the URI {printable(text)} has more than a user name before the @",
            where=where,
            remedy="write ssh://[user@]host[:port]",
        )
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", host_and_port, re.DOTALL)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    else:
        host, colon, after = host_and_port.partition(":")
        port = after if colon else None
    check_real_host(host, where=where)
    return Destination(
        check_user_name(_percent_decoded(user, where), where=where) if at else None,
        host,
        None if port is None else parse_port(port, where=where),
    )


def _percent_decoded(user: str, where: str) -> str:
    if any(not found[1] for found in _PERCENT.finditer(user)):
        raise ConfigError(
            f"the user name {printable(user)} has a % without two hexadecimal digits",
            where=where,
            remedy="write a percent sign in a URI as %25",
        )
    try:
        return urllib.parse.unquote(user, errors="strict")
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"the user name {printable(user)} is not UTF-8", where=where, remedy="write it in UTF-8"
        ) from exc


@dataclass(frozen=True, slots=True)
class HostPort:
    """One ``HOST:PORT`` of a rule; None stands for ``*``, that is any.

    The host is a lower-case name or the usual spelling of an address.
    """

    host: str | None
    port: int | None

    def __str__(self) -> str:
        host = "*" if self.host is None else self.host
        port = "*" if self.port is None else str(self.port)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @classmethod
    def parse(cls, text: str, *, where: str = "") -> HostPort:
        """Read ``HOST:PORT``, either of which may be ``*``; an IPv6 address stands in brackets."""
        found = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([^:]*)", text, re.DOTALL)
        if found is None:
            raise ConfigError(
                f"{printable(text, 60) or 'an empty text'} is not of the form HOST:PORT",
                where=where,
                remedy="write HOST:PORT, HOST:* or *:PORT, and an IPv6 address in brackets",
            )
        bracketed, plain, port = found.groups()
        return cls(
            None if plain == "*" else _normal_host(bracketed or plain or "", where),
            None if port == "*" else parse_port(port, where=where),
        )


def _normal_host(host: str, where: str) -> str:
    checked = check_real_host(host, where=where)
    return str(ipaddress.ip_address(checked)) if is_address(checked) else checked
