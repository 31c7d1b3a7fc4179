"""`gateway serve` in memory: a server without a port, clients that log in, what was reported."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import trio
import trio.testing

from gateway import events
from gateway.net.login import ClientLink
from gateway.policy.limits import Limits
from gateway.policy.rules import Action, Rule, Subject, Verdict, parse_target
from gateway.server import Server, ServerOptions
from gateway.serving.authorize import Grant, certificate_grant, key_grant
from gateway.ssh.authorized_keys import AuthorizedKeys, parse_authorized_keys
from gateway.ssh.certificates import Certificate
from gateway.ssh.keys import PrivateKey, PublicKey
from gateway.ssh.messages import (
    DirectTcpip,
    ForwardedStreamlocal,
    ForwardedTcpip,
    Record,
    TcpipForward,
)
from gateway.ssh.protocol import ClientSetup

from .memory import TestDialogue, memory_carriers
from .pair import HOST_KEY, USER_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.net.carrier import Carrier
    from gateway.net.port import ChannelPort
    from gateway.policy.addresses import Address, Network
    from gateway.ssh.agent import SessionBinding

ALICE_KEY, BOB_KEY = USER_KEY, PrivateKey.generate(os.urandom)
ADDRESS = "192.0.2.7"

EventT = TypeVar("EventT", bound=events.Event)


@dataclass
class TestRules:
    """A policy that a test can change. ``listen`` has (host, port); port 0 is any port."""

    __test__ = False
    rules = (Rule("r1", True, Action.OPEN, (parse_target("*:*"),)),)

    opens: bool = True
    listen: set[tuple[str, int]] = field(default_factory=set)
    listens_everywhere: bool = False
    unix: set[str] = field(default_factory=set)
    tun: set[str] = field(default_factory=set)  # kinds of devices, and addresses behind them
    asked: list[tuple[object, ...]] = field(default_factory=list)
    defect: Exception | None = None

    def _verdict(self, allowed: bool, *asked: object) -> Verdict:
        self.asked.append(asked)
        if self.defect is not None:
            raise self.defect
        return Verdict(allowed, "r1", "rule r1 allows it" if allowed else "denied: no rule does")

    def decide_open(self, subject: Subject, host: str, port: int, address: Address) -> Verdict:
        """See `Decides`."""
        return self._verdict(self.opens, subject.user_name, host, port, str(address))

    def decide_listen(self, subject: Subject, bind_host: str, port: int) -> Verdict:
        """See `Decides`."""
        named = not self.listen.isdisjoint({(bind_host, port), (bind_host, 0)})
        allowed = self.listens_everywhere or named
        return self._verdict(allowed, subject.user_name, bind_host, port)

    def decide_unix(self, subject: Subject, path: str) -> Verdict:
        """See `Decides`."""
        return self._verdict(path in self.unix, subject.user_name, path)

    def decide_tun(self, subject: Subject, kind: str) -> Verdict:
        """See `Decides`."""
        return self._verdict(kind in self.tun, subject.user_name, kind)

    def decide_tun_packet(self, subject: Subject, address: Address) -> Verdict:
        """See `Decides`."""
        return self._verdict(str(address) in self.tun, subject.user_name, str(address))

    def allowed_networks(self, subject: Subject) -> tuple[Network, ...]:
        """See `Decides`."""
        return ()


@dataclass(frozen=True)
class TestPeople:
    """Alice and Bob, with any of the keys; ``required`` is how many must sign."""

    __test__ = False

    keys: AuthorizedKeys
    required: int = 1
    users: frozenset[str] = frozenset(("alice", "bob"))
    groups: frozenset[str] = frozenset(("staff",))
    expires_s: float = float("inf")

    def admit(self, user_name: str, key: PublicKey, address: str, now_s: float) -> Grant | None:
        """See `People`."""
        if user_name not in self.users:
            return None
        if isinstance(key, Certificate):
            line, options = self.keys.find_authority(key, user_name, address, now_s)
            grant = certificate_grant(key, line, options, address)
        elif (found := self.keys.find(key, address, now_s)) is None:
            return None
        else:
            grant = key_grant(found)
        return replace(grant, groups=self.groups, required_keys=self.required,
                       expires_s=min(grant.expires_s, self.expires_s))  # fmt: skip


def make_people(*keys: PrivateKey, prefix: str = "", **changes: object) -> TestPeople:
    """Return the people above; ``prefix`` are options of the keys' lines."""
    lines = "".join(
        f"{prefix}{key.public.openssh_text()}\n" for key in keys or (ALICE_KEY, BOB_KEY)
    )
    people = TestPeople(parse_authorized_keys(lines, "keys"))
    return replace(people, **changes)  # type: ignore[arg-type]


def make_options(
    *keys: PrivateKey, limits: Limits | None = None, prefix: str = "", **changes: object
) -> ServerOptions:
    """Return options with the rules and the people above."""
    people = make_people(*keys, prefix=prefix)
    options = ServerOptions((), (HOST_KEY,), TestRules(), people, limits=limits or Limits())
    return replace(options, **changes)  # type: ignore[arg-type]


