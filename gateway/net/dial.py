"""Connecting: names resolved in threads of their own, addresses tried as RFC 8305 (Happy Eyeballs)
says.

Every address passes ``permit`` before it is dialled, and it is that address which is dialled, so a
name that resolves differently a moment later gains nothing (DNS rebinding). Blocking name look-ups
have a limiter of their own: however many hang, everything else goes on.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import GatewayError, printable
from gateway.net.poller import Readiness
from gateway.policy.targets import MAXIMUM_HOST_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# ---- RFC 8305 ------------------------------------------------------------------------------------
ATTEMPT_DELAY_S: Final = 0.25  # §5, Connection Attempt Delay

# ---- our own choices -----------------------------------------------------------------------------
MAXIMUM_LOOKUPS: Final = 64  # look-ups at once, each a thread
LOOKUP_TIMEOUT_S: Final = 10.0
MAXIMUM_ADDRESSES: Final = 8  # of one name; more are not tried

_lookups = trio.lowlevel.RunVar[trio.CapacityLimiter]("gateway name look-ups")


class DialError(GatewayError):
    """No connection was made; ``text`` is from strerror or gai_strerror, as OpenSSH reports it."""

    def __init__(self, target: str, text: str, error_number: int = 0) -> None:
        super().__init__(f"{target}: {text}")
        self.text = text
        self.error_number = error_number


class NameResolutionError(DialError):
    """The name could not be resolved."""


@dataclass(frozen=True, slots=True)
class DialOptions:
    """How to connect. ``mark`` is SO_MARK; 0 sets none. ``traffic_class`` is the IP header's."""

    family: int = socket.AF_UNSPEC
    bind_address: str | None = None
    mark: int = 0
    timeout_s: float = 30.0
    bind_interface: str | None = None
    traffic_class: int | None = None
    keep_alive: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """One socket address, and how getaddrinfo described it."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """The IP address alone."""
        return ip_address(self.sockaddr[0])


def _allow(_address: IPv4Address | IPv6Address) -> None:
    """Permit everything."""


async def resolve(
    host: str,
    port: int,
    *,
    family: int = socket.AF_UNSPEC,
    hosts: Mapping[str, str] | None = None,
) -> list[Address]:
    """Return the addresses of a name, both families in turn; ``hosts`` goes before DNS.

    Raises `NameResolutionError`.
    """
    host = (hosts or {}).get(host.lower().rstrip("."), host)
    if len(host) > MAXIMUM_HOST_LENGTH:  # IDNA, in getaddrinfo, takes seconds with 255 KB
        raise NameResolutionError(printable(host, 80), "it is too long for a name")
    try:
        limiter = _lookups.get()
    except LookupError:
        limiter = trio.CapacityLimiter(MAXIMUM_LOOKUPS)
        _lookups.set(limiter)

    def look_up(flags: int) -> list[Address]:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, flags)
        return [Address(int(entry[0]), entry[4]) for entry in found]  # type: ignore[arg-type]

    try:
        return look_up(socket.AI_NUMERICHOST)  # no thread for what needs no look-up
    except socket.gaierror:
        pass
    except (UnicodeError, OSError, OverflowError) as error:
        raise NameResolutionError(printable(host), str(error)) from error
    try:
        with trio.fail_after(LOOKUP_TIMEOUT_S):
            addresses = await trio.to_thread.run_sync(
                look_up, socket.AI_ADDRCONFIG, abandon_on_cancel=True, limiter=limiter
            )
    except trio.TooSlowError:
        raise NameResolutionError(
            printable(host), "Temporary failure in name resolution", errno.ETIMEDOUT
        ) from None
    except socket.gaierror as error:
        raise NameResolutionError(printable(host), error.strerror or str(error)) from error
    except (UnicodeError, OSError) as error:
        raise NameResolutionError(printable(host), "Name or service not known") from error
    return _interleaved(addresses)[:MAXIMUM_ADDRESSES]


def _interleaved(addresses: list[Address]) -> list[Address]:
    """Alternate between the families, the resolver's first one first (RFC 8305 §4)."""
    first = [address for address in addresses if address.family == addresses[0].family]
    second = [address for address in addresses if address.family != addresses[0].family]
    mixed = []
    for index in range(max(len(first), len(second))):
        mixed += first[index : index + 1] + second[index : index + 1]
    return mixed


