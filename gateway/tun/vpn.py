"""A VPN as its client sees it: a device with addresses, subnets routed into it, and a tunnel.

THEORY OF OPERATION

The guardian is started first, since the mark of the carrier's socket is its routing table's number:
what carries that mark never goes into the tunnel. After the login there are two ways.

A `gateway serve` lends us addresses (tunnel-lease@gateway.internal) and sets up its side by itself.

A stock sshd opens a device and nothing else; its side is a few commands. With --remote-setup they
run there, in one command that then waits for the end of its input and undoes what it did: sshd's
side is clean however this connection ends. Otherwise they are said, for who administers that host.

Then our device gets its addresses and routes. All of it is undone at the end, in the other order.
"""

from __future__ import annotations

import logging
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelOpenError, NetworkSetupError, printable
from gateway.ssh.tunnel import LEASE_REQUEST, LeaseReply, LeaseRequest
from gateway.tun.client import DeviceTunnel, is_gateway
from gateway.tun.connections import connections_of
from gateway.tun.guardian import Guardian
from gateway.tun.packet import OPENSSH_MAXIMUM, Addresses, Drop, Mode
from gateway.tun.plan import Carrier, Wanted, client_plan, inside
from gateway.tun.steps import shown
from gateway.tun.stock import StockServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.net.link import Link
    from gateway.tun.facts import Facts
    from gateway.tun.options import Interface, Network, VpnOptions
    from gateway.tun.packet import IpAddress
    from gateway.tun.steps import Step

log = logging.getLogger(__name__)

DEFAULT_MTU: Final = 1500


@dataclass(frozen=True, slots=True)
class Ends:
    """The addresses of both ends of a tunnel, and its MTU. ``routes`` the server offers."""

    ours: tuple[Interface, ...]
    theirs: tuple[Interface, ...]
    mtu: int
    routes: tuple[Network, ...] = ()


