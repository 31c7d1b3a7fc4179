"""Peers that ask for as much as they can, each in one way; `FLOODS` is the table of them.

A flood goes on until it has said so much, or for so long. When the server ends its connection, and
for most floods it has to, it comes again: how often is ``until.links``.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.ssh import messages
from gateway.ssh.transport import Phase

from .pair import frame
from .raw_client import WAIT_S, Ended, Place, RawClient, Stalled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gateway.ssh.messages import Message

    Made = tuple[Message | bytes, ...]

BATCH: Final = 256  # messages sent at once
ONCE: Final = 8  # where the first one has to end the connection
ENDS_S: Final = 10.0  # for that
STALLED_S: Final = 0.5  # who does not read holds its connection when the server takes no more
DENIED: Final = ("192.0.2.1", 25)  # no rule of a test or of the bench lets it be opened


@dataclass
class Until:
    """When a flood is over: after so many messages, bytes or connections, or after a time."""

    count: int
    seconds: float = float("inf")
    said: int = 0
    links: int = 0
    refused: int = 0
    """Connections that were closed before they could do what they came for."""
    unended: int = 0
    """Connections that the server should have ended, and did not."""
    _began_s: float = field(default_factory=time.monotonic)

    @property
    def took_s(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began_s

    @property
    def left(self) -> int:
        """How much is to be said yet."""
        return max(self.count - self.said, 0) if self.took_s < self.seconds else 0


@dataclass(frozen=True)
class Flood:
    """One kind. ``count``: how much of it is a flood; ``unit`` is what is counted."""

    name: str
    run: Callable[[Place, Until], None]
    count: int
    unit: str = "messages"


# ---- messages ------------------------------------------------------------------------------------


def saying(
    phase: Phase,
    make: Callable[[Place, RawClient, int], tuple[Message | bytes, ...]],
    *,
    needs_channel: bool = False,
    reads: bool = True,
    is_fatal: bool = False,
) -> Callable[[Place, Until], None]:
    """Flood with messages in a phase; they are made for each connection and its channel."""

    def run(place: Place, until: Until) -> None:
        while until.left:
            with suppress(Ended), place.client() as client:
                until.links += 1
                until.refused += 1
                client.reach(phase)
                until.refused -= 1
                channel = client.open_session() if needs_channel else -1
                made = make(place, client, channel)
                payloads = [one if isinstance(one, bytes) else one.encode() for one in made]
                if is_fatal:
                    _say_once(client, payloads, until)
                else:
                    _say(client, payloads, until, reads=reads)

    return run


def _say(client: RawClient, payloads: list[bytes], until: Until, *, reads: bool) -> None:
    batch = payloads * max(BATCH // len(payloads), 1)
    while until.left:
        now = batch[: until.left]
        until.said += len(now)
        try:
            client.say(*now, reads=reads, stalled_s=WAIT_S if reads else STALLED_S)
        except Stalled:
            time.sleep(max(min(until.seconds - until.took_s, STALLED_S), 0))
            return
    if reads:
        client.drain(0.05)


def _say_once(client: RawClient, payloads: list[bytes], until: Until) -> None:
    until.said += 1
    client.say(*payloads * ONCE)
    until.unended += not client.drain(ENDS_S)


def rekeys(place: Place, until: Until) -> None:
    """Exchange keys again and again, each time to its end."""
    while until.left:
        with suppress(Ended), place.client() as client:
            until.links += 1
            client.reach(Phase.CONNECTION)
            while until.left:
                until.said += 1
                client.rekey()


def _open(kind: str, *, sender: int, specific: bytes = b"") -> Message:
    return messages.ChannelOpen(kind, sender, 1 << 20, 1 << 15, specific)


def _to(host: str, port: int) -> bytes:
    return messages.DirectTcpip(host, port, "127.0.0.1", 1).encode()


def _query(place: Place, _client: RawClient, _channel: int) -> tuple[Message, ...]:
    """Ask whether a key may log in that may: 32 times are the limit."""
    blob = place.key.public.blob
    fields = messages.PublickeyQuery(False, "ssh-ed25519", blob).encode()
    return (messages.UserauthRequest(place.user, "ssh-connection", "publickey", fields),) * 8


def _password(place: Place, _client: RawClient, _channel: int) -> tuple[Message, ...]:
    fields = messages.PasswordRequest(False, "guess").encode()
    return (messages.UserauthRequest(place.user, "ssh-connection", "password", fields),)


# ---- bytes and connections -----------------------------------------------------------------------


def pushing(first: bytes, block: bytes) -> Callable[[Place, Until], None]:
    """Flood with bytes from the start on; what is counted are blocks."""

    def run(place: Place, until: Until) -> None:
        while until.left:
            with suppress(Ended), place.client() as client:
                until.links += 1
                client.push(first)
                while until.left:
                    until.said += 1
                    client.push(block)

    return run


def connects(place: Place, until: Until) -> None:
    """Connect and go at once, with FIN and with RST in turn."""
    while until.left:
        with suppress(Ended):
            until.said += 1
            until.links += 1
            client = place.client()
            (client.reset if until.said % 2 else client.sock.close)()


def silence(place: Place, until: Until) -> None:
    """Connect and stay, until the time is over; the server may refuse or end some."""
    held: list[socket.socket] = []
    try:
        while until.left:
            with suppress(OSError):
                held.append(place.connect())
            until.said += 1
            until.links += 1
        while until.took_s < min(until.seconds, 60.0):
            time.sleep(0.05)
    finally:
        for sock in held:
            sock.close()


# ---- the table -----------------------------------------------------------------------------------


def _logged_in(made: Callable[[int], Made], **options: bool) -> Callable[[Place, Until], None]:
    """Say what is made for a channel's number, after the login."""
    return saying(Phase.CONNECTION, lambda _place, _client, channel: made(channel), **options)


