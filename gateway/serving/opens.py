"""What a client wants connected: "direct-tcpip" (RFC 4254 §7.2) and sockets of this machine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ConnectionLost, GatewayError, RemoteProtocolError, printable
from gateway.net.dial import DialError, DialOptions, connect_unix, dial
from gateway.net.listen import describe
from gateway.policy.rules import Action, Verdict
from gateway.serving.authorize import authorize
from gateway.serving.channels import Refused
from gateway.ssh.messages import DirectStreamlocal, DirectTcpip
from gateway.ssh.numbers import OpenFailure

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from gateway import events
    from gateway.serving.channels import Channels, Record

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 30.0  # for a target
MAXIMUM_PATH: Final = 107  # bytes of a socket's path: sun_path of unix(7) without its NUL


class _Denied(GatewayError):
    """The policy said no."""


class Opens:
    """The targets of one link."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._shared = channels.shared
        self._link = channels.link

    def requested(self, event: events.ChannelOpenRequested) -> None:
        """Take an open of one of the two types. Raises `Refused`."""
        try:
            if event.channel_type == DirectTcpip.channel_type:
                target = DirectTcpip.decode_untrusted(event.type_specific)
                self._open_tcpip(event.channel_id, target)
            else:
                socket_target = DirectStreamlocal.decode_untrusted(event.type_specific)
                self._open_unix(event.channel_id, socket_target.socket_path)
        except RemoteProtocolError as error:
            raise Refused(str(error), OpenFailure.CONNECT_FAILED) from error

    # -- TCP ---------------------------------------------------------------------------------------

    def _open_tcpip(self, channel_id: int, target: DirectTcpip) -> None:
        requested = f"{printable(target.host_to_connect, 255)} port {target.port_to_connect}"
        originator = f"{printable(target.originator_address, 64)} port {target.originator_port}"
        record = self._channels.begin(target.channel_type, requested, originator)

        async def run() -> None:
            try:
                await self._direct_tcpip(channel_id, target, record)
            finally:
                if record.channel_id < 0:
                    record.release()

        self._channels.start_soon(run, lambda: self._internal_error(channel_id, record))

    def _internal_error(self, channel_id: int, record: Record) -> None:
        if record.channel_id < 0:
            record.fail(channel_id, "an internal error of the server")
        self._link.refuse_channel(
            channel_id, OpenFailure.CONNECT_FAILED, "an internal error of the server"
        )

    async def _direct_tcpip(self, channel_id: int, target: DirectTcpip, record: Record) -> None:
        decided: list[tuple[str, Verdict]] = []
        tried = ""

        def permit(address: IPv4Address | IPv6Address) -> None:
            nonlocal tried
            what = f"{record.requested} ({address})"
            verdict = self._decide(target, address)
            if not verdict.allowed:
                self._decided(channel_id, "open", what, verdict)
                raise _Denied(verdict.reason)
            tried, record.rule_id = f"{address} port {target.port_to_connect}", verdict.rule_id
            decided.append((what, verdict))

        try:
            sock = await self._dial(target, permit)
        except _Denied as error:
            self._channels.missed(record.requested)
            self._link.refuse_channel(
                channel_id, OpenFailure.ADMINISTRATIVELY_PROHIBITED, str(error)
            )
            return
        except DialError as error:
            log.info("link %d: %s: %s", self._link.link_id, record.requested, error.text)
            record.fail(channel_id, error.text, tried)
            self._channels.missed(record.requested)
            self._link.refuse_channel(channel_id, OpenFailure.CONNECT_FAILED, error.text)
            return
        except trio.Cancelled:
            record.fail(channel_id, "the connection ended first", tried)
            raise
        self._decided(channel_id, "open", *decided[-1])
        self._carry(channel_id, record, sock)

    def _decided(self, channel_id: int, action: str, what: str, verdict: Verdict) -> None:
        self._channels.decided(
            channel_id, action, what, verdict.reason,
            allowed=verdict.allowed, rule_id=verdict.rule_id,
        )  # fmt: skip

    def _decide(self, target: DirectTcpip, address: IPv4Address | IPv6Address) -> Verdict:
        host, port = target.host_to_connect, target.port_to_connect
        login = self._channels.login
        return authorize(self._shared.policy, login, Action.OPEN, host, port, address)

    async def _dial(
        self, target: DirectTcpip, permit: Callable[[IPv4Address | IPv6Address], None]
    ) -> socket.socket:
        if not 0 < target.port_to_connect < 65536:
            raise DialError(target.host_to_connect, f"port {target.port_to_connect} does not exist")
        return await dial(
            target.host_to_connect,
            target.port_to_connect,
            DialOptions(timeout_s=CONNECT_TIMEOUT_S),
            permit=permit,
            hosts=self._shared.options.hosts,
        )

    # -- sockets of this machine -------------------------------------------------------------------

    def _open_unix(self, channel_id: int, path: str) -> None:
        shown = printable(path, 255)
        if not path.startswith("/") or "\0" in path or len(path.encode()) > MAXIMUM_PATH:
            raise Refused(
                f"{shown} is no path of a socket", OpenFailure.CONNECT_FAILED, asked=shown
            )
        verdict = authorize(self._shared.policy, self._channels.login, Action.UNIX, path)
        if not verdict.allowed:
            self._channels.missed(shown)
            raise Refused(verdict.reason, asked=shown, rule_id=verdict.rule_id)
        record = self._channels.begin(DirectStreamlocal.channel_type, shown)
        record.rule_id = verdict.rule_id
        self._decided(channel_id, "unix", shown, verdict)
        try:
            sock = connect_unix(path)
        except DialError as error:
            record.fail(channel_id, error.text, path)
            self._link.refuse_channel(channel_id, OpenFailure.CONNECT_FAILED, error.text)
            return
        self._carry(channel_id, record, sock)

    # -- both --------------------------------------------------------------------------------------

    def _carry(self, channel_id: int, record: Record, sock: socket.socket) -> None:
        dialled = ""
        try:
            dialled = describe(sock.getpeername())
            port = self._link.confirm_channel(channel_id)
        except OSError as error:  # the target is gone already
            sock.close()
            text = error.strerror or str(error)
            record.fail(channel_id, text)
            self._link.refuse_channel(channel_id, OpenFailure.CONNECT_FAILED, text)
            return
        except ConnectionLost:
            sock.close()
            record.fail(channel_id, "the connection ended first", dialled)
            return
        self._channels.relay(record, sock, port, dialled)