class KeyDialogue(TestDialogue):
    """A user with other keys."""

    def __init__(self, *keys: PrivateKey) -> None:
        self._keys = keys

    async def identities(self, _binding: SessionBinding) -> tuple[PublicKey, ...]:
        """See `gateway.net.login.Dialogue`."""
        return tuple(key.public for key in self._keys)

    async def sign(self, identity: int, data: bytes, algorithm: str) -> bytes | None:
        """See `gateway.net.login.Dialogue`."""
        return self._keys[identity].sign(data, algorithm)


_FORWARDED: dict[str, type[Record]] = {
    "forwarded-tcpip": ForwardedTcpip,
    "forwarded-streamlocal@openssh.com": ForwardedStreamlocal,
}


class TestClient(ClientLink):
    """A client that accepts the channels of its listeners, which it asks for with `forward`."""

    __test__ = False

    def __init__(self, user_name: str, keys: tuple[PrivateKey, ...], carrier: Carrier) -> None:
        setup = ClientSetup(user_name, tuple(key.public for key in keys))
        super().__init__(setup, carrier, alive_interval_s=0, alive_count_max=3)
        self.carrier = carrier
        self.keys = keys
        self.said: list[str] = []
        self.opened: list[tuple[Record, ChannelPort]] = []
        self.refuses_with: str | None = None
        self.on_open: Callable[[ChannelPort], object] = lambda _port: None

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.ChannelOpenRequested(channel_id, kind, fields) if kind in _FORWARDED:
                if self.refuses_with is not None:
                    self.link.refuse_channel(channel_id, 2, self.refuses_with)
                    return
                port = self.link.confirm_channel(channel_id)
                self.opened.append((_FORWARDED[kind].decode_untrusted(fields), port))
                self.on_open(port)
            case events.DebugReceived(message):
                self.said.append(message)
            case _:
                super()._handle(event)

    async def log_in_with_keys(self) -> None:
        """Log in."""
        await self.log_in(KeyDialogue(*self.keys), 30.0)

    async def forward(self, host: str, port: int) -> events.GlobalReplied:
        """Ask for a listener."""
        fields = TcpipForward(host, port).encode()
        return await self.link.global_request("tcpip-forward", fields)

    async def cancel(self, host: str, port: int) -> bool:
        """Cancel a listener."""
        fields = TcpipForward(host, port).encode()
        return (await self.link.global_request("cancel-tcpip-forward", fields)).success

    async def open(self, host: str, port: int) -> ChannelPort:
        """Open "direct-tcpip"."""
        fields = DirectTcpip(host, port, "127.0.0.1", 4321).encode()
        return await self.link.open_channel("direct-tcpip", fields)


class Box:
    """A running server, and its clients."""

    def __init__(self, server: Server, nursery: trio.Nursery, reported: list[events.Event]) -> None:
        self.server = server
        self.reported = reported
        self._nursery = nursery

    @property
    def rules(self) -> TestRules:
        """The policy."""
        assert isinstance(self.server.shared.policy, TestRules)
        return self.server.shared.policy

    def of_type(self, kind: type[EventT]) -> list[EventT]:
        """Return what was reported, of one type."""
        return [event for event in self.reported if isinstance(event, kind)]

    def connect(
        self, *keys: PrivateKey, user_name: str = "alice", address: str = ADDRESS
    ) -> TestClient:
        """Return a client that is connected and has not logged in."""
        client_carrier, server_carrier = memory_carriers()
        client = TestClient(user_name, keys or (ALICE_KEY,), client_carrier)
        self._nursery.start_soon(client.run)
        self.server.serve_carrier(server_carrier, address)
        return client

    async def log_in(
        self, *keys: PrivateKey, user_name: str = "alice", address: str = ADDRESS
    ) -> TestClient:
        """Return a client that has logged in."""
        client = self.connect(*keys, user_name=user_name, address=address)
        await client.log_in_with_keys()
        return client


@asynccontextmanager
async def running_box(
    options: ServerOptions | None = None,
    also: Callable[[events.Event], None] = lambda _event: None,
    refuses_new: Callable[[], str] = str,
) -> AsyncIterator[Box]:
    """Run a server; at the end everything of it has ended, and it holds nothing any more.

    ``also`` is told of every event as well.
    """
    reported: list[events.Event] = []

    def report(event: events.Event) -> None:
        reported.append(event)
        also(event)

    server = Server(options or make_options(), report, refuses_new)
    async with trio.open_nursery() as nursery:
        box = Box(server, nursery, reported)
        nursery.start_soon(server.run)
        await trio.testing.wait_all_tasks_blocked()
        yield box
        await server.drain(0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    shared = server.shared
    assert not shared.links
    assert not shared.forwards
    assert shared.channels == 0
    assert shared.startups.count == 0
    assert len(box.of_type(events.LinkAccepted)) == len(box.of_type(events.LinkClosed))
    started = {(event.link_id, event.channel_id) for event in box.of_type(events.ChannelStarted)}
    ended = [(event.link_id, event.channel_id) for event in box.of_type(events.ChannelEnded)]
    assert started == set(ended)
    assert len(ended) == len(started)