def _fatal(phase: Phase, *made: Message) -> Callable[[Place, Until], None]:
    return saying(phase, lambda *_: made, is_fatal=True)


def _kexinit_in(phase: Phase) -> Callable[[Place, Until], None]:
    return saying(phase, lambda _place, client, _channel: (client.kexinit,), is_fatal=True)


_DATA: Final = bytes(32)
_NOISE: Final = (
    messages.Ignore(_DATA), messages.Debug(False, "x" * 32), messages.Unimplemented(1),
)  # fmt: skip
_PING: Final = messages.Ping(_DATA)
_REQUESTS: Final = (
    messages.GlobalRequest("nobody-knows@test", True, b""),
    messages.GlobalRequest("tcpip-forward", True, messages.TcpipForward("0.0.0.0", 22).encode()),
)
_REFUSED: Final = (
    _open("nobody-knows@test", sender=1),
    _open("direct-tcpip", sender=1, specific=_to(*DENIED)),
)
_MANY: Final = 1_000_000
_LINKS: Final = 300


def _replies(channel: int) -> Made:
    return (
        messages.RequestSuccess(b""), messages.RequestFailure(),
        messages.ChannelSuccess(channel), messages.ChannelFailure(channel),
    )  # fmt: skip


def _requests(channel: int) -> Made:
    return tuple(
        messages.ChannelRequest(channel, name, True, b"") for name in ("nobody-knows@test", "env")
    )


def _adjust(channel: int) -> Made:
    return (messages.ChannelWindowAdjust(channel, 1),)


def _of_messages(target: tuple[str, int]) -> tuple[Flood, ...]:
    opened = _open("direct-tcpip", sender=1, specific=_to(*target))
    unread = messages.Ping(bytes(1024))
    return (
        Flood("PING", _logged_in(lambda _: (_PING,)), _MANY),
        Flood("PING, answers not read", _logged_in(lambda _: (unread,), reads=False), _MANY),
        Flood("opens", _logged_in(lambda _: (opened,)), 20_000),
        Flood("refused opens", _logged_in(lambda _: _REFUSED), _MANY),
        Flood("window adjusts", _logged_in(_adjust, needs_channel=True), 10 * _MANY),
        Flood("replies to nothing", _logged_in(_replies, needs_channel=True), _MANY),
        Flood("global requests", _logged_in(lambda _: _REQUESTS), _MANY),
        Flood("channel requests", _logged_in(_requests, needs_channel=True), _MANY),
        Flood("IGNORE, DEBUG, UNIMPLEMENTED", _logged_in(lambda _: _NOISE), _MANY),
        Flood("rekeys", rekeys, 10_000, "rekeys"),
    )


def _of_links() -> tuple[Flood, ...]:
    before_keys = frame(messages.Ignore(_DATA).encode()) * 1000
    return (
        Flood("PING before login", _fatal(Phase.AUTH, _PING), _LINKS, "links"),
        Flood("PING in a key exchange", _fatal(Phase.KEX_STRICT, _PING), _LINKS, "links"),
        Flood("KEXINIT twice", _kexinit_in(Phase.CONNECTION), _LINKS, "links"),
        Flood("KEXINIT before login", _kexinit_in(Phase.AUTH), _LINKS, "links"),
        Flood("EOF of no channel", _fatal(Phase.CONNECTION, messages.ChannelEof(4321)),
              _LINKS, "links"),
        Flood("CLOSE of no channel", _fatal(Phase.CONNECTION, messages.ChannelClose(4321)),
              _LINKS, "links"),
        Flood("login: passwords", saying(Phase.AUTH, _password, is_fatal=True), _LINKS, "links"),
        Flood("login: queries", saying(Phase.AUTH, _query, is_fatal=True), _LINKS, "links"),
        Flood("no end of a line", pushing(b"SSH-2.0-", b"x" * 65_536), _LINKS, "x 64 KiB"),
        Flood("lines before a version", pushing(b"", b"hello\r\n" * 8192), _LINKS, "x 56 KiB"),
        Flood("IGNORE before keys", pushing(b"SSH-2.0-flood\r\n", before_keys), 1000, "x 1000"),
        Flood("connects that go", connects, 5000, "links"),
        Flood("connects that stay", silence, 2000, "links"),
    )  # fmt: skip


def floods(target: tuple[str, int]) -> dict[str, Flood]:
    """Return all of them by name; ``target`` is where channels may be opened to."""
    return {flood.name: flood for flood in (*_of_messages(target), *_of_links())}
