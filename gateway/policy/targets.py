"""What rules name and what users ask for, and whether the one covers the other.

A target *covers* a request, or it *names* it as well. A wildcard covers; an exact name, an exact
address and one port name. Some requests need a rule that names them: addresses of the box itself
and other special ones, and the ports where mail is handed in (T55, T67).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, ip_address, ip_network
from typing import ClassVar, Final

from gateway.errors import ConfigError, printable
from gateway.policy.addresses import (
    Address,
    Network,
    lies_within,
    special_range,
    unmapped,
    unmapped_network,
)

ANY: Final = "*"
MAIL_PORTS: Final = frozenset({25, 465, 587})
LOCALHOST: Final = "localhost"
POINT_TO_POINT: Final = "tun"  # layer 3; ssh_config(5), Tunnel
TUN_KINDS: Final = (POINT_TO_POINT, "tap")  # "tap" is ethernet, layer 2

MAXIMUM_PORT: Final = 65535
MAXIMUM_NAME_LENGTH: Final = 253  # RFC 1035 §2.3.4
MAXIMUM_HOST_LENGTH: Final = 255  # of what is requested
MAXIMUM_SOCKET_PATH_BYTES: Final = 107  # sun_path without its NUL, unix(7)

_LOOPBACKS: Final = (ip_address("127.0.0.1"), ip_address("::1"))


class Action(Enum):
    """What a user may ask for."""

    OPEN = "open"  # direct-tcpip
    LISTEN = "listen"  # tcpip-forward
    TUN = "tun"  # tun@openssh.com
    UNIX = "unix"  # direct-streamlocal@openssh.com and streamlocal-forward@openssh.com


class Finding(Enum):
    """What a look at one rule or one target gave."""

    OTHER_ACTION = "it is about something else"
    OTHER_USERS = "it is for others"
    OTHER_TARGETS = "it does not cover this"
    NOT_NAMED = "it covers this without naming it"
    APPLIES = "it applies"


def canonical_name(host: str) -> str:
    """Return a name as the resolver is asked for it: IDNA, lower case, without the last dot.

    What is too long for a name stays as it is: with 255 KB of a peer, IDNA takes seconds.
    """
    if not host.isascii() and len(host) <= MAXIMUM_HOST_LENGTH:
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:  # getaddrinfo raises the same: nothing will be dialled
            return host
    return host.lower().rstrip(".")


# ---- targets -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostPorts:
    """Hosts and ports: a name, ``*.name``, ``*`` or a network, and the ports ``first`` to ``last``.

    All ports are 0 to 65535; with 0 a listener asks for any free port, and no range holds it.
    """

    text: str
    name: str
    network: Network | None
    zone: str
    first: int
    last: int

    def covers_port(self, port: int) -> bool:
        """Say whether the port is one of these."""
        return self.first <= port <= self.last

    def names_port(self, port: int) -> bool:
        """Say whether this is about one port only."""
        return self.first == self.last == port

    def covers_address(self, address: Address) -> bool:
        """Say whether an address, with its zone, is one of these."""
        if self.network is None:
            return self.name == ANY
        return address in self.network and (
            not self.zone or (isinstance(address, IPv6Address) and address.scope_id == self.zone)
        )

    def covers_host(self, name: str, address: Address) -> bool:
        """Say whether a name in its canonical form, or the address it stands for, is covered."""
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) >= len(self.name)
        return self.covers_address(address) if not self._is_exact else name == self.name

    def names_host(self, name: str, address: Address) -> bool:
        """Say whether this can only mean that host, or only what is special in the same way."""
        if self.network is None:
            return self._is_exact and name == self.name
        return self.covers_address(address) and _names(self.network, address)

    @property
    def _is_exact(self) -> bool:
        return self.network is None and not self.name.startswith(ANY)


def _names(network: Network, address: Address) -> bool:
    """Say whether a network with that address is no more than it, or all of it as special."""
    special = special_range(address)
    return network.prefixlen == network.max_prefixlen or (
        special is not None and lies_within(network, special[0])
    )


@dataclass(frozen=True, slots=True)
class Inner:
    """Where packets of a layer-3 device may go: a network."""

    text: str
    network: Network

    def covers(self, address: Address) -> bool:
        """Say whether an address is in it."""
        return address in self.network

    def names(self, address: Address) -> bool:
        """Say whether this can only mean that address, or only what is special in the same way."""
        return self.covers(address) and _names(self.network, address)


@dataclass(frozen=True, slots=True)
class Plain:
    """A kind of tun device, or a path; ``*`` is all of them and ``/folder/*`` all below it."""

    text: str

    def covers(self, text: str) -> bool:
        """Say whether that is meant."""
        if self.text.endswith("/*"):
            return text.startswith(self.text[:-1])
        return self.text in (ANY, text)


Target = HostPorts | Inner | Plain

_HOST_PORTS: Final = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([^:]*)")
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_NAME: Final = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)*"
                          r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?", re.ASCII)  # fmt: skip
_LOOKS_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)
_HOST_FORMS: Final = (
    "write a name, *.name, *, an address or a network such as 10.0.0.0/8, "
    "and IPv6 in brackets as in [2001:db8::1]:443"
)
_NETWORK_FORMS: Final = "write one such as 10.0.0.0/8 or fd20::/64"
_TUN_FORMS: Final = "write tun, tap, *, or a network such as 10.20.0.0/16"


def parse_target(text: str, action: Action = Action.OPEN, *, where: str = "") -> Target:
    """Read one entry of a rule's ``to``; ``where`` is its file and key, for the error.

    "host:ports" to open and to listen, a kind of device or a network for tun, a path for unix.
    `ConfigError` says what is wrong, and what to write instead.
    """
    if not text.isprintable():
        raise _error(f"{_shown(text)} has a character that cannot be seen", "remove it", where)
    if action is Action.TUN:
        return _parse_tun(text, where)
    if action is Action.UNIX:
        path = f"{text[:-1]}x" if text.endswith("/*") else text
        if text != ANY and ("*" in path or path_problem(path)):
            raise _error(
                f"{_shown(text)} is not the path of a socket",
                "write an absolute path without . and .., /folder/* or *",
                where,
            )
        return Plain(text)
    return _parse_host_ports(text, where)


def _parse_tun(text: str, where: str) -> Target:
    if text in (ANY, *TUN_KINDS):
        return Plain(text)
    if "/" in text:
        return Inner(text, unmapped_network(parse_network(text, where)))
    exact = host_ports(text, None)
    if exact.network is None or exact.zone:
        raise _error(f"{_shown(text)} is no kind of device, and no network", _TUN_FORMS, where)
    return Inner(text, exact.network)


def host_ports(host: str, port: int | None, text: str = "") -> HostPorts:
    """Return what an exact host, or ``*``, and a port, or None for all, mean; nothing is checked.

    An IPv4-mapped or NAT64 address is the IPv4 address in it, as everywhere here.
    """
    name, network, zone = host, None, ""
    try:
        address = unmapped(ip_address(host))
    except ValueError:
        name = canonical_name(host)
    else:
        name = ""
        zone = (address.scope_id or "") if isinstance(address, IPv6Address) else ""
        network = ip_network(str(address).partition("%")[0])
    first, last = (0, MAXIMUM_PORT) if port is None else (port, port)
    shown_port = ANY if port is None else port
    return HostPorts(text or f"{host}:{shown_port}", name, network, zone, first, last)


def _parse_host_ports(text: str, where: str) -> HostPorts:
    found = _HOST_PORTS.fullmatch(text)
    if found is None:
        raise _error(f"{_shown(text)} is not of the form HOST:PORTS", _HOST_FORMS, where)
    bracketed, plain, port_text = found.groups()
    first, last = _parse_ports(port_text, where)
    host = bracketed if plain is None else plain
    if "/" in host:
        network = unmapped_network(parse_network(host, where))
        return HostPorts(text, "", network, "", first, last)
    if host == ANY and bracketed is None:
        return HostPorts(text, ANY, None, "", first, last)
    exact = host_ports(host, None, text)
    if exact.network is None:
        name = exact.name
        usable = _NAME.fullmatch(name) and len(name) <= MAXIMUM_NAME_LENGTH
        if bracketed is not None or not usable or _LOOKS_NUMERIC.fullmatch(name):
            raise _error(f"{_shown(host)} is neither a name nor an address", _HOST_FORMS, where)
    return HostPorts(text, exact.name, exact.network, exact.zone, first, last)


def _parse_ports(text: str, where: str) -> tuple[int, int]:
    if text == ANY:
        return 0, MAXIMUM_PORT
    found = _PORTS.fullmatch(text)
    if found is not None:
        first = int(found[1])
        last = first if found[2] is None else int(found[2])
        if 1 <= first <= last <= MAXIMUM_PORT:
            return first, last
    raise _error(
        f"{_shown(text)} is not a port",
        f"write a number from 1 to {MAXIMUM_PORT}, a range such as 1-1024, or *",
        where,
    )


def parse_network(text: str, where: str = "") -> Network:
    """Read a network such as 10.0.0.0/8; `ConfigError` says what is wrong, bits of a host too."""
    address, _, length = text.partition("/")
    if re.fullmatch("[0-9]{1,3}", length, re.ASCII) and "%" not in address:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            pass
        else:
            if str(network.network_address) == str(ip_address(address)):
                return network
            raise _error(f"{_shown(text)} is an address inside {network}",
                         f"write {network}, or the address alone", where)  # fmt: skip
    raise _error(f"{_shown(text)} is not a network", _NETWORK_FORMS, where)


def _shown(text: str) -> str:
    return printable(text, 80) or "an empty text"


def _error(problem: str, remedy: str, where: str) -> ConfigError:
    return ConfigError(problem, where=where, remedy=remedy)


def path_problem(path: str) -> str:
    """Say why a path is none that rules can speak about, or "" if it is one."""
    if not path.isprintable() or len(path.encode()) > MAXIMUM_SOCKET_PATH_BYTES:
        return "not the path of a socket"
    first, *parts = path.split("/")
    if first or not parts or any(part in ("", ".", "..") for part in parts):
        return "not an absolute path without . and .."
    return ""


# ---- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request(ABC):
    """What a user asks for. ``problem`` says why no rule can allow it, or is ""."""

    action: ClassVar[Action]
    problem: str

    @property
    @abstractmethod
    def shown(self) -> str:
        """The request in words, after "to"; safe to print."""

    @abstractmethod
    def look_at(self, target: Target, *, allow: bool) -> Finding:
        """Say whether a target applies, of a rule that allows this or of one that denies it.

        One that allows has to name `must_be_named`; one that denies concerns all that it touches.
        """

    @property
    def must_be_named(self) -> tuple[str, str]:
        """What a rule has to name before it may allow this, and why; "" twice if nothing."""
        return "", ""


@dataclass(frozen=True, slots=True)
class OpenRequest(Request):
    """A connection to ``address``, which is what the requested host stands for."""

    action: ClassVar[Action] = Action.OPEN
    host: str
    port: int
    address: Address
    special: str

    @classmethod
    def make(cls, host: str, port: int, address: Address, own: str = "") -> OpenRequest:
        """Make one of a host as it was requested; ``own`` is said of an address of the box."""
        address = unmapped(address)
        problem = "" if 1 <= port <= MAXIMUM_PORT else f"port {port} does not exist"
        if not host or len(host) > MAXIMUM_HOST_LENGTH or " " in host or not host.isprintable():
            # Also because the resolver of C ends a name at a NUL.
            problem = f"{printable(host, 80) or 'an empty text'} is no host"
        special = special_range(address)
        return cls(problem, host, port, address, own if special is None else special[1])

    @property
    def shown(self) -> str:
        """As "open db.internal port 5432"."""
        return f"open {printable(self.host, 255)} port {self.port}"

    @property
    def must_be_named(self) -> tuple[str, str]:
        """An address that is special, or a port for mail."""
        if self.special:
            port = f" and port {self.port}" if self.port in MAIL_PORTS else ""
            why = f"{self.address} is {self.special}; a rule must name it{port}"
            return "special-address", why
        if self.port in MAIL_PORTS:
            return "mail-port", f"port {self.port} is for sending mail; a rule must name that port"
        return "", ""

    def look_at(self, target: Target, *, allow: bool) -> Finding:
        """Compare name, address and port."""
        name = canonical_name(self.host)
        if (
            not isinstance(target, HostPorts)
            or not target.covers_port(self.port)
            or not target.covers_host(name, self.address)
        ):
            return Finding.OTHER_TARGETS
        if allow and (
            (self.special and not target.names_host(name, self.address))
            or (self.port in MAIL_PORTS and not target.names_port(self.port))
        ):
            return Finding.NOT_NAMED
        return Finding.APPLIES


@dataclass(frozen=True, slots=True)
class ListenRequest(Request):
    """A listener: on one address, on "localhost", or on all addresses (RFC 4254 §7.1).

    ``addresses`` is empty for all; ``unspecified`` also holds for 0.0.0.0 and ::, all of a family.
    """

    action: ClassVar[Action] = Action.LISTEN
    host: str
    port: int
    addresses: tuple[Address, ...]
    unspecified: bool

    @classmethod
    def make(cls, host: str, port: int) -> ListenRequest:
        """Make one of a bind address as it was requested. No name but localhost will do."""
        problem = "" if 0 <= port <= MAXIMUM_PORT else f"port {port} does not exist"
        addresses: tuple[Address, ...] = ()
        if canonical_name(host) == LOCALHOST:
            addresses = _LOOPBACKS
        elif host not in ("", ANY):
            try:
                addresses = (unmapped(ip_address(host)),)
            except ValueError:
                problem = f"{printable(host, 255)} is no address to listen on"
        unspecified = not addresses or addresses[0].is_unspecified
        return cls(problem, host, port, addresses, unspecified)

    @property
    def shown(self) -> str:
        """As "listen on 0.0.0.0 port 8080"."""
        return f"listen on {printable(self.host, 255) or ANY} port {self.port}"

    def look_at(self, target: Target, *, allow: bool) -> Finding:
        """Compare addresses; what is for all of them concerns each, but is allowed only as such."""
        if not isinstance(target, HostPorts) or not target.covers_port(self.port):
            return Finding.OTHER_TARGETS
        if target.name == ANY or (self.unspecified and not allow):
            return Finding.APPLIES
        if target.name == LOCALHOST:
            covered = any(address in _LOOPBACKS for address in self.addresses)
        elif self.unspecified:
            covered = any(target.names_host("", address) for address in self.addresses)
        else:
            covered = any(target.covers_address(address) for address in self.addresses)
        return Finding.APPLIES if covered else Finding.OTHER_TARGETS


@dataclass(frozen=True, slots=True)
class _PlainRequest(Request):
    text: str

    def look_at(self, target: Target, *, allow: bool) -> Finding:  # noqa: ARG002 - none is special
        """Compare the texts."""
        covered = isinstance(target, Plain) and target.covers(self.text)
        return Finding.APPLIES if covered else Finding.OTHER_TARGETS


@dataclass(frozen=True, slots=True)
class TunRequest(_PlainRequest):
    """A tun device: "tun" (point-to-point) or "tap" (ethernet)."""

    action: ClassVar[Action] = Action.TUN

    @classmethod
    def make(cls, kind: str) -> TunRequest:
        """Make one of a kind."""
        return cls("" if kind in TUN_KINDS else f"{printable(kind, 40)} is no kind of device", kind)

    @property
    def shown(self) -> str:
        """As "use a tun device"."""
        return f"use a {printable(self.text, 40)} device"

    def look_at(self, target: Target, *, allow: bool) -> Finding:
        """Compare kinds; who may reach a network needs a layer-3 device for it.

        A network that is denied takes away what may be reached, and no device.
        """
        if isinstance(target, Inner):
            is_for = allow and self.text == POINT_TO_POINT
            return Finding.APPLIES if is_for else Finding.OTHER_TARGETS
        return _PlainRequest.look_at(self, target, allow=allow)


@dataclass(frozen=True, slots=True)
class TunPacketRequest(Request):
    """A packet through a layer-3 device to ``address``."""

    action: ClassVar[Action] = Action.TUN
    address: Address
    special: str

    @classmethod
    def make(cls, address: Address, own: str = "") -> TunPacketRequest:
        """Make one of a destination; ``own`` is said of an address of the box."""
        address = unmapped(address)
        special = special_range(address)
        return cls("", address, own if special is None else special[1])

    @property
    def shown(self) -> str:
        """As "reach 10.20.0.5 through a tun device"."""
        return f"reach {printable(str(self.address), 80)} through a tun device"

    @property
    def must_be_named(self) -> tuple[str, str]:
        """An address that is special."""
        if self.special:
            return "special-address", f"{self.address} is {self.special}; a rule must name it"
        return "", ""

    def look_at(self, target: Target, *, allow: bool) -> Finding:
        """Compare the address; what is for the device is for all that needs no name."""
        if isinstance(target, Inner):
            covered, named = target.covers(self.address), target.names(self.address)
        else:
            covered = isinstance(target, Plain) and target.covers(POINT_TO_POINT)
            named = False
        if not covered:
            return Finding.OTHER_TARGETS
        return Finding.NOT_NAMED if allow and self.special and not named else Finding.APPLIES


@dataclass(frozen=True, slots=True)
class UnixRequest(_PlainRequest):
    """A unix socket, to connect to or to listen on. Symbolic links are not followed here."""

    action: ClassVar[Action] = Action.UNIX

    @classmethod
    def make(cls, path: str) -> UnixRequest:
        """Make one of a path."""
        problem = path_problem(path)
        return cls(f"{printable(path, 108)} is {problem}" if problem else "", path)

    @property
    def shown(self) -> str:
        """As "use the socket /run/x.sock"."""
        return f"use the socket {printable(self.text, 108)}"