async def dial(
    host: str,
    port: int,
    options: DialOptions | None = None,
    *,
    permit: Callable[[IPv4Address | IPv6Address], None] = _allow,
    hosts: Mapping[str, str] | None = None,
) -> socket.socket:
    """Connect to a name or address; return a non-blocking socket.

    ``permit`` is called with every address before any is dialled and raises to forbid it; if one is
    forbidden, none is dialled. Raises `DialError`, or what ``permit`` raised.
    """
    options = options or DialOptions()
    target = f"{printable(host)} port {port}"
    with trio.move_on_after(options.timeout_s):
        addresses = await resolve(host, port, family=options.family, hosts=hosts)
        for address in addresses:
            permit(address.ip)
        return await _race(target, addresses, options)
    raise DialError(target, os.strerror(errno.ETIMEDOUT), errno.ETIMEDOUT)


def connect_unix(path: str) -> socket.socket:
    """Connect to a socket of this machine; return a non-blocking socket. Raises `DialError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.connect(path)  # at once or not at all (connect(2), EAGAIN)
    except OSError as error:
        sock.close()
        raise DialError(printable(path), error.strerror or str(error), error.errno or 0) from error
    return sock


async def _race(target: str, addresses: list[Address], options: DialOptions) -> socket.socket:
    """Start an attempt every 250 ms, or as soon as the last one failed; the first success wins."""
    if len(addresses) == 1:  # nothing to race
        try:
            return await _attempt(addresses[0], options)
        except OSError as error:
            raise _as_dial_error(target, [error]) from error
    winners: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(address: Address, failed: trio.Event) -> None:
        try:
            sock = await _attempt(address, options)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if winners:
            sock.close()
        else:
            winners.append(sock)
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(ATTEMPT_DELAY_S):
                    await failed.wait()
    except BaseException:  # cancelled from outside, perhaps after an attempt has won
        for sock in winners:
            sock.close()
        await trio.lowlevel.checkpoint_if_cancelled()  # the callers expect no group of them
        raise
    if winners:
        return winners[0]
    raise _as_dial_error(target, failures)


async def _attempt(address: Address, options: DialOptions) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        _set_options(sock, options)
        if options.bind_address:
            sock.bind((options.bind_address, 0))
        result = sock.connect_ex(address.sockaddr)
        if result == errno.EINPROGRESS:  # what the kernel says first, also where it is done by now
            result = sock.connect_ex(address.sockaddr)
        if result == errno.EALREADY:
            await _wait_event(sock)
            result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result:
            raise OSError(result, os.strerror(result))
    except BaseException:
        sock.close()
        raise
    return sock


async def _wait_event(sock: socket.socket) -> None:
    ready = Readiness(sock)
    try:
        await ready.wait()
    finally:
        ready.close()


def _set_options(sock: socket.socket, options: DialOptions) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, options.mark)
    if options.bind_interface is not None:
        name = options.bind_interface.encode()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
    if options.keep_alive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if options.traffic_class is not None:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, options.traffic_class)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, options.traffic_class)


# Which failure to report when several addresses failed differently: the most telling first.
_TELLING: Final = (
    errno.ECONNREFUSED,
    errno.EACCES,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
)


def _as_dial_error(target: str, failures: list[OSError]) -> DialError:
    def rank(error: OSError) -> int:
        return _TELLING.index(error.errno) if error.errno in _TELLING else len(_TELLING)

    error = min(failures, key=rank)
    return DialError(target, error.strerror or str(error), error.errno or 0)
