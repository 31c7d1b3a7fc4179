"""Ends of a tunnel that send what they like, and ears on the devices of a host."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

import trio

from gateway import events
from gateway.config.identities import load_private_key_file
from gateway.net.carrier import SocketCarrier
from gateway.net.link import Link
from gateway.net.login import ClientLink
from gateway.ssh import wire
from gateway.ssh.numbers import Msg, OpenFailure
from gateway.ssh.protocol import ClientSetup, Protocol, ServerSetup
from gateway.ssh.tunnel import ANY_UNIT, CHANNEL_TYPE, LEASE_REQUEST, LeaseReply, LeaseRequest
from gateway.tun.packet import FAMILY_INET, FAMILY_INET6
from tests.support.memory import TestDialogue
from tests.support.packets import checksum, ipv4, ipv6
from tests.support.pair import HOST_KEY
from tests.support.vpn import PORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from gateway.net.port import ChannelPort
    from gateway.ssh.agent import SessionBinding
    from gateway.ssh.keys import PrivateKey, PublicKey
    from netns.lab import Host
    from tests.support.vpn import Site

ICMP: Final = 1
ICMPV6: Final = 58
ETH_P_ALL: Final = 3
ROOM_S: Final = 60
AGAIN_S: Final = 3
_numbers = itertools.count(1)


# ---- packets -------------------------------------------------------------------------------------


def framed(packet: bytes) -> bytes:
    """Return the data of one message of tun@openssh.com."""
    return (FAMILY_INET6 if packet[0] >> 4 == 6 else FAMILY_INET) + packet


def ping_packet(source: str, destination: str, data: bytes) -> bytes:
    """Return an echo request of either family."""
    if ":" not in source:
        head = struct.pack(">BBHI", 8, 0, 0, 0)
        summed = struct.pack(">H", checksum(head + data))
        return ipv4(source, destination, head[:2] + summed + head[4:] + data, ICMP)
    return icmpv6(source, destination, struct.pack(">BBHI", 128, 0, 0, 0) + data)


def icmpv6(source: str, destination: str, message: bytes) -> bytes:
    """Return an ICMPv6 packet as from a neighbour, with a right checksum (RFC 4443 §2.3)."""
    pseudo = (
        socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, destination)
        + struct.pack(">II", len(message), ICMPV6)
    )
    summed = struct.pack(">H", checksum(pseudo + message))
    packet = ipv6(source, destination, message[:2] + summed + message[4:], ICMPV6)
    return packet[:7] + b"\xff" + packet[8:]  # hop limit 255: RFC 4861 takes nothing else


def _is_multicast_listening(packet: bytes) -> bool:
    """Whether a kernel says which groups its new device is in (RFC 3810), after hop-by-hop."""
    return packet[0] >> 4 == 6 and packet[6] == 0


# ---- a client of `gateway serve` -----------------------------------------------------------------


class _Dialogue(TestDialogue):
    def __init__(self, key: PrivateKey) -> None:
        self._key = key

    async def identities(self, _binding: SessionBinding) -> tuple[PublicKey, ...]:
        """See `gateway.net.login.Dialogue`."""
        return (self._key.public,)

    async def sign(self, _identity: int, data: bytes, algorithm: str) -> bytes | None:
        """See `gateway.net.login.Dialogue`."""
        return self._key.sign(data, algorithm)


class HostileEnd:
    """An end of a tunnel; ``received`` has the packets that came, without their family."""

    def __init__(self, port: ChannelPort) -> None:
        self._port = port
        self.received: list[bytes] = []
        self._came = trio.Event()
        port.channel.sink = self._sink

    def _sink(self, data: memoryview) -> int:
        packet = bytes(data[4:])
        if not _is_multicast_listening(packet):
            self.received.append(packet)
            self._came.set()
        return len(data)

    async def send(self, data: bytes) -> None:
        """Send the data of one message, whatever it is, the empty one too."""
        channel = self._port.channel
        with trio.fail_after(ROOM_S):
            while channel.remote_window < len(data):
                await trio.sleep(0.001)
        if data:
            assert channel.send(data) == len(data)
        else:
            empty = bytes([Msg.CHANNEL_DATA]) + wire.uint32(channel.remote_channel) + bytes(4)
            self._port.link.protocol.outbound.append(empty)
        self._port.link.flush()
        await trio.sleep(0)

    async def answer(self, packet: bytes, marker: bytes) -> bytes:
        """Send a packet and return what comes with ``marker`` in it.

        Again every AGAIN_S: whoever carries packets may lose one.
        """
        with trio.fail_after(ROOM_S):
            while True:
                await self.send(framed(packet))
                with trio.move_on_after(AGAIN_S):
                    while not (found := [one for one in self.received if marker in one]):
                        self._came = trio.Event()
                        await self._came.wait()
                    return found[0]

    async def is_answered(self, source: str, destination: str) -> bool:
        """Ping and wait for the reply: all that was sent before has been looked at then."""
        marker = b"ping %08d" % next(_numbers) + b"."
        reply = await self.answer(ping_packet(source, destination, marker), marker)
        return reply[9 if reply[0] >> 4 == 4 else 6] in {ICMP, ICMPV6}


class HostileClient(HostileEnd):
    """A client that was lent addresses: ``ipv4`` and ``ipv6`` are its own, and the server's."""

    def __init__(self, port: ChannelPort, lease: LeaseReply) -> None:
        super().__init__(port)
        self.ipv4, self.ipv6 = (str(end.ip) for end in lease.client_addresses)
        self.server_ipv4, self.server_ipv6 = (str(end.ip) for end in lease.server_addresses)


