"""`gateway connect`: one link, its forwardings, and perhaps a command.

A composition root: it wires `config`, `forward`, `net` and `ssh` together and contains no protocol.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from gateway import events
from gateway.config.fields import Tunnel
from gateway.config.ssh_config import FAMILIES
from gateway.errors import (
    ChannelOpenError,
    ConnectionLost,
    GatewayError,
    NetworkSetupError,
)
from gateway.forward import stdio
from gateway.forward.control import serve_control
from gateway.forward.local import Listener, ListenOptions, listen
from gateway.forward.table import ForwardOptions, Table
from gateway.forward.typed import TypedForwards
from gateway.net.console import Foreground, run_session
from gateway.net.links import LinkSet
from gateway.net.local_command import run_locally
from gateway.ways.chain import Chain
from gateway.ways.login import HostLogin

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from gateway.config.ssh_config import HostConfig
    from gateway.config.trust import Person
    from gateway.forward.spec import End, Forward
    from gateway.net.link import Link
    from gateway.net.login import ClientLink
    from gateway.net.session import SessionPlan
    from gateway.socks.upstream import UpstreamProxy
    from gateway.tun.client import DeviceTunnel
    from gateway.tun.options import VpnOptions

    Listening = list[tuple[Forward, Listener]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What `gateway connect` was told. Without a ``session`` there are the tunnel and the proxies.

    ``ready`` is called when the login is made and the forwardings are up. ``vpn`` is what --vpn
    asks for, ``stdio_forward`` what -W does. ``control_path`` is where `gateway forward` connects.
    ``hops`` are the hosts before the last one, ``proxies`` what is before the first.
    """

    config: HostConfig
    session: SessionPlan | None = None
    foreground: Foreground = field(default_factory=Foreground)
    ready: Callable[[], None] | None = None
    vpn: VpnOptions | None = None
    stdio_forward: End | None = None
    control_path: Path | None = None
    hops: tuple[HostConfig, ...] = ()
    proxies: tuple[UpstreamProxy, ...] = ()


class OpensTunnel(Protocol):
    """A VPN or what -w asks for: see `gateway.tun.vpn.Vpn` and `gateway.tun.client`."""

    @property
    def mark(self) -> int:
        """What SO_MARK of the socket to the server must be."""

    @property
    def name(self) -> str:
        """The device's name, once there is one."""

    def carried_by(self, carrier: socket.socket | int) -> None:
        """Take note of the first connection: its socket, or the process that makes it."""

    async def plan(self, link: Link) -> list[str]:
        """Return what `open` would change on this machine, as command lines."""

    async def open(self, link: Link, on_end: Callable[[str], object]) -> None:
        """Make everything and begin to carry; ``on_end`` is told why that ended."""

    async def end(self) -> None:
        """Have the far end undo its part, while there still is a link."""


async def connect(
    options: ClientOptions, person: Person, report: Callable[[events.Event], None]
) -> int:
    """Connect, log in, and forward until the link or the command ends.

    Returns the command's exit status. Raises `GatewayError` with one sentence for the user.
    """
    config = options.config
    logins = [HostLogin(host, person) for host in options.hops]
    logins.append(HostLogin(config, person))
    for problem in dict.fromkeys(problem for login in logins for problem in login.problems):
        log.warning("%s", problem)
    with ExitStack() as opened:
        listeners = await _listen(options, opened)
        async with _tunnel(options, person) as tunnel:
            return await _connect(options, logins, listeners, tunnel, report)


@asynccontextmanager
async def _tunnel(options: ClientOptions, person: Person) -> AsyncIterator[OpensTunnel | None]:
    """Get the VPN or the device of -w ready, before anything else can go wrong, and end it.

    Raises `NetworkSetupError`.
    """
    if options.vpn is not None:
        from gateway.tun.vpn import Vpn  # noqa: PLC0415 - costs a start 30 ms that few need

        units = options.config.tunnel_device
        async with Vpn.start(options.vpn, (units.local, units.remote), person.say) as vpn:
            yield vpn
        return
    device = _open_device(options)
    try:
        yield device
    finally:
        if device is not None:
            device.close()


