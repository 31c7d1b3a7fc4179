"""Carriers in memory, and whole links over them: trio without a socket."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from gateway import events
from gateway.errors import ChannelClosed, ConnectionLost
from gateway.net import poller
from gateway.net.link import Link
from gateway.net.login import ClientLink
from gateway.ssh.protocol import ClientSetup, Protocol, ServerSetup
from gateway.ssh.transport import RekeyLimit

from .pair import HOST_KEY, USER_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.net.port import ChannelPort
    from gateway.ssh.agent import SessionBinding
    from gateway.ssh.keys import PublicKey

CAPACITY = 64 * 1024


class Pipe:
    """One direction: at most ``capacity`` bytes on their way. ``is_frozen``: they do not arrive."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.is_closed = False
        self.is_frozen = False
        self.watchers: list[Callable[[], None]] = []

    @property
    def is_readable(self) -> bool:
        """Whether a read does not wait."""
        return not self.is_frozen and (bool(self.data) or self.is_closed)

    @property
    def is_writable(self) -> bool:
        """Whether a write does not wait."""
        return self.is_closed or len(self.data) < self.capacity

    def tell(self) -> None:
        """Something changed: let both ends look."""
        for watcher in self.watchers:
            watcher()

    def thaw(self) -> None:
        """Let bytes arrive again."""
        self.is_frozen = False
        self.tell()