class Vpn:
    """One VPN, from `start`; ``open`` it over a link that is logged in."""

    def __init__(
        self,
        options: VpnOptions,
        units: tuple[int, int],
        guardian: Guardian,
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._local_unit, self._remote_unit = units
        self._guardian = guardian
        self._say = say
        self._carrier: Carrier | None = None
        self._command_pid: int | None = None
        self._stock: StockServer | None = None
        self._tunnel: DeviceTunnel | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls, options: VpnOptions, units: tuple[int, int], say: Callable[[str], None]
    ) -> AsyncIterator[Vpn]:
        """Get ready to change this machine's network, and undo all changes at the end of the block.

        ``units`` are the numbers of the devices on both sides; ``say`` shows a line to the user.
        Raises `NetworkSetupError`.
        """
        async with Guardian() as guardian:
            for line in guardian.found.undone:
                log.info("undone, left behind by a gateway that was killed: %s", line)
            vpn = cls(options, units, guardian, say)
            try:
                yield vpn
            finally:
                vpn._close()
        for line in guardian.undone.failed:
            log.warning("could not be undone: %s", line)

    @property
    def mark(self) -> int:
        """What SO_MARK of the socket to the server must be."""
        return self._guardian.table

    @property
    def name(self) -> str:
        """The device's name, once there is one."""
        return self._tunnel.name if self._tunnel is not None else ""

    def carried_by(self, carrier: socket.socket | int) -> None:
        """Take note of the connected socket that carries the tunnel, or of the process that has it.

        The process is looked at later: it may still be connecting.
        """
        if isinstance(carrier, int):
            self._command_pid = carrier
            return
        if carrier.family not in (socket.AF_INET, socket.AF_INET6):
            return
        host, port = carrier.getpeername()[:2]
        address, local_port = ip_address(host.partition("%")[0]), carrier.getsockname()[1]
        self._carrier = Carrier(address, port, local_port)
        if address.is_loopback and self._options.full_tunnel:
            log.warning(
                "the way to the server goes through a program on this machine (%s port %d), whose "
                "own connections --full-tunnel would carry: --exclude the addresses that it uses",
                address,
                port,
            )

    def _known_carrier(self) -> Carrier:
        if self._carrier is None and self._command_pid is not None:
            found = connections_of(self._command_pid)
            if len(found) == 1:
                self._carrier = found[0]
        if self._carrier is None:
            raise NetworkSetupError(
                "it cannot be seen which connection of the ProxyCommand leads to the server, so "
                "the tunnel could swallow it: use --via or -J instead"
            )
        return self._carrier

    # -- the set-up --------------------------------------------------------------------------------

    async def plan(self, link: Link) -> list[str]:
        """Return what `open` would do on this machine, as command lines."""
        ends = await self._lease(link)
        if ends is None:
            stock = self._stock_server(link)
            ends = self._ends(stock, (await stock.units())[0])
        facts = await self._guardian.facts()
        return [shown(step) for step in self._plan(_free_name(facts), ends, facts)]

    async def open(self, link: Link, on_end: Callable[[str], object]) -> None:
        """Make the device, the tunnel and the routes. Raises a `GatewayError` with one sentence.

        ``on_end`` is told why the tunnel ended by itself.
        """
        ends = await self._lease(link)
        facts = await self._guardian.facts()
        self._tunnel = tunnel = DeviceTunnel(Mode.POINT_TO_POINT, self._local_unit)
        if ends is None:
            ends = await self._open_stock(link, tunnel, facts, on_end)
        else:
            self._plan(tunnel.name, ends, facts)  # before the server does anything
            await tunnel.open(link, on_end, self._judge(ends))
        await self._guardian.apply(self._plan(tunnel.name, ends, facts))
        self._warn_of_rules(ends)

    async def _lease(self, link: Link) -> Ends | None:
        """Have the server lend addresses; None if it is a stock sshd, which has none."""
        options = self._options
        wishes = {subnet.version for subnet in options.subnets}
        request = LeaseRequest(
            wants_ipv4=options.full_tunnel or 4 in wishes,
            wants_ipv6=options.full_tunnel or 6 in wishes,
        )
        transport = link.protocol.transport
        transport.explained = ""
        reply = await link.global_request(LEASE_REQUEST, request.encode())
        if reply.success:
            lease = LeaseReply.decode_untrusted(reply.response_specific)
            if options.addresses:
                log.warning("--address is not used: this server says which addresses we have")
            mtu = options.mtu or lease.mtu
            return Ends(lease.client_addresses, lease.server_addresses, mtu, lease.routes)
        if is_gateway(link):
            reason = printable(transport.explained) or "it does not say why"
            raise NetworkSetupError(
                f"the server lends no address for a VPN: {reason}; its administrator decides that, "
                "by --permit-tunnel or by [tunnel] and a tun rule in gateway.toml"
            )
        return None

    def _stock_server(self, link: Link) -> StockServer:
        self._stock = StockServer(self._options, link, self._remote_unit, self._say)
        return self._stock

    def _ends(self, stock: StockServer, unit: int) -> Ends:
        pairs = stock.pairs(unit)
        mtu = self._options.mtu or DEFAULT_MTU
        if mtu > OPENSSH_MAXIMUM:
            raise NetworkSetupError(
                f"an MTU of {mtu} is too large for a stock sshd, whose tunnel stops for ever at a "
                f"packet of more than {OPENSSH_MAXIMUM} bytes: --mtu {OPENSSH_MAXIMUM} or less"
            )
        return Ends(tuple(ours for _, ours in pairs), tuple(theirs for theirs, _ in pairs), mtu)

    async def _open_stock(
        self, link: Link, tunnel: DeviceTunnel, facts: Facts, on_end: Callable[[str], object]
    ) -> Ends:
        """Open the tunnel with the first device number that sshd takes, and set its host up."""
        stock = self._stock_server(link)
        refusal: ChannelOpenError | None = None
        for unit in await stock.units():
            ends = self._ends(stock, unit)
            self._plan(tunnel.name, ends, facts)
            try:
                await tunnel.open(link, on_end, self._judge(ends), unit)
            except ChannelOpenError as error:
                refusal = refusal or error
            else:
                await stock.set_up(unit, ends.mtu)
                return ends
        raise refusal or NetworkSetupError("no device number of the server is free")

    def _plan(self, device: str, ends: Ends, facts: Facts) -> tuple[Step, ...]:
        options = self._options
        wanted = Wanted(
            device,
            tuple(ip_interface(end.ip) for end in ends.ours),
            ends.mtu,
            options.subnets,
            options.excludes,
            options.full_tunnel,
            tuple(end.ip for end in ends.theirs),
        )
        return client_plan(wanted, self._known_carrier(), self._guardian.table, facts)

    def _judge(self, ends: Ends) -> Callable[[memoryview], Drop | None]:
        """Take packets to ourselves only: the far end must not reach our neighbours through us."""
        ours = frozenset(end.ip for end in ends.ours)

        def decide(_source: IpAddress, destination: IpAddress) -> Drop | None:
            return None if destination in ours else Drop.DESTINATION

        return Addresses(decide).judge

    def _warn_of_rules(self, ends: Ends) -> None:
        for subnet in self._options.subnets:
            if ends.routes and not any(inside(subnet, offered) for offered in ends.routes):
                offered = ", ".join(map(str, ends.routes))
                log.warning("the server's rules name %s and not all of %s", offered, subnet)

    # -- the end -----------------------------------------------------------------------------------

    async def end(self) -> None:
        """Have the far end undo its part, while there still is a link."""
        if self._stock is not None:
            with trio.CancelScope(shield=True):
                await self._stock.undo()

    def _close(self) -> None:
        """End the tunnel; the guardian does the rest."""
        if self._tunnel is not None:
            self._tunnel.close()


def _free_name(facts: Facts) -> str:
    taken = {device for device, _ in facts.addresses} | {route.device for route in facts.routes}
    return next(name for unit in range(len(taken) + 1) if (name := f"tun{unit}") not in taken)