async def _connect(
    options: ClientOptions,
    logins: Sequence[HostLogin],
    listeners: Listening,
    tunnel: OpensTunnel | None,
    report: Callable[[events.Event], None],
) -> int:
    has_terminal = options.session is not None and options.session.terminal is not None
    outcome: int | GatewayError
    async with trio.open_nursery() as nursery:
        chain = Chain(
            nursery,
            logins,
            options.proxies,
            mark=tunnel.mark if tunnel is not None else 0,
            is_interactive=has_terminal,
            on_carrier=tunnel.carried_by if tunnel is not None else None,
        )
        try:
            client, login = await chain.reach()
            try:
                outcome = await _serve(options, client, login, listeners, tunnel, report)
                if isinstance(outcome, GatewayError):
                    outcome = await chain.explained(outcome)
            finally:
                if tunnel is not None:
                    await tunnel.end()
        except GatewayError as error:
            outcome = error
        finally:
            await chain.aclose()
        nursery.cancel_scope.cancel()
    if isinstance(outcome, GatewayError):
        raise outcome
    return outcome


def _is_needed(options: ClientOptions) -> bool:
    """Whether the connection is worth nothing without its tunnel, or the user said so."""
    config = options.config
    forwards = config.local_forwards or config.remote_forwards or config.dynamic_forwards
    is_alone = options.session is None and not forwards
    return is_alone or config.exit_on_forward_failure or options.vpn is not None


def _has_other_use(options: ClientOptions) -> bool:
    """Whether the connection is worth something without any forwarding."""
    config = options.config
    return bool(
        options.session is not None
        or options.stdio_forward
        or options.vpn
        or config.tunnel is not Tunnel.NO
    )


def _tolerate(failures: Sequence[GatewayError], options: ClientOptions, *, has_use: bool) -> None:
    """Warn of each, or raise the first if the connection is worth nothing without its forwardings.

    ``has_use`` says whether others are of use.
    """
    has_use = has_use or _has_other_use(options)
    if failures and (options.config.exit_on_forward_failure or not has_use):
        raise failures[0]
    for failure in failures:
        log.warning("%s", failure)


def _open_device(options: ClientOptions) -> DeviceTunnel | None:
    """Open the device of -w, before anything else can go wrong. Raises `NetworkSetupError`."""
    config = options.config
    if config.tunnel is Tunnel.NO:
        return None
    from gateway.tun.client import DeviceTunnel, Mode  # noqa: PLC0415 - as above

    mode = Mode.POINT_TO_POINT if config.tunnel is Tunnel.POINT_TO_POINT else Mode.ETHERNET
    try:
        return DeviceTunnel(mode, config.tunnel_device.local, config.tunnel_device.remote)
    except NetworkSetupError as error:
        if _is_needed(options):
            raise
        log.warning("%s", error)
        return None


async def _open_tunnel(
    tunnel: OpensTunnel,
    link: Link,
    options: ClientOptions,
    report: Callable[[events.Event], None],
) -> GatewayError | None:
    """Open the tunnel, or show what that would change; return why nothing can go on without it."""
    try:
        if options.vpn is not None and options.vpn.dry_run:
            report(events.VpnPlanned(tuple(await tunnel.plan(link))))
            return None
        await tunnel.open(link, partial(_tunnel_ended, link, tunnel, options))
    except GatewayError as error:
        if link.is_lost or _is_needed(options):
            return error
        log.warning("%s", error)
    else:
        report(events.TunnelOpened(tunnel.name))
    return None


def _tunnel_ended(link: Link, tunnel: OpensTunnel, options: ClientOptions, reason: str) -> None:
    if link.is_lost:
        return
    if _is_needed(options):
        link.close(f"the tunnel through {tunnel.name} has ended: {reason}")
    else:
        log.warning("the tunnel through %s has ended: %s", tunnel.name, reason)


