"""An SSH client on a plain socket that goes as far as it is told and then says what it likes.

No task, no relay: `turns` are what it has to say until it has logged in, one after the other, so
that whoever drives it may stop, or cut, at any of them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from gateway import events
from gateway.errors import GatewayError
from gateway.ssh.algorithms import Preferences
from gateway.ssh.messages import DirectTcpip
from gateway.ssh.protocol import ClientSetup, Protocol
from gateway.ssh.transport import Phase
from gateway.ssh.userauth import ClientAuth

from .pair import take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.ssh.keys import PrivateKey

WAIT_S: Final = 30.0  # for the server, which may have much to do
RECEIVE: Final = 1 << 16
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) sends RST
CHEAP: Final = Preferences(kex=("curve25519-sha256",), ciphers=("aes128-gcm@openssh.com",))


class Ended(Exception):
    """The server has ended the connection; the text is its DISCONNECT, if there was one."""


class Stalled(Exception):
    """The server takes no more."""


@dataclass(frozen=True)
class Place:
    """A server, and who logs in to it; ``source`` is the address to come from."""

    host: str
    port: int
    user: str
    key: PrivateKey = field(repr=False)
    source: str = ""

    def connect(self) -> socket.socket:
        """Return a connection that has said nothing."""
        source = (self.source, 0) if self.source else None
        return socket.create_connection((self.host, self.port), WAIT_S, source)

    def client(self) -> RawClient:
        """Return a client that is connected and has said nothing."""
        try:
            return RawClient(self)
        except OSError as error:
            raise Ended(str(error)) from error


class RawClient:
    """One connection. Raises `Ended` when the server has closed it."""

    def __init__(self, place: Place) -> None:
        self._key = place.key
        self.sock = place.connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.protocol = Protocol(ClientSetup(place.user, (place.key.public,), CHEAP), 0.0)
        kexinit = self.protocol.transport._local_kexinit
        assert kexinit is not None
        self.kexinit = kexinit
        self.opened: list[int] = []
        """The server's numbers of the channels that it has granted."""
        self.refused: dict[int, int] = {}
        """Our numbers of those that it has refused, and why."""
        self._asked = 0

    # -- the login ---------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """What the client expects next."""
        return self.protocol.transport.phase

    def turns(self) -> Iterator[bytes]:
        """Yield what it has to say until it has logged in, each to be sent before the next.

        Version and KEXINIT, ECDH_INIT, NEWKEYS and SERVICE_REQUEST, "none", a query, a signature.
        """
        while True:
            while not (data := take(self.protocol)):
                if self.phase is Phase.CONNECTION:
                    return
                self.receive()
            yield data

    def reach(self, phase: Phase) -> None:
        """Go on with the login until the client is in a phase."""
        if self.phase is phase:
            return
        for data in self.turns():
            self.send(data)
            while not self.protocol.outbound.data_to_send() and self.phase is not phase:
                self.receive()
            if self.phase is phase:
                return
        raise AssertionError(f"the client never came to the phase {phase.value}")

    def open_session(self) -> int:
        """Open a session; return the server's number of it."""
        self.protocol.connection.open_channel("session", b"")
        self.send(take(self.protocol))
        while not self.opened:
            self.receive()
        return self.opened[-1]

    def open_tcpip(self, target: tuple[str, int]) -> int:
        """Ask for a channel to a target; return our number of it, before there is an answer."""
        specific = DirectTcpip(*target, "127.0.0.1", 1).encode()
        channel = self.protocol.connection.open_channel("direct-tcpip", specific)
        self.send(take(self.protocol))
        self._asked += 1
        return channel.channel_id

    def settle_opens(self) -> None:
        """Wait for the answers to all opens; see ``opened`` and ``refused``."""
        while len(self.opened) + len(self.refused) < self._asked:
            self.receive()

    def exchange(self, channel_id: int, data: bytes, count: int) -> bytes:
        """Send data on a channel; return so many bytes that come back on it."""
        came = bytearray()
        channel = self.protocol.connection.channels[channel_id]

        def sink(view: memoryview) -> int:
            came.extend(view)
            return len(view)

        channel.sink = sink
        assert channel.send(data) == len(data)
        self.send(take(self.protocol))
        while len(came) < count:
            self.receive()
        return bytes(came)

    def rekey(self) -> None:
        """Exchange keys once more, to the end."""
        self.protocol.transport.start_rekey(0.0)
        while self.protocol.transport.kex_is_running or self.protocol.outbound.data_to_send():
            self.send(take(self.protocol))
            if self.protocol.transport.kex_is_running:
                self.receive()

    def receive(self) -> None:
        """Receive once, waiting for it, and act on that."""
        protocol = self.protocol
        try:
            count = self.sock.recv_into(protocol.inbound.space())
            protocol.received(count, 0.0)
            protocol.inbound.idle()
        except (OSError, GatewayError) as error:
            raise Ended(str(error)) from error
        while (event := protocol.next_event()) is not None:
            self._handle(event)

    def _handle(self, event: events.Event) -> None:
        auth = self.protocol.auth
        assert isinstance(auth, ClientAuth)
        match event:
            case events.HostKeyReceived():
                self.protocol.accept_host_key()
            case events.SignatureWanted(_, data, algorithm):
                auth.provide_signature(self._key.sign(data, algorithm))
            case events.ChannelOpened(channel_id):
                self.opened.append(self.protocol.connection.channels[channel_id].remote_channel)
            case events.ChannelOpenFailed(channel_id, reason_code):
                self.refused[channel_id] = reason_code
            case events.PeerDisconnected(_, description):
                raise Ended(description)

    # -- what is said besides ----------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send all of it; nothing is read meanwhile."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Ended(str(error)) from error

    def say(self, *payloads: bytes, reads: bool = True, stalled_s: float = WAIT_S) -> None:
        """Send messages, whatever they are; what comes back meanwhile is not looked at."""
        for payload in payloads:
            self.protocol.outbound.append_transport(payload)
        self.push(take(self.protocol), reads=reads, stalled_s=stalled_s)

    def push(self, data: bytes, *, reads: bool = True, stalled_s: float = WAIT_S) -> None:
        """Send bytes, and read what comes meanwhile, or let it stand. Raises `Stalled`."""
        view = memoryview(data)
        self.sock.setblocking(False)
        try:
            while view:
                wanted = [self.sock] if reads else []
                readable, writable, _ = select.select(wanted, [self.sock], [], stalled_s)
                if not readable and not writable:
                    raise Stalled
                if readable and not self.sock.recv(RECEIVE):
                    raise Ended
                if writable:
                    view = view[self.sock.send(view) :]
        except BlockingIOError:
            self.push(bytes(view), reads=reads, stalled_s=stalled_s)
        except OSError as error:
            raise Ended(str(error)) from error
        finally:
            if self.sock.fileno() >= 0:
                self.sock.settimeout(WAIT_S)

    def drain(self, seconds: float) -> bool:
        """Read what comes until there is nothing for a while; say whether the server has closed."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(RECEIVE):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    # -- the end -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Leave without a word, as when the kernel is asked for it or the machine is gone: RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    def finish(self) -> None:
        """End the stream with FIN, and wait until the server does."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            while self.sock.recv(RECEIVE):
                pass
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