class MemoryCarrier:
    """One end of a pair; see `gateway.net.carrier.Carrier`.

    ``before`` is called with "read" or "write" in front of every operation; what it raises is what
    the operation raises. ``most`` bounds one operation, as a kernel may.
    """

    def __init__(self, name: str, inbox: Pipe, outbox: Pipe) -> None:
        self.name = name
        self.inbox = inbox
        self.outbox = outbox
        self.is_closed = False
        self.writes = 0
        self.most: int | None = None
        self.before: Callable[[str], None] = _no_fault
        self._on_ready: Callable[[int], None] = _nobody
        self._is_telling = False

    def recv_into(self, space: memoryview) -> int:
        """See `Carrier`."""
        self._check_open()
        self.before("read")
        if not self.inbox.is_readable:
            raise BlockingIOError
        count = min(len(space), len(self.inbox.data), self.most or len(space))
        space[:count] = self.inbox.data[:count]
        del self.inbox.data[:count]
        self.inbox.tell()
        return count

    def send(self, data: memoryview) -> int:
        """See `Carrier`."""
        self._check_open()
        self.before("write")
        if self.outbox.is_closed:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        count = min(len(data), self.outbox.capacity - len(self.outbox.data), self.most or len(data))
        if count <= 0:
            raise BlockingIOError
        self.writes += 1
        self.outbox.data += data[:count]
        self.outbox.tell()
        return count

    def acknowledge(self) -> None:
        """See `Carrier`."""

    def watch(self, on_ready: Callable[[int], None]) -> None:
        """See `Carrier`."""
        self._on_ready = on_ready
        for pipe in (self.inbox, self.outbox):
            pipe.watchers.append(self._tell_soon)
        self._tell_soon()

    def _tell_soon(self) -> None:
        if not self._is_telling:
            self._is_telling = True
            poller.current().again(self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        event = poller.INPUT * self.inbox.is_readable | poller.OUTPUT * self.outbox.is_writable
        if self.inbox.is_closed and not self.inbox.is_frozen:
            event |= poller.ENDED
        if event and not self.is_closed:
            self._on_ready(event)

    def close(self) -> None:
        """See `Carrier`."""
        self.is_closed = True
        for pipe in (self.inbox, self.outbox):
            pipe.is_closed = True
            pipe.tell()

    def _check_open(self) -> None:
        if self.is_closed:
            raise OSError(errno.EBADF, "Bad file descriptor")

        if self.is_closed:
            raise trio.ClosedResourceError


def _nobody(_event: int) -> None:
    pass


def _no_fault(_operation: str) -> None:
    pass


def memory_carriers(capacity: int = CAPACITY) -> tuple[MemoryCarrier, MemoryCarrier]:
    """Return two carriers that are connected to each other."""
    to_server, to_client = Pipe(capacity), Pipe(capacity)
    return (
        MemoryCarrier("the server", to_client, to_server),
        MemoryCarrier("the client", to_server, to_client),
    )


class TestDialogue:
    """A user who trusts every host key and signs with USER_KEY."""

    __test__ = False

    async def trust(self, key: PublicKey) -> None:
        """See `gateway.net.login.Dialogue`."""

    async def identities(self, _binding: SessionBinding) -> tuple[PublicKey, ...]:
        """See `gateway.net.login.Dialogue`."""
        return (USER_KEY.public,)

    async def sign(self, _identity: int, data: bytes, algorithm: str) -> bytes | None:
        """See `gateway.net.login.Dialogue`."""
        return USER_KEY.sign(data, algorithm)

    async def password(self, _attempt: int) -> str | None:
        """See `gateway.net.login.Dialogue`."""
        return None

    async def answers(self, _wanted: events.AnswersWanted) -> tuple[str, ...] | None:
        """See `gateway.net.login.Dialogue`."""
        return None

    def banner(self, text: str) -> None:
        """See `gateway.net.login.Dialogue`."""


@dataclass
class Links:
    """A client's link and a server's, run by `linked`. The server accepts every channel."""

    client: ClientLink
    server: Link
    client_carrier: MemoryCarrier
    server_carrier: MemoryCarrier
    accepted: list[ChannelPort] = field(default_factory=list)
    accepts: bool = True
    """Whether the server answers opens at all."""
    on_accept: Callable[[ChannelPort], None] = lambda _port: None

    @property
    def link(self) -> Link:
        """The client's link."""
        return self.client.link

    def handle(self, event: events.Event) -> None:
        """Act on what the server's link does not answer itself."""
        match event:
            case events.ChannelOpenRequested(channel_id) if self.accepts:
                port = self.server.confirm_channel(channel_id)
                self.accepted.append(port)
                self.on_accept(port)
            case events.GlobalRequested(_, want_reply) if want_reply:
                self.server.protocol.connection.reply_global(success=False)

    async def log_in(self, timeout_s: float = 30.0) -> events.Authenticated:
        """Log the client in."""
        return await self.client.log_in(TestDialogue(), timeout_s)

    async def open_channel(self) -> tuple[ChannelPort, ChannelPort]:
        """Return the client's and the server's end of a new channel."""
        local = await self.link.open_channel("test", b"")
        return local, self.accepted[-1]


def make_links(
    *,
    capacity: int = CAPACITY,
    rekey_limit: RekeyLimit | None = None,
    alive_interval_s: float = 0.0,
    carriers: tuple[Any, Any] | None = None,
) -> Links:
    """Return both ends of a link that nobody runs yet, in memory or on ``carriers``."""
    limit = rekey_limit or RekeyLimit()
    client_carrier, server_carrier = carriers or memory_carriers(capacity)
    client = ClientLink(
        ClientSetup("alice", (USER_KEY.public,), rekey_limit=limit),
        client_carrier,
        alive_interval_s=alive_interval_s,
        alive_count_max=3,
    )
    setup = ServerSetup((HOST_KEY,), lambda _user, key: key == USER_KEY.public, rekey_limit=limit)
    server = Link(
        Protocol(setup, trio.current_time()),
        server_carrier,
        handler=lambda event: links.handle(event),  # noqa: PLW0108 - bound below
    )
    links = Links(client, server, client_carrier, server_carrier)
    return links


@asynccontextmanager
async def linked(links: Links, *, log_in: bool = True) -> AsyncIterator[Links]:
    """Run both links, by default through the login, and end them afterwards."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.client.run)
        nursery.start_soon(links.server.run)
        if log_in:
            await links.log_in()
        yield links
        links.link.close()
        links.server.close()


def assert_released(link: Link) -> None:
    """Assert that a link which has ended holds nothing any more."""
    assert link.failure is not None
    assert link.ended.is_set()
    assert link.carrier.is_closed  # type: ignore[attr-defined]
    assert link.protocol.outbound._wire is None
    assert link.protocol.inbound._buffer is None
    assert not link._ports


async def read_all(port: ChannelPort, count: int) -> bytes:
    """Return ``count`` bytes from a channel, giving credit as they come."""
    got = bytearray()
    changed = trio.Event()

    def on_change() -> None:
        changed.set()

    port.on_change = on_change
    while len(got) < count:
        if port.pending:
            data = bytes(port.pending)
            port.pending.clear()
            got += data
            port.consumed(len(data))
            continue
        if port.failure is not None:
            raise port.failure
        if port.eof_received or port.close_received:
            raise ChannelClosed("the data ended early")
        await changed.wait()
        changed = trio.Event()
    return bytes(got)


async def send_all(port: ChannelPort, data: bytes) -> None:
    """Send all of ``data`` on a channel."""
    view = memoryview(data)
    while view:
        await port.wait_room()
        if port.link.failure is not None:
            raise ConnectionLost(str(port.link.failure))
        view = view[port.channel.send(view) :]
        port.link.flush()
