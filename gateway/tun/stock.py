"""The far end of a VPN at a server that is not ours: a stock sshd, which opens a device at most.

See `remote` for what is done there. Device numbers are chosen here, since sshd does not say which
one it took: with --remote-setup the host is asked which are free, otherwise they are tried in turn.
"""

from __future__ import annotations

import logging
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import GatewayError, NetworkSetupError, printable
from gateway.net.session import Session, SessionPlan, capture
from gateway.ssh.tunnel import ANY_UNIT
from gateway.tun import remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.link import Link
    from gateway.tun.options import Interface, VpnOptions

log = logging.getLogger(__name__)

UNITS_TRIED: Final = 8
SET_UP_S: Final = 30.0  # for the host to do what is asked
UNDO_S: Final = 5.0
EVERYTHING: Final = (ip_interface("0.0.0.0/0").network, ip_interface("::/0").network)


class StockServer:
    """One such server, and what was done there."""

    def __init__(
        self, options: VpnOptions, link: Link, unit: int, say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._link = link
        self._unit = unit
        self._say = say
        self._host = remote.RemoteHost()
        self._session: Session | None = None

    async def units(self) -> tuple[int, ...]:
        """Return the device numbers to try. Raises `GatewayError` if the host cannot be asked."""
        if self._options.remote_setup:
            answer = await capture(self._link, remote.PROBE)
            self._host = remote.parse_probe_untrusted(answer.output.encode())
        if self._unit != ANY_UNIT:
            return (self._unit,)
        if self._options.remote_setup:
            return (remote.free_unit("tun", self._host.devices),)
        return tuple(range(UNITS_TRIED))

    def pairs(self, unit: int) -> tuple[tuple[Interface, Interface], ...]:
        """Return for each family the host's address and ours."""
        if self._options.addresses:
            return tuple((_beside(ours), ours) for ours in self._options.addresses)
        pairs = remote.default_pairs(self._link.carrier.name, unit)
        if self._options.full_tunnel:
            return pairs
        families = {subnet.version for subnet in self._options.subnets}
        return tuple(pair for pair in pairs if pair[0].version in families)

    async def set_up(self, unit: int, mtu: int) -> None:
        """Do what is needed on the host, or say it. Raises a `GatewayError` with one sentence."""
        subnets = EVERYTHING if self._options.full_tunnel else self._options.subnets
        tunnel = remote.RemoteTunnel("tun", unit, self.pairs(unit), subnets, mtu)
        steps = remote.plan(tunnel, self._host)
        if not self._options.remote_setup:
            for line in remote.instructions(self._link.carrier.name, tunnel, steps).splitlines():
                self._say(line)
            return
        self._session = session = Session(await self._link.open_channel("session", b""))
        await session.start(SessionPlan(remote.script(steps, self._host)))
        with trio.move_on_after(SET_UP_S) as scope:
            if await session.wait_for_output(remote.READY.encode() + b"\n"):
                return
            self._session = None
            said = (await session.capture()).errors.strip().rpartition("\n")[2]
            raise NetworkSetupError(
                f"{self._link.carrier.name} could not be set up: {printable(said) or 'no reason'}: "
                "log in as root or as a user with `sudo -n`, or leave out --remote-setup to see "
                "what has to be typed there"
            )
        if scope.cancelled_caught:
            raise NetworkSetupError(
                f"{self._link.carrier.name} was not set up within {SET_UP_S:.0f} s: leave out "
                "--remote-setup to see what has to be typed there"
            )

    async def undo(self) -> None:
        """Have the host undo what it did; the end of the connection has the same effect."""
        session, self._session = self._session, None
        if session is None or self._link.is_lost:
            return
        try:
            with trio.fail_after(UNDO_S):
                errors = (await session.capture()).errors.strip()
        except (GatewayError, trio.TooSlowError):
            log.warning("%s does not say that it undid its set-up", self._link.carrier.name)
        else:
            if errors:
                log.warning("%s says: %s", self._link.carrier.name, printable(errors))


def _beside(ours: Interface) -> Interface:
    """Return the other address of a pair: the network's other host, or without one the next."""
    network = ours.network
    if network.num_addresses == 1:
        return ip_interface(ours.ip + (1 if int(ours.ip) % 2 == 0 else -1))
    return next(
        ip_interface((host, network.prefixlen)) for host in network.hosts() if host != ours.ip
    )
