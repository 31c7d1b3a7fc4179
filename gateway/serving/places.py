"""Where a client may ask us to listen: ports (RFC 4254 §7.1), unix sockets (OpenSSH PROTOCOL §2.4).

What may be listened on, the policy says, about the place as the client wrote it. Of a port's
addresses "" is all of them, "localhost" of the loopback what the policy names; it allows no other
name, so none is ever looked up. A socket's file is made for us alone, never instead of another
file, and goes when nobody listens there any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from gateway.errors import printable
from gateway.net.listen import (
    LOOPBACK,
    Sockets,
    addresses_to_bind,
    open_listeners,
    open_unix_listener,
)
from gateway.policy.rules import Action
from gateway.policy.targets import LOCALHOST, canonical_name, path_problem
from gateway.serving.channels import Refused
from gateway.ssh import wire
from gateway.ssh.messages import (
    ForwardedStreamlocal,
    ForwardedTcpip,
    StreamlocalForward,
    TcpipForward,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.policy.rules import Verdict

    Decide = Callable[[Action, str, int], Verdict]

PRIVILEGED_PORTS: Final = 1024  # those below: what clients of this machine trust


@dataclass(frozen=True, slots=True)
class Bound(Sockets):
    """Sockets that listen, and where they do."""

    place: Place
    addresses: tuple[str, ...]
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class Place(ABC):
    """One place, as a client names it. ``decide`` asks the policy of the moment."""

    channel_type: ClassVar[str]

    @classmethod
    @abstractmethod
    def decode_untrusted(cls, specific: bytes) -> Self:
        """Read the specific fields of a request or its cancel."""

    @property
    @abstractmethod
    def name(self) -> tuple[str, int]:
        """Host and port for an event; a path has port 0."""

    @property
    @abstractmethod
    def shown(self) -> str:
        """In words, safe to print."""

    @property
    @abstractmethod
    def spot(self) -> str:
        """In words, what of it no two places share: the port or the path."""

    @abstractmethod
    def decide(self, decide: Decide) -> Verdict:
        """Say whether it may be listened on."""

    @abstractmethod
    def check(self, decide: Decide, *, wants_reply: bool) -> Verdict:
        """Return what `decide` does. Raises `Refused` for what such a rule cannot allow."""

    @abstractmethod
    def addresses(self, decide: Decide) -> tuple[str, ...]:
        """Say what would be bound."""

    @abstractmethod
    def bind(self, decide: Decide) -> Bound:
        """Bind and listen. Raises `NetworkSetupError`."""

    @abstractmethod
    def is_in_the_way(self, bound: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
        """Say whether what is bound at the same spot excludes what is wanted."""

    @abstractmethod
    def fields(self, originator: Any) -> bytes:  # noqa: ANN401 - of any family
        """Return the type-specific fields of a client's channel."""


@dataclass(frozen=True, slots=True)
class PortPlace(Place):
    """A TCP port."""

    channel_type: ClassVar[str] = ForwardedTcpip.channel_type
    host: str
    port: int

    @classmethod
    def decode_untrusted(cls, specific: bytes) -> Self:
        """See `Place`."""
        request = TcpipForward.decode_untrusted(specific)
        return cls(request.address_to_bind, request.port_to_bind)

    @property
    def name(self) -> tuple[str, int]:
        """See `Place`."""
        return self.host, self.port

    @property
    def shown(self) -> str:
        """See `Place`."""
        return f"{printable(self.host, 255) or '*'} {self.spot}"

    @property
    def spot(self) -> str:
        """See `Place`."""
        return f"port {self.port}"

    def decide(self, decide: Decide) -> Verdict:
        """Port 0 is allowed by rules for all ports only."""
        return decide(Action.LISTEN, self.host, self.port)

    def check(self, decide: Decide, *, wants_reply: bool) -> Verdict:
        """See `Place`."""
        if self.port > 65535:
            raise Refused(f"port {self.port} does not exist")
        if not self.port and not wants_reply:
            raise Refused("port 0 was asked for without a reply that could tell the port")
        verdict = self.decide(decide)
        is_privileged = 0 < self.port < PRIVILEGED_PORTS
        if verdict.allowed and is_privileged and decide(Action.LISTEN, self.host, 0) == verdict:
            raise Refused(f"denied: port {self.port} is below 1024 and needs a rule of its own")
        return verdict

    def _bound_host(self, decide: Decide) -> str:
        """Say what to bind: of the loopback the address that the policy names, if not both."""
        if canonical_name(self.host) != LOCALHOST:
            return self.host
        named = [
            address for _, address in LOOPBACK if decide(Action.LISTEN, address, self.port).allowed
        ]
        return named[0] if len(named) == 1 else LOCALHOST

    def addresses(self, decide: Decide) -> tuple[str, ...]:
        """See `Place`."""
        return tuple(address for _, address in addresses_to_bind(self._bound_host(decide)))

    def bind(self, decide: Decide) -> Bound:
        """See `Place`."""
        sockets = tuple(open_listeners(self._bound_host(decide), self.port))
        port = self.port or int(sockets[0].getsockname()[1])
        return Bound(
            sockets,
            None,
            PortPlace(self.host, port),
            tuple(str(sock.getsockname()[0]) for sock in sockets),
            b"" if self.port else wire.uint32(port),
        )

    def is_in_the_way(self, bound: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
        """See `Place`."""
        return any(_overlap(ours, theirs) for ours in wanted for theirs in bound)

    def fields(self, originator: Any) -> bytes:  # noqa: ANN401
        """See `Place`."""
        return ForwardedTcpip(self.host, self.port, originator[0], originator[1]).encode()


@dataclass(frozen=True, slots=True)
class SocketPlace(Place):
    """A unix socket."""

    channel_type: ClassVar[str] = ForwardedStreamlocal.channel_type
    path: str

    @classmethod
    def decode_untrusted(cls, specific: bytes) -> Self:
        """See `Place`."""
        return cls(StreamlocalForward.decode_untrusted(specific).socket_path)

    @property
    def name(self) -> tuple[str, int]:
        """See `Place`."""
        return self.path, 0

    @property
    def shown(self) -> str:
        """See `Place`."""
        return printable(self.path, 255)

    @property
    def spot(self) -> str:
        """See `Place`."""
        return self.shown

    def decide(self, decide: Decide) -> Verdict:
        """See `Place`."""
        return decide(Action.UNIX, self.path, 0)

    def check(self, decide: Decide, *, wants_reply: bool) -> Verdict:  # noqa: ARG002 - see `Place`
        """See `Place`."""
        if problem := path_problem(self.path):
            raise Refused(f"{self.shown} is {problem}")
        return self.decide(decide)

    def addresses(self, decide: Decide) -> tuple[str, ...]:  # noqa: ARG002
        """See `Place`."""
        return (self.path,)

    def bind(self, decide: Decide) -> Bound:  # noqa: ARG002
        """See `Place`."""
        sock, file = open_unix_listener(self.path)
        return Bound((sock,), file, self, (self.path,))

    def is_in_the_way(self, bound: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
        """See `Place`."""
        return bound == wanted

    def fields(self, originator: Any) -> bytes:  # noqa: ANN401, ARG002
        """See `Place`."""
        return ForwardedStreamlocal(self.path).encode()


def _overlap(first: str, second: str) -> bool:
    """Say whether two addresses cannot be bound to one port: equal, or one is all of a family."""
    one, two = ip_address(first), ip_address(second)
    return one.version == two.version and (one == two or one.is_unspecified or two.is_unspecified)
