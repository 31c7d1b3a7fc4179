"""The chain of links to a host: the first over TCP, proxies or a command, each next one through a
channel of the one before.

Each link is one of its own: user, keys, host key, timeouts, keepalive. When one dies, the channel
of the next one breaks with its reason, so the last one ends with a sentence that names the culprit.
At the end they are closed from the far end backwards, so that each can say goodbye over the one
before; for that their tasks are shielded, and `Chain.aclose` must be called.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from gateway.config.ssh_config import FAMILIES
from gateway.errors import ChannelOpenError, ConnectionLost, GatewayError
from gateway.forward.local import UNKNOWN_ORIGINATOR
from gateway.net.carrier import SocketCarrier
from gateway.net.channel_carrier import ChannelCarrier
from gateway.net.dial import DialError, DialOptions, NameResolutionError, dial
from gateway.net.proxy_command import ProxyCommand
from gateway.net.via import dial_through
from gateway.ssh.messages import DirectTcpip
from gateway.ssh.numbers import OpenFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway import events
    from gateway.config.ssh_config import HostConfig
    from gateway.net.carrier import Carrier
    from gateway.net.login import ClientLink
    from gateway.socks.upstream import UpstreamProxy
    from gateway.ways.login import HostLogin

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 30.0  # when ConnectTimeout is not set; ssh(1) waits for TCP's own
ATTEMPT_PAUSE_S: Final = 1.0  # between ConnectionAttempts, as OpenSSH
_NO_WAY: Final = "there is no way to that network from here"
_DIAL_REMEDIES: Final = {
    errno.ECONNREFUSED: "nothing listens there; is the port right and the SSH server running?",
    errno.ETIMEDOUT: "no answer; is the host up and does a firewall let you through?",
    errno.ENETUNREACH: _NO_WAY,
    errno.EHOSTUNREACH: _NO_WAY,
    errno.EADDRNOTAVAIL: "the bind address (-b) is not one of this machine",
    errno.ENODEV: "there is no such interface (-B); ip link shows those of this machine",
    errno.EPERM: "with -B this needs the capability CAP_NET_RAW",
}
_OPEN_REMEDIES: Final[dict[int, str]] = {
    OpenFailure.ADMINISTRATIVELY_PROHIBITED: "its administrator has to allow this forwarding",
    OpenFailure.CONNECT_FAILED: "check the name, which that host looks up, and the port, and "
    "whether an SSH server runs there",
    OpenFailure.UNKNOWN_CHANNEL_TYPE: "it forwards no TCP connections, so it can be no jump host",
    OpenFailure.RESOURCE_SHORTAGE: "it has too many connections: try again later",
}


class Chain:
    """The links to ``logins``, the last of which is the host itself.

    ``mark`` is SO_MARK of the first connection. ``on_carrier`` is told of it: a socket, or the
    process id of the command that makes the connection. ``is_interactive``: the host itself gets a
    session with a terminal, which IPQoS is about.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        logins: Sequence[HostLogin],
        proxies: Sequence[UpstreamProxy] = (),
        *,
        mark: int = 0,
        is_interactive: bool = False,
        on_carrier: Callable[[socket.socket | int], object] | None = None,
    ) -> None:
        self._nursery = nursery
        self._logins = logins
        self._proxies = proxies
        self._mark = mark
        self._is_interactive = is_interactive and len(logins) == 1
        self._on_carrier = on_carrier
        self._running: list[tuple[ClientLink, trio.Event]] = []
        self._command: ProxyCommand | None = None

    async def reach(self) -> tuple[ClientLink, events.Authenticated]:
        """Log in to every host; return the last link. Raises `GatewayError` with one sentence."""
        first, *others = self._logins
        client, login = await self._log_in(first, None)
        for host in others:
            client, login = await self._log_in(host, client)
        self._start_host_keys_updates()
        return client, login

    def _start_host_keys_updates(self) -> None:
        """Let each host have its keys recorded, which may ask the person.

        Not before the last login: what is answered to a hop must not be taken for the answer to
        whether the next host's key is trusted.
        """
        for host, (client, _) in zip(self._logins, self._running, strict=True):
            if (update := host.host_keys_update(client)) is not None:
                self._nursery.start_soon(update)

    async def _log_in(
        self, host: HostLogin, before: ClientLink | None
    ) -> tuple[ClientLink, events.Authenticated]:
        """Log in to one host, whose ConnectTimeout is for the way to it and its answers."""
        timeout_s = host.config.connect_timeout_s or CONNECT_TIMEOUT_S
        if before is None:
            carrier, started_s = await self._first_carrier(host, timeout_s)
        else:
            started_s = trio.current_time()
            carrier = await _through(before, host, timeout_s)
        client = host.link(carrier)
        ended = trio.Event()
        self._running.append((client, ended))
        if before is not None or self._proxies or self._command is not None:
            client.link.acknowledge, client.link.peer_sends_singly = client.link.prod, True
        self._nursery.start_soon(_run, client, ended)
        try:
            login = await host.log_in(client, timeout_s - (trio.current_time() - started_s))
        except ConnectionLost as error:
            if reason := await self._why_command_ended():
                raise ConnectionLost(f"{host.name} was not reached: {reason}") from error
            raise
        if host is not self._logins[-1]:
            log.info("logged in to %s as %s", host.name, login.user_name)
        return client, login

    async def _why_command_ended(self) -> str:
        """Say why the command that carries the first link ended; nothing if it does not."""
        if self._command is None or self._command.sock is not None:
            return ""
        return await self._command.why_ended()

    async def explained(self, failure: GatewayError) -> GatewayError:
        """Say who is to blame for the end of the last link: the command, or a host before it."""
        reason = await self._why_command_ended()
        if reason and self._command is not None and self._command.has_failed:
            return ConnectionLost(f"{failure}: {reason}")
        last, _ = self._running[-1]
        for client, _ in self._running[:-1]:
            if (
                isinstance(failure, ConnectionLost)
                and client.link.is_silent
                and last.link.is_silent
            ):
                name = client.link.carrier.name
                return ConnectionLost(f"{failure}; nor is there one of {name}, which is before it")
        return failure

    async def aclose(self) -> None:
        """End all links, the last one first, and the command."""
        with trio.CancelScope(shield=True):
            for client, ended in reversed(self._running):
                client.link.close()
                await ended.wait()
            if self._command is not None:
                await self._command.aclose()

    # -- the first connection ----------------------------------------------------------------------

    async def _first_carrier(self, host: HostLogin, timeout_s: float) -> tuple[Carrier, float]:
        """Return what leads to the first host, and when it was begun."""
        command = host.config.proxy_command
        if command is None:
            sock, started_s = await self._dial(host, timeout_s)
            self._tell(sock)
            return SocketCarrier(sock, host.name), started_s
        started_s = trio.current_time()
        if not host.config.proxy_use_fdpass:
            self._command = await ProxyCommand.start(command, host.name)
            self._tell(self._command.pid)
            return self._command.carrier, started_s
        with trio.move_on_after(timeout_s):
            self._command = await ProxyCommand.start_for_socket(command, host.name)
        if self._command is None or self._command.sock is None:
            raise ConnectionLost(
                f"the ProxyCommand passed no connection to {host.name} within {timeout_s:.0f} s: "
                "does it know how to, and do you want ProxyUseFdpass?"
            )
        if self._mark:
            self._command.sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        self._tell(self._command.sock)
        return self._command.carrier, started_s

    def _tell(self, carrier: socket.socket | int) -> None:
        if self._on_carrier is not None:
            self._on_carrier(carrier)

    async def _dial(self, host: HostLogin, timeout_s: float) -> tuple[socket.socket, float]:
        """Connect, as often as ConnectionAttempts says; return the socket and when it was begun."""
        config = host.config
        options = dial_options(config, timeout_s, self._mark, is_interactive=self._is_interactive)
        attempt = 0
        while True:
            attempt += 1
            started_s = trio.current_time()
            try:
                return await self._attempt(config, options), started_s
            except NameResolutionError as error:
                raise ConnectionLost(f"cannot find {error}: check the name, or your DNS") from error
            except ConnectionLost as error:  # from a proxy
                if attempt >= config.connection_attempts:
                    raise
                log.info("%s", error)
            except DialError as error:
                name = self._first_name(config)
                if attempt >= config.connection_attempts:
                    raise ConnectionLost(
                        f"cannot connect to {name}: {error.text}: {_dial_remedy(error)}"
                    ) from error
                log.info("cannot connect to %s: %s", name, error.text)
            await trio.sleep(ATTEMPT_PAUSE_S)

    async def _attempt(self, config: HostConfig, options: DialOptions) -> socket.socket:
        if not self._proxies:
            return await dial(config.host_name, config.port, options)
        with trio.move_on_after(options.timeout_s):
            return await dial_through(self._proxies, config.host_name, config.port, options)
        names = " through ".join(f"the {proxy}" for proxy in reversed(self._proxies))
        raise ConnectionLost(
            f"{names} made no connection to {config.host_name} port {config.port} within "
            f"{options.timeout_s:.0f} s: is the host up, and does the proxy reach it?"
        )

    def _first_name(self, config: HostConfig) -> str:
        """Name what is dialled: the host, or the first proxy."""
        if self._proxies:
            return f"the {self._proxies[0]}"
        return f"{config.host_name} port {config.port}"