@contextlib.asynccontextmanager
async def hostile_client(site: Site, user: str) -> AsyncIterator[HostileClient]:
    """Log in to `gateway serve` from the client's host, and have a tunnel."""
    with site.client.inside():
        sock = socket.create_connection((site.server.ipv4(), PORT))
    key = load_private_key_file(site.keys.user).decrypt()
    client = ClientLink(
        ClientSetup(user, (key.public,)), SocketCarrier(sock), alive_interval_s=0, alive_count_max=3
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await client.log_in(_Dialogue(key), ROOM_S)
        request = LeaseRequest(wants_ipv4=True, wants_ipv6=True)
        reply = await client.link.global_request(LEASE_REQUEST, request.encode())
        lease = LeaseReply.decode_untrusted(reply.response_specific)
        opened = wire.uint32(1) + wire.uint32(ANY_UNIT)
        port = await client.link.open_channel(CHANNEL_TYPE, opened)
        yield HostileClient(port, lease)
        client.link.close()


# ---- a server for `gateway connect` --------------------------------------------------------------


@contextlib.asynccontextmanager
async def hostile_server(listener: socket.socket) -> AsyncIterator[HostileEnd]:
    """Let the next client in, whoever it is, and give it a tunnel as soon as it asks for one."""
    listener.settimeout(ROOM_S)
    sock, _ = listener.accept()
    opened = trio.Event()
    ends: list[HostileEnd] = []

    def handle(event: events.Event) -> None:
        match event:
            case events.ChannelOpenRequested(channel_id, kind) if kind != CHANNEL_TYPE:
                link.refuse_channel(channel_id, OpenFailure.UNKNOWN_CHANNEL_TYPE, "as others")
            case events.ChannelOpenRequested(channel_id):
                ends.append(HostileEnd(link.confirm_channel(channel_id)))
                opened.set()
            case events.GlobalRequested(_, want_reply) if want_reply:
                link.protocol.connection.reply_global(success=False)

    setup = ServerSetup((HOST_KEY,), lambda _user, _key: 1)
    link = Link(Protocol(setup, trio.current_time()), SocketCarrier(sock), handler=handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        with trio.fail_after(ROOM_S):
            await opened.wait()
        yield ends[0]
        link.close()


# ---- ears ----------------------------------------------------------------------------------------


class Ears:
    """Hears all packets of a device, its own too; ``heard`` are their network layers' bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def heard(self) -> list[bytes]:
        """Return what was heard since the last call."""
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(self._socket.recv(65_535))
        return packets


@contextlib.contextmanager
def ears(host: Host, device: str) -> Iterator[Ears]:
    """Listen to a device of a host."""
    with host.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((device, ETH_P_ALL))
        sock.setblocking(False)
        yield Ears(sock)


@contextlib.contextmanager
def mouth(host: Host, device: str) -> Iterator[socket.socket]:
    """Have a socket that sends what it likes out of a tun device, to whoever reads that."""
    with host.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.bind((device, 0))
        yield sock


def send_nonsense(host: Host, device: str, sizes: Iterable[int]) -> None:
    """Send random bytes of these sizes out of a tun device."""
    with mouth(host, device) as sock:
        for number, size in enumerate(sizes):
            sock.send(random.randbytes(size))
            if number % 100 == 0:  # what is faster than its reader is lost in the kernel
                time.sleep(0.003)