def _forward_options(config: HostConfig) -> ForwardOptions:
    return ForwardOptions(
        ListenOptions(
            config.gateway_ports,
            FAMILIES[config.address_family],
            config.stream_local_bind_mask,
            config.stream_local_bind_unlink,
        ),
        config.permit_remote_open,
    )


async def _listen(options: ClientOptions, opened: ExitStack) -> Listening:
    """Listen on this machine before anybody logs in, until ``opened`` is closed.

    Raises `NetworkSetupError`.
    """
    config = options.config
    how = _forward_options(config).listening
    listeners: Listening = []
    failures: list[NetworkSetupError] = []
    for forward in (*config.local_forwards, *config.dynamic_forwards):
        try:
            listener = await listen(forward.listen, how)
        except NetworkSetupError as error:
            failures.append(error)
        else:
            opened.callback(listener.close)
            listeners.append((forward, listener))
    _tolerate(failures, options, has_use=bool(listeners or config.remote_forwards))
    return listeners


async def _forward(table: Table, options: ClientOptions, listeners: Listening) -> None:
    """Take clients here and ask the server for its listeners.

    Raises what makes the connection worth nothing.
    """
    for forward, listener in listeners:
        table.adopt(forward, listener)
    failures = await table.add_remote(options.config.remote_forwards)
    _tolerate(failures, options, has_use=bool(table.active))


async def _serve(
    options: ClientOptions,
    client: ClientLink,
    login: events.Authenticated,
    listeners: Listening,
    tunnel: OpensTunnel | None,
    report: Callable[[events.Event], None],
) -> int | GatewayError:
    """Open tunnel and forwardings and wait for the end: of the command, or of the link."""
    link = client.link
    links = LinkSet()
    links.add(link)
    report(events.LinkOpened(link.link_id, link.carrier.name, login.user_name, login.fingerprint))
    if tunnel is not None and (problem := await _open_tunnel(tunnel, link, options, report)):
        return problem
    if options.vpn is not None and options.vpn.dry_run:
        return 0
    outcome: int | GatewayError = 0
    async with trio.open_nursery() as nursery:
        table = Table(client, links, nursery, _forward_options(options.config), report)
        try:
            await _forward(table, options, listeners)
            if options.control_path is not None:
                await nursery.start(serve_control, options.control_path, table)
            log.info("everything is up")
            outcome = await _work(options, links, link, tunnel, table)
        except GatewayError as error:
            outcome = error
        finally:
            table.close()
        nursery.cancel_scope.cancel()
    return outcome


async def _work(
    options: ClientOptions,
    links: LinkSet,
    link: Link,
    tunnel: OpensTunnel | None,
    table: Table,
) -> int:
    """Do what the connection was made for; return the exit status.

    The forwarded connections that are open at the end of the session go on until theirs (ssh(1)).
    """
    if (command := options.config.local_command) is not None:
        await run_locally(command.expanded(tunnel.name if tunnel is not None else None))
    if options.ready is not None:
        options.ready()
    if options.stdio_forward is not None:
        await stdio.carry(links, options.stdio_forward, reads_input=options.foreground.reads_input)
        return 0
    plan = options.session
    if plan is None:
        await link.ended.wait()
        raise link.failure or ConnectionLost("the link was closed")
    foreground = replace(
        options.foreground, stop_listening=table.stop_listening, forwards=TypedForwards(table)
    )
    try:
        status = await run_session(link, plan, foreground)
    except ChannelOpenError as error:
        raise ChannelOpenError(
            error.reason_code, f"the server opens no session: {error}: use -N for a tunnel only"
        ) from error
    if link.carries_forwards:
        log.info("waiting until the forwarded connections have ended")
        await link.wait_forwards()
    if plan.terminal is not None:
        log.warning("Connection to %s closed.", options.config.alias)
    return status