async def _run(client: ClientLink, ended: trio.Event) -> None:
    try:
        with trio.CancelScope(shield=True):
            await client.run()
    finally:
        ended.set()


def dial_options(
    config: HostConfig, timeout_s: float, mark: int, *, is_interactive: bool = False
) -> DialOptions:
    """Return how a host's configuration wants the first connection to be made."""
    return DialOptions(
        FAMILIES[config.address_family],
        config.bind_address,
        mark,
        timeout_s=timeout_s,
        bind_interface=config.bind_interface,
        traffic_class=config.ip_qos.interactive if is_interactive else config.ip_qos.bulk,
        keep_alive=config.tcp_keep_alive,
    )


def _dial_remedy(error: DialError) -> str:
    return _DIAL_REMEDIES.get(error.error_number, "check the address and the port")


async def _through(before: ClientLink, host: HostLogin, timeout_s: float) -> ChannelCarrier:
    """Have the host before connect to the next one. Raises `ConnectionLost`."""
    hop, config = before.link.carrier.name, host.config
    request = DirectTcpip(config.host_name, config.port, *UNKNOWN_ORIGINATOR)
    try:
        with trio.fail_after(timeout_s):
            port = await before.link.open_channel(request.channel_type, request.encode())
    except trio.TooSlowError as error:
        raise ConnectionLost(
            f"{hop} made no connection to {host.name} within {timeout_s:.0f} s: is that host up, "
            "and does a firewall let the hop through?"
        ) from error
    except ChannelOpenError as error:
        remedy = _OPEN_REMEDIES.get(error.reason_code, "its log may say why")
        raise ConnectionLost(f"{hop} does not connect to {host.name}: {error}: {remedy}") from error
    except GatewayError as error:
        raise ConnectionLost(f"{host.name} was not reached: {error}") from error
    return ChannelCarrier(port, host.name)
